//! Adapters beside a weight: y += h·Aᵀ with h = (α/r)·drop(x)·Bᵀ, and backwards dx += drop(dh·B) with dh = (α/r)·dy·A,
//! dA = dyᵀ·h, dB = dhᵀ·drop(x). The products with the weight end in tiles of y and dx; to each the adapter's part is
//! added while it is in the cache.

use rayon::prelude::*;

use super::PART;
use super::element::Element;
use super::product::{
    Ahead, COLUMNS, Kernel, Left, Lines, PackedColumns, Place, Scratch, Sink, Split, Tile, ToF32, product,
};
use super::simd::simd;
use crate::compute::dropout::Dropout;

/// Memory of the adapters of one op, reused by all.
#[derive(Default)]
pub struct AdapterScratch(Vec<OneScratch>);

/// Of one adapter.
#[derive(Default)]
struct OneScratch {
    dropped: Scratch,
    /// Operands of the product at hand.
    left: Scratch,
    right: Scratch,
    /// h and dh in f32, then dAᵀ; and rounded.
    wide: Scratch,
    hidden: Scratch,
    dhidden: Scratch,
    /// What the tiles are made from.
    by_rows: Scratch,
    by_columns: Scratch,
}

/// An adapter in a pass over x [rows, k].
pub struct Beside<'a, E> {
    /// [n, r] and [r, k]
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub rank: usize,
    pub factor: f32,
    pub dropout: Option<Dropout>,
    pub x: &'a [E],
    pub rows: usize,
    pub back: Option<Back<'a, E>>,
}

/// Its backward pass: dy [rows, n], and where dA and dB are added.
pub struct Back<'a, E> {
    pub dy: &'a [E],
    pub grads: Option<[&'a mut [f32]; 2]>,
}

impl AdapterScratch {
    /// What is added to the tiles of each weight's product; the gradients are added on the way.
    pub fn terms<'s, K: Kernel, E: Element>(
        &'s mut self,
        kernel: K,
        of: Vec<Option<Beside<E>>>,
    ) -> Vec<Option<Term<'s, K>>> {
        if self.0.len() < of.len() {
            self.0.resize_with(of.len(), OneScratch::default);
        }
        self.0.iter_mut().zip(of).map(|(scratch, of)| of.map(|of| scratch.term(kernel, of))).collect()
    }

    /// Bytes for `count` adapters of one op of linears of n outputs and k inputs.
    pub fn bytes<K: Kernel, E: Element>(
        n: usize,
        k: usize,
        rank: usize,
        rows: usize,
        dropout: bool,
        count: usize,
    ) -> usize {
        let packed = |lines: usize, steps: usize| {
            size_of::<K::Packed>() * lines.next_multiple_of(K::ROWS.max(COLUMNS)) * steps.next_multiple_of(K::STEP)
        };
        let wide = n.max(k);
        let dropped = if dropout { size_of::<E>() * rows * k } else { 0 };
        let hidden = rank * (size_of::<f32>() * rows.max(n) + 2 * size_of::<E>() * rows);
        // Operands that do not lie as they are read; A or B; hᵀ.
        let left = Left::<K>::bytes::<E>(rows, k, k).max(Left::<K>::bytes::<E>(rows, n, n)).max(packed(rank, rows));
        count * (dropped + hidden + left + packed(rank, wide) + packed(rows, rank) + packed(wide, rank))
    }
}

impl OneScratch {
    fn term<K: Kernel, E: Element>(&mut self, kernel: K, of: Beside<E>) -> Term<'_, K> {
        let Beside { a, b, rank: r, factor, dropout, x, rows, back } = of;
        let (n, k) = (a.len() / r, b.len() / r);
        let OneScratch { dropped, left, right, wide, hidden, dhidden, by_rows, by_columns } = self;
        let needs_hidden = back.as_ref().is_none_or(|back| back.grads.is_some());
        let x = match dropout {
            Some(dropout) if needs_hidden => {
                let to = dropped.take::<E>(rows * k);
                drop_elements(dropout, x, k, to);
                &*to
            }
            _ => x,
        };
        let mut small = |a: &Lines<E>, b: &Lines<f32>, wide: &mut Scratch, to: &mut [E]| {
            let wide = wide.take::<f32>(rows * r);
            let (a, b) = (Left::new(kernel, a, left), PackedColumns::new(kernel, b, right));
            product(kernel, &a, &b, Split::Columns, &ToF32::new(wide, rows, r, r, false));
            to.par_iter_mut().with_min_len(PART).zip(&*wide).for_each(|(to, x)| *to = E::from_f32(factor * x));
        };
        let hidden = hidden.take::<E>(rows * r);
        if needs_hidden {
            small(&Lines::rows(x, rows, k), &Lines::rows(b, r, k), wide, hidden);
        }
        let Some(Back { dy, grads }) = back else {
            return Term::new(kernel, &Lines::rows(hidden, rows, r), by_rows, &Lines::rows(a, n, r), by_columns, None);
        };
        let dhidden = dhidden.take::<E>(rows * r);
        small(&Lines::rows(dy, rows, n), &Lines::columns(a, n, r), wide, dhidden);
        if let Some([da, db]) = grads {
            // A product has few rows, so that each panel of dy and x is packed in the cache and used there once: dAᵀ = hᵀ·dy.
            let mut add = |a: &Lines<E>, b: &Lines<E>, to: ToF32| {
                product(kernel, &Left::new(kernel, a, left), b, Split::Columns, &to);
            };
            let (of_h, of_dh) = (Lines::new(hidden, r, rows, (1, r)), Lines::new(dhidden, r, rows, (1, r)));
            let of_a = wide.take::<f32>(r * n);
            add(&of_h, &Lines::columns(dy, rows, n), ToF32::new(of_a, r, n, n, false));
            add_transposed(of_a, da, r);
            add(&of_dh, &Lines::columns(x, rows, k), ToF32::new(db, r, k, k, true));
        }
        Term::new(kernel, &Lines::rows(dhidden, rows, r), by_rows, &Lines::columns(b, r, k), by_columns, dropout)
    }
}

/// y [n, r] += xᵀ of x [r, n]
fn add_transposed(x: &[f32], y: &mut [f32], r: usize) {
    let n = y.len() / r;
    y.par_chunks_mut(r).with_min_len(PART / r.max(1)).enumerate().for_each(|(i, y)| {
        for (j, y) in y.iter_mut().enumerate() {
            *y += x[j * n + i];
        }
    });
}

/// drop(x) [rows, k]
fn drop_elements<E: Element>(dropout: Dropout, x: &[E], k: usize, to: &mut [E]) {
    to.par_chunks_mut(k).zip(x.par_chunks(k)).enumerate().for_each(|(row, (to, x))| {
        let of_row = dropout.row(row);
        simd(
            #[inline(always)]
            || {
                for (j, (to, x)) in to.iter_mut().zip(x).enumerate() {
                    *to = E::from_f32(x.to_f32() * dropout.factor(of_row, j));
                }
            },
        );
    });
}

/// A product of few steps that is added to the tiles of another.
pub struct Term<'a, K: Kernel> {
    left: Left<'a, K>,
    right: PackedColumns<'a, K::Packed>,
    steps: usize,
    mask: Option<Dropout>,
}

impl<'a, K: Kernel> Term<'a, K> {
    fn new<E: Element>(
        kernel: K,
        left: &Lines<'a, E>,
        by_rows: &'a mut Scratch,
        right: &Lines<f32>,
        by_columns: &'a mut Scratch,
        mask: Option<Dropout>,
    ) -> Term<'a, K> {
        let steps = left.steps::<K>();
        let (left, right) = (Left::new(kernel, left, by_rows), PackedColumns::new(kernel, right, by_columns));
        Term { left, right, steps, mask }
    }

    /// Adds its tile of panels (row, column).
    ///
    /// # Safety
    /// A session of this thread lives.
    unsafe fn add(&self, kernel: K, own: &mut Tile, row: usize, column: usize, tile: &mut [f32]) {
        let (a, b) = (self.left.at(row, 0), self.right.panel::<K>(column, 0));
        assert!(b.len() >= self.steps * K::COLUMN_STEP && tile.len() == K::ROWS * COLUMNS);
        let to = if self.mask.is_some() { &mut own.0[..tile.len()] } else { &mut *tile };
        let accumulate = self.mask.is_none();
        // SAFETY: panels are packed for these steps, the tile is whole; else as the caller promises.
        unsafe { kernel.tile(a, b.as_ptr(), self.steps, to.as_mut_ptr(), COLUMNS, accumulate, Ahead::NOTHING) };
        let Some(mask) = self.mask else { return };
        simd(
            #[inline(always)]
            || {
                for (i, (tile, own)) in tile.chunks_exact_mut(COLUMNS).zip(own.0.chunks_exact(COLUMNS)).enumerate() {
                    let of_row = mask.row(row * K::ROWS + i);
                    for j in 0..COLUMNS {
                        tile[j] += own[j] * mask.factor(of_row, column * COLUMNS + j);
                    }
                }
            },
        );
    }
}

/// A sink whose tiles are added to before they are stored.
pub struct Plus<'a, K: Kernel, S> {
    pub to: &'a S,
    /// Of each weight.
    pub terms: &'a [Option<Term<'a, K>>],
    /// Which weight a panel belongs to; without it there is one weight.
    pub places: Option<&'a [Place]>,
}

impl<K: Kernel, S: Sink<K>> Sink<K> for Plus<'_, K, S> {
    type State = (S::State, Tile);

    fn place(&self, row: usize, column: usize) -> Option<(*mut f32, usize, bool)> {
        if self.terms.iter().all(Option::is_none) { self.to.place(row, column) } else { None }
    }

    fn ahead(&self, row: usize, column: usize) -> Option<(*const u8, usize)> {
        self.to.ahead(row, column)
    }

    fn store(&self, kernel: K, (state, own): &mut Self::State, row: usize, column: usize, tile: &mut [f32]) {
        let Place { of, panel } = self.places.map_or(Place { of: 0, panel: column }, |places| places[column]);
        if let Some(Some(term)) = self.terms.get(of) {
            // SAFETY: the driver has begun a session.
            unsafe { term.add(kernel, own, row, panel, tile) };
        }
        self.to.store(kernel, state, row, column, tile);
    }
}
