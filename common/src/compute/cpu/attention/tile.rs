//! What is done to tiles of scores between the products: vector code for each instruction set, the same bits on all.
//!
//! Scores are in units of ln 2, so that probabilities are powers of 2. Rows are queries, columns 32 keys.

use pulp::{Simd, WithSimd};

use super::Attention;
use crate::compute::cpu::product::{COLUMNS, Kernel};
use crate::compute::cpu::simd::{ARCH, simd};
use crate::quant::lanes::{LANES, join};

/// Below this 2^x counts as nothing. It is the x at which the exponent of the result becomes 0.
const LOWEST: f32 = -127.0;

/// 2^x within 1 ulp for x < 127; 0 for x ≤ -127, less than the smallest normal number below -126.
///
/// x = n + r with |r| ≤ 1/2; 2^r = 1 + r·q(r), where q is the polynomial of degree 5 with the least largest relative
/// error (2e-9, fitted with Lawson's algorithm); n is added to the exponent.
#[inline(always)]
fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const ROUND: f32 = 12_582_912.0; // 1.5·2^23: adding it rounds to an integer, left in the low bits
    const Q: [f32; 6] = [0.000_153_533_62, 0.001_339_887_4, 0.009_618_437, 0.055_503_324, 0.240_226_48, 0.693_147_2];
    let round = simd.splat_f32s(ROUND);
    let x = simd.max_f32s(simd.splat_f32s(LOWEST), x);
    let rounded = simd.add_f32s(x, round);
    let r = simd.sub_f32s(x, simd.sub_f32s(rounded, round));
    let mut e = simd.splat_f32s(Q[0]);
    for q in &Q[1..] {
        e = simd.mul_add_f32s(e, r, simd.splat_f32s(*q));
    }
    let e = simd.mul_add_f32s(e, r, simd.splat_f32s(1.0));
    let n = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(e), n))
}

/// 2^x of each.
pub fn powers_of_2(x: &mut [f32]) {
    struct Powers<'a>(&'a mut [f32]);
    impl WithSimd for Powers<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (body, rest) = S::as_mut_simd_f32s(self.0);
            for x in body {
                *x = exp2(simd, *x);
            }
            let last = exp2(simd, simd.partial_load_f32s(rest));
            simd.partial_store_f32s(rest, last);
        }
    }
    ARCH.dispatch(Powers(x));
}

/// ln of a positive normal number, within 1e-7 (1 + |ln x|).
///
/// x = 2^n·m with m between √½ and √2; ln m = 2·artanh((m - 1)/(m + 1)), whose series is cut where it falls below 3e-9.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let from_root = x.to_bits().wrapping_sub(SQRT_HALF);
    let n = (from_root as i32) >> 23;
    let m = f32::from_bits((from_root & 0x007f_ffff).wrapping_add(SQRT_HALF));
    let t = (m - 1.0) / (m + 1.0);
    let s = t * t;
    let series = (2.0f32 / 9.0).mul_add(s, 2.0 / 7.0).mul_add(s, 2.0 / 5.0).mul_add(s, 2.0 / 3.0);
    let tail = series.mul_add(s * t, 2.0 * t);
    (n as f32).mul_add(std::f32::consts::LN_2, tail)
}

// Loops, not the adapters of arrays and iterators: what is not inlined is compiled for the baseline.

/// -∞ where a query does not see a key; row 0 is query `first`.
pub fn mask(scores: &mut [f32], shape: &Attention, first: usize, tile: usize) {
    let columns = |position: usize| position.saturating_sub(tile * COLUMNS).min(COLUMNS) as u32;
    simd(
        #[inline(always)]
        || {
            for (i, row) in scores.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
                let visible = shape.visible(first + i);
                let (from, to) = (columns(visible.start), columns(visible.end));
                for (j, x) in row.iter_mut().enumerate() {
                    let hidden = (j as u32) < from || j as u32 >= to;
                    *x = if hidden { f32::NEG_INFINITY } else { *x };
                }
            }
        },
    );
}

/// The largest number of each row.
pub fn row_maxima(tile: &[f32], maxima: &mut [f32]) {
    struct Maxima<'a>(&'a [f32], &'a mut [f32]);
    impl WithSimd for Maxima<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for (row, max) in self.0.as_chunks::<COLUMNS>().0.iter().zip(self.1) {
                let mut all = simd.splat_f32s(f32::NEG_INFINITY);
                for x in S::as_simd_f32s(row).0 {
                    all = simd.max_f32s(all, *x);
                }
                *max = simd.reduce_max_f32s(all);
            }
        }
    }
    ARCH.dispatch(Maxima(tile, maxima));
}

/// The sum of each row of lanes.
pub fn row_sums(lanes: &[[f32; LANES]], sums: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for (lanes, sum) in lanes.iter().zip(sums) {
                *sum = join(*lanes);
            }
        },
    );
}

/// 2^(scale·score - reference) of a tile, as an operand, and added to lanes of sums. Gives the largest exponent.
pub struct Probabilities<'a, K: Kernel> {
    pub scores: &'a [f32],
    pub scale: f32,
    /// Of each row.
    pub reference: &'a [f32],
    pub sums_before: &'a [[f32; LANES]],
    pub sums: &'a mut [[f32; LANES]],
    pub p: &'a mut [K::Packed],
}

impl<K: Kernel> Probabilities<'_, K> {
    pub fn run(self) -> f32 {
        ARCH.dispatch(self)
    }

    #[inline(always)]
    fn rows<S: Simd, const V: usize>(self, simd: S) -> f32 {
        let scale = simd.splat_f32s(self.scale);
        let mut largest = [simd.splat_f32s(f32::NEG_INFINITY); V];
        let (p, reference) = (&mut self.p[..K::ROWS * COLUMNS], &self.reference[..K::ROWS]);
        let (before, sums) = (&self.sums_before[..K::ROWS], &mut self.sums[..K::ROWS]);
        for (i, scores) in self.scores.as_chunks::<COLUMNS>().0[..K::ROWS].iter().enumerate() {
            let reference = simd.splat_f32s(-reference[i]);
            let mut e = [scale; V];
            for (v, s) in S::as_simd_f32s(scores).0.iter().enumerate() {
                let exponent = simd.mul_add_f32s(*s, scale, reference);
                largest[v] = simd.max_f32s(largest[v], exponent);
                e[v] = exp2(simd, exponent);
            }
            let (before, sums) = (S::as_simd_f32s(&before[i]).0, S::as_mut_simd_f32s(&mut sums[i]).0);
            for v in 0..V / 2 {
                sums[v] = simd.add_f32s(before[v], simd.add_f32s(e[v], e[v + V / 2]));
            }
            K::put_line(simd, e, i, p);
        }
        for v in 1..V {
            largest[0] = simd.max_f32s(largest[0], largest[v]);
        }
        simd.reduce_max_f32s(largest[0])
    }
}

impl<K: Kernel> WithSimd for Probabilities<'_, K> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        match S::F32_LANES {
            16 => self.rows::<S, 2>(simd),
            8 => self.rows::<S, 4>(simd),
            4 => self.rows::<S, 8>(simd),
            _ => self.rows::<S, 32>(simd),
        }
    }
}

/// P = 2^(scale·S - reference) and dS = P∘(dP - D) of a tile, as operands.
pub struct ScoreGradients<'a, K: Kernel> {
    pub scores: &'a [f32],
    pub dp: &'a [f32],
    pub scale: f32,
    /// Of each row.
    pub reference: &'a [f32],
    pub d: &'a [f32],
    pub p_columns: &'a mut [K::Packed],
    pub ds_columns: &'a mut [K::Packed],
    pub ds_lines: &'a mut [K::Packed],
}

impl<K: Kernel> ScoreGradients<'_, K> {
    pub fn run(self) {
        ARCH.dispatch(self)
    }

    #[inline(always)]
    fn rows<S: Simd, const V: usize>(self, simd: S) {
        let scale = simd.splat_f32s(self.scale);
        let tile = K::ROWS * COLUMNS;
        let (scores, dp) = (self.scores.as_chunks::<COLUMNS>().0, self.dp.as_chunks::<COLUMNS>().0);
        let (scores, dp) = (&scores[..K::ROWS], &dp[..K::ROWS]);
        let (reference, d) = (&self.reference[..K::ROWS], &self.d[..K::ROWS]);
        let (p_columns, ds_columns) = (&mut self.p_columns[..tile], &mut self.ds_columns[..tile]);
        let ds_lines = &mut self.ds_lines[..tile];
        for pair in 0..K::ROWS / 2 {
            let (mut p, mut ds) = ([[scale; V]; 2], [[scale; V]; 2]);
            for which in 0..2 {
                let i = 2 * pair + which;
                let (reference, d) = (simd.splat_f32s(-reference[i]), simd.splat_f32s(d[i]));
                let (scores, dp) = (S::as_simd_f32s(&scores[i]).0, S::as_simd_f32s(&dp[i]).0);
                for v in 0..V {
                    let e = exp2(simd, simd.mul_add_f32s(scores[v], scale, reference));
                    p[which][v] = e;
                    ds[which][v] = simd.mul_f32s(e, simd.sub_f32s(dp[v], d));
                }
                K::put_line(simd, ds[which], i, ds_lines);
            }
            K::put_pair(simd, p, pair, p_columns);
            K::put_pair(simd, ds, pair, ds_columns);
        }
    }
}

impl<K: Kernel> WithSimd for ScoreGradients<'_, K> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.rows::<S, 2>(simd),
            8 => self.rows::<S, 4>(simd),
            4 => self.rows::<S, 8>(simd),
            _ => self.rows::<S, 32>(simd),
        }
    }
}
