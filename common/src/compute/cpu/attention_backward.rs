//! The gradient of [`attention`](super::attention), whose probabilities are recomputed from the scores and lse
//! (Dao et al., 2022, algorithm 4): P = exp(S - lse), dV = Pᵀ·dO, dP = dO·Vᵀ, dS = P∘(dP - D) with
//! D = rowsum(dO∘O), dQ = dS·K/√hd, dK = dSᵀ·Q/√hd.

use std::ops::Range;

use rayon::prelude::*;

use super::attention::{ALIGNED, Attention, Block, scale_row};
use super::gemm::gemm;
use super::reduce::dot;
use super::simd::{exp, simd};

/// What the forward pass read and wrote.
#[derive(Clone, Copy)]
pub struct AttentionSaved<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
}

/// Sets dq, dk and dv.
pub fn attention_backward(
    shape: &Attention,
    saved: AttentionSaved,
    dout: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    shape.check(saved.q, saved.k, saved.v);
    let (q_len, kv_len) = (saved.q.len(), saved.k.len());
    assert!(saved.out.len() == q_len && saved.lse.len() * shape.head_dim == q_len, "attention: shapes of out, lse");
    assert!(dout.len() == q_len && dq.len() == q_len, "attention: shapes of dout, dq");
    assert!(dk.len() == kv_len && dv.len() == kv_len, "attention: shapes of dk, dv");

    let mut sequences = Vec::new();
    let (mut dq, mut dk, mut dv) = (dq, dk, dv);
    for segment in shape.segments.windows(2) {
        let (start, tokens) = (segment[0], segment[1] - segment[0]);
        let dqs = shape.take_rows(&mut dq, tokens, shape.q_width());
        let dks = shape.take_rows(&mut dk, tokens, shape.kv_width());
        let dvs = shape.take_rows(&mut dv, tokens, shape.kv_width());
        for (kv_head, ((dq, dk), dv)) in dqs.into_iter().zip(dks).zip(dvs).enumerate() {
            sequences.push((Block { start, first: 0, tokens, kv_head }, dq, dk, dv));
        }
    }
    sequences.into_par_iter().with_max_len(1).for_each_init(
        Scratch::default,
        |scratch, (all, mut dq, mut dk, mut dv)| {
            let hd = shape.head_dim;
            scratch.dk.clear();
            scratch.dk.resize(all.tokens * hd, 0.0);
            scratch.dv.clear();
            scratch.dv.resize(all.tokens * hd, 0.0);
            for first in (0..all.tokens).step_by(shape.block_tokens()) {
                let tokens = shape.block_tokens().min(all.tokens - first);
                backward_block(shape, &Block { first, tokens, ..all }, saved, dout, scratch);
                copy_rows(&mut dq[first..first + tokens], &scratch.dq);
            }
            copy_rows(&mut dk, &scratch.dk);
            copy_rows(&mut dv, &scratch.dv);
        },
    );
}

#[derive(Default)]
struct Scratch {
    /// [query rows, head_dim], divided by √hd
    q: Vec<f32>,
    /// [query rows, head_dim]
    dout: Vec<f32>,
    dq: Vec<f32>,
    /// [query rows]
    lse: Vec<f32>,
    /// rowsum(dO∘O) [query rows]
    d: Vec<f32>,
    /// S, P and dS in turn [query rows, keys, up to a multiple of ALIGNED]
    scores: Vec<f32>,
    /// dP, likewise
    dp: Vec<f32>,
    /// [tokens of the sequence, head_dim]
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// Adds what a block of queries gives to dk and dv, and sets its own dq.
fn backward_block(shape: &Attention, block: &Block, saved: AttentionSaved, dout: &[f32], scratch: &mut Scratch) {
    let (hd, stride) = (shape.head_dim, shape.kv_width());
    let rows = block.tokens * shape.group();
    shape.gather(block, saved.q, shape.scale(), &mut scratch.q);
    shape.gather(block, dout, 1.0, &mut scratch.dout);
    scratch.dq.resize(rows * hd, 0.0);
    simd(
        #[inline(always)]
        || gather_statistics(shape, block, saved, scratch),
    );

    for (i, keys) in shape.key_blocks(block).enumerate() {
        let (n, width) = (keys.len(), keys.len().next_multiple_of(ALIGNED));
        let (k, v) = (&saved.k[shape.kv_offset(block, keys.start)..], &saved.v[shape.kv_offset(block, keys.start)..]);
        let own = keys.start * hd..keys.end * hd;
        scratch.scores.resize(rows * width, 0.0);
        scratch.dp.resize(rows * width, 0.0);
        let Scratch { q, dout, dq, scores, dp, dk, dv, .. } = scratch;
        gemm(rows, n, hd, 1.0, q, hd, 1, k, 1, stride, false, scores, width, 1);
        gemm(rows, n, hd, 1.0, dout, hd, 1, v, 1, stride, false, dp, width, 1);
        simd(
            #[inline(always)]
            || probabilities(shape, block, &keys, &scratch.lse, scores),
        );
        gemm(n, hd, rows, 1.0, scores, 1, width, dout, hd, 1, true, &mut dv[own.clone()], hd, 1);
        simd(
            #[inline(always)]
            || score_gradients(width, &scratch.d, dp, scores),
        );
        gemm(n, hd, rows, 1.0, scores, 1, width, q, hd, 1, true, &mut dk[own], hd, 1);
        gemm(rows, hd, n, 1.0, scores, width, 1, k, stride, 1, i > 0, dq, hd, 1);
    }
    simd(
        #[inline(always)]
        || scale_row(&mut scratch.dq, shape.scale()),
    );
}

/// lse and D of the block's rows.
#[inline(always)]
fn gather_statistics(shape: &Attention, block: &Block, saved: AttentionSaved, scratch: &mut Scratch) {
    let (group, hd) = (shape.group(), shape.head_dim);
    scratch.lse.clear();
    scratch.d.clear();
    for (i, dout) in scratch.dout.chunks_exact(group * hd).enumerate() {
        let at = (block.start + block.first + i) * shape.heads + block.kv_head * group;
        scratch.lse.extend_from_slice(&saved.lse[at..at + group]);
        let out = &saved.out[at * hd..(at + group) * hd];
        scratch.d.extend(out.chunks_exact(hd).zip(dout.chunks_exact(hd)).map(|(out, dout)| dot(out, dout)));
    }
}

/// P = exp(S - lse), 0 where masked
#[inline(always)]
fn probabilities(shape: &Attention, block: &Block, keys: &Range<usize>, lse: &[f32], scores: &mut [f32]) {
    let width = keys.len().next_multiple_of(ALIGNED);
    for (row, (scores, lse)) in scores.chunks_exact_mut(width).zip(lse).enumerate() {
        shape.mask_row(block.first + row / shape.group(), keys, scores);
        for score in scores {
            *score = exp(*score - lse);
        }
    }
}

/// dS = P∘(dP - D), written over P
#[inline(always)]
fn score_gradients(width: usize, d: &[f32], dp: &[f32], p: &mut [f32]) {
    for ((p, dp), d) in p.chunks_exact_mut(width).zip(dp.chunks_exact(width)).zip(d) {
        for (p, dp) in p.iter_mut().zip(dp) {
            *p *= dp - d;
        }
    }
}

/// Each row of `from` to its place.
fn copy_rows(to: &mut [&mut [f32]], from: &[f32]) {
    let width = from.len() / to.len().max(1);
    for (to, from) in to.iter_mut().zip(from.chunks_exact(width.max(1))) {
        to.copy_from_slice(from);
    }
}
