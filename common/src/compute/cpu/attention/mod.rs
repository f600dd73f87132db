//! Causal attention with grouped queries and an optional sliding window, tile by tile with a running softmax
//! (Dao et al., 2022, "FlashAttention"): of the scores no more is held than a few tiles of [`Kernel::ROWS`] queries by
//! 32 keys, and tiles that the mask hides are never computed.
//!
//! The work is cut into sequences, heads of keys and ranges of queries, each done by one thread with the keys and
//! values that its queries see packed once. Products are those of a [`Kernel`]; probabilities and their gradients are
//! rounded to what it multiplies, sums stay f32.

mod backward;
mod forward;
mod sums;
mod tile;

use std::marker::PhantomData;
use std::ops::Range;

use super::check_segments;
use super::element::Element;
use super::product::{COLUMNS, Kernel, Lines, Scratch, Work, with_kernel};

pub use backward::{AttentionSaved, attention_backward};
pub use forward::attention_forward;

/// Bytes that a thread holds for sequences of up to `tokens` tokens, forward and backward.
pub fn thread_bytes<E: Element>(shape: &Attention, tokens: usize) -> usize {
    struct Bytes<'a>(&'a Attention<'a>, usize);
    impl Work for Bytes<'_> {
        type Output = usize;
        fn run<K: Kernel>(self, _: K) -> usize {
            forward::thread_bytes::<K>(self.0, self.1) + backward::thread_bytes::<K>(self.0, self.1)
        }
    }
    with_kernel::<E, _>(Bytes(shape, tokens))
}

/// Who attends to whom. Heads are side by side in a row: q is [rows, heads * head_dim], k and v are
/// [rows, kv_heads * head_dim].
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    pub segments: &'a [usize],
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// A query sees this many tokens at most, itself among them (`sliding_window` of transformers).
    pub window: Option<usize>,
}

/// Queries of one sequence, of the heads that share a head of keys.
#[derive(Clone)]
struct Part {
    /// Row of the sequence's first token.
    start: usize,
    kv_head: usize,
    /// Positions.
    queries: Range<usize>,
}

impl Attention<'_> {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// What scores are multiplied by, so that probabilities are powers of 2.
    fn scale_of_2(&self) -> f32 {
        self.scale() * std::f32::consts::LOG2_E
    }

    fn check<E>(&self, q: &[E], k: &[E], v: &[E]) {
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "attention: {self:?}");
        assert!(self.head_dim > 0 && self.window != Some(0), "attention: {self:?}");
        let rows = q.len() / self.q_width();
        assert!(q.len() == rows * self.q_width(), "attention: shape of q");
        assert!(k.len() == rows * self.kv_width() && v.len() == k.len(), "attention: shapes of k, v");
        check_segments(self.segments, rows);
    }

    /// The positions that a query sees.
    fn visible(&self, query: usize) -> Range<usize> {
        (query + 1).saturating_sub(self.window.unwrap_or(usize::MAX))..query + 1
    }

    /// The tiles of keys that some of these queries see.
    fn tiles(&self, queries: &Range<usize>) -> Range<usize> {
        self.visible(queries.start).start / COLUMNS..queries.end.div_ceil(COLUMNS)
    }

    /// Whether some of these queries does not see some key of a tile.
    fn masks(&self, queries: &Range<usize>, tile: usize) -> bool {
        let end = (tile + 1) * COLUMNS;
        end > queries.start + 1 || self.visible(queries.end - 1).start > tile * COLUMNS
    }

    /// Every sequence and head of keys, in parts of about `scores` scores each and of whole blocks of queries: the same
    /// parts whatever else is in the batch.
    fn parts(&self, block: usize, scores: usize) -> Vec<Vec<Part>> {
        let mut all = Vec::new();
        for segment in self.segments.windows(2) {
            let (start, tokens) = (segment[0], segment[1] - segment[0]);
            if tokens > 0 {
                let cuts = self.cuts(tokens, block, scores);
                let of = |kv_head| cuts.windows(2).map(move |w| Part { start, kv_head, queries: w[0]..w[1] });
                all.extend((0..self.kv_heads).map(|kv_head| of(kv_head).collect()));
            }
        }
        all
    }

    fn cuts(&self, tokens: usize, block: usize, scores: usize) -> Vec<usize> {
        let blocks = || (0..tokens).step_by(block).map(|first| first..tokens.min(first + block));
        let cost = |queries: &Range<usize>| self.tiles(queries).len() * COLUMNS * queries.len() * self.group();
        let total: usize = blocks().map(|b| cost(&b)).sum();
        let parts = total.div_ceil(scores);
        let (mut cuts, mut done) = (vec![0], 0);
        for block in blocks() {
            done += cost(&block);
            if done * parts >= total * cuts.len() {
                cuts.push(block.end);
            }
        }
        cuts
    }
}

/// `n` lines of a head that begin at `row`, whose k are the head's dimensions.
fn by_rows<E>(x: &[E], width: usize, row: usize, n: usize, head: usize, head_dim: usize) -> Lines<'_, E> {
    Lines::new(&x[row * width + head * head_dim..], n, head_dim, (width, 1))
}

/// The dimensions of a head as lines, whose k are `n` rows from `row` on.
fn by_dimensions<E>(x: &[E], width: usize, row: usize, n: usize, head: usize, head_dim: usize) -> Lines<'_, E> {
    Lines::new(&x[row * width + head * head_dim..], head_dim, n, (1, width))
}

/// Steps in which a kernel takes k values, as many as they need or, to meet tiles, as fill whole tiles.
fn steps<K: Kernel>(k: usize) -> usize {
    k.div_ceil(K::STEP)
}

fn steps_of_tiles<K: Kernel>(tiles: usize) -> usize {
    tiles * COLUMNS / K::STEP
}

/// All panels of A.
fn pack_rows<'a, K: Kernel, E: Element>(kernel: K, a: &Lines<E>, steps: usize, to: &'a mut Scratch) -> Panels<'a, K> {
    Panels::make(a.lines.div_ceil(K::ROWS), steps, K::ROW_STEP, to, |panel, out| {
        kernel.pack_rows(a, panel * K::ROWS, 0..steps, out);
    })
}

/// All panels of B.
fn pack_columns<'a, K: Kernel, E: Element>(kernel: K, b: &Lines<E>, to: &'a mut Scratch) -> Panels<'a, K> {
    let steps = steps::<K>(b.k);
    Panels::make(b.lines.div_ceil(COLUMNS), steps, K::COLUMN_STEP, to, |panel, out| {
        kernel.pack_columns(b, panel * COLUMNS, 0..steps, out);
    })
}

/// All panels of a B that meets tiles.
fn pack_columns_for_tiles<'a, K: Kernel, E: Element>(kernel: K, b: &Lines<E>, to: &'a mut Scratch) -> Panels<'a, K> {
    let steps = steps_of_tiles::<K>(b.k.div_ceil(COLUMNS));
    Panels::make(b.lines.div_ceil(COLUMNS), steps, K::COLUMN_STEP, to, |panel, out| {
        kernel.pack_columns_for_tiles(b, panel * COLUMNS, 0..steps, out);
    })
}

/// Packed panels.
struct Panels<'a, K: Kernel> {
    packed: &'a [K::Packed],
    /// Elements of a step.
    step: usize,
    steps: usize,
}

impl<'a, K: Kernel> Panels<'a, K> {
    fn make(
        panels: usize,
        steps: usize,
        step: usize,
        to: &'a mut Scratch,
        pack: impl Fn(usize, &mut [K::Packed]),
    ) -> Panels<'a, K> {
        let packed = to.take::<K::Packed>(panels * steps * step);
        for (panel, out) in packed.chunks_exact_mut(steps * step).enumerate() {
            pack(panel, out);
        }
        Panels { packed, step, steps }
    }

    /// Steps of a panel.
    fn at(&self, panel: usize, steps: Range<usize>) -> &'a [K::Packed] {
        assert!(steps.end <= self.steps);
        &self.packed[(panel * self.steps + steps.start) * self.step..][..steps.len() * self.step]
    }

    /// A whole panel.
    fn panel(&self, panel: usize) -> &'a [K::Packed] {
        self.at(panel, 0..self.steps)
    }
}

/// An output whose rows and heads several threads write.
struct Shared<'a, T> {
    first: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: a part writes the rows and heads of its own queries or keys only.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    fn new(x: &'a mut [T]) -> Shared<'a, T> {
        Shared { first: x.as_mut_ptr(), len: x.len(), borrowed: PhantomData }
    }

    /// # Safety
    /// Nobody else holds these elements.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at, "attention: beyond an output");
        // SAFETY: within the slice, and the caller alone has it.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(at), len) }
    }
}

#[cfg(test)]
mod bf16_tests;
#[cfg(test)]
mod tests;
