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

/// Steps of the zero point to either side.
pub fn skew(scheme: Scheme) -> i32 {
    if scheme.asymmetric { ((1i32 << scheme.bits) / 4).min(MAX_SKEW) } else { 0 }
}

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
        let skew = skew(scheme);
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
                || self.search(w, span, norm, simd),
            );
        }
        lanes::simd(
            #[inline(always)]
            || self.search(w, span, norm, Plain),
        )
    }

    #[inline(always)]
    fn search(&mut self, w: &[f32], span: Span, norm: impl Norm, loops: impl Loops) -> Grid {
        self.split(w, loops);
        let blocks = self.fractions.len() / LANES;
        let first = self.first.min(blocks - 1);
        let (mut least, mut chosen) = (f64::INFINITY, 0);
        for b in [first].into_iter().chain((0..blocks).rev().filter(|b| *b != first)) {
            let Some(errors) = self.errors(&self.block(b, span, norm), least, norm, loops) else { continue };
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
    fn errors(&self, block: &Block, least: f64, norm: impl Norm, loops: impl Loops) -> Option<[f64; LANES]> {
        let mut errors = [0.0; LANES];
        for (weights, end) in [&self.above, &self.below].into_iter().zip(&block.ends) {
            for part in weights.chunks(PART) {
                let sums = loops.sums(part, &block.inverse, end, norm);
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

    #[inline(always)]
    fn split(&mut self, w: &[f32], loops: impl Loops) {
        let room = w.len() + LANES;
        self.above.resize(room, 0.0);
        self.below.resize(room, 0.0);
        let (above, below) = loops.split(w, &mut self.above, &mut self.below);
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

/// The loops over weights.
trait Loops: Copy {
    /// |w| of the weights by their sign, zeros above; how many there are of each. Both have [`LANES`] to spare.
    fn split(self, w: &[f32], above: &mut [f32], below: &mut [f32]) -> (usize, usize);

    /// Σ|t − Q(t)|^p of `weights` ≥ 0 for every candidate.
    fn sums(self, weights: &[f32], inverse: &[f32; LANES], end: &[f32; LANES], norm: impl Norm) -> [f32; LANES];
}

/// As the compiler makes them.
#[derive(Clone, Copy)]
struct Plain;

impl Loops for Plain {
    /// Without a branch that half of the weights would mispredict.
    #[inline(always)]
    fn split(self, w: &[f32], to_above: &mut [f32], to_below: &mut [f32]) -> (usize, usize) {
        let (mut above, mut below) = (0, 0);
        for w in w {
            (to_above[above], to_below[below]) = (w.abs(), w.abs());
            above += usize::from(*w >= 0.0);
            below += usize::from(*w < 0.0);
        }
        (above, below)
    }

    #[inline(always)]
    fn sums(self, weights: &[f32], inverse: &[f32; LANES], end: &[f32; LANES], norm: impl Norm) -> [f32; LANES] {
        let mut sums = [[0f32; LANES]; CHAINS];
        for_each(
            weights,
            &mut sums,
            #[inline(always)]
            |w, sum| {
                for lane in 0..LANES {
                    let t = w * inverse[lane];
                    let (inside, outside) = (t - grid::round(t), t - end[lane]);
                    let d = if inside > outside { inside } else { outside };
                    sum[lane] = norm.add(d.abs(), sum[lane]);
                }
            },
        );
        join(sums)
    }
}

/// Hands out the weights, each with the chain that it is added to.
#[inline(always)]
fn for_each(weights: &[f32], sums: &mut [[f32; LANES]; CHAINS], add: impl Fn(f32, &mut [f32; LANES])) {
    let (whole, rest) = weights.as_chunks::<CHAINS>();
    for weights in whole {
        for (w, sum) in weights.iter().zip(sums.iter_mut()) {
            add(*w, sum);
        }
    }
    for (w, sum) in rest.iter().zip(sums) {
        add(*w, sum);
    }
}

#[inline(always)]
fn join([a, b, c, d]: [[f32; LANES]; CHAINS]) -> [f32; LANES] {
    std::array::from_fn(|lane| (a[lane] + b[lane]) + (c[lane] + d[lane]))
}

/// The same to the bit: t − round(t), the larger of two with its sign cleared, and moving some elements of a register
/// together are one instruction each.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{__m512, _CMP_GE_OQ};

    use pulp::cast;
    use pulp::x86::V4;

    use super::{CHAINS, LANES, Loops, Norm, Plain, for_each, join};

    /// Of VREDUCEPS: multiples of 2^0, half to even, no exceptions.
    const TO_WHOLE: i32 = 0b1000;
    /// Of VRANGEPS: the larger, its sign cleared.
    const LARGER_POSITIVE: i32 = 0b1001;

    impl Loops for V4 {
        #[inline(always)]
        fn split(self, w: &[f32], to_above: &mut [f32], to_below: &mut [f32]) -> (usize, usize) {
            let (mut above, mut below) = (0, 0);
            let (whole, rest) = w.as_chunks::<LANES>();
            for w in whole {
                let magnitude: __m512 = cast(w.map(f32::abs));
                let mask = self.avx512f._mm512_cmp_ps_mask::<_CMP_GE_OQ>(cast(*w), self.avx512f._mm512_setzero_ps());
                let up: [f32; LANES] = cast(self.avx512f._mm512_maskz_compress_ps(mask, magnitude));
                let down: [f32; LANES] = cast(self.avx512f._mm512_maskz_compress_ps(!mask, magnitude));
                to_above[above..above + LANES].copy_from_slice(&up);
                to_below[below..below + LANES].copy_from_slice(&down);
                above += mask.count_ones() as usize;
                below += mask.count_zeros() as usize;
            }
            let (a, b) = Plain.split(rest, &mut to_above[above..], &mut to_below[below..]);
            (above + a, below + b)
        }

        #[inline(always)]
        fn sums(self, weights: &[f32], inverse: &[f32; LANES], end: &[f32; LANES], norm: impl Norm) -> [f32; LANES] {
            let (inverse, end): (__m512, __m512) = (cast(*inverse), cast(*end));
            let mut sums = [[0f32; LANES]; CHAINS];
            for_each(
                weights,
                &mut sums,
                #[inline(always)]
                |w, sum| {
                    let t = self.avx512f._mm512_mul_ps(self.avx512f._mm512_set1_ps(w), inverse);
                    let outside = self.avx512f._mm512_sub_ps(t, end);
                    let inside = self.avx512dq._mm512_reduce_ps::<TO_WHOLE>(t);
                    let d: [f32; LANES] = cast(self.avx512dq._mm512_range_ps::<LARGER_POSITIVE>(inside, outside));
                    for lane in 0..LANES {
                        sum[lane] = norm.add(d[lane], sum[lane]);
                    }
                },
            );
            join(sums)
        }
    }
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
