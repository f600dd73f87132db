//! Z = Φ0 + (α/r)·A·B of a linear, made block by block: what training, folding and evaluating round.

use std::ops::Range;

use super::grid::{COLUMNS, Panels, ROWS};
use super::lanes::fetch;
use super::{Phi, Scheme};

/// What Z of a linear [n, k] is made of.
#[derive(Clone, Copy)]
pub struct Factors<'a> {
    pub scheme: Scheme,
    /// Φ0, rows packed one by one.
    pub phi: &'a [u8],
    pub stored: Phi,
    /// A [n, r] and B [r, k].
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub rank: usize,
    /// α/r.
    pub factor: f32,
    pub k: usize,
}

/// Makes Z.
pub struct RealWeight<'a> {
    pub of: Factors<'a>,
    /// The rows of A after the last whole block, filled up with zeros.
    last: Vec<f32>,
    b: Panels,
}

impl<'a> RealWeight<'a> {
    pub fn new(of: Factors<'a>) -> RealWeight<'a> {
        let n = of.a.len() / of.rank;
        let mut last = of.a[n / ROWS * ROWS * of.rank..].to_vec();
        last.resize(ROWS * of.rank, 0.0);
        RealWeight { of, last, b: Panels::new(of.b, of.rank) }
    }

    /// Fetches Φ0 of `rows`, as far as there are any, and `columns` ahead of their use.
    #[inline(always)]
    pub fn fetch(&self, rows: Range<usize>, columns: Range<usize>) {
        let Factors { scheme, phi, stored, k, .. } = self.of;
        let (bytes, row_bytes) = (
            stored.row_bytes(scheme, columns.start)..stored.row_bytes(scheme, columns.end),
            stored.row_bytes(scheme, k),
        );
        for row in phi.chunks_exact(row_bytes).take(rows.end).skip(rows.start) {
            fetch(&row[bytes.clone()]);
        }
    }

    /// Z of `rows` (at most [`ROWS`], from a multiple of it on) and `columns` (at most [`COLUMNS`], from a multiple of it
    /// on).
    #[inline(always)]
    pub fn block(&self, rows: Range<usize>, columns: Range<usize>) -> [[f32; COLUMNS]; ROWS] {
        let Factors { scheme, phi, stored, a, rank, factor, k, .. } = self.of;
        // An even number of columns lies before, so that they are whole bytes.
        let bytes = stored.row_bytes(scheme, columns.start)..stored.row_bytes(scheme, columns.end);
        let row_bytes = stored.row_bytes(scheme, k);
        let mut z = [[0f32; COLUMNS]; ROWS];
        for (z, row) in z.iter_mut().zip(rows.clone()) {
            let phi = &phi[row * row_bytes..][bytes.clone()];
            if columns.len() == COLUMNS {
                stored.unpack_row(scheme, phi, z);
            } else {
                stored.unpack_row(scheme, phi, &mut z[..columns.len()]);
            }
        }
        let a = if rows.len() == ROWS { &a[rows.start * rank..rows.end * rank] } else { &self.last[..] };
        self.b.add(columns.start / COLUMNS, a, factor, &mut z);
        z
    }
}
