//! What a kernel is, the one of fused multiply-adds, and which of them a type computes with.

use std::ops::Range;

use bytemuck::Pod;
use pulp::Simd;

use super::super::element::Element;
use super::super::simd::simd;
use super::pack::Lines;
use super::{COLUMNS, fma, pack};
#[cfg(target_arch = "x86_64")]
use super::{amx, dot};

/// A panel of rows of A: packed, or a row-major matrix as it lies. Distances in bytes; packed panels of f32 have none.
#[derive(Clone, Copy)]
pub struct RowPanel {
    pub first: *const u8,
    /// From a row to the next.
    pub row: usize,
    /// From 32 values of k to the next 32.
    pub step: usize,
}

/// What is fetched to the second-level cache while a tile is computed. Addresses may be anywhere; null fetches nothing.
#[derive(Clone, Copy)]
pub struct Ahead {
    /// Rows of the next panel of A.
    pub rows: *const u8,
    /// Bytes from a row to the next, and from a step to the next.
    pub row: usize,
    pub step: usize,
    /// So few columns share a panel that each fetches eight rows of the next, not four.
    pub many: bool,
    /// The next tile of C, two cache lines a row, and bytes from a row to the next.
    pub c: *const u8,
    pub c_row: usize,
}

impl Ahead {
    pub const NOTHING: Ahead =
        Ahead { rows: std::ptr::null(), row: 0, step: 0, many: false, c: std::ptr::null(), c_row: 0 };

    /// Neighbouring lines, four with each step.
    #[inline(always)]
    pub fn lines(first: *const u8) -> Ahead {
        Ahead { rows: first, row: 64, step: 256, ..Ahead::NOTHING }
    }

    /// The rows of `panel` that fall to column `column` of `columns`.
    #[inline(always)]
    pub fn rows(panel: RowPanel, column: usize, columns: usize) -> Ahead {
        let many = columns < 8;
        let from = column * if many { 8 } else { 4 };
        if from >= 32 {
            return Ahead::NOTHING;
        }
        let rows = panel.first.wrapping_add(from * panel.row);
        Ahead { rows, row: panel.row, step: panel.step, many, ..Ahead::NOTHING }
    }

    #[inline(always)]
    pub fn with_c(self, c: Option<(*const u8, usize)>) -> Ahead {
        c.map_or(self, |(c, c_row)| Ahead { c, c_row, ..self })
    }
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

    /// C [ROWS, 32] = or += A·B, C with rows `ldc` elements apart. Fetches what comes next, where the kernel can.
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
        ahead: Ahead,
    );

    /// Packs [`Kernel::ROWS`] rows of A from row `first` on, for steps `from..to`.
    fn pack_rows<E: Element>(self, rows: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [Self::Packed]);
    /// Packs 32 columns of B from column `first` on, for steps `from..to`.
    fn pack_columns<E: Element>(self, columns: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [Self::Packed]);

    /// Rounds a tile's `rows` × `columns` first elements to where they go, with rows `stride` apart.
    ///
    /// # Safety
    /// They exist there, and nobody else has them.
    unsafe fn put_tile<E: Element>(self, tile: &[f32], to: *mut E, stride: usize, rows: usize, columns: usize);

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

    // A tile of one product as an operand of the next. It is ROWS·32 elements, rounded to the nearest, half away from
    // zero; `out` begins with it, and the tiles of a panel follow each other.

    /// Row `row` of a tile as a line of A, whose k are the columns of the tile.
    fn put_line<S: Simd, const V: usize>(simd: S, x: [S::f32s; V], row: usize, out: &mut [Self::Packed]);
    /// Rows 2·pair and 2·pair + 1 of a tile as two k of B, whose columns are those of the tile.
    fn put_pair<S: Simd, const V: usize>(simd: S, x: [[S::f32s; V]; 2], pair: usize, out: &mut [Self::Packed]);
    /// A panel of A made of tiles, as [`Kernel::tile`] reads it; of the steps there are 32 / STEP a tile.
    fn tiled_rows(self, first: *const Self::Packed) -> RowPanel;
    /// As [`Kernel::pack_columns`], in the order of k that a panel of A made of tiles has.
    fn pack_columns_for_tiles<E: Element>(
        self,
        columns: &Lines<E>,
        first: usize,
        steps: Range<usize>,
        out: &mut [Self::Packed],
    );
}

/// Chains of f32 fused multiply-adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fma;

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
        _: Ahead,
    ) {
        let (first, k) = (a.first.cast(), steps * Self::STEP);
        // SAFETY: as the caller promises.
        unsafe {
            match a.row {
                0 => fma::tile_product(first, b, k, c, ldc, accumulate),
                _ => fma::tile_product_of_tiles(first, b, k, c, ldc, accumulate),
            }
        }
    }

    unsafe fn put_tile<E: Element>(self, tile: &[f32], to: *mut E, stride: usize, rows: usize, columns: usize) {
        simd(
            #[inline(always)]
            || {
                for (i, tile) in tile.chunks_exact(COLUMNS).take(rows).enumerate() {
                    // SAFETY: as the caller promises.
                    let to = unsafe { std::slice::from_raw_parts_mut(to.add(i * stride), columns) };
                    if columns == COLUMNS {
                        let to: &mut [E; COLUMNS] = to.try_into().expect("32 columns");
                        for (to, x) in to.iter_mut().zip(tile) {
                            *to = E::from_f32(*x);
                        }
                    } else {
                        for (to, x) in to.iter_mut().zip(tile) {
                            *to = E::from_f32(*x);
                        }
                    }
                }
            },
        );
    }

    fn pack_rows<E: Element>(self, rows: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [f32]) {
        pack::interleave::<E, { fma::ROWS }>(rows, first, Self::values(steps), out);
    }

    fn pack_columns<E: Element>(self, columns: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [f32]) {
        pack::interleave::<E, COLUMNS>(columns, first, Self::values(steps), out);
    }

    fn packed_rows(self, first: *const f32) -> RowPanel {
        RowPanel { first: first.cast(), row: 0, step: 0 }
    }

    #[inline(always)]
    fn put_line<S: Simd, const V: usize>(_: S, x: [S::f32s; V], row: usize, out: &mut [f32]) {
        let out = &mut out.as_chunks_mut::<COLUMNS>().0[row];
        S::as_mut_simd_f32s(out).0[..V].copy_from_slice(&x);
    }

    #[inline(always)]
    fn put_pair<S: Simd, const V: usize>(simd: S, [low, high]: [[S::f32s; V]; 2], pair: usize, out: &mut [f32]) {
        Self::put_line(simd, low, 2 * pair, out);
        Self::put_line(simd, high, 2 * pair + 1, out);
    }

    fn tiled_rows(self, first: *const f32) -> RowPanel {
        RowPanel { first: first.cast(), row: 4 * COLUMNS, step: 4 * fma::ROWS * COLUMNS }
    }

    fn pack_columns_for_tiles<E: Element>(
        self,
        columns: &Lines<E>,
        first: usize,
        steps: Range<usize>,
        out: &mut [f32],
    ) {
        self.pack_columns(columns, first, steps, out);
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
    if E::IN_TILES {
        if amx::available() {
            return work.run(amx::Amx);
        }
        if dot::preferred() {
            return work.run(dot::Dot);
        }
    }
    work.run(Fma)
}

/// Does this machine have a tile unit that `LRQAT_CPU` leaves to it?
pub fn has_tiles() -> bool {
    #[cfg(target_arch = "x86_64")]
    return amx::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Does this machine multiply matrices of bf16 faster than of f32?
pub fn multiplies_bf16() -> bool {
    kernel_name::<half::bf16>() != Fma::NAME
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
