//! The walk over C: panels of B are made once for each thread's share of columns, those of A are read again for each
//! block of columns.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::super::element::Element;
use super::COLUMNS;
use super::kernel::{Ahead, Kernel, RowPanel};
use super::pack::{Lines, lie_as_tiles, pack_all};
use super::right::{MadeIn, Right};
use super::scratch::Scratch;
use super::sink::Sink;

/// Bytes of a block of B: a share of the second-level cache.
const BLOCK_BYTES: usize = 900 << 10;

/// A of a product: packed, or as it lies.
pub struct Left<'a, K: Kernel> {
    rows: RowPanel,
    /// From a panel to the next, in bytes.
    panel: usize,
    packed: bool,
    m: usize,
    steps: usize,
    borrowed: PhantomData<&'a K::Packed>,
}

// SAFETY: it only reads what it borrows.
unsafe impl<K: Kernel> Sync for Left<'_, K> {}

impl<'a, K: Kernel> Left<'a, K> {
    /// Packs `a` into `to` on all threads, unless the kernel can read it as it lies.
    pub fn new<E: Element>(kernel: K, a: &Lines<'a, E>, to: &'a mut Scratch) -> Left<'a, K> {
        Left::as_it_lies(a).unwrap_or_else(|| Left::packed(kernel, a, to))
    }

    fn as_it_lies<E: Element>(a: &Lines<'a, E>) -> Option<Left<'a, K>> {
        let (first, stride) = a.as_tiles().filter(|_| K::READS_TILES)?;
        let rows = RowPanel { first, row: stride, step: 64 };
        Some(Left { rows, panel: 32 * stride, packed: false, m: a.lines, steps: a.steps::<K>(), borrowed: PhantomData })
    }

    /// Bytes that [`Left::new`] packs of [m, k] with rows `stride` apart.
    pub fn bytes<E: Element>(m: usize, k: usize, stride: usize) -> usize {
        if K::READS_TILES && lie_as_tiles::<E>(m, k, stride) {
            return 0;
        }
        size_of::<K::Packed>() * m.next_multiple_of(K::ROWS) * k.next_multiple_of(K::STEP)
    }

    fn packed<E: Element>(kernel: K, a: &Lines<E>, to: &'a mut Scratch) -> Left<'a, K> {
        let (m, steps) = (a.lines, a.steps::<K>());
        let stride = steps * K::ROW_STEP;
        let packed = to.take::<K::Packed>(m.div_ceil(K::ROWS) * stride);
        pack_all(a, steps, K::ROW_STEP, packed, |panel, steps, out| {
            kernel.pack_rows(a, panel * K::ROWS, steps, out);
        });
        let rows = kernel.packed_rows(packed.as_ptr());
        Left { rows, panel: stride * size_of::<K::Packed>(), packed: true, m, steps, borrowed: PhantomData }
    }

    fn panels(&self) -> usize {
        self.m.div_ceil(K::ROWS)
    }

    /// A panel from step `step` on.
    #[inline]
    pub(in super::super) fn at(&self, panel: usize, step: usize) -> RowPanel {
        let step_bytes = if self.packed { K::ROW_STEP * size_of::<K::Packed>() } else { self.rows.step };
        RowPanel { first: self.rows.first.wrapping_add(panel * self.panel + step * step_bytes), ..self.rows }
    }
}

/// How threads share C.
pub enum Split {
    /// By columns, so that every panel of B is made once; by rows too where columns are few.
    Columns,
    /// By columns in pairs of panels, which one thread has together.
    Pairs,
    /// By whole units of this many panels of rows.
    Rows(usize),
}

/// C = A·B, its tiles given to `sink`.
pub fn product<K: Kernel, B: Right, S: Sink<K>>(kernel: K, a: &Left<K>, b: &B, split: Split, sink: &S) {
    let (rows, columns) = (a.panels(), b.n().div_ceil(COLUMNS));
    assert!(a.steps > 0 && a.steps == b.k().div_ceil(K::STEP), "product: k of A and B");
    if rows == 0 || columns == 0 {
        return;
    }
    let threads = rayon::current_num_threads();
    let (row_unit, column_unit) = match split {
        Split::Columns => (1, 1),
        Split::Pairs => (1, 2),
        Split::Rows(unit) => (unit, columns),
    };
    let (row_units, column_units) = (rows.div_ceil(row_unit), columns.div_ceil(column_unit));
    let column_parts = threads.min(column_units);
    let row_parts = (threads / column_parts).clamp(1, row_units);
    let share = |part: usize, parts: usize, units: usize, unit: usize, end: usize| {
        units * part / parts * unit..(units * (part + 1) / parts * unit).min(end)
    };
    (0..row_parts * column_parts).into_par_iter().with_max_len(1).for_each(|part| {
        let mine = share(part / column_parts, row_parts, row_units, row_unit, rows);
        let columns = share(part % column_parts, column_parts, column_units, column_unit, columns);
        walk(kernel, a, b, mine, columns, sink);
    });
}

/// How many steps or panels are taken together.
struct Blocking {
    /// Steps of a chunk: its panel of A stays in the first-level cache.
    chunk: usize,
    /// Steps of a block of B.
    block: usize,
    /// Columns (panels) of a block of B.
    columns: usize,
    /// Rows (panels) that share a chunk.
    rows: usize,
}

impl Blocking {
    fn new<K: Kernel>(rows: usize, columns: usize, steps: usize) -> Blocking {
        let even = |n: usize, most: usize| n.div_ceil(n.div_ceil(most));
        // A whole number of blocks in which weights are made.
        let block = even(steps, K::BLOCK).next_multiple_of(COLUMNS / K::STEP).min(steps);
        let step_bytes = K::COLUMN_STEP * size_of::<K::Packed>();
        let fit = (BLOCK_BYTES / (step_bytes * block)).clamp(2, 24);
        let whole = block == steps;
        Blocking {
            chunk: even(block, K::CHUNK),
            block,
            // Pairs stay together.
            columns: even(columns, fit).next_multiple_of(2),
            rows: if whole { 1 } else { rows.min(8) },
        }
    }
}

#[derive(Default)]
struct ThreadScratch {
    made: MadeIn,
    tiles: Scratch,
}

thread_local!(static SCRATCH: RefCell<ThreadScratch> = RefCell::default());

fn walk<K: Kernel, B: Right, S: Sink<K>>(
    kernel: K,
    a: &Left<K>,
    b: &B,
    rows: Range<usize>,
    columns: Range<usize>,
    sink: &S,
) {
    if rows.is_empty() || columns.is_empty() {
        return;
    }
    let _session = kernel.begin();
    let mut state = S::State::default();
    let steps = a.steps;
    let by = Blocking::new::<K>(rows.len(), columns.len(), steps);
    let tile_len = K::ROWS * COLUMNS;
    // A tile that is summed at once needs no place of its own.
    let (held_rows, held_columns) = match (by.block < steps, by.chunk < steps) {
        (true, _) => (rows.len(), by.columns),
        (false, true) => (by.rows, by.columns),
        (false, false) => (1, 1),
    };
    SCRATCH.with_borrow_mut(|scratch| {
        let tiles = scratch.tiles.take::<f32>(held_rows * held_columns * tile_len);
        for j0 in columns.clone().step_by(by.columns) {
            let js = j0..(j0 + by.columns).min(columns.end);
            for s0 in (0..steps).step_by(by.block) {
                let s1 = (s0 + by.block).min(steps);
                let (panels, stride) = b.panels(kernel, js.clone(), s0..s1, &mut scratch.made);
                for i0 in rows.clone().step_by(by.rows) {
                    let is = i0..(i0 + by.rows).min(rows.end);
                    for k0 in (s0..s1).step_by(by.chunk) {
                        let k1 = (k0 + by.chunk).min(s1);
                        for i in is.clone() {
                            let rows_of_a = a.at(i, k0);
                            let (next, next_k) = if i + 1 < is.end {
                                (i + 1, k0)
                            } else if k1 < s1 {
                                (i0, k1)
                            } else {
                                (is.end.min(rows.end - 1), s0)
                            };
                            let next_rows = a.at(next, next_k);
                            for j in js.clone() {
                                let panel = &panels[(j - j0) * stride + (k0 - s0) * K::COLUMN_STEP..];
                                let panel = panel[..(k1 - k0) * K::COLUMN_STEP].as_ptr();
                                let (next_i, next_j) = if j + 1 < js.end { (i, j + 1) } else { (next, j0) };
                                let ahead = Ahead::rows(next_rows, j - j0, js.len());
                                if let Some((c, ldc, accumulate)) = sink.place(i, j) {
                                    let adds = accumulate || k0 > 0;
                                    let ahead = ahead.with_c(sink.ahead(next_i, next_j));
                                    // SAFETY: the session lives; A and B were packed or checked for these panels and steps;
                                    // the sink says that the tile lies there, and this thread alone has it.
                                    unsafe { kernel.tile(rows_of_a, panel, k1 - k0, c, ldc, adds, ahead) };
                                    continue;
                                }
                                let last = k1 == steps;
                                let ahead = if last { ahead.with_c(sink.ahead(next_i, next_j)) } else { ahead };
                                let first = if by.block < steps { rows.start } else { i0 };
                                let at = (i - first) % held_rows * held_columns + (j - j0) % held_columns;
                                let tile = &mut tiles[at * tile_len..(at + 1) * tile_len];
                                let c = tile.as_mut_ptr();
                                // SAFETY: as above; the tile is a scratch of this thread.
                                unsafe { kernel.tile(rows_of_a, panel, k1 - k0, c, COLUMNS, k0 > 0, ahead) };
                                if last {
                                    sink.store(kernel, &mut state, i, j, tile);
                                }
                            }
                        }
                    }
                }
            }
        }
    });
}

/// Most bytes that a thread holds for products of m rows.
pub fn thread_bytes<K: Kernel>(m: usize) -> usize {
    // A block of B as packed and as made, and tiles of its columns for all rows.
    let columns = BLOCK_BYTES / (K::COLUMN_STEP * size_of::<K::Packed>() * K::BLOCK);
    2 * BLOCK_BYTES + m.next_multiple_of(K::ROWS) * columns.max(2) * COLUMNS * 4
}
