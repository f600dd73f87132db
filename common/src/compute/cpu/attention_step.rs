//! Attention of one more token to those before it, whose keys and values are kept: what generating text needs of a step.
//! One query a head, so that it is a walk over the kept rows and no matrix product.

use rayon::prelude::*;

use super::element::Element;
use super::reduce::{dot, max};
use super::rope::{RopeTable, rope_at};
use super::simd::{exp_and_sum, simd};
use crate::compute::backend::Heads;

/// q [1, heads·hd] and k [1, kv·hd] turn by `position`; k and v become that row of the kept ones [_, kv·hd], and
/// out = softmax(q·kᵀ/√hd)·v over the rows up to it that the window shows.
pub fn attention_step<E: Element>(
    table: &RopeTable,
    [q, k, v]: [&mut [E]; 3],
    heads: Heads,
    position: usize,
    [keys, values]: [&mut [E]; 2],
    out: &mut [E],
) {
    let Heads { heads, kv_heads, head_dim: hd, window } = heads;
    rope_at(&mut q[..heads * hd], hd, position, table);
    rope_at(&mut k[..kv_heads * hd], hd, position, table);
    let width = kv_heads * hd;
    let row = position * width..(position + 1) * width;
    keys[row.clone()].copy_from_slice(&k[..width]);
    values[row].copy_from_slice(&v[..width]);
    let first = (position + 1).saturating_sub(window.unwrap_or(usize::MAX));
    let seen = first * width..(position + 1) * width;
    let (keys, values, group) = (&keys[seen.clone()], &values[seen], heads / kv_heads);
    let shared = q[..heads * hd].par_chunks_exact(group * hd).zip(out[..heads * hd].par_chunks_exact_mut(group * hd));
    shared.enumerate().for_each(|(kv_head, (q, out))| {
        simd(
            #[inline(always)]
            || {
                for (q, out) in q.chunks_exact(hd).zip(out.chunks_exact_mut(hd)) {
                    one_head(q, (keys, values), (kv_head * hd, width), out);
                }
            },
        );
    });
}

/// Keys and values lie `width` apart, from `at` on.
#[inline(always)]
fn one_head<E: Element>(q: &[E], (keys, values): (&[E], &[E]), (at, width): (usize, usize), out: &mut [E]) {
    let hd = q.len();
    let scale = 1.0 / (hd as f32).sqrt();
    let query: Vec<f32> = q.iter().map(|x| x.to_f32() * scale).collect();
    let mut wide = vec![0.0; hd];
    let mut scores: Vec<f32> = keys
        .chunks_exact(width)
        .map(|row| {
            for (wide, x) in wide.iter_mut().zip(&row[at..at + hd]) {
                *wide = x.to_f32();
            }
            dot(&query, &wide)
        })
        .collect();
    let most = max(&scores);
    let sum = exp_and_sum(&mut scores, most);
    let mut mixed = vec![0.0f32; hd];
    for (row, p) in values.chunks_exact(width).zip(&scores) {
        for (mixed, x) in mixed.iter_mut().zip(&row[at..at + hd]) {
            *mixed = p.mul_add(x.to_f32(), *mixed);
        }
    }
    let factor = (1.0 / sum) as f32;
    for (out, x) in out.iter_mut().zip(&mixed) {
        *out = E::from_f32(x * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::attention::{Attention, attention_forward};
    use crate::compute::cpu::rope::rope_forward;
    use crate::compute::cpu::testing::{assert_close, on_thread_pools, random};

    const HEADS: Heads = Heads { heads: 6, kv_heads: 2, head_dim: 16, window: None };
    const TOKENS: usize = 37;

    fn inputs() -> ([Vec<f32>; 3], RopeTable) {
        let inv_freq: Vec<f32> = (0..8).map(|i| 10000f32.powf(-2.0 * i as f32 / 16.0)).collect();
        let input = |seed, heads: usize| random(seed, TOKENS * heads * 16);
        ([input(1, 6), input(2, 2), input(3, 2)], RopeTable::new(&inv_freq, TOKENS))
    }

    /// All steps, one after another.
    fn stepped(heads: Heads) -> Vec<f32> {
        let ([q, k, v], table) = inputs();
        let (mut keys, mut values) = (vec![f32::NAN; k.len()], vec![f32::NAN; v.len()]);
        let mut all = Vec::new();
        for at in 0..TOKENS {
            let row = |x: &[f32]| x[at * x.len() / TOKENS..(at + 1) * x.len() / TOKENS].to_vec();
            let mut out = vec![f32::NAN; 96];
            let qkv = [&mut row(&q)[..], &mut row(&k)[..], &mut row(&v)[..]];
            attention_step(&table, qkv, heads, at, [&mut keys, &mut values], &mut out);
            all.extend(out);
        }
        all
    }

    /// As the whole sequence at once, which PyTorch's values are compared with.
    #[test]
    fn step_by_step_as_at_once() {
        for window in [None, Some(1), Some(9)] {
            let heads = Heads { window, ..HEADS };
            let ([mut q, mut k, v], table) = inputs();
            let segments = [0, TOKENS];
            rope_forward(&mut q, 6, 16, &segments, &table);
            rope_forward(&mut k, 2, 16, &segments, &table);
            let shape = Attention { segments: &segments, heads: 6, kv_heads: 2, head_dim: 16, window };
            let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; TOKENS * 6]);
            attention_forward(&shape, &q, &k, &v, &mut out, &mut lse);
            assert_close(&stepped(heads), &out, 2e-6);
        }
    }

    #[test]
    fn same_bits_for_every_pool() {
        on_thread_pools(|| stepped(HEADS));
    }
}
