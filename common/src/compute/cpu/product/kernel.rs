//! The two kernels, and which of them a type computes with.

use std::ops::Range;

use bytemuck::Pod;

use super::super::element::Element;
use super::pack::Lines;
use super::{COLUMNS, amx, fma, pack};

/// A panel of rows of A: packed, or a row-major matrix as it lies. Distances in bytes; packed panels of f32 have none.
#[derive(Clone, Copy)]
pub struct RowPanel {
    pub first: *const u8,
    /// From a row to the next.
    pub row: usize,
    /// From row 0 to row 16.
    pub half: usize,
    /// From 32 values of k to the next 32.
    pub step: usize,
}

/// Computes tiles of C [ROWS, 32] from packed panels.
pub trait Kernel: Copy + Send + Sync + 'static {
    /// As the compute path names it.
    const NAME: &'static str;
    /// A number in a panel.
    type Packed: Pod + Send + Sync;
    /// Rows of a tile: lines of a panel of A.
    const ROWS: usize;
    /// Values of k in a step; k is filled up with zeros to whole steps.
    const STEP: usize;
    /// Most steps of a chunk whose panel stays in the first-level cache.
    const CHUNK: usize;
    /// Most steps of a block of B, which stays in the second-level cache.
    const BLOCK: usize;
    /// Rows of A may be read where they lie, as tiles.
    const READS_TILES: bool;
    /// What a thread holds while it runs tiles.
    type Session;

    fn begin(self) -> Self::Session;

    /// C [ROWS, 32] = or += A·B, C with rows `ldc` elements apart. Two cache lines a step are fetched from `prefetch` on,
    /// where the kernel can.
    ///
    /// # Safety
    /// A session of this thread lives; `a` holds ROWS rows of STEP·steps, `b` a panel of as many, `c` the tile; steps > 0.
    #[allow(clippy::too_many_arguments)]
    unsafe fn tile(
        self,
        a: RowPanel,
        b: *const Self::Packed,
        steps: usize,
        c: *mut f32,
        ldc: usize,
        accumulate: bool,
        prefetch: *const u8,
    );

    /// Packs [`Kernel::ROWS`] rows of A from row `first` on, for steps `from..to`.
    fn pack_rows<E: Element>(self, rows: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [Self::Packed]);
    /// Packs 32 columns of B from column `first` on, for steps `from..to`.
    fn pack_columns<E: Element>(self, columns: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [Self::Packed]);

    /// Elements of a step of a packed panel of A.
    const ROW_STEP: usize = Self::ROWS * Self::STEP;
    /// Elements of a step of a packed panel of B.
    const COLUMN_STEP: usize = COLUMNS * Self::STEP;

    /// The values of k in these steps.
    fn values(steps: Range<usize>) -> Range<usize> {
        steps.start * Self::STEP..steps.end * Self::STEP
    }

    /// A packed panel of A, as [`Kernel::tile`] reads it.
    fn packed_rows(self, first: *const Self::Packed) -> RowPanel;
}

/// Sums of bf16 products by the tile unit of x86.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amx;

/// Chains of f32 fused multiply-adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fma;

#[cfg(target_arch = "x86_64")]
impl Kernel for Amx {
    const NAME: &'static str = "amx";
    type Packed = u16;
    const ROWS: usize = 32;
    const STEP: usize = 32;
    const CHUNK: usize = 18;
    const BLOCK: usize = 64;
    const READS_TILES: bool = true;
    type Session = amx::Tiles;

    fn begin(self) -> amx::Tiles {
        amx::Tiles::configure()
    }

    #[inline]
    unsafe fn tile(
        self,
        a: RowPanel,
        b: *const u16,
        steps: usize,
        c: *mut f32,
        ldc: usize,
        accumulate: bool,
        prefetch: *const u8,
    ) {
        // SAFETY: as the caller promises.
        unsafe { amx::tile_product(a, b, steps, c, 4 * ldc, accumulate, prefetch) }
    }

    fn pack_rows<E: Element>(self, rows: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [u16]) {
        pack::tiles_of_rows(rows, first, steps, out);
    }

    fn pack_columns<E: Element>(self, columns: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [u16]) {
        pack::tiles_of_columns(columns, first, steps, out);
    }

    fn packed_rows(self, first: *const u16) -> RowPanel {
        RowPanel { first: first.cast(), row: 64, half: 1024, step: 2048 }
    }
}

impl Kernel for Fma {
    const NAME: &'static str = "fma";
    type Packed = f32;
    const ROWS: usize = fma::ROWS;
    const STEP: usize = 4;
    const CHUNK: usize = 64;
    const BLOCK: usize = 512;
    const READS_TILES: bool = false;
    type Session = ();

    fn begin(self) {}

    #[inline]
    unsafe fn tile(
        self,
        a: RowPanel,
        b: *const f32,
        steps: usize,
        c: *mut f32,
        ldc: usize,
        accumulate: bool,
        _: *const u8,
    ) {
        // SAFETY: as the caller promises.
        unsafe { fma::tile_product(a.first.cast(), b, steps * Self::STEP, c, ldc, accumulate) }
    }

    fn pack_rows<E: Element>(self, rows: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [f32]) {
        pack::interleave::<E, { fma::ROWS }>(rows, first, Self::values(steps), out);
    }

    fn pack_columns<E: Element>(self, columns: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [f32]) {
        pack::interleave::<E, COLUMNS>(columns, first, Self::values(steps), out);
    }

    fn packed_rows(self, first: *const f32) -> RowPanel {
        RowPanel { first: first.cast(), row: 0, half: 0, step: 0 }
    }
}

/// What is computed with the kernel of a type.
pub trait Work {
    type Output;
    fn run<K: Kernel>(self, kernel: K) -> Self::Output;
}

/// Runs `work` with the kernel that this machine has for products of E.
pub fn with_kernel<E: Element, W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    if E::IN_TILES && amx::available() {
        return work.run(Amx);
    }
    work.run(Fma)
}

/// The kernel that products of E run on: their bits depend on it.
pub fn kernel_name<E: Element>() -> &'static str {
    struct Name;
    impl Work for Name {
        type Output = &'static str;
        fn run<K: Kernel>(self, _: K) -> &'static str {
            K::NAME
        }
    }
    with_kernel::<E, _>(Name)
}
