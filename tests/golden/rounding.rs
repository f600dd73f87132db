//! The one statement of the grid, Z = fma(α/r, AB, Φ0) then round half to even, at every tie of every φ and width:
//! compiled plainly and for this machine's instruction set, against integer arithmetic.

use common::compute::cpu::simd::simd;
use common::quant::{Factors, Phi, RealWeight, Rounding, Scheme, Symmetry, grid};

/// Elements of a row: what is blocked in registers, and a rest.
const K: usize = 64 + 13;
const RANK: usize = 4;

#[test]
fn every_tie_rounds_to_even_in_and_out_of_simd() {
    for bits in 2..=8 {
        for stored in [Phi::Q, Phi::Int, Phi::Bf16, Phi::F32] {
            let scheme = Scheme { bits, group: None, symmetry: Symmetry::Symmetric };
            let (from, to) = (2 * scheme.qmin() as i32 - 4, 2 * scheme.qmax() as i32 + 4);
            // Z in sixteenths around every half integer, and beyond both ends of the grid.
            let reals: Vec<i32> = (from * 8..=to * 8).collect();
            for row in reals.chunks(K) {
                check_row(scheme, stored, row);
            }
        }
    }
}

/// Rows whose Z are `sixteenths` and their nearest neighbours, each made of Φ0 as stored and of AB for the rest.
fn check_row(scheme: Scheme, stored: Phi, sixteenths: &[i32]) {
    let mut x = [0f32; K];
    for (x, z) in x.iter_mut().zip(sixteenths) {
        *x = *z as f32 / 16.0;
    }
    let mut packed = vec![0; stored.row_bytes(scheme, K)];
    stored.pack_row(scheme, &x, &mut packed);
    let mut phi = [0f32; K];
    stored.unpack_row(scheme, &packed, &mut phi);
    // Rows 0 to 2: AB/r is what is missing to Z, less or more by a bit of 2^-12; row 3: AB = 0. Sums of few bits:
    // exact in f32, in any order.
    let nudges = [0, -1, 1];
    let mut a = [0f32; grid::ROWS * RANK];
    for (n, nudge) in nudges.iter().enumerate() {
        a[n * RANK..][..RANK].copy_from_slice(&[1.0, 0.5, 2.0, *nudge as f32]);
    }
    let mut b = [0f32; RANK * K];
    for col in 0..K {
        let missing = (x[col] - phi[col]) * RANK as f32;
        (b[col], b[K + col], b[2 * K + col]) = (missing * 0.5, missing * 0.5, missing * 0.125);
        b[3 * K + col] = RANK as f32 / 4096.0;
    }
    let (mut z, mut integers) = ([0f32; grid::ROWS * K], [0f32; grid::ROWS * K]);
    round_rows(scheme, stored, &packed, &a, &b, &mut z, &mut integers);
    let (mut z_simd, mut integers_simd) = ([0f32; grid::ROWS * K], [0f32; grid::ROWS * K]);
    simd(
        #[inline(always)]
        || round_rows(scheme, stored, &packed, &a, &b, &mut z_simd, &mut integers_simd),
    );
    assert_eq!(z.map(f32::to_bits), z_simd.map(f32::to_bits), "{scheme} {stored}");
    assert_eq!(integers.map(f32::to_bits), integers_simd.map(f32::to_bits), "{scheme} {stored}");
    for (n, nudge) in nudges.iter().enumerate() {
        for (col, sixteenth) in sixteenths.iter().enumerate() {
            let exact = sixteenth * 256 + nudge; // Z in units of 2^-12
            let expected = round_half_to_even(exact, 4096).clamp(scheme.qmin() as i32, scheme.qmax() as i32);
            assert_eq!(integers[n * K + col], expected as f32, "{scheme} {stored} Z = {exact}/4096");
        }
    }
    assert_eq!(z[3 * K..], phi, "{scheme} {stored}");
}

/// Z and W_Z of rows with the same packed Φ0.
#[inline(always)]
fn round_rows(
    scheme: Scheme,
    stored: Phi,
    packed: &[u8],
    a: &[f32],
    b: &[f32],
    z: &mut [f32; grid::ROWS * K],
    integers: &mut [f32; grid::ROWS * K],
) {
    let phi = &packed.repeat(grid::ROWS);
    let factor = 1.0 / RANK as f32;
    let real = RealWeight::new(Factors { scheme, phi, stored, a, b, rank: RANK, factor, k: K });
    for from in (0..K).step_by(grid::COLUMNS) {
        let columns = from..K.min(from + grid::COLUMNS);
        let block = real.block(0..grid::ROWS, columns.clone());
        for (z, block) in z.chunks_exact_mut(K).zip(&block) {
            z[columns.clone()].copy_from_slice(&block[..columns.len()]);
        }
    }
    for (integer, z) in integers.iter_mut().zip(z) {
        *integer = grid::code(*z, scheme.qmin(), scheme.qmax());
    }
    let mut codes = [0; grid::ROWS * K];
    Rounding::new(real.of).rows(0, &mut codes);
    assert_eq!(codes.map(|code| f32::from(code) + scheme.qmin()), *integers, "{scheme} {stored}");
}

/// numerator / denominator in integers.
fn round_half_to_even(numerator: i32, denominator: i32) -> i32 {
    let (floor, rest) = (numerator.div_euclid(denominator), numerator.rem_euclid(denominator));
    match (2 * rest).cmp(&denominator) {
        std::cmp::Ordering::Less => floor,
        std::cmp::Ordering::Greater => floor + 1,
        std::cmp::Ordering::Equal => floor + (floor & 1),
    }
}
