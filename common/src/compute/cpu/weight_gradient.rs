//! The gradients of A, B and s, or of Z itself, from dŴ = dyᵀ·x, tile by tile: dŴ never exists whole.
//!
//! ds = Σ G·(W_Z − z); dZ = G·s·1[qmin ≤ round(Z) ≤ qmax]; dA = (α/r)·dZ·Bᵀ; dB = (α/r)·Aᵀ·dZ (LR-QAT, equation 8 with
//! the straight-through estimator; no LSQ term, since Φ0 uses the frozen s0).

use std::ops::Range;

use rayon::prelude::*;

use super::element::Element;
use super::made::{QuantizedRows, Stored};
use super::product::{
    COLUMNS, Kernel, Left, Lines, PackedColumns, Scratch, Sink, Split, Square, Tile, ToF32, product, transpose,
};
use super::simd::simd;
use crate::quant::grid::{self, ROWS};
use crate::quant::lanes::{self, LANES};

/// Most partial sums of dB. Part of the numerics: each is of a share of the rows of W, and they are added in order.
const PARTS: usize = 16;

/// Memory of the gradient of one linear, reused by all.
#[derive(Default)]
pub struct GradientScratch {
    dy: Scratch,
    x: Scratch,
    /// (α/r)·A and its transpose, packed.
    a: Scratch,
    a_packed: Scratch,
    b: Scratch,
    b_packed: Scratch,
    /// dB of each part.
    parts: Scratch,
}

impl GradientScratch {
    /// Bytes for linears of these shapes (n, k) and passes over `rows` tokens.
    pub fn bytes<K: Kernel>(n: usize, k: usize, rank: usize, rows: usize) -> usize {
        let packed = size_of::<K::Packed>();
        let whole = |x: usize, unit: usize| x.next_multiple_of(unit);
        let rank_packed = whole(rank, K::ROWS.max(COLUMNS));
        let operands = (whole(n, K::ROWS) + whole(k, COLUMNS)) * whole(rows, K::STEP) + rank_packed * (n + k + 64);
        packed * operands + 4 * (rank * (n + k) + parts::<K>(n).1 * rank * k)
    }
}

/// Panels of rows in a part, and the number of parts.
fn parts<K: Kernel>(n: usize) -> (usize, usize) {
    let panels = n.div_ceil(K::ROWS);
    let unit = panels.div_ceil(PARTS).max(1);
    (unit, panels.div_ceil(unit))
}

/// One of the weights of an input: dy [rows, n], and where ds [n, G] and, of a low-rank weight, dA [n, r] and dB [r, k], or,
/// of one with fixed integers, dZ [n, k] are added.
pub struct WeightGradient<'a, E> {
    pub w: &'a QuantizedRows<'a, E>,
    pub dy: &'a [E],
    pub scale: &'a mut [f32],
    pub factors: Option<[&'a mut [f32]; 2]>,
    pub latent: Option<&'a mut [f32]>,
}

/// Adds the gradients of all weights of the input x [rows, k], which is packed once.
pub fn weight_gradients<K: Kernel, E: Element>(
    kernel: K,
    scratch: &mut GradientScratch,
    x: &[E],
    rows: usize,
    of: Vec<WeightGradient<E>>,
) {
    let k = x.len() / rows;
    let mut packed = std::mem::take(&mut scratch.x);
    let x = PackedColumns::new(kernel, &Lines::columns(x, rows, k), &mut packed);
    for of in of {
        weight_gradient(kernel, scratch, &x, rows, of);
    }
    scratch.x = packed;
}

fn weight_gradient<K: Kernel, E: Element>(
    kernel: K,
    scratch: &mut GradientScratch,
    x: &PackedColumns<K::Packed>,
    rows: usize,
    of: WeightGradient<E>,
) {
    let WeightGradient { w, dy, scale, factors, latent } = of;
    let (n, k) = (w.n, w.grid.k);
    let dy = Left::new(kernel, &Lines::new(dy, n, rows, (1, n)), &mut scratch.dy);
    let ds = ToF32::new(scale, n, w.grid.groups, w.grid.groups, true);
    let (Stored::Real(real), Some([da, db])) = (&w.stored, factors) else {
        let latent = latent.map(|latent| ToF32::new(latent, n, k, k, true));
        return product(kernel, &dy, x, Split::Rows(1), &ToGradients { w, ds, factors: None, latent });
    };
    let f = &real.of;
    let r = f.rank;
    let (unit, count) = parts::<K>(n);
    let scaled = |from: &[f32], to: &mut [f32]| to.iter_mut().zip(from).for_each(|(to, x)| *to = f.factor * x);
    let (a, b) = (scratch.a.take::<f32>(n * r), scratch.b.take::<f32>(r * k));
    scaled(f.a, a);
    scaled(f.b, b);
    let parts = scratch.parts.take::<f32>(count * r * k);
    let factors = ToFactors {
        rank: r,
        unit,
        a: Left::new(kernel, &Lines::new(a, r, n, (1, r)), &mut scratch.a_packed),
        b: PackedColumns::new(kernel, &Lines::rows(b, r, k), &mut scratch.b_packed),
        da: ToF32::new(da, n, r, r, true),
        db: parts.chunks_exact_mut(r * k).map(|part| ToF32::new(part, r, k, k, false)).collect(),
    };
    product(kernel, &dy, x, Split::Rows(unit), &ToGradients { w, ds, factors: Some(factors), latent: None });
    add_parts(parts, db);
}

/// db += each part, in order.
fn add_parts(parts: &[f32], db: &mut [f32]) {
    const PART: usize = 4096;
    let len = db.len();
    db.par_chunks_mut(PART).enumerate().for_each(|(at, db)| {
        simd(
            #[inline(always)]
            || {
                for part in parts.chunks_exact(len) {
                    for (db, part) in db.iter_mut().zip(&part[at * PART..]) {
                        *db += part;
                    }
                }
            },
        )
    });
}

struct ToGradients<'a, K: Kernel, E> {
    w: &'a QuantizedRows<'a, E>,
    ds: ToF32<'a>,
    factors: Option<ToFactors<'a, K>>,
    latent: Option<ToF32<'a>>,
}

/// Where dZ goes of a weight that has low-rank factors.
struct ToFactors<'a, K: Kernel> {
    rank: usize,
    unit: usize,
    /// (α/r)·Aᵀ [r, n] and (α/r)·Bᵀ [k, r].
    a: Left<'a, K>,
    b: PackedColumns<'a, K::Packed>,
    da: ToF32<'a>,
    db: Vec<ToF32<'a>>,
}

/// dZ of a tile as the products for dA and dB read it.
#[derive(Default)]
struct State {
    rows: Tile,
    columns: Tile,
}

impl<K: Kernel, E: Element> Sink<K> for ToGradients<'_, K, E> {
    type State = State;

    fn store(&self, kernel: K, state: &mut State, row: usize, column: usize, tile: &mut [f32]) {
        let (first, from) = (row * K::ROWS, column * COLUMNS);
        let rows = K::ROWS.min(self.w.n - first);
        let columns = COLUMNS.min(self.w.grid.k - from);
        simd(
            #[inline(always)]
            || self.to_dz(first..first + rows, from..from + columns, tile),
        );
        if let Some(latent) = &self.latent {
            Sink::<K>::store(latent, kernel, &mut (), row, column, tile);
        }
        let Some(factors) = &self.factors else { return };
        let dz = &tile[..rows * COLUMNS];
        let (steps, row_steps) = (columns.div_ceil(K::STEP), rows.div_ceil(K::STEP));
        let by_rows: &mut [K::Packed] = bytemuck::cast_slice_mut(&mut state.rows.0);
        kernel.pack_rows(&Lines::rows(dz, rows, COLUMNS), 0, 0..COLUMNS / K::STEP, by_rows);
        let by_columns: &mut [K::Packed] = bytemuck::cast_slice_mut(&mut state.columns.0);
        kernel.pack_columns(&Lines::columns(dz, rows, COLUMNS), 0, 0..row_steps, by_columns);
        let r = factors.rank;
        for panel in 0..r.div_ceil(COLUMNS) {
            let b = factors.b.panel::<K>(panel, from / K::STEP);
            // SAFETY: the driver has begun a session; panels are packed for these steps; rows of dA belong to this thread.
            unsafe { factors.da.tile(kernel, kernel.packed_rows(by_rows.as_ptr()), b, steps, row, panel) };
        }
        let part = &factors.db[row / factors.unit];
        let part = part.again(!row.is_multiple_of(factors.unit));
        for panel in 0..r.div_ceil(K::ROWS) {
            let a = factors.a.at(panel, first / K::STEP);
            // SAFETY: as above; a part belongs to one thread.
            unsafe { part.tile(kernel, a, by_columns, row_steps, panel, column) };
        }
    }
}

impl<K: Kernel, E: Element> ToGradients<'_, K, E> {
    /// dŴ of these rows and columns becomes dZ in place, and gives its part of ds.
    #[inline(always)]
    fn to_dz(&self, rows: Range<usize>, columns: Range<usize>, tile: &mut [f32]) {
        let grid = &self.w.grid;
        let (qmin, qmax) = (grid.scheme.qmin(), grid.scheme.qmax());
        let group = grid.shared_group(columns.start, columns.len());
        self.w.fetch(rows.end..rows.end + rows.len(), columns.clone());
        for some in rows.clone().step_by(LANES) {
            let some = some..(some + LANES).min(rows.end);
            let mut sums = Square([[0.0; LANES]; LANES]);
            for first in some.clone().step_by(ROWS) {
                let block = first..(first + ROWS).min(some.end);
                let rounded = self.w.rounded(block.clone(), columns.clone());
                for (row, rounded) in block.zip(&rounded) {
                    let at = (row - rows.start) * COLUMNS;
                    let dw: &mut [f32; COLUMNS] = (&mut tile[at..at + COLUMNS]).try_into().expect("32 columns");
                    let (scale, zero) = grid.columns(row, columns.start, columns.len());
                    let mut ds = [0f32; COLUMNS];
                    for j in 0..COLUMNS {
                        (dw[j], ds[j]) = grid::backward(dw[j], rounded[j], zero[j], scale[j], qmin, qmax);
                    }
                    let sum = &mut sums.0[row - some.start];
                    for lane in 0..LANES {
                        sum[lane] = ds[lane] + ds[lane + LANES];
                    }
                    if group.is_none() {
                        for (j, ds) in ds.iter().enumerate().take(columns.len()) {
                            // SAFETY: rows of ds belong to this thread.
                            unsafe { self.ds.add(row, (columns.start + j) / grid.group, *ds) };
                        }
                    }
                }
            }
            if let Some(group) = group {
                transpose(&mut sums);
                for (row, sum) in some.zip(lanes::join_columns(sums.0)) {
                    // SAFETY: as above.
                    unsafe { self.ds.add(row, group, sum) };
                }
            }
        }
    }
}
