//! THE rounding rule, stated once: Z = Φ0 + (α/r)·A·B to the bit, W_Z = clip(round(Z)), Ŵ = s·(W_Z − z), and the
//! scale that the forward pass uses. Training, folding and evaluating all call these.
//!
//! Source: LR-QAT (Bondarenko et al. 2024), equation 8; scales as design: exact in bf16 and f16.

use std::array;

use half::bf16;
use pulp::Simd;

/// The smallest scale: exact in f16 (subnormal with 8 significant bits) and in bf16.
pub const MIN_SCALE: f32 = 1.0 / 131072.0; // 2^-17

/// The scale of the forward pass: the f32 master, at least [`MIN_SCALE`], rounded to bf16 (half to even).
#[inline(always)]
pub fn forward_scale(master: f32) -> f32 {
    bf16::from_f32(master.max(MIN_SCALE)).to_f32()
}

/// round half to even, the only rounding of the project. The code before clipping.
#[inline(always)]
pub fn round(z: f32) -> f32 {
    z.round_ties_even()
}

/// The integer of the grid: round, then clip.
#[inline(always)]
pub fn code(z: f32, qmin: f32, qmax: f32) -> f32 {
    clip(round(z), qmin, qmax)
}

/// Clips. What is no number stays so. (f32::clamp checks its bounds for every element, and a loop over it is not
/// vectorized.)
#[inline(always)]
#[allow(clippy::manual_clamp)]
fn clip(z: f32, low: f32, high: f32) -> f32 {
    let z = if z < low { low } else { z };
    if z > high { high } else { z }
}

/// Added to a number from −2^22 to 2^22, it rounds it half to even and leaves it in the low bits.
const WHOLE: f32 = 12_582_912.0; // 1.5·2^23

/// round(Z) kept in a byte, for up to 7 bits: a step beyond the grid says that it is clipped, and on which side.
#[inline(always)]
pub fn kept(z: f32, qmin: f32, qmax: f32) -> i8 {
    // Clipped to whole numbers first, rounded then: the same number.
    (clip(z, qmin - 1.0, qmax + 1.0) + WHOLE).to_bits() as i8
}

/// Ŵ for one weight.
#[inline(always)]
pub fn dequantize(code: f32, zero_point: f32, scale: f32) -> f32 {
    scale * (code - zero_point)
}

/// W_Z − qmin, the unsigned code of a real-valued Z. Written without a conversion that saturates, which compilers do
/// not vectorize to bytes.
#[inline(always)]
pub fn unsigned_code(z: f32, qmin: f32, qmax: f32) -> u8 {
    // As in [`kept`]; qmin is even, so that ties stay ties to even.
    (clip(z, qmin, qmax) + (WHOLE - qmin)).to_bits() as u8
}

/// Columns that a block of sums has.
pub const COLUMNS: usize = 32;
/// Rows that share one pass over B.
pub const ROWS: usize = 4;

/// B [r, K] in panels of [`COLUMNS`] columns, each [r, COLUMNS], the last filled up with zeros. As it lies, the rows
/// of B that a block of sums reads are K numbers apart, which for most models maps them all to a few sets of the cache.
pub struct Panels {
    rank: usize,
    rows: Vec<PanelRow>,
}

/// In whole cache lines.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct PanelRow([f32; COLUMNS]);

impl Panels {
    pub fn new(b: &[f32], rank: usize) -> Panels {
        let k = b.len() / rank;
        let mut rows = vec![PanelRow([0.0; COLUMNS]); k.div_ceil(COLUMNS) * rank];
        for (p, panel) in rows.chunks_exact_mut(rank).enumerate() {
            let columns = COLUMNS.min(k - p * COLUMNS);
            for (PanelRow(row), b) in panel.iter_mut().zip(b.chunks_exact(k)) {
                row[..columns].copy_from_slice(&b[p * COLUMNS..][..columns]);
            }
        }
        Panels { rank, rows }
    }

    /// Z of one block in place, [`ROWS`] rows and the columns of panel `p`: `z` holds Φ0 and becomes fma(α/r, C, Φ0), where
    /// C = 0 and, for i ascending, C = fma(A[n,i], B[i,k], C), all in f32. `a` [ROWS, r].
    ///
    /// Written so that the compiler keeps the sums and a row of B in vector registers, columns before rows: the other way
    /// round it reads B from memory for every product. Every element still sees exactly the sequence of operations above,
    /// so the result does not depend on the blocking or the instruction set.
    #[inline(always)]
    pub fn add(&self, p: usize, a: &[f32], factor: f32, z: &mut [[f32; COLUMNS]; ROWS]) {
        let rank = self.rank;
        let mut c = [[0f32; COLUMNS]; ROWS];
        let a: [&[f32]; ROWS] = array::from_fn(|n| &a[n * rank..][..rank]);
        for (i, PanelRow(b)) in self.rows[p * rank..(p + 1) * rank].iter().enumerate() {
            let a = a.map(|a| a[i]);
            for j in 0..COLUMNS {
                for n in 0..ROWS {
                    c[n][j] = a[n].mul_add(b[j], c[n][j]);
                }
            }
        }
        for (z, c) in z.iter_mut().zip(&c) {
            for j in 0..COLUMNS {
                z[j] = factor.mul_add(c[j], z[j]);
            }
        }
    }

    /// C of [`Panels::add`], of the same operations in the same order, for N rows and panel `p`, to the columns of `c` from
    /// `at` on: in registers that are named, since compilers do not find as many, nor the best use of fewer. `a` [r, N].
    #[inline(always)]
    pub fn sums<S: Simd, const N: usize, const WIDTH: usize>(
        &self,
        simd: S,
        p: usize,
        a: &[[f32; N]],
        c: &mut [[f32; WIDTH]; N],
        at: usize,
    ) {
        const VECTORS: usize = 2;
        let width = VECTORS * S::F32_LANES;
        let panel = &self.rows[p * self.rank..(p + 1) * self.rank];
        for from in (0..COLUMNS).step_by(width) {
            let mut sums = [[simd.splat_f32s(0.0); VECTORS]; N];
            for (a, PanelRow(b)) in a.iter().zip(panel) {
                let b = S::as_simd_f32s(&b[from..from + width]).0;
                for n in 0..N {
                    let a = simd.splat_f32s(a[n]);
                    for v in 0..VECTORS {
                        sums[n][v] = simd.mul_add_f32s(a, b[v], sums[n][v]);
                    }
                }
            }
            for (c, sums) in c.iter_mut().zip(&sums) {
                S::as_mut_simd_f32s(&mut c[at + from..at + from + width]).0.copy_from_slice(sums);
            }
        }
    }
}

/// Gradients of one weight through the grid, from G = dL/dŴ and round(Z), clipped or not: (dL/dZ, its part of dL/ds).
///
/// ds = Σ G·(W_Z − z); dZ = G·s·1[qmin ≤ round(Z) ≤ qmax]. No LSQ term, since Φ0 uses the frozen s0.
#[inline(always)]
pub fn backward(dw: f32, rounded: f32, zero_point: f32, scale: f32, qmin: f32, qmax: f32) -> (f32, f32) {
    let code = code(rounded, qmin, qmax);
    (if rounded == code { dw * scale } else { 0.0 }, dw * (code - zero_point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_half_to_even_at_every_tie() {
        for i in -256..256 {
            let even = if i % 2 == 0 { i } else { i + 1 };
            assert_eq!(code(i as f32 + 0.5, -128.0, 127.0), (even as f32).clamp(-128.0, 127.0), "{i}.5");
        }
    }

    /// In a byte it is the same integer: at ties, beside them, and far from any grid.
    #[test]
    fn bytes_hold_the_integer() {
        let ties = (-600..=600).map(|i| i as f32 / 2.0);
        let far = [1e9, 1e30, f32::INFINITY].into_iter().flat_map(|z| [z, -z]);
        for z in ties.flat_map(|z| [z.next_down(), z, z.next_up()]).chain(far) {
            for bits in 2..=8u32 {
                let (qmin, qmax) = (-f32::from(1u8 << (bits - 1)), f32::from((1u8 << (bits - 1)) - 1));
                let want = code(z, qmin, qmax);
                assert_eq!(f32::from(unsigned_code(z, qmin, qmax)) + qmin, want, "{z} in {bits} bits");
                let beyond = code(z, qmin - 1.0, qmax + 1.0);
                assert!(bits == 8 || f32::from(kept(z, qmin, qmax)) == beyond, "{z} in {bits} bits");
            }
        }
    }

    #[test]
    fn forward_scales_are_exact_in_bf16_and_f16() {
        for i in 0..100_000u32 {
            let s = forward_scale(1e-9 * 1.0005f32.powi(i as i32 / 2));
            if s > 60000.0 {
                break;
            }
            assert!(s >= MIN_SCALE);
            assert_eq!(half::f16::from_f32(s).to_f32(), s);
            assert_eq!(bf16::from_f32(s).to_f32(), s);
        }
    }

    #[test]
    fn lowrank_blocks_agree_with_the_definition() {
        let (rank, k) = (5, 150);
        let val = |i: usize| ((i * 2654435761) % 1000) as f32 / 500.0 - 1.0;
        let b: Vec<f32> = (0..rank * k).map(val).collect();
        let panels = Panels::new(&b, rank);
        let a: Vec<f32> = (0..ROWS * rank).map(|i| val(i + 77)).collect();
        let phi: Vec<f32> = (0..ROWS * k).map(|i| val(i + 13)).collect();
        for from in (0..k).step_by(COLUMNS) {
            let mut z = [[0.0; COLUMNS]; ROWS];
            let columns = COLUMNS.min(k - from);
            for (n, z) in z.iter_mut().enumerate() {
                z[..columns].copy_from_slice(&phi[n * k + from..][..columns]);
            }
            panels.add(from / COLUMNS, &a, 0.2, &mut z);
            for (n, z) in z.iter().enumerate() {
                for (j, z) in z[..columns].iter().enumerate() {
                    let col = from + j;
                    let c = (0..rank).fold(0f32, |c, i| a[n * rank + i].mul_add(b[i * k + col], c));
                    assert_eq!(z.to_bits(), 0.2f32.mul_add(c, phi[n * k + col]).to_bits());
                }
            }
        }
    }
}
