//! The L^p search of LR-QAT's post-training initialisation: 100 thresholds amax·i/100, of an asymmetric grid each with
//! some zero points around its own; the first smallest Σ|w − Q(w)|^p wins.
//!
//! Bound by arithmetic. In units of the scale, t = |w|/s lies |max(t − round(t), t − L)| from the grid, where L is the
//! grid's end on the side of w: six operations of AVX-512 a weight and candidate, with p = 3. [`LANES`] candidates lie
//! side by side in a register, so that nothing is summed across one; a block of them is left as soon as all its sums
//! are beyond the least so far, which changes no result, since no summand is negative.

use super::lanes::{self, ARCH, LANES};
use super::{Scheme, fit::Grid, grid};

/// Thresholds of the search.
const THRESHOLDS: usize = 100;
/// Asymmetric search: at most this many steps of the zero point to either side.
const MAX_SKEW: i32 = 4;
/// Weights that are summed up in f32; the sums of parts are added in f64.
const PART: usize = 64;

/// The search, with room that serves group after group.
pub struct Search {
    scheme: Scheme,
    p: f32,
    /// The candidates, by threshold and then by zero point: the fraction of the threshold, and the steps that the zero
    /// point is moved. Before them the first stands again, so that they fill whole blocks.
    fractions: Vec<f32>,
    skews: Vec<f32>,
    /// |w| of the weights above zero, and of those below.
    above: Vec<f32>,
    below: Vec<f32>,
    /// The block that held the best of the group before: the one to beat.
    first: usize,
}

/// Candidates side by side.
struct Block {
    inverse: [f32; LANES],
    /// The grid's ends above and below zero, in steps.
    ends: [[f32; LANES]; 2],
    /// s^p
    unit: [f64; LANES],
}

/// What the candidates of a group have in common.
#[derive(Clone, Copy)]
struct Span {
    min: f32,
    max: f32,
}

impl Search {
    pub fn new(scheme: Scheme, p: f32) -> Search {
        let skew = if scheme.asymmetric { ((1i32 << scheme.bits) / 4).min(MAX_SKEW) } else { 0 };
        let candidates = (1..=THRESHOLDS).flat_map(|i| (-skew..=skew).map(move |k| (i, k)));
        let all = THRESHOLDS * (2 * skew + 1) as usize;
        let filled = std::iter::repeat_n((1, -skew), all.next_multiple_of(LANES) - all).chain(candidates);
        let fraction = |i| (i as f64 / THRESHOLDS as f64) as f32;
        let (fractions, skews) = filled.map(|(i, k)| (fraction(i), k as f32)).unzip();
        Search { scheme, p, fractions, skews, above: Vec::new(), below: Vec::new(), first: usize::MAX }
    }

    /// The best grid of a group that is not all zeros.
    pub fn best(&mut self, w: &[f32], min: f32, max: f32) -> Grid {
        let span = Span { min, max };
        match self.p {
            2.0 => self.dispatch(w, span, Square),
            3.0 => self.dispatch(w, span, Cube),
            p => self.dispatch(w, span, Power(p)),
        }
    }

    #[inline(always)]
    fn dispatch(&mut self, w: &[f32], span: Span, norm: impl Norm) -> Grid {
        #[cfg(target_arch = "x86_64")]
        if let pulp::Arch::V4(simd) = *ARCH {
            return simd.vectorize(
                #[inline(always)]
                || self.search(w, span, norm, |w, inverse, end| avx512::sums(simd, w, inverse, end, norm)),
            );
        }
        lanes::simd(
            #[inline(always)]
            || self.search(w, span, norm, |w, inverse, end| sums(w, inverse, end, norm)),
        )
    }

    #[inline(always)]
    fn search(
        &mut self,
        w: &[f32],
        span: Span,
        norm: impl Norm,
        sums: impl Fn(&[f32], &[f32; LANES], &[f32; LANES]) -> [f32; LANES],
    ) -> Grid {
        self.split(w);
        let blocks = self.fractions.len() / LANES;
        let first = self.first.min(blocks - 1);
        let (mut least, mut chosen) = (f64::INFINITY, 0);
        for b in [first].into_iter().chain((0..blocks).rev().filter(|b| *b != first)) {
            let Some(errors) = self.errors(&self.block(b, span, norm), least, &sums) else { continue };
            for (lane, e) in errors.into_iter().enumerate() {
                let c = b * LANES + lane;
                if e < least || (e == least && c < chosen) {
                    (least, chosen, self.first) = (e, c, b);
                }
            }
        }
        if self.scheme.asymmetric { self.asymmetric(chosen, span) } else { self.symmetric(chosen, span) }
    }

    /// The error of each candidate, or none if all of them are beyond `least`.
    #[inline(always)]
    fn errors(
        &self,
        block: &Block,
        least: f64,
        sums: impl Fn(&[f32], &[f32; LANES], &[f32; LANES]) -> [f32; LANES],
    ) -> Option<[f64; LANES]> {
        let mut errors = [0.0; LANES];
        for (weights, end) in [&self.above, &self.below].into_iter().zip(&block.ends) {
            for part in weights.chunks(PART) {
                let sums = sums(part, &block.inverse, end);
                let mut within = false;
                for lane in 0..LANES {
                    errors[lane] += f64::from(sums[lane]) * block.unit[lane];
                    within |= errors[lane] <= least;
                }
                if !within {
                    return None;
                }
            }
        }
        Some(errors)
    }

    /// Weights by their sign, without a branch that half of them would mispredict.
    #[inline(always)]
    fn split(&mut self, w: &[f32]) {
        self.above.resize(w.len(), 0.0);
        self.below.resize(w.len(), 0.0);
        let (to_above, to_below) = (&mut self.above[..w.len()], &mut self.below[..w.len()]);
        let (mut above, mut below) = (0, 0);
        for w in w {
            (to_above[above], to_below[below]) = (w.abs(), w.abs());
            above += usize::from(*w >= 0.0);
            below += usize::from(*w < 0.0);
        }
        self.above.truncate(above);
        self.below.truncate(below);
    }

    #[inline(always)]
    fn block(&self, block: usize, span: Span, norm: impl Norm) -> Block {
        let (qmin, qmax) = (self.scheme.qmin(), self.scheme.qmax());
        let mut grids = [Grid { scale: 0.0, zero_point: 0.0 }; LANES];
        if self.scheme.asymmetric {
            for (lane, grid) in grids.iter_mut().enumerate() {
                *grid = self.asymmetric(block * LANES + lane, span);
            }
        } else {
            for (lane, grid) in grids.iter_mut().enumerate() {
                *grid = self.symmetric(block * LANES + lane, span);
            }
        }
        Block {
            inverse: grids.map(|g| 1.0 / g.scale),
            ends: [grids.map(|g| qmax - g.zero_point), grids.map(|g| g.zero_point - qmin)],
            unit: grids.map(|g| norm.unit(f64::from(g.scale))),
        }
    }

    #[inline(always)]
    fn symmetric(&self, candidate: usize, Span { min, max }: Span) -> Grid {
        Grid::symmetric(max.max(-min), self.fractions[candidate], self.scheme)
    }

    #[inline(always)]
    fn asymmetric(&self, candidate: usize, Span { min, max }: Span) -> Grid {
        Grid::asymmetric(min, max, self.fractions[candidate], self.skews[candidate], self.scheme)
    }
}

/// A distance in units of the scale, to the p.
trait Norm: Copy {
    /// sum + d^p
    fn add(self, d: f32, sum: f32) -> f32;
    /// s^p
    fn unit(self, s: f64) -> f64;
}

#[derive(Clone, Copy)]
struct Square;
#[derive(Clone, Copy)]
struct Cube;
#[derive(Clone, Copy)]
struct Power(f32);

impl Norm for Square {
    #[inline(always)]
    fn add(self, d: f32, sum: f32) -> f32 {
        d.mul_add(d, sum)
    }

    #[inline(always)]
    fn unit(self, s: f64) -> f64 {
        s * s
    }
}

impl Norm for Cube {
    #[inline(always)]
    fn add(self, d: f32, sum: f32) -> f32 {
        (d * d).mul_add(d, sum)
    }

    #[inline(always)]
    fn unit(self, s: f64) -> f64 {
        s * s * s
    }
}

impl Norm for Power {
    #[inline(always)]
    fn add(self, d: f32, sum: f32) -> f32 {
        sum + d.powf(self.0)
    }

    #[inline(always)]
    fn unit(self, s: f64) -> f64 {
        s.powf(f64::from(self.0))
    }
}

/// Sums that a candidate has, so that additions need not wait for one another.
const CHAINS: usize = 4;

/// Σ|t − Q(t)|^p of `weights` ≥ 0 for every candidate.
#[inline(always)]
fn sums(weights: &[f32], inverse: &[f32; LANES], end: &[f32; LANES], norm: impl Norm) -> [f32; LANES] {
    let mut sums = [[0f32; LANES]; CHAINS];
    let add = |sum: &mut [f32; LANES], w: f32| {
        for lane in 0..LANES {
            let t = w * inverse[lane];
            let (inside, outside) = (t - grid::round(t), t - end[lane]);
            let d = if inside > outside { inside } else { outside };
            sum[lane] = norm.add(d.abs(), sum[lane]);
        }
    };
    let (whole, rest) = weights.as_chunks::<CHAINS>();
    for weights in whole {
        for (sum, w) in sums.iter_mut().zip(weights) {
            add(sum, *w);
        }
    }
    for (sum, w) in sums.iter_mut().zip(rest) {
        add(sum, *w);
    }
    join(sums)
}

#[inline(always)]
fn join([a, b, c, d]: [[f32; LANES]; CHAINS]) -> [f32; LANES] {
    std::array::from_fn(|lane| (a[lane] + b[lane]) + (c[lane] + d[lane]))
}

/// The same sums, to the bit: t − round(t), and the larger of two with its sign cleared, are one instruction each.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::__m512;

    use pulp::cast;
    use pulp::x86::V4;

    use super::{CHAINS, LANES, Norm, join};

    /// Of VREDUCEPS: multiples of 2^0, half to even, no exceptions.
    const TO_WHOLE: i32 = 0b1000;
    /// Of VRANGEPS: the larger, its sign cleared.
    const LARGER_POSITIVE: i32 = 0b1001;

    #[inline(always)]
    pub fn sums(
        simd: V4,
        weights: &[f32],
        inverse: &[f32; LANES],
        end: &[f32; LANES],
        norm: impl Norm,
    ) -> [f32; LANES] {
        let (inverse, end): (__m512, __m512) = (cast(*inverse), cast(*end));
        let mut sums = [[0f32; LANES]; CHAINS];
        let add = |sum: &mut [f32; LANES], w: f32| {
            let t = simd.avx512f._mm512_mul_ps(simd.avx512f._mm512_set1_ps(w), inverse);
            let outside = simd.avx512f._mm512_sub_ps(t, end);
            let inside = simd.avx512dq._mm512_reduce_ps::<TO_WHOLE>(t);
            let d: [f32; LANES] = cast(simd.avx512dq._mm512_range_ps::<LARGER_POSITIVE>(inside, outside));
            for lane in 0..LANES {
                sum[lane] = norm.add(d[lane], sum[lane]);
            }
        };
        let (whole, rest) = weights.as_chunks::<CHAINS>();
        for weights in whole {
            for (sum, w) in sums.iter_mut().zip(weights) {
                add(sum, *w);
            }
        }
        for (sum, w) in sums.iter_mut().zip(rest) {
            add(sum, *w);
        }
        join(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::lowrank::generator;
    use rand_chacha::rand_core::Rng;

    /// Sums of eight uniform numbers: bell-shaped, with a few far out.
    fn weights(n: usize, shift: f32, seed: u64) -> Vec<f32> {
        let mut rng = generator(seed, "weights");
        let mut bell = || (0..8).map(|_| rng.next_u32() as f32 / u32::MAX as f32 - 0.5).sum::<f32>();
        (0..n).map(|i| (bell() + shift) * if i % 97 == 13 { 3.0 } else { 1.0 } * 0.05).collect()
    }

    /// Σ|w − Q(w)|^p as the definition says it, in f64.
    fn error(w: &[f32], g: Grid, p: f64, scheme: Scheme) -> f64 {
        let (s, z) = (f64::from(g.scale), f64::from(g.zero_point));
        let (qmin, qmax) = (f64::from(scheme.qmin()), f64::from(scheme.qmax()));
        let nearest = |w: f64| s * ((w / s + z).round_ties_even().clamp(qmin, qmax) - z);
        w.iter().map(|w| (f64::from(*w) - nearest(f64::from(*w))).abs().powf(p)).sum()
    }

    #[test]
    fn no_candidate_is_better_than_the_one_found() {
        for (word, p) in [("w4pc", 3.0), ("w3pc", 2.0), ("w2pc", 2.4), ("w8pc", 4.0), ("w4pcz", 3.0), ("w2pcz", 2.0)] {
            let scheme: Scheme = word.parse().unwrap();
            let mut search = Search::new(scheme, p);
            for (i, n) in [1, 5, 64, 150, 1000].into_iter().enumerate() {
                let w = weights(n, if i % 2 == 0 { 0.0 } else { 0.7 }, i as u64);
                let (min, max) = w.iter().fold((0f32, 0f32), |(low, high), w| (low.min(*w), high.max(*w)));
                let found = error(&w, search.best(&w, min, max), f64::from(p), scheme);
                let candidates = (1..=100).flat_map(|i| (-4..=4).map(move |k| (i as f32 / 100.0, k as f32)));
                let least = candidates.map(|(fraction, skew)| match scheme.asymmetric {
                    true if skew.abs() * 4.0 <= 2f32.powi(scheme.bits as i32) => {
                        Grid::asymmetric(min, max, fraction, skew, scheme)
                    }
                    true => Grid::asymmetric(min, max, fraction, 0.0, scheme),
                    false => Grid::symmetric(max.max(-min), fraction, scheme),
                });
                let least = least.map(|g| error(&w, g, f64::from(p), scheme)).fold(f64::INFINITY, f64::min);
                assert!(found <= least * (1.0 + 1e-5) + 1e-20, "{word} {p} {n}: {found}, there is {least}");
            }
        }
    }

    #[test]
    fn what_was_found_before_does_not_matter() {
        let scheme: Scheme = "w4g64".parse().unwrap();
        let mut used = Search::new(scheme, 3.0);
        for seed in 0..20 {
            let w = weights(64, 0.0, seed);
            let max = w.iter().fold(0f32, |high, w| high.max(w.abs()));
            assert_eq!(used.best(&w, -max, max), Search::new(scheme, 3.0).best(&w, -max, max));
        }
    }

    #[test]
    fn a_weight_alone_keeps_the_whole_range() {
        let scheme: Scheme = "w4pc".parse().unwrap();
        assert_eq!(Search::new(scheme, 3.0).best(&[0.7], 0.0, 0.7).scale, 0.7 / 7.0);
        // −8 steps reach further than 7: 87.5 hundredths of the range would do as well, but are no candidate.
        assert_eq!(Search::new(scheme, 3.0).best(&[-0.7], -0.7, 0.0).scale, 0.7 / 7.0);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn avx512_gives_the_same_bits() {
        let pulp::Arch::V4(simd) = *ARCH else {
            eprintln!("SKIPPED avx512_gives_the_same_bits: the machine has no AVX-512");
            return;
        };
        let inverse: [f32; LANES] = std::array::from_fn(|lane| 7.0 * (lane as f32 + 1.3));
        let end: [f32; LANES] = std::array::from_fn(|lane| (lane % 9) as f32);
        for n in [0, 1, 3, 4, 63, 64] {
            let w: Vec<f32> = weights(n, 0.0, 3).iter().map(|w| w.abs()).collect();
            let bits = |sums: [f32; LANES]| sums.map(f32::to_bits);
            let run = |norm| avx512::sums(simd, &w, &inverse, &end, norm);
            assert_eq!(bits(run(Cube)), bits(sums(&w, &inverse, &end, Cube)), "{n}");
        }
    }
}
