//! The f32 kernel: fused multiply-adds in vector registers, compiled for each instruction set. Every element of C is
//! summed by one chain of fused multiply-adds over ascending k, so the bits do not depend on the instruction set.

use std::slice::from_raw_parts;

use pulp::{Simd, WithSimd};

use super::super::simd::ARCH;
use super::COLUMNS;

/// Rows of a tile: with two AVX-512 registers of columns, 24 sums, which hide the latency of the multiply-adds.
pub const ROWS: usize = 12;

/// C [12, 32] = or += A·B for `k` products. A is packed [k][12], B [k][32], C has rows `ldc` apart.
///
/// # Safety
/// The pointers are good for these sizes.
pub unsafe fn tile_product(a: *const f32, b: *const f32, k: usize, c: *mut f32, ldc: usize, accumulate: bool) {
    // SAFETY: as the caller promises; an array of f32 has the alignment of f32.
    let (a, b) = unsafe { (from_raw_parts(a.cast::<[f32; ROWS]>(), k), from_raw_parts(b.cast::<[f32; COLUMNS]>(), k)) };
    ARCH.dispatch(Tile { a, b, c, ldc, accumulate });
}

/// The same with A as tiles [k / 32][12][32], k a multiple of 32.
///
/// # Safety
/// The pointers are good for these sizes.
pub unsafe fn tile_product_of_tiles(a: *const f32, b: *const f32, k: usize, c: *mut f32, ldc: usize, accumulate: bool) {
    // SAFETY: as the caller promises; an array of f32 has the alignment of f32.
    let (a, b) = unsafe {
        (from_raw_parts(a.cast::<[[f32; COLUMNS]; ROWS]>(), k / COLUMNS), from_raw_parts(b.cast::<[f32; COLUMNS]>(), k))
    };
    ARCH.dispatch(Tile { a, b, c, ldc, accumulate });
}

/// A panel of A.
trait Panel: Copy {
    /// Values of k that lie together.
    const TOGETHER: usize;
    /// The row'th line at k.
    fn at(self, row: usize, k: usize) -> f32;
}

impl Panel for &[f32; ROWS] {
    const TOGETHER: usize = 1;
    #[inline(always)]
    fn at(self, row: usize, _: usize) -> f32 {
        self[row]
    }
}

impl Panel for &[[f32; COLUMNS]; ROWS] {
    const TOGETHER: usize = COLUMNS;
    #[inline(always)]
    fn at(self, row: usize, k: usize) -> f32 {
        self[row][k]
    }
}

struct Tile<'a, A> {
    a: &'a [A],
    b: &'a [[f32; COLUMNS]],
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
}

impl<'a, A> WithSimd for Tile<'a, A>
where
    &'a A: Panel,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // As many rows at a time as leave all sums in registers.
        match S::F32_LANES {
            16 => self.rows::<S, 12, 2>(simd),
            8 => self.rows::<S, 3, 4>(simd),
            4 => self.rows::<S, 3, 8>(simd),
            _ => self.rows::<S, 1, 32>(simd),
        }
    }
}

impl<'a, A> Tile<'a, A>
where
    &'a A: Panel,
{
    /// All rows, R at a time; a row of B is V registers.
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const V: usize>(self, simd: S) {
        for from in (0..ROWS).step_by(R) {
            let mut sums = [[simd.splat_f32s(0.0); V]; R];
            if self.accumulate {
                for (r, sums) in sums.iter_mut().enumerate() {
                    let row = self.row(from + r);
                    // SAFETY: the tile lies within C, and nobody else has its elements.
                    sums.copy_from_slice(S::as_simd_f32s(unsafe { &*row }).0);
                }
            }
            for (a, b) in self.a.iter().zip(self.b.chunks_exact(<&A>::TOGETHER)) {
                for k in 0..<&A>::TOGETHER {
                    let b = S::as_simd_f32s(&b[k]).0;
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let a = simd.splat_f32s(a.at(from + r, k));
                        for (sum, b) in sums.iter_mut().zip(b) {
                            *sum = simd.mul_add_f32s(a, *b, *sum);
                        }
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let row = self.row(from + r);
                // SAFETY: as above.
                S::as_mut_simd_f32s(unsafe { &mut *row }).0.copy_from_slice(sums);
            }
        }
    }

    #[inline(always)]
    fn row(&self, row: usize) -> *mut [f32; COLUMNS] {
        self.c.wrapping_add(row * self.ldc).cast()
    }
}
