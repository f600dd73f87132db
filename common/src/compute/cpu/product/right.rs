//! B of a product: a matrix in memory, packed when needed or beforehand, or one made block by block.

use std::ops::Range;

use super::super::element::Element;
use super::COLUMNS;
use super::kernel::Kernel;
use super::pack::{Lines, pack_all};
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
        pack_all(b, b.steps::<K>(), K::COLUMN_STEP, packed, |panel, steps, out| {
            kernel.pack_columns(b, panel * COLUMNS, steps, out);
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

/// The panels `of` a number of elements from `0` to `end`.
fn span(of: &Range<usize>, unit: usize, end: usize) -> Range<usize> {
    of.start * unit..(of.end * unit).min(end)
}

/// Panel `panel` of Wᵀ.
fn transposed<K: Kernel, W: Rows>(
    kernel: K,
    w: &W,
    panel: usize,
    steps: Range<usize>,
    made: &mut Scratch,
    out: &mut [K::Packed],
) {
    let (rows, columns) = (span(&(panel..panel + 1), COLUMNS, w.n()), span(&steps, K::STEP, w.k()));
    let made = made.take::<W::E>(rows.len() * columns.len());
    w.make(rows.clone(), columns.clone(), made);
    let lines = Lines::new(made, rows.len(), columns.len(), (columns.len(), 1));
    kernel.pack_columns(&lines, 0, 0..steps.len(), out);
}

/// Weights of one input side by side: B = [W₀ᵀ W₁ᵀ …], each from a panel on, filled up with zeros to whole panels.
pub struct SideBySide<'a, W> {
    weights: &'a [W],
    places: Vec<Place>,
}

/// Which of several matrices a panel belongs to, and which of its panels it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub of: usize,
    pub panel: usize,
}

impl<'a, W: Rows> SideBySide<'a, W> {
    pub fn one_after_another(weights: &'a [W]) -> Self {
        let places = |(of, w): (usize, &W)| (0..w.n().div_ceil(COLUMNS)).map(move |panel| Place { of, panel });
        SideBySide { weights, places: weights.iter().enumerate().flat_map(places).collect() }
    }

    /// A panel of each by turns; they have the same n.
    pub fn by_turns(weights: &'a [W]) -> Self {
        assert!(weights.windows(2).all(|two| two[0].n() == two[1].n()), "weights by turns: n differs");
        let panels = weights.first().map_or(0, |w| w.n().div_ceil(COLUMNS));
        let places = (0..panels).flat_map(|panel| (0..weights.len()).map(move |of| Place { of, panel })).collect();
        SideBySide { weights, places }
    }

    pub fn places(&self) -> &[Place] {
        &self.places
    }
}

impl<W: Rows> Right for SideBySide<'_, W> {
    fn n(&self) -> usize {
        self.places.len() * COLUMNS
    }

    fn k(&self) -> usize {
        self.weights.first().map_or(0, |w| w.k())
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
        for (place, out) in self.places[panels].iter().zip(out.chunks_exact_mut(stride)) {
            transposed(kernel, &self.weights[place.of], place.panel, steps.clone(), &mut scratch.rows, out);
        }
        (out, stride)
    }
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
        match self {
            Made::Transposed(w) => {
                for (panel, out) in panels.zip(out.chunks_exact_mut(stride)) {
                    transposed(kernel, *w, panel, steps.clone(), &mut scratch.rows, out);
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
