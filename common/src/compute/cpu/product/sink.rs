//! Where the tiles of C go.

use std::marker::PhantomData;

use super::super::element::Element;
use super::COLUMNS;
use super::kernel::{Ahead, Kernel, RowPanel};
use super::right::Place;

/// Takes the tiles of C, each from one thread, once.
pub trait Sink<K: Kernel>: Sync {
    /// What a thread keeps between its tiles.
    type State: Default;

    /// Where the tile of panel `row` of A and panel `column` of B can be summed in place: its first element, elements
    /// from a row to the next, and whether what is there is added to.
    fn place(&self, row: usize, column: usize) -> Option<(*mut f32, usize, bool)> {
        let _ = (row, column);
        None
    }

    /// Two cache lines of each row of the tile, and bytes from a row to the next, if they are worth fetching ahead.
    fn ahead(&self, row: usize, column: usize) -> Option<(*const u8, usize)> {
        let _ = (row, column);
        None
    }

    /// Takes a finished tile [ROWS, 32] that had no place. Elements beyond C are zero.
    fn store(&self, kernel: K, state: &mut Self::State, row: usize, column: usize, tile: &mut [f32]);
}

/// C [m, n] in f32, = or +=, with rows `stride` apart.
pub struct ToF32<'a> {
    c: Shared<'a, f32>,
    accumulate: bool,
}

impl<'a> ToF32<'a> {
    pub fn new(c: &'a mut [f32], m: usize, n: usize, stride: usize, accumulate: bool) -> ToF32<'a> {
        ToF32 { c: Shared::new(c, m, n, stride), accumulate }
    }
}

impl ToF32<'_> {
    /// A tile of a product of a few steps, outside the driver.
    ///
    /// # Safety
    /// As [`Kernel::tile`]; nobody else touches the tile meanwhile.
    pub unsafe fn tile<K: Kernel>(
        &self,
        kernel: K,
        a: RowPanel,
        b: &[K::Packed],
        steps: usize,
        row: usize,
        column: usize,
    ) {
        assert!(b.len() >= steps * K::COLUMN_STEP);
        let (ahead, b) = (Ahead::NOTHING, b.as_ptr());
        if let Some((c, ldc, accumulate)) = Sink::<K>::place(self, row, column) {
            // SAFETY: as the caller promises; the tile lies there.
            unsafe { kernel.tile(a, b, steps, c, ldc, accumulate, ahead) };
        } else {
            let mut tile = Tile::default();
            // SAFETY: as the caller promises; no kernel has more than 32 rows.
            unsafe { kernel.tile(a, b, steps, tile.0.as_mut_ptr(), COLUMNS, false, ahead) };
            Sink::<K>::store(self, kernel, &mut (), row, column, &mut tile.0[..K::ROWS * COLUMNS]);
        }
    }

    /// The same matrix, set or added to.
    pub fn again(&self, accumulate: bool) -> ToF32<'_> {
        ToF32 { c: Shared { borrowed: PhantomData, ..self.c }, accumulate }
    }

    /// Adds to one element.
    ///
    /// # Safety
    /// Nobody else touches it meanwhile.
    #[inline(always)]
    pub unsafe fn add(&self, row: usize, column: usize, x: f32) {
        let (first, rows, columns) = self.c.part(row, 1, column);
        assert!(rows == 1 && columns > 0);
        // SAFETY: it exists, and belongs to the caller.
        unsafe { *first += x };
    }
}

/// A tile of any kernel, or one packed, on cache lines.
#[repr(align(64))]
pub struct Tile(pub [f32; 32 * COLUMNS]);

impl Default for Tile {
    fn default() -> Tile {
        Tile([0.0; 32 * COLUMNS])
    }
}

impl<K: Kernel> Sink<K> for ToF32<'_> {
    type State = ();

    fn place(&self, row: usize, column: usize) -> Option<(*mut f32, usize, bool)> {
        let (first, rows, columns) = self.c.part(row * K::ROWS, K::ROWS, column * COLUMNS);
        (rows == K::ROWS && columns == COLUMNS).then_some((first, self.c.stride, self.accumulate))
    }

    fn ahead(&self, row: usize, column: usize) -> Option<(*const u8, usize)> {
        let (first, ..) = self.c.part(row * K::ROWS, K::ROWS, column * COLUMNS);
        Some((first.cast(), 4 * self.c.stride))
    }

    /// At the edges of C.
    fn store(&self, _: K, (): &mut (), row: usize, column: usize, tile: &mut [f32]) {
        let (first, rows, columns) = self.c.part(row * K::ROWS, K::ROWS, column * COLUMNS);
        for (i, tile) in tile.chunks_exact(COLUMNS).take(rows).enumerate() {
            // SAFETY: these columns of this row exist and belong to this tile.
            let c = unsafe { std::slice::from_raw_parts_mut(first.add(i * self.c.stride), columns) };
            for (c, x) in c.iter_mut().zip(tile) {
                *c = if self.accumulate { *c + x } else { *x };
            }
        }
    }
}

/// C [m, n] in the compute type, set.
pub struct ToActivation<'a, E>(Shared<'a, E>);

impl<'a, E: Element> ToActivation<'a, E> {
    pub fn new(c: &'a mut [E], m: usize, n: usize) -> ToActivation<'a, E> {
        ToActivation(Shared::new(c, m, n, n))
    }
}

impl<E: Element, K: Kernel> Sink<K> for ToActivation<'_, E> {
    type State = ();

    fn ahead(&self, row: usize, column: usize) -> Option<(*const u8, usize)> {
        self.0.ahead::<K>(row, column)
    }

    fn store(&self, kernel: K, (): &mut (), row: usize, column: usize, tile: &mut [f32]) {
        // SAFETY: a sink is given each tile once, by one thread.
        unsafe { self.0.put(kernel, row, column, tile) };
    }
}

/// Activations side by side, as the weights of a [`super::SideBySide`].
pub struct ToActivations<'a, E> {
    pub to: Vec<Shared<'a, E>>,
    pub places: &'a [Place],
}

impl<E: Element, K: Kernel> Sink<K> for ToActivations<'_, E> {
    type State = ();

    fn ahead(&self, row: usize, column: usize) -> Option<(*const u8, usize)> {
        let place = self.places[column];
        self.to[place.of].ahead::<K>(row, place.panel)
    }

    fn store(&self, kernel: K, (): &mut (), row: usize, column: usize, tile: &mut [f32]) {
        let place = self.places[column];
        // SAFETY: a sink is given each tile once, by one thread.
        unsafe { self.to[place.of].put(kernel, row, place.panel, tile) };
    }
}

/// A matrix whose tiles several threads write.
pub struct Shared<'a, T> {
    first: *mut T,
    m: usize,
    n: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: a sink is given each tile once, by one thread, and touches its elements only.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as the borrow that it stands for.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn new(c: &'a mut [T], m: usize, n: usize, stride: usize) -> Shared<'a, T> {
        assert!(m == 0 || (n <= stride && (m - 1) * stride + n <= c.len()), "product: C is larger than its slice");
        Shared { first: c.as_mut_ptr(), m, n, stride, borrowed: PhantomData }
    }

    /// Of a tile from (row, column) on: its first element, and how many of its rows and columns exist.
    #[inline(always)]
    fn part(&self, row: usize, rows: usize, column: usize) -> (*mut T, usize, usize) {
        let first = self.first.wrapping_add(row * self.stride + column);
        (first, rows.min(self.m.saturating_sub(row)), COLUMNS.min(self.n.saturating_sub(column)))
    }
}

impl<E: Element> Shared<'_, E> {
    /// The tile of panels (row, column): its first element, elements from a row to the next, and how many of its rows and
    /// columns exist.
    pub fn tile<K: Kernel>(&self, row: usize, column: usize) -> (*mut E, usize, usize, usize) {
        let (first, rows, columns) = self.part(row * K::ROWS, K::ROWS, column * COLUMNS);
        (first, self.stride, rows, columns)
    }

    /// Rounds a tile to where it goes.
    ///
    /// # Safety
    /// Nobody else touches it meanwhile.
    pub unsafe fn put<K: Kernel>(&self, kernel: K, row: usize, column: usize, tile: &[f32]) {
        let (first, stride, rows, columns) = self.tile::<K>(row, column);
        // SAFETY: these elements exist; else as the caller promises.
        unsafe { kernel.put_tile(tile, first, stride, rows, columns) }
    }

    /// As [`Sink::ahead`]: a row of two bf16 tiles is two lines.
    pub fn ahead<K: Kernel>(&self, row: usize, column: usize) -> Option<(*const u8, usize)> {
        let (first, stride, ..) = self.tile::<K>(row, column);
        column.is_multiple_of(2).then_some((first.cast(), size_of::<E>() * stride))
    }
}
