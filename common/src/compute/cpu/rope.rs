//! Rotary position embedding (Su et al., 2021) in the rotate-half form of transformers: the pair (i, i + hd/2) of
//! each head turns by the angle position · inv_freq[i].

use rayon::prelude::*;

use super::element::Element;
use super::simd::simd;
use super::{check_segments, rows_per_part};

/// cos and sin [positions, head_dim / 2] of every angle.
pub struct RopeTable {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    /// head_dim / 2
    half: usize,
}

impl RopeTable {
    /// The angle is rounded to f32, as transformers does; its cosine and sine are the f32 nearest to the exact ones.
    pub fn new(inv_freq: &[f32], positions: usize) -> RopeTable {
        let angles = || (0..positions).flat_map(|at| inv_freq.iter().map(move |f| f64::from(at as f32 * f)));
        RopeTable {
            cos: angles().map(|angle| angle.cos() as f32).collect(),
            sin: angles().map(|angle| angle.sin() as f32).collect(),
            half: inv_freq.len(),
        }
    }
}

/// x [rows, heads * head_dim] turned in place
pub fn rope_forward<E: Element>(x: &mut [E], heads: usize, head_dim: usize, segments: &[usize], table: &RopeTable) {
    rotate_all(x, heads, head_dim, segments, table, 1.0);
}

/// dx turned back in place: the transpose of a rotation is its inverse.
pub fn rope_backward<E: Element>(dx: &mut [E], heads: usize, head_dim: usize, segments: &[usize], table: &RopeTable) {
    rotate_all(dx, heads, head_dim, segments, table, -1.0);
}

/// One row turned as that of a position.
pub fn rope_at<E: Element>(row: &mut [E], head_dim: usize, position: usize, table: &RopeTable) {
    let half = table.half;
    assert!(head_dim == 2 * half, "rope: a table for head_dim {}, used with {head_dim}", 2 * half);
    assert!((position + 1) * half <= table.cos.len(), "rope: position {position} exceeds the table");
    let at = position * half..(position + 1) * half;
    for head in row.chunks_exact_mut(head_dim) {
        rotate(head, &table.cos[at.clone()], &table.sin[at.clone()], 1.0);
    }
}

fn rotate_all<E: Element>(
    x: &mut [E],
    heads: usize,
    head_dim: usize,
    segments: &[usize],
    table: &RopeTable,
    direction: f32,
) {
    let width = heads * head_dim;
    let half = table.half;
    assert!(head_dim == 2 * half, "rope: a table for head_dim {}, used with {head_dim}", 2 * half);
    assert!(x.len().is_multiple_of(width), "rope: shapes");
    check_segments(segments, x.len() / width);
    let longest = segments.windows(2).map(|s| s[1] - s[0]).max().unwrap_or(0);
    assert!(longest * half <= table.cos.len(), "rope: a sequence of {longest} tokens exceeds the table");

    let rows = rows_per_part(width);
    x.par_chunks_mut(rows * width).enumerate().for_each(|(part, x)| {
        simd(
            #[inline(always)]
            || {
                for (i, row) in x.chunks_exact_mut(width).enumerate() {
                    let row_index = part * rows + i;
                    // The last segment that starts here or before (empty ones share their start with the next).
                    let segment = segments.partition_point(|start| *start <= row_index) - 1;
                    let at = (row_index - segments[segment]) * half;
                    let (cos, sin) = (&table.cos[at..at + half], &table.sin[at..at + half]);
                    for head in row.chunks_exact_mut(head_dim) {
                        rotate(head, cos, sin, direction);
                    }
                }
            },
        )
    });
}

#[inline(always)]
fn rotate<E: Element>(head: &mut [E], cos: &[f32], sin: &[f32], direction: f32) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let sin = direction * sin;
        // Rounded product by product, as PyTorch rounds x·cos + rotate_half(x)·sin.
        let (x, y) = (a.to_f32(), b.to_f32());
        (*a, *b) = (E::from_f32(x * cos - y * sin), E::from_f32(y * cos + x * sin));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::{assert_close, fixture, in_both, narrow, on_every_isa, on_thread_pools, random};

    fn inv_freq(head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2).map(|i| 10000f32.powf(-2.0 * i as f32 / head_dim as f32)).collect()
    }

    #[test]
    fn as_pytorch() {
        for head_dim in [8, 80] {
            let t = |part: &str| fixture(&format!("rope_{head_dim}.{part}"));
            let table = RopeTable::new(&t("inv_freq"), 4096);
            // The fixture's rows stand at these positions of their sequences; the rows before are zeros.
            let positions = [0usize, 1, 2, 700, 4095];
            let (x, y) = (t("x"), t("y"));
            let width = x.len() / positions.len();
            let mut turned = Vec::new();
            for (row, at) in x.chunks(width).zip(positions) {
                let mut sequence = vec![0.0; (at + 1) * width];
                sequence[at * width..].copy_from_slice(row);
                rope_forward(&mut sequence, width / head_dim, head_dim, &[0, at + 1], &table);
                turned.extend_from_slice(&sequence[at * width..]);
            }
            // The sine of 4095 by PyTorch is up to an ulp off.
            assert_close(&turned, &y, 2e-7);
        }
    }

    #[test]
    fn backward_is_the_transpose() {
        let (heads, head_dim, segments) = (3, 20, [0, 5, 5, 6, 19]);
        let table = RopeTable::new(&inv_freq(head_dim), 19);
        let (x, dy) = (random(1, 19 * 60), random(2, 19 * 60));
        let (mut y, mut dx) = (x.clone(), dy.clone());
        rope_forward(&mut y, heads, head_dim, &segments, &table);
        rope_backward(&mut dx, heads, head_dim, &segments, &table);
        let inner = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        assert!((inner(&y, &dy) - inner(&x, &dx)).abs() < 1e-4);
        rope_backward(&mut y, heads, head_dim, &segments, &table);
        assert_close(&y, &x, 5e-7);
    }

    #[test]
    fn in_bf16_as_in_f32_rounded_once() {
        let table = RopeTable::new(&inv_freq(64), 300);
        let (mut x, mut exact) = in_both(&random(1, 500 * 192));
        rope_forward(&mut x, 3, 64, &[0, 300, 500], &table);
        rope_forward(&mut exact, 3, 64, &[0, 300, 500], &table);
        assert_eq!(x, narrow(&exact));
    }

    #[test]
    fn each_segment_starts_at_position_zero() {
        let (heads, head_dim) = (2, 8);
        let table = RopeTable::new(&inv_freq(head_dim), 16);
        let one = random(3, 4 * 16);
        let mut alone = one.clone();
        rope_forward(&mut alone, heads, head_dim, &[0, 4], &table);
        let mut batch = [one.clone(), one[..16].to_vec(), one].concat();
        rope_forward(&mut batch, heads, head_dim, &[0, 4, 5, 9], &table);
        assert_eq!(batch, [alone.clone(), alone[..16].to_vec(), alone].concat());
    }

    #[test]
    fn same_bits_for_every_pool_and_instruction_set() {
        let table = RopeTable::new(&inv_freq(64), 300);
        let x = random(1, 500 * 192);
        on_thread_pools(|| {
            let mut x = x.clone();
            rope_forward(&mut x, 3, 64, &[0, 300, 500], &table);
            x
        });
        on_every_isa(|| {
            let mut x = x[..64].to_vec();
            rotate(&mut x, &table.cos[320..352], &table.sin[320..352], -1.0);
            x
        });
    }
}
