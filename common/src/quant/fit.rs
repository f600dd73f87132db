//! Fits the grid of one row (one output channel's group): min-max, or the L^p search of LR-QAT's
//! post-training initialisation (100 thresholds amax·i/100; the first smallest error wins).

use std::fmt;
use std::str::FromStr;

use super::lanes::{self, LANES};
use super::{Scheme, grid};
use crate::error::{Error, Result};

/// Thresholds of the L^p search.
const THRESHOLDS: usize = 100;
/// Asymmetric search: at most this many steps of the zero point to either side.
const MAX_SKEW: i32 = 4;

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
    /// The grid of one group of finite weights. A group of zeros gets scale 1.
    #[inline(always)]
    pub fn fit(self, w: &[f32], scheme: Scheme) -> Grid {
        let (min, max) = w.iter().fold((0f32, 0f32), |(lo, hi), w| (lo.min(*w), hi.max(*w)));
        if min == 0.0 && max == 0.0 {
            return Grid { scale: 1.0, zero_point: 0.0 };
        }
        match (self, scheme.asymmetric) {
            (Fit::MinMax, false) => symmetric(max.max(-min), 1.0, scheme),
            (Fit::MinMax, true) => asymmetric(min, max, 1.0, 0, scheme),
            (Fit::Lp(p), false) => {
                let amax = max.max(-min);
                best(w, p, scheme, (1..=THRESHOLDS).map(|i| symmetric(amax, fraction(i), scheme)))
            }
            (Fit::Lp(p), true) => {
                let skew = (1i32 << scheme.bits) / 4;
                let skew = skew.min(MAX_SKEW);
                let grids = (1..=THRESHOLDS)
                    .flat_map(|i| (-skew..=skew).map(move |k| asymmetric(min, max, fraction(i), k, scheme)));
                best(w, p, scheme, grids)
            }
        }
    }
}

fn fraction(i: usize) -> f32 {
    (i as f64 / THRESHOLDS as f64) as f32
}

fn symmetric(amax: f32, fraction: f32, scheme: Scheme) -> Grid {
    Grid { scale: (amax * fraction / scheme.qmax()).max(grid::MIN_SCALE), zero_point: 0.0 }
}

/// scale = (max − min)/(2^b − 1), zero point = clip(round(qmin − min/scale)), moved by `skew` steps.
fn asymmetric(min: f32, max: f32, fraction: f32, skew: i32, scheme: Scheme) -> Grid {
    let full = ((max - min) / (scheme.qmax() - scheme.qmin())).max(grid::MIN_SCALE);
    let zero = grid::code(scheme.qmin() - min / full, scheme.qmin(), scheme.qmax());
    let zero_point = (zero + skew as f32).clamp(scheme.qmin(), scheme.qmax());
    Grid { scale: (full * fraction).max(grid::MIN_SCALE), zero_point }
}

#[inline(always)]
fn best(w: &[f32], p: f32, scheme: Scheme, grids: impl Iterator<Item = Grid>) -> Grid {
    let mut least = f32::INFINITY;
    let mut chosen = None;
    for g in grids {
        let e = error(w, g, p, scheme);
        if e < least || chosen.is_none() {
            least = e;
            chosen = Some(g);
        }
    }
    chosen.expect("there is at least one threshold")
}

/// Σ|w − Q(w)|^p.
#[inline(always)]
fn error(w: &[f32], g: Grid, p: f32, scheme: Scheme) -> f32 {
    if p == 3.0 {
        error_by(w, g, scheme, |d| d * d * d)
    } else if p == 2.0 {
        error_by(w, g, scheme, |d| d * d)
    } else if p == 4.0 {
        error_by(w, g, scheme, |d| (d * d) * (d * d))
    } else {
        error_by(w, g, scheme, |d| d.powf(p))
    }
}

#[inline(always)]
fn error_by(w: &[f32], g: Grid, scheme: Scheme, power: impl Fn(f32) -> f32) -> f32 {
    let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
    let one = |w: f32| {
        power((w - grid::dequantize(grid::code(w / g.scale + g.zero_point, qmin, qmax), g.zero_point, g.scale)).abs())
    };
    let mut sums = [0f32; LANES];
    let chunks = w.chunks_exact(LANES);
    let rest = chunks.remainder();
    for w in chunks {
        for lane in 0..LANES {
            sums[lane] += one(w[lane]);
        }
    }
    for (sum, w) in sums.iter_mut().zip(rest) {
        *sum += one(*w);
    }
    lanes::join(sums)
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
            assert_eq!(fit.fit(&[0.0; 20], scheme).scale, 1.0);
            assert_eq!(fit.fit(&[1e-12; 20], scheme).scale, grid::MIN_SCALE);
        }
    }

    #[test]
    fn a_grid_that_holds_the_weights_exactly_is_found() {
        // Integers −8..7 times 0.5 lie on the grid with scale 0.5 = amax·i/100/7 for no i, but min-max of −7..7 does.
        let w: Vec<f32> = (-7..=7).map(|i| i as f32 * 0.5).collect();
        let scheme: Scheme = "w4pc".parse().unwrap();
        assert_eq!(Fit::MinMax.fit(&w, scheme).scale, 0.5);
        assert_eq!(Fit::Lp(3.0).fit(&w, scheme).scale, 0.5);
        // 0..3 shifted: the asymmetric 2-bit grid holds four equidistant values with any offset.
        let w: Vec<f32> = (0..4).map(|i| i as f32 * 0.25 - 0.25).collect();
        let scheme: Scheme = "w2pcz".parse().unwrap();
        let g = Fit::MinMax.fit(&w, scheme);
        assert_eq!((g.scale, g.zero_point), (0.25, -1.0));
        assert_eq!(Fit::Lp(3.0).fit(&w, scheme), g);
    }
}
