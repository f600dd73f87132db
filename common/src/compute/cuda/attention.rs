//! How the kernels of `attention.cu` are launched: their parameters, tiles and grids.
//!
//! A block takes a [`Tile`]: 64 rows of one sequence, from its first row on, for one head. Nothing that is computed
//! depends on the order of tiles; the longest work comes first, so that the GPU does not wait for it at the end.

use half::bf16;

use super::gpu::{Gpu, Grid};
use super::launch::{Argument, Element, kernels};
use super::memory::{Mut, Ref};

kernels! {
    /// `attention.cu`
    Kernels in "attention";
    fn attention_delta(out: Ref<bf16>, dout: Ref<bf16>, head_dim: i32, len: i64, delta: Mut<f32>);
    fn attention_forward_32(
        q: Ref<bf16>, k: Ref<bf16>, v: Ref<bf16>, tiles: Ref<Tile>, shape: Shape, out: Mut<bf16>, lse: Mut<f32>,
    );
    fn attention_forward_64(
        q: Ref<bf16>, k: Ref<bf16>, v: Ref<bf16>, tiles: Ref<Tile>, shape: Shape, out: Mut<bf16>, lse: Mut<f32>,
    );
    fn attention_forward_128(
        q: Ref<bf16>, k: Ref<bf16>, v: Ref<bf16>, tiles: Ref<Tile>, shape: Shape, out: Mut<bf16>, lse: Mut<f32>,
    );
    fn attention_backward_q_32(
        q: Ref<bf16>, k: Ref<bf16>, v: Ref<bf16>, dout: Ref<bf16>, lse: Ref<f32>, delta: Ref<f32>, tiles: Ref<Tile>,
        shape: Shape, dq: Mut<bf16>,
    );
    fn attention_backward_q_64(
        q: Ref<bf16>, k: Ref<bf16>, v: Ref<bf16>, dout: Ref<bf16>, lse: Ref<f32>, delta: Ref<f32>, tiles: Ref<Tile>,
        shape: Shape, dq: Mut<bf16>,
    );
    fn attention_backward_q_128(
        q: Ref<bf16>, k: Ref<bf16>, v: Ref<bf16>, dout: Ref<bf16>, lse: Ref<f32>, delta: Ref<f32>, tiles: Ref<Tile>,
        shape: Shape, dq: Mut<bf16>,
    );
    fn attention_backward_kv_32(
        q: Ref<bf16>, k: Ref<bf16>, v: Ref<bf16>, dout: Ref<bf16>, lse: Ref<f32>, delta: Ref<f32>, tiles: Ref<Tile>,
        shape: Shape, dk: Mut<bf16>, dv: Mut<bf16>,
    );
    fn attention_backward_kv_64(
        q: Ref<bf16>, k: Ref<bf16>, v: Ref<bf16>, dout: Ref<bf16>, lse: Ref<f32>, delta: Ref<f32>, tiles: Ref<Tile>,
        shape: Shape, dk: Mut<bf16>, dv: Mut<bf16>,
    );
    fn attention_backward_kv_128(
        q: Ref<bf16>, k: Ref<bf16>, v: Ref<bf16>, dout: Ref<bf16>, lse: Ref<f32>, delta: Ref<f32>, tiles: Ref<Tile>,
        shape: Shape, dk: Mut<bf16>, dv: Mut<bf16>,
    );
}

/// The operands of attention, of the tiles of their sequences.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    pub q: Ref<'a, bf16>,
    pub k: Ref<'a, bf16>,
    pub v: Ref<'a, bf16>,
    pub tiles: Ref<'a, Tile>,
    pub count: usize,
    pub shape: Shape,
}

/// What the backward pass has besides.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    pub out: Ref<'a, bf16>,
    pub dout: Ref<'a, bf16>,
    pub lse: Ref<'a, f32>,
    pub rows: usize,
}

impl Operands<'_> {
    fn grid(&self, heads: i32) -> Grid {
        Grid { blocks: blocks(heads as usize, self.count), threads: THREADS, shared: 0 }
    }
}

pub fn forward(gpu: &Gpu, kernels: &Kernels, x: Operands, out: Mut<bf16>, lse: Mut<f32>) {
    let Operands { q, k, v, tiles, shape, .. } = x;
    let grid = x.grid(shape.heads);
    match width(shape.head_dim as usize) {
        Some(32) => kernels.attention_forward_32(gpu, grid, q, k, v, tiles, shape, out, lse),
        Some(64) => kernels.attention_forward_64(gpu, grid, q, k, v, tiles, shape, out, lse),
        _ => kernels.attention_forward_128(gpu, grid, q, k, v, tiles, shape, out, lse),
    }
}

/// `delta` [rows, heads] is filled on the way.
pub fn backward(
    gpu: &Gpu,
    kernels: &Kernels,
    x: Operands,
    given: Given,
    mut delta: Mut<f32>,
    [dq, dk, dv]: [Mut<bf16>; 3],
) {
    let Operands { q, k, v, tiles, shape, .. } = x;
    let Given { out, dout, lse, rows } = given;
    let len = rows * shape.heads as usize;
    let grid = Grid { blocks: delta_blocks(len), threads: THREADS, shared: 0 };
    kernels.attention_delta(gpu, grid, out, dout, shape.head_dim, len as i64, delta.again());
    let delta = delta.read();
    let (of_q, of_kv) = (x.grid(shape.heads), x.grid(shape.kv_heads));
    match width(shape.head_dim as usize) {
        Some(32) => {
            kernels.attention_backward_q_32(gpu, of_q, q, k, v, dout, lse, delta, tiles, shape, dq);
            kernels.attention_backward_kv_32(gpu, of_kv, q, k, v, dout, lse, delta, tiles, shape, dk, dv);
        }
        Some(64) => {
            kernels.attention_backward_q_64(gpu, of_q, q, k, v, dout, lse, delta, tiles, shape, dq);
            kernels.attention_backward_kv_64(gpu, of_kv, q, k, v, dout, lse, delta, tiles, shape, dk, dv);
        }
        _ => {
            kernels.attention_backward_q_128(gpu, of_q, q, k, v, dout, lse, delta, tiles, shape, dq);
            kernels.attention_backward_kv_128(gpu, of_kv, q, k, v, dout, lse, delta, tiles, shape, dk, dv);
        }
    }
}

/// Of a block of every kernel. Shared memory is static: 48 KiB at most.
const THREADS: u32 = 128;
/// What head dimensions are padded to: each kernel but `attention_delta` exists with each of these at its name's end.
const WIDTHS: [usize; 3] = [32, 64, 128];
/// Rows of a tile.
const ROWS: usize = 64;
/// Heads of rows that a block of `attention_delta` takes.
const DELTA_HEADS: usize = 4;

/// `Shape` of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    /// 0: none
    window: i32,
    /// 1/√head_dim
    scale: f32,
}

impl Shape {
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Shape {
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "attention: {heads} heads, {kv_heads} of keys");
        assert!(width(head_dim).is_some(), "attention: heads of {head_dim} dimensions");
        assert!(window != Some(0), "attention: a window without tokens");
        let window = window.map_or(0, |window| i32::try_from(window).unwrap_or(i32::MAX));
        let scale = 1.0 / (head_dim as f32).sqrt();
        Shape { heads: heads as i32, kv_heads: kv_heads as i32, head_dim: head_dim as i32, window, scale }
    }
}

/// The kernels that take heads of this dimension; there are none for odd ones and beyond 128.
pub fn width(head_dim: usize) -> Option<usize> {
    let taken = head_dim > 0 && head_dim.is_multiple_of(2);
    WIDTHS.into_iter().find(|width| taken && head_dim <= *width)
}

/// `Tile` of the kernels: queries, or keys, from `row` on.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Tile {
    row: i32,
    /// Rows of the sequence.
    start: i32,
    end: i32,
}

impl Element for Tile {}

impl Tile {
    /// One query, the last of a sequence that begins with row 0.
    pub fn of_row(row: usize) -> Tile {
        Tile { row: row as i32, start: 0, end: row as i32 + 1 }
    }
}

// SAFETY: five numbers of four bytes, in the order of attention.cuh.
unsafe impl Argument for Shape {
    const SIZE: usize = size_of::<Shape>();
}

/// The tiles of sequences that are bounded by `segments`. Queries far from the beginning see the most keys; the kernel
/// for keys goes from the last tile to the first.
pub fn tiles(segments: &[usize]) -> Vec<Tile> {
    assert!(segments.last().is_none_or(|rows| i32::try_from(*rows).is_ok()), "attention: more than 2^31 rows");
    let of = |start: usize, end: usize| {
        (start..end).step_by(ROWS).map(move |row| Tile { row: row as i32, start: start as i32, end: end as i32 })
    };
    let mut tiles: Vec<Tile> = segments.windows(2).flat_map(|bounds| of(bounds[0], bounds[1])).collect();
    tiles.sort_by_key(|tile| tile.start - tile.row);
    tiles
}

/// Blocks along x and y: `heads` are those of queries, or, of `attention_backward_kv`, of keys.
fn blocks(heads: usize, tiles: usize) -> (usize, usize) {
    (heads, tiles)
}

/// Blocks of `attention_delta` for rows · heads.
fn delta_blocks(len: usize) -> (usize, usize) {
    (len.div_ceil(DELTA_HEADS), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_each_row_once() {
        let segments = [0, 1, 1, 64, 128, 193, 323];
        let tiles = tiles(&segments);
        let mut rows = vec![0; 323];
        for tile in &tiles {
            let segment =
                segments.windows(2).find(|s| s[0] <= tile.row as usize && (tile.row as usize) < s[1]).unwrap();
            assert_eq!([tile.start as usize, tile.end as usize], segment);
            assert_eq!((tile.row - tile.start) % 64, 0);
            rows[tile.row as usize..(tile.row as usize + 64).min(segment[1])].iter_mut().for_each(|row| *row += 1);
        }
        assert!(rows.iter().all(|count| *count == 1));
        assert!(tiles.is_sorted_by_key(|tile| tile.start - tile.row));
        assert_eq!(tiles.len(), 8);
    }

    #[test]
    fn no_tiles() {
        assert_eq!(tiles(&[]), []);
        assert_eq!(tiles(&[0]), []);
        assert_eq!(tiles(&[0, 0]), []);
    }

    #[test]
    fn bounds_of_tiles() {
        for (rows, expected) in [(1, 1), (63, 1), (64, 1), (65, 2), (128, 2), (129, 3)] {
            assert_eq!(tiles(&[0, rows]).len(), expected);
        }
    }

    #[test]
    fn widths() {
        let of = [(2, Some(32)), (32, Some(32)), (34, Some(64)), (64, Some(64)), (80, Some(128)), (128, Some(128))];
        for (head_dim, expected) in of.into_iter().chain([(0, None), (1, None), (63, None), (130, None)]) {
            assert_eq!(width(head_dim), expected, "{head_dim}");
        }
        assert_eq!(Shape::new(4, 2, 64, Some(usize::MAX)).window, i32::MAX);
        assert_eq!(Shape::new(4, 2, 64, None), Shape { heads: 4, kv_heads: 2, head_dim: 64, window: 0, scale: 0.125 });
    }
}
