//! Causal attention with grouped queries and an optional sliding window, block by block with a running softmax
//! (Dao et al., 2022, "FlashAttention"): the scores of one block of queries against one block of keys are all
//! that is ever held, and blocks that the mask hides are never computed.
//!
//! The heads of a group share their keys, so the queries of one block are gathered as a matrix
//! [tokens * group, head_dim] and meet the keys in one product.

use std::ops::Range;

use rayon::prelude::*;

use super::check_segments;
use super::gemm::gemm;
use super::reduce::max;
use super::simd::{exp, exp_and_sum, simd};

/// Query rows (tokens times heads of the group) in a block.
const QUERY_ROWS: usize = 192;
/// Keys in a block.
const KEYS: usize = 256;
/// Rows of scores are filled up with masked columns to a multiple of this, so that loops over them have no rest.
pub(super) const ALIGNED: usize = 16;

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

/// out = softmax(q·kᵀ/√hd + mask)·v; lse [rows, heads] is the logarithm of each softmax's denominator.
pub fn attention_forward(shape: &Attention, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], lse: &mut [f32]) {
    shape.check(q, k, v);
    assert!(out.len() == q.len() && lse.len() * shape.head_dim == q.len(), "attention: shapes of out, lse");

    let mut blocks = Vec::new();
    let (mut out, mut lse) = (out, lse);
    for segment in shape.segments.windows(2) {
        let (start, tokens) = (segment[0], segment[1] - segment[0]);
        for first in (0..tokens).step_by(shape.block_tokens()) {
            let n = shape.block_tokens().min(tokens - first);
            let outs = shape.take_rows(&mut out, n, shape.q_width());
            let lses = shape.take_rows(&mut lse, n, shape.heads);
            for (kv_head, (out, lse)) in outs.into_iter().zip(lses).enumerate() {
                blocks.push((Block { start, first, tokens: n, kv_head }, out, lse));
            }
        }
    }
    blocks.into_par_iter().with_max_len(1).for_each_init(Scratch::default, |scratch, (block, mut out, mut lse)| {
        forward_block(shape, &block, q, k, v, scratch);
        let group = shape.group();
        for (i, (out, lse)) in out.iter_mut().zip(&mut lse).enumerate() {
            let rows = i * group..(i + 1) * group;
            out.copy_from_slice(&scratch.out[rows.start * shape.head_dim..rows.end * shape.head_dim]);
            for (lse, row) in lse.iter_mut().zip(rows) {
                *lse = scratch.max[row] + scratch.sum[row].ln() as f32;
            }
        }
    });
}

/// Neighbouring queries of one sequence, for the heads that share a kv head.
pub(super) struct Block {
    /// Row of the sequence's first token.
    pub start: usize,
    /// Position of the block's first token.
    pub first: usize,
    pub tokens: usize,
    pub kv_head: usize,
}

#[derive(Default)]
struct Scratch {
    /// [query rows, head_dim], divided by √hd
    q: Vec<f32>,
    /// [query rows, keys, up to a multiple of ALIGNED]
    scores: Vec<f32>,
    /// [query rows, head_dim], not yet divided by `sum`
    out: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f64>,
}

fn forward_block(shape: &Attention, block: &Block, q: &[f32], k: &[f32], v: &[f32], scratch: &mut Scratch) {
    let (hd, stride) = (shape.head_dim, shape.kv_width());
    let rows = block.tokens * shape.group();
    shape.gather(block, q, shape.scale(), &mut scratch.q);
    scratch.out.resize(rows * hd, 0.0);
    scratch.max.clear();
    scratch.max.resize(rows, f32::NEG_INFINITY);
    scratch.sum.clear();
    scratch.sum.resize(rows, 0.0);

    for (i, keys) in shape.key_blocks(block).enumerate() {
        let width = keys.len().next_multiple_of(ALIGNED);
        scratch.scores.resize(rows * width, 0.0);
        let at = shape.kv_offset(block, keys.start);
        gemm(rows, keys.len(), hd, 1.0, &scratch.q, hd, 1, &k[at..], 1, stride, false, &mut scratch.scores, width, 1);
        simd(
            #[inline(always)]
            || softmax_block(shape, block, &keys, scratch),
        );
        gemm(rows, hd, keys.len(), 1.0, &scratch.scores, width, 1, &v[at..], stride, 1, i > 0, &mut scratch.out, hd, 1);
    }
    simd(
        #[inline(always)]
        || {
            for (out, sum) in scratch.out.chunks_exact_mut(hd).zip(&scratch.sum) {
                scale_row(out, (1.0 / sum) as f32);
            }
        },
    );
}

/// Scores become exp(score - running maximum); what was summed before is brought to the new maximum.
#[inline(always)]
fn softmax_block(shape: &Attention, block: &Block, keys: &Range<usize>, scratch: &mut Scratch) {
    let width = keys.len().next_multiple_of(ALIGNED);
    let running = scratch.max.iter_mut().zip(&mut scratch.sum).zip(scratch.out.chunks_exact_mut(shape.head_dim));
    for ((row, scores), ((running_max, sum), out)) in scratch.scores.chunks_exact_mut(width).enumerate().zip(running) {
        shape.mask_row(block.first + row / shape.group(), keys, scores);
        let new_max = f32::max(*running_max, max(scores));
        if new_max == f32::NEG_INFINITY {
            scores.fill(0.0);
            continue;
        }
        let shrink = exp(*running_max - new_max);
        if shrink != 1.0 && *running_max != f32::NEG_INFINITY {
            scale_row(out, shrink);
        }
        *sum = *sum * f64::from(shrink) + exp_and_sum(scores, new_max);
        *running_max = new_max;
    }
}

#[inline(always)]
pub(super) fn scale_row(row: &mut [f32], factor: f32) {
    for x in row {
        *x *= factor;
    }
}

impl Attention<'_> {
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    pub(super) fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    pub(super) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Tokens in a block of queries.
    pub(super) fn block_tokens(&self) -> usize {
        (QUERY_ROWS / self.group()).max(1)
    }

    pub(super) fn check(&self, q: &[f32], k: &[f32], v: &[f32]) {
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "attention: {self:?}");
        assert!(self.head_dim > 0 && self.window != Some(0), "attention: {self:?}");
        let rows = q.len() / self.q_width();
        assert!(q.len() == rows * self.q_width(), "attention: shape of q");
        assert!(k.len() == rows * self.kv_width() && v.len() == k.len(), "attention: shapes of k, v");
        check_segments(self.segments, rows);
    }

    /// Takes `rows` rows of `width` off the front of `x` and gives the columns of each kv head, row by row:
    /// disjoint parts that tasks may write.
    pub(super) fn take_rows<'a>(&self, x: &mut &'a mut [f32], rows: usize, width: usize) -> Vec<Vec<&'a mut [f32]>> {
        let taken = x.split_off_mut(..rows * width).expect("the length was checked");
        let mut heads: Vec<Vec<&mut [f32]>> = (0..self.kv_heads).map(|_| Vec::with_capacity(rows)).collect();
        for row in taken.chunks_exact_mut(width) {
            for (head, columns) in heads.iter_mut().zip(row.chunks_exact_mut(width / self.kv_heads)) {
                head.push(columns);
            }
        }
        heads
    }

    /// Copies the block's queries into [tokens * group, head_dim], times `factor`.
    pub(super) fn gather(&self, block: &Block, q: &[f32], factor: f32, rows: &mut Vec<f32>) {
        let width = self.group() * self.head_dim;
        let first = block.start + block.first;
        let tokens = q[first * self.q_width()..].chunks_exact(self.q_width()).take(block.tokens);
        rows.resize(block.tokens * width, 0.0);
        simd(
            #[inline(always)]
            || {
                for (row, token) in rows.chunks_exact_mut(width).zip(tokens) {
                    for (x, q) in row.iter_mut().zip(&token[block.kv_head * width..]) {
                        *x = q * factor;
                    }
                }
            },
        );
    }

    /// Where the key or value of this position begins.
    pub(super) fn kv_offset(&self, block: &Block, position: usize) -> usize {
        (block.start + position) * self.kv_width() + block.kv_head * self.head_dim
    }

    /// The positions that a query sees.
    fn visible(&self, query: usize) -> Range<usize> {
        (query + 1).saturating_sub(self.window.unwrap_or(usize::MAX))..query + 1
    }

    /// The keys that some query of the block sees, in blocks.
    pub(super) fn key_blocks(&self, block: &Block) -> impl Iterator<Item = Range<usize>> + use<> {
        let end = block.first + block.tokens;
        (self.visible(block.first).start..end).step_by(KEYS).map(move |key| key..end.min(key + KEYS))
    }

    /// -∞ where the query does not see the key, and in the columns past the last key.
    #[inline(always)]
    pub(super) fn mask_row(&self, query: usize, keys: &Range<usize>, scores: &mut [f32]) {
        let visible = self.visible(query);
        let from = visible.start.clamp(keys.start, keys.end) - keys.start;
        let to = visible.end.clamp(keys.start, keys.end) - keys.start;
        scores[..from].fill(f32::NEG_INFINITY);
        scores[to.max(from)..].fill(f32::NEG_INFINITY);
    }
}
