//! Rows of a matrix, in another order, once or more.

use rayon::prelude::*;

use super::element::Element;
use super::rows_per_part;

/// y[i] = x[rows[i]]; x [_, width], y [rows, width]
pub fn gather_rows<E: Element>(x: &[E], rows: &[u32], width: usize, y: &mut [E]) {
    assert!(y.len() == rows.len() * width, "gather: shapes");
    let part = rows_per_part(width);
    y.par_chunks_mut(part * width).zip(rows.par_chunks(part)).for_each(|(y, rows)| {
        for (y, row) in y.chunks_exact_mut(width).zip(rows) {
            y.copy_from_slice(&x[*row as usize * width..][..width]);
        }
    });
}
