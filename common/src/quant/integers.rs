//! A folded linear before any packing: what every format takes from `fold` and gives back to `eval` and `ptq-init`.

use std::borrow::Cow;

use super::{Scheme, Symmetry};

/// The grid of one linear: Ŵ = s·(W_Z − z).
#[derive(Debug, Clone, PartialEq)]
pub struct LinearGrid {
    /// s [N, G]
    pub scale: Vec<f32>,
    /// z [N, G], whole numbers on the signed grid; none for a symmetric scheme.
    pub zero: Option<Vec<f32>>,
}

impl LinearGrid {
    /// W0/s0 + z of whole rows from row `first` on, in place; rows have `k` columns.
    #[inline(always)]
    pub fn to_grid(&self, w: &mut [f32], first: usize, k: usize, scheme: Scheme) {
        let (group, groups) = (scheme.group_size(k), scheme.groups(k));
        for (g, w) in w.chunks_exact_mut(group).enumerate() {
            let at = first * groups + g;
            let (s, z) = (self.scale[at], self.zero.as_ref().map_or(0.0, |zero| zero[at]));
            for w in w {
                *w = *w / s + z;
            }
        }
    }

    /// The scales as files say them: of a grid with scales of both signs negative where z = −1.
    pub fn stored_scale(&self, scheme: Scheme) -> Cow<'_, [f32]> {
        match &self.zero {
            Some(zero) if scheme.symmetry == Symmetry::Signed => {
                Cow::Owned(self.scale.iter().zip(zero).map(|(s, z)| if *z < 0.0 { -s } else { *s }).collect())
            }
            _ => Cow::Borrowed(&self.scale),
        }
    }

    /// Codes of whole rows from row `first` on as files say them, in place: mirrored where a grid with scales of both signs
    /// has z = −1. Rows have `k` columns.
    pub fn mirror(&self, codes: &mut [u8], first: usize, k: usize, scheme: Scheme) {
        let Some(zero) = self.zero.as_ref().filter(|_| scheme.symmetry == Symmetry::Signed) else { return };
        let last = (scheme.qmax() - scheme.qmin()) as u8;
        let groups = codes.chunks_exact_mut(scheme.group_size(k)).zip(&zero[first * scheme.groups(k)..]);
        for (codes, _) in groups.filter(|(_, z)| **z < 0.0) {
            codes.iter_mut().for_each(|u| *u = last - *u);
        }
    }
}

/// The integers of one linear and their grid.
#[derive(Debug, Clone, PartialEq)]
pub struct Integers {
    /// W_Z + 2^(b−1), which is W_Z − qmin: one byte a code, [N, K].
    pub codes: Vec<u8>,
    pub grid: LinearGrid,
}
