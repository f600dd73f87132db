//! The forward pass of [`attention`](super).

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::tile::{Probabilities, ln, mask, powers_of_2, row_maxima, row_sums};
use super::{
    Attention, Panels, Part, Shared, by_dimensions, by_rows, pack_columns, pack_columns_for_tiles, pack_rows, steps,
    steps_of_tiles,
};
use crate::compute::cpu::element::Element;
use crate::compute::cpu::product::{Ahead, COLUMNS, Kernel, Scratch, Work, with_kernel};
use crate::compute::cpu::simd::simd;
use crate::quant::lanes::{self, LANES};

/// Tiles of keys whose probabilities are gathered before they meet the values.
const GATHERED: usize = 8;
/// Scores of a part, and queries of the blocks that it is made of.
const PART_SCORES: usize = 1 << 20;
const PART_BLOCK: usize = 96;
/// A running reference is raised when an exponent exceeds it by more: powers of 2 up to 256 are as exact as those up to
/// 1, and what was summed before is brought to a new reference less often (the maximum itself is not needed).
const SLACK: f32 = 8.0;

/// out = softmax(q·kᵀ/√hd + mask)·v; lse [rows, heads] is the logarithm of each softmax's denominator.
pub fn attention_forward<E: Element>(shape: &Attention, q: &[E], k: &[E], v: &[E], out: &mut [E], lse: &mut [f32]) {
    with_kernel::<E, _>(Forward { shape, q, k, v, out, lse });
}

pub(super) struct Forward<'a, E> {
    pub shape: &'a Attention<'a>,
    pub q: &'a [E],
    pub k: &'a [E],
    pub v: &'a [E],
    pub out: &'a mut [E],
    pub lse: &'a mut [f32],
}

impl<E: Element> Work for Forward<'_, E> {
    type Output = ();

    fn run<K: Kernel>(self, kernel: K) {
        let Forward { shape, q, k, v, out, lse } = self;
        shape.check(q, k, v);
        assert!(out.len() == q.len() && lse.len() * shape.head_dim == q.len(), "attention: shapes of out, lse");
        let (out, lse) = (Shared::new(out), Shared::new(lse));
        let parts = shape.parts(PART_BLOCK, PART_SCORES).concat();
        parts.into_par_iter().with_max_len(1).for_each(|part| {
            HELD.with_borrow_mut(|held| forward_part(kernel, shape, [q, k, v], &part, held, &out, &lse));
        });
    }
}

/// Bytes of what a thread holds.
pub(super) fn thread_bytes<K: Kernel>(shape: &Attention, tokens: usize) -> usize {
    let (hd, width) = (shape.head_dim.next_multiple_of(K::STEP), shape.head_dim.next_multiple_of(COLUMNS));
    let tile = K::ROWS * COLUMNS;
    let packed = tokens.next_multiple_of(COLUMNS) * (hd + width) + K::ROWS * hd + GATHERED * tile;
    size_of::<K::Packed>() * packed + size_of::<f32>() * (2 * tile + K::ROWS * width)
}

#[derive(Default)]
struct Held {
    k: Scratch,
    v: Scratch,
    q: Scratch,
    /// Two tiles of scores.
    scores: Scratch,
    /// Probabilities of [`GATHERED`] tiles.
    p: Scratch,
    /// [ROWS, head_dim in whole panels]
    out: Scratch,
    rows: Rows,
}

/// Of each row of a panel of queries.
#[derive(Default)]
struct Rows {
    /// What exponents are less by.
    reference: Vec<f32>,
    maxima: Vec<f32>,
    sums: Vec<[f32; LANES]>,
    sums_before: Vec<[f32; LANES]>,
}

thread_local!(static HELD: RefCell<Held> = RefCell::default());

#[cfg(test)]
pub(super) fn held_bytes() -> usize {
    HELD.with_borrow(|h| [&h.k, &h.v, &h.q, &h.scores, &h.p, &h.out].iter().map(|held| held.bytes()).sum())
}

fn forward_part<K: Kernel, E: Element>(
    kernel: K,
    shape: &Attention,
    [q, k, v]: [&[E]; 3],
    part: &Part,
    held: &mut Held,
    out: &Shared<E>,
    lse: &Shared<f32>,
) {
    let hd = shape.head_dim;
    let tiles = shape.tiles(&part.queries);
    let keys = tiles.start * COLUMNS..part.queries.end;
    let of_keys = (shape.kv_width(), part.start + keys.start, keys.len(), part.kv_head);
    let keys = by_rows(k, of_keys.0, of_keys.1, of_keys.2, of_keys.3, hd);
    let values = by_dimensions(v, of_keys.0, of_keys.1, of_keys.2, of_keys.3, hd);
    let tile = K::ROWS * COLUMNS;
    let width = hd.next_multiple_of(COLUMNS);
    let _session = kernel.begin();
    let mut block = Block {
        kernel,
        shape,
        first_tile: tiles.start,
        k: pack_columns(kernel, &keys, &mut held.k),
        v: pack_columns_for_tiles(kernel, &values, &mut held.v),
        scores: held.scores.take::<f32>(2 * tile),
        p: held.p.take::<K::Packed>(GATHERED * tile),
        out: held.out.take::<f32>(K::ROWS * width),
        width,
        started: false,
        rows: &mut held.rows,
    };
    for head in part.kv_head * shape.group()..(part.kv_head + 1) * shape.group() {
        for first in part.queries.clone().step_by(K::ROWS) {
            let queries = first..part.queries.end.min(first + K::ROWS);
            let lines = by_rows(q, shape.q_width(), part.start + first, queries.len(), head, hd);
            let next = first + K::ROWS;
            let base = (part.start + next) * shape.q_width() + head * hd;
            let n = K::ROWS.min(part.queries.end.saturating_sub(next));
            let fetch = |i: usize| {
                for r in (i * 4..i * 4 + 4).take_while(|r| *r < n) {
                    lanes::fetch_next(&q[base + r * shape.q_width()..][..hd]);
                }
            };
            block.run(&pack_rows(kernel, &lines, steps::<K>(hd), &mut held.q), &queries, fetch);
            // SAFETY: these rows of this head are this part's alone.
            unsafe { block.store(part.start, head, queries, out, lse) };
        }
    }
}

/// A panel of queries against the keys of a part.
struct Block<'a, K: Kernel> {
    kernel: K,
    shape: &'a Attention<'a>,
    first_tile: usize,
    k: Panels<'a, K>,
    v: Panels<'a, K>,
    scores: &'a mut [f32],
    p: &'a mut [K::Packed],
    out: &'a mut [f32],
    width: usize,
    /// `out` holds something.
    started: bool,
    rows: &'a mut Rows,
}

impl<K: Kernel> Block<'_, K> {
    const TILE: usize = K::ROWS * COLUMNS;

    /// Sums of probabilities and of their products with values.
    fn run(&mut self, q: &Panels<K>, queries: &Range<usize>, fetch: impl Fn(usize)) {
        self.started = false;
        self.rows.reference.clear();
        self.rows.reference.resize(K::ROWS, f32::MIN);
        self.rows.maxima.resize(K::ROWS, 0.0);
        self.rows.sums.clear();
        self.rows.sums.resize(K::ROWS, [0.0; LANES]);
        self.rows.sums_before.resize(K::ROWS, [0.0; LANES]);

        let tiles = self.shape.tiles(queries);
        self.score(q, tiles.start, 0);
        let mut gathered = tiles.start..tiles.start;
        for (i, tile) in tiles.clone().enumerate() {
            if tile + 1 < tiles.end {
                // Before this tile's exponentials, so that both go on at once.
                self.score(q, tile + 1, (i + 1) % 2);
            }
            fetch(i);
            if self.shape.masks(queries, tile) {
                self.mask(queries.start, tile, i % 2);
            }
            std::mem::swap(&mut self.rows.sums, &mut self.rows.sums_before);
            let too_large = i == 0 || self.probabilities(i % 2, gathered.len()) > SLACK;
            if too_large {
                self.gather(&gathered);
                gathered.start = tile;
                gathered.end = tile;
                self.raise_reference(i % 2);
                self.probabilities(i % 2, 0);
            }
            gathered.end += 1;
            if gathered.len() == GATHERED {
                self.gather(&gathered);
                gathered.start = gathered.end;
            }
        }
        self.gather(&gathered);
    }

    fn score(&mut self, q: &Panels<K>, tile: usize, place: usize) {
        let (a, b) = (self.kernel.packed_rows(q.panel(0).as_ptr()), self.k.panel(tile - self.first_tile));
        let c = self.scores[place * Self::TILE..][..Self::TILE].as_mut_ptr();
        let ahead = Ahead::lines(b.as_ptr().wrapping_add(b.len()).cast());
        // SAFETY: a session lives; the panels are whole and equally deep, the tile is ours.
        unsafe { self.kernel.tile(a, b.as_ptr(), q.steps, c, COLUMNS, false, ahead) };
    }

    fn mask(&mut self, first: usize, tile: usize, place: usize) {
        mask(&mut self.scores[place * Self::TILE..][..Self::TILE], self.shape, first, tile);
    }

    fn probabilities(&mut self, place: usize, to: usize) -> f32 {
        let pass = Probabilities::<K> {
            scores: &self.scores[place * Self::TILE..][..Self::TILE],
            scale: self.shape.scale_of_2(),
            reference: &self.rows.reference,
            sums_before: &self.rows.sums_before,
            sums: &mut self.rows.sums,
            p: &mut self.p[to * Self::TILE..][..Self::TILE],
        };
        pass.run()
    }

    /// The reference of rows whose exponents exceed it by too much becomes their maximum; what was summed is brought to
    /// it.
    fn raise_reference(&mut self, place: usize) {
        let scale = self.shape.scale_of_2();
        row_maxima(&self.scores[place * Self::TILE..][..Self::TILE], &mut self.rows.maxima);
        let Rows { reference, maxima: factors, sums_before, .. } = &mut *self.rows;
        for (factor, reference) in factors.iter_mut().zip(reference) {
            let max = *factor * scale;
            let raised = if max - *reference > SLACK { max } else { *reference };
            *factor = *reference - raised;
            *reference = raised;
        }
        if self.started {
            powers_of_2(factors);
            simd(
                #[inline(always)]
                || {
                    let rows = sums_before.iter_mut().zip(self.out.chunks_exact_mut(self.width));
                    for ((sums, out), factor) in rows.zip(factors) {
                        for x in sums {
                            *x *= *factor;
                        }
                        for x in out {
                            *x *= *factor;
                        }
                    }
                },
            );
        }
    }

    /// out += P·V of the tiles gathered.
    fn gather(&mut self, tiles: &Range<usize>) {
        if tiles.is_empty() {
            return;
        }
        let first = steps_of_tiles::<K>(tiles.start - self.first_tile);
        let steps = steps_of_tiles::<K>(tiles.len());
        let a = self.kernel.tiled_rows(self.p.as_ptr());
        for panel in 0..self.width / COLUMNS {
            let b = self.v.at(panel, first..first + steps);
            let c = self.out[panel * COLUMNS..].as_mut_ptr();
            let ahead = Ahead::lines(b.as_ptr().wrapping_add(b.len()).cast());
            // SAFETY: a session lives; the tiles and the steps of the panel are as many; `out` has ROWS rows of `width`.
            unsafe { self.kernel.tile(a, b.as_ptr(), steps, c, self.width, self.started, ahead) };
        }
        self.started = true;
    }

    /// # Safety
    /// Nobody else holds the rows of these queries and this head.
    unsafe fn store<E: Element>(
        &mut self,
        start: usize,
        head: usize,
        queries: Range<usize>,
        out: &Shared<E>,
        lse: &Shared<f32>,
    ) {
        let hd = self.shape.head_dim;
        let Rows { reference, maxima: totals, sums, .. } = &mut *self.rows;
        row_sums(sums, totals);
        simd(
            #[inline(always)]
            || {
                for (i, query) in queries.clone().enumerate() {
                    let place = (start + query) * self.shape.heads + head;
                    // SAFETY: as the caller promises.
                    let out = unsafe { out.part(place * hd, hd) };
                    let factor = 1.0 / totals[i];
                    for (to, from) in out.iter_mut().zip(&self.out[i * self.width..][..hd]) {
                        *to = E::from_f32(from * factor);
                    }
                }
                for (reference, total) in reference.iter_mut().zip(totals) {
                    *reference = reference.mul_add(std::f32::consts::LN_2, ln(*total));
                }
            },
        );
        for (query, value) in queries.zip(&self.rows.reference) {
            // SAFETY: as above.
            unsafe { lse.part((start + query) * self.shape.heads + head, 1)[0] = *value };
        }
    }
}
