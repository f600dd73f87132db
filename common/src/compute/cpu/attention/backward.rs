//! The gradient of [`attention`](super), whose probabilities are recomputed from the scores and lse
//! (Dao et al., 2022, algorithm 4): P = exp(S - lse), dV = Pᵀ·dO, dP = dO·Vᵀ, dS = P∘(dP - D) with
//! D = rowsum(dO∘O), dQ = dS·K/√hd, dK = dSᵀ·Q/√hd.
//!
//! Blocks of queries meet all keys that they see; dKᵀ and dVᵀ are summed over them, and over the parts of a long
//! sequence in their order.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::sums::{KeyGradients, Sums, Unit};
use super::tile::{ScoreGradients, mask};
use super::{
    Attention, Panels, Part, Shared, by_dimensions, by_rows, pack_columns, pack_columns_for_tiles, pack_rows, steps,
    steps_of_tiles,
};
use crate::compute::cpu::element::Element;
use crate::compute::cpu::product::{Ahead, COLUMNS, Kernel, Scratch, Work, with_kernel};
use crate::compute::cpu::simd::simd;
use crate::quant::lanes::{LANES, join};

/// Queries of a block: whole panels of every kernel.
const QUERIES: usize = 192;
/// Tiles of keys that a block of queries meets at a time.
const KEYS: usize = 4;
/// Scores of a part.
const PART_SCORES: usize = 1 << 20;

/// What the forward pass read and wrote.
#[derive(Clone, Copy)]
pub struct AttentionSaved<'a, E> {
    pub q: &'a [E],
    pub k: &'a [E],
    pub v: &'a [E],
    pub out: &'a [E],
    pub lse: &'a [f32],
}

/// Sets dq, dk and dv.
pub fn attention_backward<E: Element>(
    shape: &Attention,
    saved: AttentionSaved<E>,
    dout: &[E],
    dq: &mut [E],
    dk: &mut [E],
    dv: &mut [E],
) {
    with_kernel::<E, _>(Backward { shape, saved, dout, dq, dk, dv });
}

pub(super) struct Backward<'a, E> {
    pub shape: &'a Attention<'a>,
    pub saved: AttentionSaved<'a, E>,
    pub dout: &'a [E],
    pub dq: &'a mut [E],
    pub dk: &'a mut [E],
    pub dv: &'a mut [E],
}

impl<E: Element> Work for Backward<'_, E> {
    type Output = ();

    fn run<K: Kernel>(self, kernel: K) {
        let Backward { shape, saved, dout, dq, dk, dv } = self;
        shape.check(saved.q, saved.k, saved.v);
        let (q_len, kv_len) = (saved.q.len(), saved.k.len());
        assert!(saved.out.len() == q_len && saved.lse.len() * shape.head_dim == q_len, "attention: shapes of out, lse");
        assert!(dout.len() == q_len && dq.len() == q_len, "attention: shapes of dout, dq");
        assert!(dk.len() == kv_len && dv.len() == kv_len, "attention: shapes of dk, dv");
        let dq = Shared::new(dq);
        let gradients = KeyGradients { shape, dk: Shared::new(dk), dv: Shared::new(dv) };
        let units: Vec<Unit> = shape.parts(QUERIES, PART_SCORES).into_iter().map(Unit::new).collect();
        let all: Vec<(&Unit, usize)> =
            units.iter().flat_map(|unit| (0..unit.parts.len()).map(move |i| (unit, i))).collect();
        all.into_par_iter().with_max_len(1).for_each(|(unit, i)| {
            let part = &unit.parts[i];
            let mut sums = Sums::take();
            let held = sums.begin::<K>(shape, part);
            let summed = |tile, sums: &[f32]| {
                if unit.parts.len() == 1 {
                    // While they are in the cache.
                    // SAFETY: nobody else stores gradients of these keys.
                    unsafe { gradients.store::<K>(part, tile, &[sums]) };
                }
            };
            HELD.with_borrow_mut(|scratch| {
                backward_part(kernel, shape, saved, dout, part, scratch, held, &dq, summed);
            });
            // SAFETY: nobody else stores gradients of these keys.
            unsafe { unit.finish::<K, E>(i, sums, &gradients) };
        });
    }
}

/// Bytes of what a thread holds. The parts of a sequence may be held by one thread, until the last is done.
pub(super) fn thread_bytes<K: Kernel>(shape: &Attention, tokens: usize) -> usize {
    let (hd, width) = (shape.head_dim.next_multiple_of(K::STEP), shape.head_dim.next_multiple_of(COLUMNS));
    let (tile, rows) = (K::ROWS * COLUMNS, QUERIES.min(tokens).next_multiple_of(K::ROWS));
    let of_keys = tokens.next_multiple_of(COLUMNS) * (2 * hd + width);
    let of_queries = 2 * rows * (hd + shape.head_dim.next_multiple_of(K::ROWS)) + 3 * KEYS * rows * COLUMNS;
    let sequence = Attention { segments: &[0, tokens], kv_heads: 1, heads: shape.group(), ..*shape };
    let parts = sequence.parts(QUERIES, PART_SCORES).concat();
    let sums: usize =
        parts.iter().map(|part| shape.tiles(&part.queries).len() * Sums::stride::<K>(shape.head_dim)).sum();
    size_of::<K::Packed>() * (of_keys + of_queries) + size_of::<f32>() * (4 * tile + rows * width + sums)
}

#[derive(Default)]
struct Held {
    k_columns: Scratch,
    v_columns: Scratch,
    k_for_tiles: Scratch,
    q_rows: Scratch,
    dout_rows: Scratch,
    q_dimensions: Scratch,
    dout_dimensions: Scratch,
    /// Two tiles of scores and two of dP.
    scores: Scratch,
    /// P and dS of a block: [KEYS][panels of queries][tile] as B, [panels of queries][KEYS][tile] as A.
    p_columns: Scratch,
    ds_columns: Scratch,
    ds_lines: Scratch,
    /// [queries, head_dim in whole panels]
    dq: Scratch,
    /// Of each query: lse in units of ln 2, and D.
    reference: Vec<f32>,
    d: Vec<f32>,
}

thread_local!(static HELD: RefCell<Held> = RefCell::default());

#[cfg(test)]
pub(super) fn held_bytes() -> usize {
    HELD.with_borrow(|h| {
        let of_keys = [&h.k_columns, &h.v_columns, &h.k_for_tiles];
        let of_queries = [&h.q_rows, &h.dout_rows, &h.q_dimensions, &h.dout_dimensions, &h.dq];
        let of_tiles = [&h.scores, &h.p_columns, &h.ds_columns, &h.ds_lines];
        of_keys.iter().chain(&of_queries).chain(&of_tiles).map(|held| held.bytes()).sum()
    })
}

#[allow(clippy::too_many_arguments)]
fn backward_part<K: Kernel, E: Element>(
    kernel: K,
    shape: &Attention,
    saved: AttentionSaved<E>,
    dout: &[E],
    part: &Part,
    held: &mut Held,
    sums: &mut [f32],
    dq: &Shared<E>,
    summed: impl Fn(usize, &[f32]),
) {
    let (hd, width, kv_width) = (shape.head_dim, shape.q_width(), shape.kv_width());
    let tiles = shape.tiles(&part.queries);
    let (row, n) = (part.start + tiles.start * COLUMNS, part.queries.end - tiles.start * COLUMNS);
    let keys = by_rows(saved.k, kv_width, row, n, part.kv_head, hd);
    let values = by_rows(saved.v, kv_width, row, n, part.kv_head, hd);
    let keys_across = by_dimensions(saved.k, kv_width, row, n, part.kv_head, hd);
    let tile = K::ROWS * COLUMNS;
    let most_panels = QUERIES.min(part.queries.len()).div_ceil(K::ROWS);
    let _session = kernel.begin();
    let mut block = Block {
        kernel,
        shape,
        first_tile: tiles.start,
        k_columns: pack_columns(kernel, &keys, &mut held.k_columns),
        v_columns: pack_columns(kernel, &values, &mut held.v_columns),
        k_for_tiles: pack_columns_for_tiles(kernel, &keys_across, &mut held.k_for_tiles),
        scores: held.scores.take::<f32>(4 * tile),
        p_columns: held.p_columns.take::<K::Packed>(KEYS * most_panels * tile),
        ds_columns: held.ds_columns.take::<K::Packed>(KEYS * most_panels * tile),
        ds_lines: held.ds_lines.take::<K::Packed>(KEYS * most_panels * tile),
        dq: held.dq.take::<f32>(most_panels * K::ROWS * hd.next_multiple_of(COLUMNS)),
        reference: &mut held.reference,
        d: &mut held.d,
        sums,
        started: vec![false; tiles.len()],
    };
    for head in part.kv_head * shape.group()..(part.kv_head + 1) * shape.group() {
        for first in part.queries.clone().step_by(QUERIES) {
            let queries = first..part.queries.end.min(first + QUERIES);
            let (row, n) = (part.start + first, queries.len());
            let operand = |x, to| pack_rows(kernel, &by_rows(x, width, row, n, head, hd), steps::<K>(hd), to);
            let across = |x, to| {
                let steps = n.div_ceil(K::ROWS) * K::ROWS / K::STEP;
                pack_rows(kernel, &by_dimensions(x, width, row, n, head, hd), steps, to)
            };
            let of_queries = Queries {
                q_rows: operand(saved.q, &mut held.q_rows),
                dout_rows: operand(dout, &mut held.dout_rows),
                q_dimensions: across(saved.q, &mut held.q_dimensions),
                dout_dimensions: across(dout, &mut held.dout_dimensions),
            };
            block.statistics(saved, dout, row, n, head);
            let next = queries.end..part.queries.end.min(queries.end + QUERIES);
            let ends = if next.is_empty() { tiles.end } else { shape.tiles(&next).start };
            block.run(&of_queries, &queries, |tile, sums| {
                if head + 1 == (part.kv_head + 1) * shape.group() && tile < ends {
                    summed(tile, sums);
                }
            });
            // SAFETY: these rows of this head are this part's alone.
            unsafe { block.store(row, n, head, dq) };
        }
    }
}

/// A block of queries of one head, as operands.
struct Queries<'a, K: Kernel> {
    q_rows: Panels<'a, K>,
    dout_rows: Panels<'a, K>,
    q_dimensions: Panels<'a, K>,
    dout_dimensions: Panels<'a, K>,
}

/// Blocks of queries against the keys of a part.
struct Block<'a, K: Kernel> {
    kernel: K,
    shape: &'a Attention<'a>,
    first_tile: usize,
    k_columns: Panels<'a, K>,
    v_columns: Panels<'a, K>,
    k_for_tiles: Panels<'a, K>,
    scores: &'a mut [f32],
    p_columns: &'a mut [K::Packed],
    ds_columns: &'a mut [K::Packed],
    ds_lines: &'a mut [K::Packed],
    dq: &'a mut [f32],
    reference: &'a mut Vec<f32>,
    d: &'a mut Vec<f32>,
    sums: &'a mut [f32],
    /// Of each tile of keys, whether `sums` holds something.
    started: Vec<bool>,
}

impl<K: Kernel> Block<'_, K> {
    const TILE: usize = K::ROWS * COLUMNS;

    /// lse and D of n queries; what fills up the last panel has probabilities of 0.
    fn statistics<E: Element>(&mut self, saved: AttentionSaved<E>, dout: &[E], row: usize, n: usize, head: usize) {
        let Attention { heads, head_dim: hd, .. } = *self.shape;
        let padded = n.next_multiple_of(K::ROWS);
        self.reference.clear();
        self.d.clear();
        simd(
            #[inline(always)]
            || {
                for at in (row..row + n).map(|row| row * heads + head) {
                    self.reference.push(saved.lse[at] * std::f32::consts::LOG2_E);
                    self.d.push(dot(&saved.out[at * hd..(at + 1) * hd], &dout[at * hd..(at + 1) * hd]));
                }
            },
        );
        self.reference.resize(padded, f32::MAX);
        self.d.resize(padded, 0.0);
    }

    /// Adds what these queries give to the sums of the keys that they see, each then shown to `summed`, and sets dQ.
    fn run(&mut self, of: &Queries<K>, queries: &Range<usize>, summed: impl Fn(usize, &[f32])) {
        let panels = queries.len().div_ceil(K::ROWS);
        let of_panel = |i: usize| {
            let first = queries.start + i * K::ROWS;
            first..queries.end.min(first + K::ROWS)
        };
        let mut started = vec![false; panels];
        let tiles = self.shape.tiles(queries);
        for from in tiles.clone().step_by(KEYS) {
            let some = from..tiles.end.min(from + KEYS);
            let of_tiles = |i: usize| {
                let seen = self.shape.tiles(&of_panel(i));
                seen.start.max(some.start)..seen.end.min(some.end)
            };
            let seen: Vec<Range<usize>> = (0..panels).map(of_tiles).collect();
            let pairs: Vec<(usize, usize)> = (0..panels).flat_map(|i| seen[i].clone().map(move |t| (i, t))).collect();
            for (at, (i, tile)) in pairs.iter().copied().enumerate() {
                if at == 0 {
                    self.score(of, i, tile, 0);
                }
                if let Some((i, tile)) = pairs.get(at + 1) {
                    // Before this tile's exponentials, so that both go on at once.
                    self.score(of, *i, *tile, (at + 1) % 2);
                }
                if self.shape.masks(&of_panel(i), tile) {
                    self.mask(of_panel(i).start, tile, at % 2);
                }
                self.gradients(i, panels, tile - from, at % 2);
            }
            for tile in some.clone() {
                let Some(first) = seen.iter().position(|seen| seen.contains(&tile)) else { continue };
                let end = panels - seen.iter().rev().position(|seen| seen.contains(&tile)).expect("there is one");
                summed(tile, self.sum_for_keys(of, first..end, panels, tile, tile - from));
            }
            for (i, seen) in seen.into_iter().enumerate().filter(|(_, seen)| !seen.is_empty()) {
                self.sum_for_queries(i, seen, from, started[i]);
                started[i] = true;
            }
        }
    }

    fn width(&self) -> usize {
        self.shape.head_dim.next_multiple_of(COLUMNS)
    }

    /// S and dP of a tile.
    fn score(&mut self, of: &Queries<K>, panel: usize, tile: usize, place: usize) {
        let tile = tile - self.first_tile;
        let products = [(&of.q_rows, &self.k_columns), (&of.dout_rows, &self.v_columns)];
        for (which, (rows, columns)) in products.into_iter().enumerate() {
            let (a, b) = (self.kernel.packed_rows(rows.panel(panel).as_ptr()), columns.panel(tile));
            let c = self.scores[(2 * place + which) * Self::TILE..][..Self::TILE].as_mut_ptr();
            let ahead = Ahead::lines(b.as_ptr().wrapping_add(b.len()).cast());
            // SAFETY: a session lives; the panels are whole and equally deep, the tile is ours.
            unsafe { self.kernel.tile(a, b.as_ptr(), rows.steps, c, COLUMNS, false, ahead) };
        }
    }

    fn mask(&mut self, first: usize, tile: usize, place: usize) {
        mask(&mut self.scores[2 * place * Self::TILE..][..Self::TILE], self.shape, first, tile);
    }

    /// P and dS of a tile.
    fn gradients(&mut self, panel: usize, panels: usize, tile: usize, place: usize) {
        let (scores, dp) = self.scores[2 * place * Self::TILE..].split_at(Self::TILE);
        let (columns, lines) = ((tile * panels + panel) * Self::TILE, (panel * KEYS + tile) * Self::TILE);
        let rows = panel * K::ROWS..(panel + 1) * K::ROWS;
        let pass = ScoreGradients::<K> {
            scores,
            dp,
            scale: self.shape.scale_of_2(),
            reference: &self.reference[rows.clone()],
            d: &self.d[rows],
            p_columns: &mut self.p_columns[columns..][..Self::TILE],
            ds_columns: &mut self.ds_columns[columns..][..Self::TILE],
            ds_lines: &mut self.ds_lines[lines..][..Self::TILE],
        };
        pass.run();
    }

    /// dKᵀ += Qᵀ·dS and dVᵀ += dOᵀ·P of a tile of keys, over `seen` panels of queries.
    fn sum_for_keys(
        &mut self,
        of: &Queries<K>,
        seen: Range<usize>,
        panels: usize,
        tile: usize,
        place: usize,
    ) -> &[f32] {
        let (rows, tile) = (self.shape.head_dim.next_multiple_of(K::ROWS), tile - self.first_tile);
        let (first, steps) = (seen.start * K::ROWS / K::STEP, seen.len() * K::ROWS / K::STEP);
        let at = (place * panels + seen.start) * Self::TILE;
        let products = [(&of.q_dimensions, &self.ds_columns), (&of.dout_dimensions, &self.p_columns)];
        for (which, (a, b)) in products.into_iter().enumerate() {
            let b = &b[at..][..seen.len() * Self::TILE];
            let sums = &mut self.sums[(2 * tile + which) * rows * COLUMNS..][..rows * COLUMNS];
            for (panel, c) in sums.chunks_exact_mut(Self::TILE).enumerate() {
                let a = self.kernel.packed_rows(a.at(panel, first..first + steps).as_ptr());
                let ahead = Ahead::lines(b.as_ptr().wrapping_add(b.len()).cast());
                // SAFETY: a session lives; both operands have these steps, the tile is ours.
                unsafe { self.kernel.tile(a, b.as_ptr(), steps, c.as_mut_ptr(), COLUMNS, self.started[tile], ahead) };
            }
        }
        self.started[tile] = true;
        &self.sums[2 * tile * rows * COLUMNS..][..2 * rows * COLUMNS]
    }

    /// dQ += dS·K of a panel of queries, over the tiles of keys that it has seen.
    fn sum_for_queries(&mut self, panel: usize, seen: Range<usize>, from: usize, started: bool) {
        let (width, steps) = (self.width(), steps_of_tiles::<K>(seen.len()));
        let first = steps_of_tiles::<K>(seen.start - self.first_tile);
        let lines = &self.ds_lines[(panel * KEYS + seen.start - from) * Self::TILE..][..seen.len() * Self::TILE];
        let a = self.kernel.tiled_rows(lines.as_ptr());
        let dq = &mut self.dq[panel * K::ROWS * width..][..K::ROWS * width];
        for columns in 0..width / COLUMNS {
            let b = self.k_for_tiles.at(columns, first..first + steps);
            let ahead = Ahead::lines(b.as_ptr().wrapping_add(b.len()).cast());
            // SAFETY: as above; dq has ROWS rows of `width`.
            unsafe {
                self.kernel.tile(a, b.as_ptr(), steps, dq[columns * COLUMNS..].as_mut_ptr(), width, started, ahead)
            };
        }
    }

    /// # Safety
    /// Nobody else holds these rows of this head.
    unsafe fn store<E: Element>(&self, row: usize, n: usize, head: usize, dq: &Shared<E>) {
        let Attention { heads, head_dim: hd, .. } = *self.shape;
        let factor = self.shape.scale();
        simd(
            #[inline(always)]
            || {
                for (i, from) in self.dq.chunks_exact(self.width()).take(n).enumerate() {
                    // SAFETY: as the caller promises.
                    let to = unsafe { dq.part(((row + i) * heads + head) * hd, hd) };
                    for (to, x) in to.iter_mut().zip(from) {
                        *to = E::from_f32(x * factor);
                    }
                }
            },
        );
    }
}

/// Σ xᵢyᵢ in a fixed order.
#[inline(always)]
fn dot<E: Element>(x: &[E], y: &[E]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x.iter().zip(y) {
        for lane in 0..LANES {
            sums[lane] = x[lane].to_f32().mul_add(y[lane].to_f32(), sums[lane]);
        }
    }
    for (sum, (x, y)) in sums.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *sum = x.to_f32().mul_add(y.to_f32(), *sum);
    }
    join(sums)
}
