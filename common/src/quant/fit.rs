//! Fits the grid of one row (one output channel's group): min-max, or the L^p search.

use std::array;
use std::fmt;
use std::str::FromStr;

use super::lanes::{self, LANES};
use super::search::Search;
pub use super::search::skew;
use super::{Scheme, Symmetry, grid};
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fit {
    MinMax,
    /// Minimizes Σ|w − Q(w)|^p.
    Lp(f32),
}

/// Scale and zero point of a group; the zero point is an integer on the signed grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    pub scale: f32,
    pub zero_point: f32,
}

impl Fit {
    /// What fits group after group.
    pub fn of(self, scheme: Scheme) -> Fitter {
        let search = match self {
            Fit::MinMax => None,
            Fit::Lp(p) => Some(Search::new(scheme, p)),
        };
        Fitter { scheme, search }
    }
}

pub struct Fitter {
    scheme: Scheme,
    search: Option<Search>,
}

impl Fitter {
    /// The grid of one group of finite weights. A group of zeros gets scale 1.
    #[inline(always)]
    pub fn fit(&mut self, w: &[f32]) -> Grid {
        let (min, max) = span(w);
        if min == 0.0 && max == 0.0 {
            return Grid { scale: 1.0, zero_point: 0.0 };
        }
        match &mut self.search {
            Some(search) => search.best(w, min, max),
            None => match self.scheme.symmetry {
                Symmetry::Symmetric => Grid::symmetric(max.max(-min), 1.0, self.scheme.qmax()),
                Symmetry::Signed => Grid::signed(min, max, self.scheme.qmax()),
                Symmetry::Asymmetric => Grid::asymmetric(min, max, 1.0, 0.0, self.scheme),
            },
        }
    }
}

/// The least and the largest weight, or zero.
#[inline(always)]
fn span(w: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([0f32; LANES], [0f32; LANES]);
    let (whole, rest) = w.as_chunks::<LANES>();
    for w in whole {
        low = array::from_fn(|lane| lesser(w[lane], low[lane]));
        high = array::from_fn(|lane| greater(w[lane], high[lane]));
    }
    let ends = (lanes::join_by(low, lesser), lanes::join_by(high, greater));
    rest.iter().fold(ends, |(low, high), w| (lesser(*w, low), greater(*w, high)))
}

// f32::min and max look for numbers that are none, which costs a loop more than all else in it.
#[inline(always)]
fn lesser(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

impl Grid {
    #[inline(always)]
    pub(super) fn symmetric(amax: f32, fraction: f32, qmax: f32) -> Grid {
        Grid { scale: greater(amax * fraction / qmax, grid::MIN_SCALE), zero_point: 0.0 }
    }

    /// The finer of the two grids that hold both ends.
    #[inline(always)]
    fn signed(min: f32, max: f32, qmax: f32) -> Grid {
        let below = greater(max / qmax, -min / (qmax + 1.0));
        let above = greater(max / (qmax + 1.0), -min / qmax);
        let (scale, zero_point) = if above < below { (above, -1.0) } else { (below, 0.0) };
        Grid { scale: greater(scale, grid::MIN_SCALE), zero_point }
    }

    /// scale = (max − min)/(2^b − 1), zero point = clip(round(qmin − min/scale)), moved by `skew` steps.
    #[inline(always)]
    pub(super) fn asymmetric(min: f32, max: f32, fraction: f32, skew: f32, scheme: Scheme) -> Grid {
        let full = ((max - min) / (scheme.qmax() - scheme.qmin())).max(grid::MIN_SCALE);
        let zero = grid::code(scheme.qmin() - min / full, scheme.qmin(), scheme.qmax());
        let zero_point = grid::code(zero + skew, scheme.qmin(), scheme.qmax());
        Grid { scale: (full * fraction).max(grid::MIN_SCALE), zero_point }
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fit::MinMax => f.write_str("minmax"),
            Fit::Lp(p) => write!(f, "lp:{p}"),
        }
    }
}

impl FromStr for Fit {
    type Err = Error;

    fn from_str(word: &str) -> Result<Fit> {
        if word == "minmax" {
            return Ok(Fit::MinMax);
        }
        word.strip_prefix("lp:")
            .and_then(|p| p.parse().ok())
            .filter(|p: &f32| p.is_finite() && *p > 0.0)
            .map(Fit::Lp)
            .ok_or_else(|| {
                Error::usage(format!("fit {word:?} is not known"), "write minmax, or lp:P with P > 0 as in lp:3")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_get_scale_one_and_tiny_weights_the_smallest_scale() {
        let scheme: Scheme = "w4pc".parse().unwrap();
        for fit in [Fit::MinMax, Fit::Lp(3.0)] {
            assert_eq!(fit.of(scheme).fit(&[0.0; 20]).scale, 1.0);
            assert_eq!(fit.of(scheme).fit(&[1e-12; 20]).scale, grid::MIN_SCALE);
        }
    }

    #[test]
    fn a_grid_that_holds_the_weights_exactly_is_found() {
        // Integers −8..7 times 0.5 lie on the grid with scale 0.5 = amax·i/100/7 for no i, but min-max of −7..7 does.
        let w: Vec<f32> = (-7..=7).map(|i| i as f32 * 0.5).collect();
        let scheme: Scheme = "w4pc".parse().unwrap();
        assert_eq!(Fit::MinMax.of(scheme).fit(&w).scale, 0.5);
        assert_eq!(Fit::Lp(3.0).of(scheme).fit(&w).scale, 0.5);
        // 0..3 shifted: the asymmetric 2-bit grid holds four equidistant values with any offset.
        let w: Vec<f32> = (0..4).map(|i| i as f32 * 0.25 - 0.25).collect();
        let scheme: Scheme = "w2pcz".parse().unwrap();
        let g = Fit::MinMax.of(scheme).fit(&w);
        assert_eq!((g.scale, g.zero_point), (0.25, -1.0));
        assert_eq!(Fit::Lp(3.0).of(scheme).fit(&w), g);
    }

    #[test]
    fn scales_of_both_signs_by_the_ends() {
        let fit = |w: &[f32]| Fit::MinMax.of("w3pcs".parse().unwrap()).fit(w);
        // −4..3 or −3..4 steps: the end that is further out gets the code more.
        assert_eq!(fit(&[-1.0, 0.5]), Grid { scale: 0.25, zero_point: 0.0 });
        assert_eq!(fit(&[-0.5, 1.0]), Grid { scale: 0.25, zero_point: -1.0 });
        assert_eq!(fit(&[-1.0, 1.0]), Grid { scale: 1.0 / 3.0, zero_point: 0.0 });
    }

    /// Turning all weights round turns the grid round and loses the same.
    #[test]
    fn scales_of_both_signs_treat_both_sides_alike() {
        let scheme: Scheme = "w2pcs".parse().unwrap();
        let w = [0.9, 0.4, -0.3, 0.1, -0.5, 0.45];
        let turned = w.map(|w| -w);
        for fit in [Fit::MinMax, Fit::Lp(3.0)] {
            let (a, b) = (fit.of(scheme).fit(&w), fit.of(scheme).fit(&turned));
            assert_eq!((a.scale, a.zero_point), (b.scale, -1.0 - b.zero_point), "{fit}");
        }
    }
}
