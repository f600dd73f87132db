//! B of a product: a matrix in memory, packed when needed or beforehand, or one made block by block.

use std::ops::Range;

use rayon::prelude::*;

use super::super::element::Element;
use super::COLUMNS;
use super::kernel::Kernel;
use super::pack::Lines;
use super::scratch::Scratch;

/// B [k, n] as panels of 32 columns.
pub trait Right: Sync {
    fn n(&self) -> usize;
    fn k(&self) -> usize;

    /// Panels `panels`, steps `steps`: the first panel's first step, and elements from a panel to the next. What is not
    /// at hand is made in `scratch`.
    fn panels<'a, K: Kernel>(
        &'a self,
        kernel: K,
        panels: Range<usize>,
        steps: Range<usize>,
        scratch: &'a mut MadeIn,
    ) -> (&'a [K::Packed], usize);
}

/// Where a thread makes panels.
#[derive(Default)]
pub struct MadeIn {
    panels: Scratch,
    rows: Scratch,
}

impl<E: Element> Right for Lines<'_, E> {
    fn n(&self) -> usize {
        self.lines
    }

    fn k(&self) -> usize {
        self.k
    }

    fn panels<'a, K: Kernel>(
        &'a self,
        kernel: K,
        panels: Range<usize>,
        steps: Range<usize>,
        scratch: &'a mut MadeIn,
    ) -> (&'a [K::Packed], usize) {
        let stride = steps.len() * K::COLUMN_STEP;
        let out = scratch.panels.take(panels.len() * stride);
        for (panel, out) in panels.zip(out.chunks_exact_mut(stride)) {
            kernel.pack_columns(self, panel * COLUMNS, steps.clone(), out);
        }
        (out, stride)
    }
}

/// A B that lies packed as a whole.
pub struct PackedColumns<'a, T> {
    packed: &'a [T],
    n: usize,
    k: usize,
}

impl<T> PackedColumns<'_, T> {
    /// One panel from step `step` on.
    pub fn panel<K: Kernel<Packed = T>>(&self, panel: usize, step: usize) -> &[T] {
        &self.packed[(panel * self.k.div_ceil(K::STEP) + step) * K::COLUMN_STEP..]
    }
}

impl<'a, T: bytemuck::Pod + Send + Sync> PackedColumns<'a, T> {
    /// Packs all of `b` on all threads.
    pub fn new<K: Kernel<Packed = T>, E: Element>(kernel: K, b: &Lines<E>, to: &'a mut Scratch) -> Self {
        let stride = b.steps::<K>() * K::COLUMN_STEP;
        let packed = to.take::<T>(b.lines.div_ceil(COLUMNS) * stride);
        packed.par_chunks_exact_mut(stride).enumerate().for_each(|(panel, out)| {
            kernel.pack_columns(b, panel * COLUMNS, 0..b.steps::<K>(), out);
        });
        PackedColumns { packed, n: b.lines, k: b.k }
    }
}

impl<T: bytemuck::Pod + Send + Sync> Right for PackedColumns<'_, T> {
    fn n(&self) -> usize {
        self.n
    }

    fn k(&self) -> usize {
        self.k
    }

    fn panels<'a, K: Kernel>(
        &'a self,
        _: K,
        panels: Range<usize>,
        steps: Range<usize>,
        _: &'a mut MadeIn,
    ) -> (&'a [K::Packed], usize) {
        let stride = self.k.div_ceil(K::STEP) * K::COLUMN_STEP;
        let all: &[K::Packed] = bytemuck::cast_slice(self.packed);
        (&all[panels.start * stride + steps.start * K::COLUMN_STEP..], stride)
    }
}

/// A weight W [n, k] whose rows can be made anywhere.
pub trait Rows: Sync {
    type E: Element;
    fn n(&self) -> usize;
    fn k(&self) -> usize;
    /// Rows `rows` (at most 32, from a multiple of 32 on), columns `columns` (from a multiple of 32 on) into `out`
    /// [rows, columns].
    fn make(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [Self::E]);
}

/// A made weight as B of a product.
pub enum Made<'a, W> {
    /// B = Wᵀ: x·Wᵀ.
    Transposed(&'a W),
    /// B = W: dy·W.
    AsIs(&'a W),
}

impl<W: Rows> Right for Made<'_, W> {
    fn n(&self) -> usize {
        match self {
            Made::Transposed(w) => w.n(),
            Made::AsIs(w) => w.k(),
        }
    }

    fn k(&self) -> usize {
        match self {
            Made::Transposed(w) => w.k(),
            Made::AsIs(w) => w.n(),
        }
    }

    fn panels<'a, K: Kernel>(
        &'a self,
        kernel: K,
        panels: Range<usize>,
        steps: Range<usize>,
        scratch: &'a mut MadeIn,
    ) -> (&'a [K::Packed], usize) {
        let stride = steps.len() * K::COLUMN_STEP;
        let out = scratch.panels.take(panels.len() * stride);
        let span = |units: &Range<usize>, unit: usize, end: usize| units.start * unit..(units.end * unit).min(end);
        match self {
            Made::Transposed(w) => {
                let columns = span(&steps, K::STEP, w.k());
                let made = scratch.rows.take::<W::E>(COLUMNS * columns.len());
                for (panel, out) in panels.zip(out.chunks_exact_mut(stride)) {
                    let rows = span(&(panel..panel + 1), COLUMNS, w.n());
                    let made = &mut made[..rows.len() * columns.len()];
                    w.make(rows.clone(), columns.clone(), made);
                    let lines = Lines::new(made, rows.len(), columns.len(), (columns.len(), 1));
                    kernel.pack_columns(&lines, 0, 0..steps.len(), out);
                }
            }
            Made::AsIs(w) => {
                let columns = span(&panels, COLUMNS, w.k());
                let made = scratch.rows.take::<W::E>(COLUMNS * columns.len());
                for from in steps.clone().step_by(COLUMNS / K::STEP) {
                    let some = from..(from + COLUMNS / K::STEP).min(steps.end);
                    let rows = span(&some, K::STEP, w.n());
                    let made = &mut made[..rows.len() * columns.len()];
                    w.make(rows.clone(), columns.clone(), made);
                    let lines = Lines::new(made, columns.len(), rows.len(), (1, columns.len()));
                    for (panel, out) in out.chunks_exact_mut(stride).enumerate() {
                        let out = &mut out[(from - steps.start) * K::COLUMN_STEP..];
                        kernel.pack_columns(&lines, panel * COLUMNS, 0..some.len(), out);
                    }
                }
            }
        }
        (out, stride)
    }
}
