//! What is done to tiles of scores between the products: vector code for each instruction set, the same bits on all.
//!
//! Scores are in units of ln 2, so that probabilities are powers of 2. Rows are queries, columns 32 keys.

use std::f32::consts::LN_2;

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
    const Q: [f32; 6] = [0.000_153_533_62, 0.001_339_887_4, 0.009_618_437, 0.055_503_324, 0.240_226_48, LN_2];
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
    (n as f32).mul_add(LN_2, tail)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::product::Fma;
    use crate::compute::cpu::testing::random;

    #[test]
    fn powers_are_within_one_ulp() {
        let mut worst = 0.0f64;
        for from in (-126_000_000..9_000_000).step_by(16 * 37) {
            let mut x: [f32; 19] = std::array::from_fn(|i| (from + 37 * i as i32) as f32 * 1e-6);
            let exact = x.map(|x| f64::from(x).exp2());
            powers_of_2(&mut x);
            for (got, exact) in x.iter().zip(exact) {
                let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
                worst = worst.max((f64::from(*got) - exact).abs() / ulp);
            }
        }
        assert!(worst <= 1.0, "{worst} ulp");
        let mut ends = [0.0, -0.0, -127.0, -1e30, f32::NEG_INFINITY, f32::MIN];
        powers_of_2(&mut ends);
        assert_eq!(ends.map(f32::to_bits), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0f32].map(f32::to_bits));
    }

    #[test]
    fn logarithms() {
        let mut x = f32::MIN_POSITIVE;
        while x < 1e38 {
            let exact = f64::from(x).ln();
            assert!((f64::from(ln(x)) - exact).abs() <= 1e-7 * (1.0 + exact.abs()), "ln {x}: {}, {exact}", ln(x));
            x *= 1.000_37;
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn rows_of_a_tile() {
        let tile = random(1, 12 * COLUMNS);
        let (mut maxima, mut sums) = ([0.0; 12], [0.0; 12]);
        row_maxima(&tile, &mut maxima);
        for (row, max) in tile.chunks_exact(COLUMNS).zip(maxima) {
            assert_eq!(max, row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
        row_sums(&[[1.5; LANES]; 12], &mut sums);
        assert_eq!(sums, [24.0; 12]);
    }

    #[test]
    fn masks_what_is_not_seen() {
        let shape = Attention { segments: &[], heads: 1, kv_heads: 1, head_dim: 1, window: Some(5) };
        let mut tile = [1.0; 12 * COLUMNS];
        mask(&mut tile, &shape, 30, 1);
        for (i, x) in tile.iter().enumerate() {
            let (query, key) = (30 + i / COLUMNS, COLUMNS + i % COLUMNS);
            assert_eq!(*x == 1.0, key <= query && query < key + 5, "{query} {key}");
        }
    }

    /// Both passes over a tile, on one instruction set.
    #[cfg(target_arch = "x86_64")]
    fn on<S: Simd>(simd: Option<S>) -> Option<Vec<u32>> {
        let simd = simd?;
        let (scores, dp) = (random(1, 12 * COLUMNS), random(2, 12 * COLUMNS));
        let (reference, d) = (random(3, 12), random(4, 12));
        let mut sums = [[0.0; LANES]; 12];
        let [mut p, mut p_columns, mut ds_columns, mut ds_lines] = [const { [0f32; 12 * COLUMNS] }; 4];
        let largest = simd.vectorize(Probabilities::<Fma> {
            scores: &scores,
            scale: 0.7,
            reference: &reference,
            sums_before: &[[0.5; LANES]; 12],
            sums: &mut sums,
            p: &mut p,
        });
        simd.vectorize(ScoreGradients::<Fma> {
            scores: &scores,
            dp: &dp,
            scale: 0.7,
            reference: &reference,
            d: &d,
            p_columns: &mut p_columns,
            ds_columns: &mut ds_columns,
            ds_lines: &mut ds_lines,
        });
        let all = [&p[..], &p_columns, &ds_columns, &ds_lines, sums.as_flattened(), &[largest]].concat();
        Some(all.into_iter().map(f32::to_bits).collect())
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let baseline = on(Some(pulp::Scalar));
        for other in [on(pulp::x86::V3::try_new()), on(pulp::x86::V4::try_new())] {
            assert!(other.is_none() || other == baseline);
        }
    }
}
