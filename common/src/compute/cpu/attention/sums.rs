//! Sums of the gradients of keys and values, of parts and over the parts of a sequence.

use std::ops::Range;
use std::sync::Mutex;

use super::{Attention, Part, Shared};
use crate::compute::cpu::element::Element;
use crate::compute::cpu::product::{COLUMNS, Kernel, Scratch, Square, transpose};
use crate::compute::cpu::simd::simd;

/// dKᵀ (without 1/√hd) and dVᵀ of a part, by tiles of keys: [tiles][2][head_dim in whole panels][32].
#[derive(Default)]
pub struct Sums {
    held: Scratch,
    tiles: Range<usize>,
    /// Elements of a tile.
    stride: usize,
}

/// What threads have summed in, for the next call.
static POOL: Mutex<Vec<Sums>> = Mutex::new(Vec::new());

impl Sums {
    pub fn take() -> Sums {
        POOL.lock().expect("no thread panics").pop().unwrap_or_default()
    }

    /// Elements of a tile.
    pub fn stride<K: Kernel>(head_dim: usize) -> usize {
        2 * head_dim.next_multiple_of(K::ROWS) * COLUMNS
    }

    /// Room for a part, with whatever was there before.
    pub fn begin<K: Kernel>(&mut self, shape: &Attention, part: &Part) -> &mut [f32] {
        self.tiles = shape.tiles(&part.queries);
        self.stride = Sums::stride::<K>(shape.head_dim);
        self.held.take::<f32>(self.tiles.len() * self.stride)
    }

    fn tile(&self, tile: usize) -> Option<&[f32]> {
        let at = tile.checked_sub(self.tiles.start).filter(|at| *at < self.tiles.len())?;
        Some(&self.held.held::<f32>()[at * self.stride..][..self.stride])
    }
}

/// A sequence and head of keys.
pub struct Unit {
    pub parts: Vec<Part>,
    /// Of the parts that are done.
    sums: Mutex<Vec<Option<Sums>>>,
}

impl Unit {
    pub fn new(parts: Vec<Part>) -> Unit {
        Unit { sums: Mutex::new(parts.iter().map(|_| None).collect()), parts }
    }

    /// Takes the sums of a part; the last of several parts joins them all, in their order, and stores the gradients.
    ///
    /// # Safety
    /// Nobody else stores gradients of these keys.
    pub unsafe fn finish<K: Kernel, E: Element>(&self, part: usize, sums: Sums, to: &KeyGradients<E>) {
        let mut all = self.sums.lock().expect("no thread panics");
        all[part] = Some(sums);
        if all.iter().any(Option::is_none) {
            return;
        }
        let mut all: Vec<Sums> = all.iter_mut().filter_map(Option::take).collect();
        if let [_, .., last] = &self.parts[..] {
            for tile in 0..last.queries.end.div_ceil(COLUMNS) {
                let sums: Vec<&[f32]> = all.iter().filter_map(|sums| sums.tile(tile)).collect();
                // SAFETY: as the caller promises.
                unsafe { to.store::<K>(last, tile, &sums) };
            }
        }
        POOL.lock().expect("no thread panics").append(&mut all);
    }
}

/// Where the gradients go.
pub struct KeyGradients<'a, E> {
    pub shape: &'a Attention<'a>,
    pub dk: Shared<'a, E>,
    pub dv: Shared<'a, E>,
}

impl<E: Element> KeyGradients<'_, E> {
    /// The gradients of a tile of keys, of the sums of all parts that see it.
    ///
    /// # Safety
    /// Nobody else holds the keys of this tile and head.
    pub unsafe fn store<K: Kernel>(&self, part: &Part, tile: usize, sums: &[&[f32]]) {
        let hd = self.shape.head_dim;
        let keys = tile * COLUMNS..part.queries.end.min((tile + 1) * COLUMNS);
        for (which, (to, factor)) in [(&self.dk, self.shape.scale()), (&self.dv, 1.0)].into_iter().enumerate() {
            let first_row = which * hd.next_multiple_of(K::ROWS);
            for (half, dimension) in (0..hd).step_by(16).flat_map(|d| [(0, d), (16, d)]) {
                let dimensions = 16.min(hd - dimension);
                let mut block = Square([[0.0; 16]; 16]);
                for (i, sums) in sums.iter().enumerate() {
                    let rows = &sums.as_chunks::<COLUMNS>().0[first_row + dimension..][..dimensions];
                    add_halves(rows, half, factor, i > 0, &mut block.0);
                }
                transpose(&mut block);
                for (key, from) in keys.clone().skip(half).zip(&block.0) {
                    let at = (part.start + key) * self.shape.kv_width() + part.kv_head * hd + dimension;
                    // SAFETY: as the caller promises.
                    round(from, unsafe { to.part(at, dimensions) });
                }
            }
        }
    }
}

/// Sets or adds 16 columns of some rows, from column `half` on.
fn add_halves(rows: &[[f32; COLUMNS]], half: usize, factor: f32, accumulate: bool, to: &mut [[f32; 16]; 16]) {
    simd(
        #[inline(always)]
        || {
            for (to, row) in to.iter_mut().zip(rows) {
                // Copies, which cannot overlap: else this stays scalar.
                let mut row = row[half..].as_chunks::<16>().0[0];
                for x in &mut row {
                    *x *= factor;
                }
                if accumulate {
                    for (x, before) in row.iter_mut().zip(*to) {
                        *x += before;
                    }
                }
                *to = row;
            }
        },
    );
}

fn round<E: Element>(from: &[f32; 16], to: &mut [E]) {
    simd(
        #[inline(always)]
        || match to.as_chunks_mut::<16>() {
            ([to], []) => {
                for (to, x) in to.iter_mut().zip(from) {
                    *to = E::from_f32(*x);
                }
            }
            (_, to) => {
                for (to, x) in to.iter_mut().zip(from) {
                    *to = E::from_f32(*x);
                }
            }
        },
    );
}
