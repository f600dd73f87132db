//! The L^p search of LR-QAT's post-training initialisation: 100 thresholds amax·i/100, of a grid with scales of both signs
//! each with both, of an asymmetric grid each with some zero points around its own; the first smallest Σ|w − Q(w)|^p wins.
//!
//! Bound by arithmetic. In units of the scale, t = |w|/s lies |max(t − round(t), t − L)| from the grid, where L is the
//! grid's end on the side of w: six operations of AVX-512 a weight and candidate, with p = 3. [`LANES`] candidates lie
//! side by side in a register, so that nothing is summed across one; a block of them is left as soon as all its sums
//! are beyond the least so far, which changes no result, since no summand is negative. Most blocks are not even begun: what
//! their widest grid clips of the two outermost weights is more than the least.

use std::array;
use std::ops::RangeInclusive;

#[cfg(target_arch = "x86_64")]
use super::lanes::ARCH;
use super::lanes::{self, LANES};
use super::{Scheme, Symmetry, fit::Grid, grid};

/// Thresholds of the search.
const THRESHOLDS: usize = 100;
/// Asymmetric search: at most this many steps of the zero point to either side.
const MAX_SKEW: i32 = 4;
/// Weights that are summed up in f32; the sums of parts are added in f64.
const PART: usize = 64;
/// Part of an outermost weight: more than what rounding makes of it and of its error.
const MARGIN: f32 = 1e-4;

/// Steps of the zero point of an asymmetric grid to either side.
pub fn skew(scheme: Scheme) -> i32 {
    if scheme.symmetry == Symmetry::Asymmetric { ((1i32 << scheme.bits) / 4).min(MAX_SKEW) } else { 0 }
}

/// Steps of the zero point that are tried.
fn steps(scheme: Scheme) -> RangeInclusive<i32> {
    let skew = skew(scheme);
    if scheme.symmetry == Symmetry::Signed { -1..=0 } else { -skew..=skew }
}

/// The search, with room that serves group after group.
pub struct Search {
    scheme: Scheme,
    p: f32,
    /// The candidates, by threshold and then by zero point: the fraction of the threshold, and the steps that the zero
    /// point is moved. Before them the first stands again, so that they fill whole blocks.
    fractions: Vec<[f32; LANES]>,
    skews: Vec<[f32; LANES]>,
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
    unit: Errors,
}

/// A number for each candidate of a block, in registers of f64.
type Errors = [[f64; LANES / 2]; 2];

/// What the candidates of a group have in common: its outermost weights and the ends of its grids.
#[derive(Clone, Copy)]
struct Span {
    min: f32,
    max: f32,
    qmin: f32,
    qmax: f32,
}

impl Search {
    pub fn new(scheme: Scheme, p: f32) -> Search {
        let steps = steps(scheme);
        let first = (1, *steps.start());
        let candidates = (1..=THRESHOLDS).flat_map(|i| steps.clone().map(move |k| (i, k)));
        let all = THRESHOLDS * steps.clone().count();
        let filled = std::iter::repeat_n(first, all.next_multiple_of(LANES) - all).chain(candidates);
        let fraction = |i| (i as f64 / THRESHOLDS as f64) as f32;
        let (fractions, skews): (Vec<f32>, Vec<f32>) = filled.map(|(i, k)| (fraction(i), k as f32)).unzip();
        let blocks = |of: Vec<f32>| of.as_chunks().0.to_vec();
        let (fractions, skews) = (blocks(fractions), blocks(skews));
        Search { scheme, p, fractions, skews, above: Vec::new(), below: Vec::new(), first: usize::MAX }
    }

    /// The best grid of a group that is not all zeros.
    pub fn best(&mut self, w: &[f32], min: f32, max: f32) -> Grid {
        let span = Span { min, max, qmin: self.scheme.qmin(), qmax: self.scheme.qmax() };
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
        let blocks = self.fractions.len();
        let first = self.first.min(blocks - 1);
        let (mut least, mut chosen) = (f64::INFINITY, (0, 0));
        for b in [first].into_iter().chain((0..blocks).rev().filter(|b| *b != first)) {
            // The grids of the blocks that follow are narrower still.
            if least < f64::INFINITY && self.clipped(b, span, norm) > least {
                break;
            }
            let Some(errors) = self.errors(&self.block(b, span, norm), least, norm, loops) else { continue };
            let (lane, e) = loops.first_least(&errors);
            if e < least || (e == least && (b, lane) < chosen) {
                (least, chosen, self.first) = (e, (b, lane), b);
            }
        }
        self.grid(chosen, span)
    }

    /// Less than the error of any candidate of a block: what its widest grid leaves outside of the two outermost weights.
    #[inline(always)]
    fn clipped(&self, block: usize, span: Span, norm: impl Norm) -> f64 {
        let scale = self.grid((block, LANES - 1), span).scale;
        let Span { min, max, qmin, qmax } = span;
        let (min, max) = (min * (1.0 - MARGIN), max * (1.0 - MARGIN));
        let [above, below] = if self.scheme.has_zero_points() {
            // Wherever the zero point is: a + b is known, and a^p + b^p is least at a = b, or with p < 1 at b = 0.
            let outside = (max - min) - scale * (qmax - qmin);
            if self.p < 1.0 { [outside, 0.0] } else { [outside / 2.0; 2] }
        } else {
            [max - scale * qmax, scale * qmin - min]
        };
        let lost = |outside: f32| norm.unit(f64::from(if outside > 0.0 { outside } else { 0.0 }));
        lost(above) + lost(below)
    }

    /// The error of each candidate, or none if all of them are beyond `least`.
    #[inline(always)]
    fn errors(&self, block: &Block, least: f64, norm: impl Norm, loops: impl Loops) -> Option<Errors> {
        let mut errors = Errors::default();
        for (weights, end) in [&self.above, &self.below].into_iter().zip(&block.ends) {
            for part in weights.chunks(PART) {
                let sums = loops.sums(part, &block.inverse, end, norm);
                if !loops.add(&mut errors, &sums, &block.unit, least) {
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
        // A zero adds nothing, and no sum ends within its chains.
        for (part, len) in [(&mut self.above, above), (&mut self.below, below)] {
            let filled = len.next_multiple_of(CHAINS);
            part[len..filled].fill(0.0);
            part.truncate(filled);
        }
    }

    #[inline(always)]
    fn block(&self, block: usize, span: Span, norm: impl Norm) -> Block {
        let mut grids = [Grid { scale: 0.0, zero_point: 0.0 }; LANES];
        for (lane, grid) in grids.iter_mut().enumerate() {
            *grid = self.grid((block, lane), span);
        }
        Block {
            inverse: grids.map(|g| 1.0 / g.scale),
            ends: [grids.map(|g| span.qmax - g.zero_point), grids.map(|g| g.zero_point - span.qmin)],
            unit: array::from_fn(|half| array::from_fn(|i| norm.unit(f64::from(grids[half * LANES / 2 + i].scale)))),
        }
    }

    /// That of a candidate: of which block, and where in it.
    #[inline(always)]
    fn grid(&self, (block, lane): (usize, usize), Span { min, max, qmax, .. }: Span) -> Grid {
        let (fraction, step) = (self.fractions[block][lane], self.skews[block][lane]);
        let amax = if max > -min { max } else { -min };
        match self.scheme.symmetry {
            Symmetry::Symmetric => Grid::symmetric(amax, fraction, qmax),
            Symmetry::Signed => Grid { zero_point: step, ..Grid::symmetric(amax, fraction, qmax) },
            Symmetry::Asymmetric => Grid::asymmetric(min, max, fraction, step, self.scheme),
        }
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

    /// Adds sums in units of the grids. Is there an error of at most `least`?
    fn add(self, errors: &mut Errors, sums: &[f32; LANES], unit: &Errors, least: f64) -> bool;

    /// The first candidate with the least error, and that.
    fn first_least(self, errors: &Errors) -> (usize, f64);
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

    #[inline(always)]
    fn add(self, errors: &mut Errors, sums: &[f32; LANES], unit: &Errors, least: f64) -> bool {
        let mut within = false;
        for ((error, sum), unit) in errors.as_flattened_mut().iter_mut().zip(sums).zip(unit.as_flattened()) {
            *error += f64::from(*sum) * unit;
            within |= *error <= least;
        }
        within
    }

    #[inline(always)]
    fn first_least(self, errors: &Errors) -> (usize, f64) {
        let errors = errors.as_flattened().iter().enumerate();
        errors.fold((0, f64::INFINITY), |least, (i, e)| if *e < least.1 { (i, *e) } else { least })
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
    array::from_fn(|lane| (a[lane] + b[lane]) + (c[lane] + d[lane]))
}

/// The same to the bit: t − round(t), the larger of two with its sign cleared, and moving some elements of a register
/// together are one instruction each.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{__m256, __m512, __m512d, _CMP_EQ_OQ, _CMP_GE_OQ, _CMP_LE_OQ};

    use pulp::cast;
    use pulp::x86::V4;

    use super::{CHAINS, Errors, LANES, Loops, Norm, Plain, for_each, join};

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

        #[inline(always)]
        fn add(self, errors: &mut Errors, sums: &[f32; LANES], unit: &Errors, least: f64) -> bool {
            let sums: [__m256; 2] = cast(*sums);
            let mut within = 0;
            for half in 0..2 {
                let added = self.avx512f._mm512_mul_pd(self.avx512f._mm512_cvtps_pd(sums[half]), cast(unit[half]));
                let error = self.avx512f._mm512_add_pd(cast(errors[half]), added);
                within |= self.avx512f._mm512_cmp_pd_mask::<_CMP_LE_OQ>(error, self.avx512f._mm512_set1_pd(least));
                errors[half] = cast(error);
            }
            within != 0
        }

        #[inline(always)]
        fn first_least(self, errors: &Errors) -> (usize, f64) {
            // The second of two where one is no number.
            let known = |half| self.avx512f._mm512_min_pd(cast(half), self.avx512f._mm512_set1_pd(f64::INFINITY));
            let [low, high]: [__m512d; 2] = errors.map(known);
            let least = self.avx512f._mm512_reduce_min_pd(self.avx512f._mm512_min_pd(low, high));
            let lanes = |half| self.avx512f._mm512_cmp_pd_mask::<_CMP_EQ_OQ>(half, self.avx512f._mm512_set1_pd(least));
            ((u32::from(lanes(low)) | u32::from(lanes(high)) << (LANES / 2)).trailing_zeros() as usize, least)
        }
    }
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
