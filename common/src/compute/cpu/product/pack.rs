//! Operands as matrices in memory, and their panels as the kernels read them.
//!
//! The panels of f32 are [k][lines]. Those of the tile unit are tiles of 16 rows of 32 bf16: of A, a row is a line with
//! 32 neighbouring k; of B, a row is a pair (k, k + 1) of 16 lines. The two differ by a transposition of 16 × 16 pairs.

use std::ops::Range;

use half::bf16;
#[cfg(target_arch = "x86_64")]
use pulp::Simd;
use rayon::prelude::*;

use super::super::element::Element;
#[cfg(target_arch = "x86_64")]
use super::super::simd::ARCH;
use super::super::simd::simd;
use super::kernel::Kernel;

/// Reads numbers as the bf16 of tiles.
pub trait Tiled: Sized {
    /// The tile unit multiplies it without loss.
    const IN_TILES: bool;

    /// 32 neighbours, where `mask` has a bit.
    ///
    /// # Safety
    /// AVX-512 with BF16; the masked elements are readable.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_32(from: *const Self, mask: u32) -> std::arch::x86_64::__m512i;

    /// 16 neighbours of two rows, the first row in the lower half.
    ///
    /// # Safety
    /// As [`Tiled::load_32`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_16_16(low: *const Self, high: *const Self, masks: [u16; 2]) -> std::arch::x86_64::__m512i;

    /// 32 neighbours, where `mask` has a bit, rounded to the nearest, the even one of two.
    ///
    /// # Safety
    /// As [`Tiled::load_32`]; they may be written.
    #[cfg(target_arch = "x86_64")]
    unsafe fn store_32(to: *mut Self, mask: u32, x: [std::arch::x86_64::__m512; 2]);
}

/// Rows of A, or columns of B, as they lie in memory.
#[derive(Clone, Copy)]
pub struct Lines<'a, E> {
    data: &'a [E],
    pub lines: usize,
    pub k: usize,
    line_stride: usize,
    k_stride: usize,
}

impl<'a, E> Lines<'a, E> {
    /// Panics if the matrix reaches beyond its slice, or if neither neighbouring lines nor neighbouring k are neighbours in
    /// memory.
    pub fn new(data: &'a [E], lines: usize, k: usize, (line_stride, k_stride): (usize, usize)) -> Lines<'a, E> {
        if lines > 0 && k > 0 {
            let reach = (lines - 1).checked_mul(line_stride).zip((k - 1).checked_mul(k_stride));
            let reach = reach.and_then(|(a, b)| a.checked_add(b));
            assert!(reach.is_some_and(|last| last < data.len()), "product: a matrix is larger than its slice");
        }
        assert!(line_stride == 1 || k_stride == 1, "product: strides ({line_stride}, {k_stride})");
        Lines { data, lines, k, line_stride, k_stride }
    }

    /// The rows of A [m, k], row-major.
    pub fn rows(a: &'a [E], m: usize, k: usize) -> Lines<'a, E> {
        Lines::new(a, m, k, (k, 1))
    }

    /// The columns of B [k, n], row-major.
    pub fn columns(b: &'a [E], k: usize, n: usize) -> Lines<'a, E> {
        Lines::new(b, n, k, (1, n))
    }

    pub fn steps<K: Kernel>(&self) -> usize {
        self.k.div_ceil(K::STEP)
    }

    #[cfg(target_arch = "x86_64")]
    fn at(&self, line: usize, k: usize) -> *const E {
        self.data.as_ptr().wrapping_add(line * self.line_stride + k * self.k_stride)
    }

    /// Where the lines begin and how far apart they are, if they can be read as tiles where they lie.
    pub(super) fn as_tiles(&self) -> Option<(*const u8, usize)> {
        let fits = self.k_stride == 1 && lie_as_tiles::<E>(self.lines, self.k, self.line_stride);
        let aligned = (self.data.as_ptr() as usize).is_multiple_of(64);
        (fits && aligned).then(|| (self.data.as_ptr().cast(), self.line_stride * size_of::<E>()))
    }
}

/// Lines of neighbouring k, `stride` apart: 32 of them from each multiple of 32 on are tiles if they are whole, on cache
/// lines, and not all in a few sets of the first-level cache.
pub(super) fn lie_as_tiles<E>(lines: usize, k: usize, stride: usize) -> bool {
    let bytes = stride * size_of::<E>();
    let whole = lines.is_multiple_of(32) && k.is_multiple_of(32);
    size_of::<E>() == 2 && whole && bytes.is_multiple_of(64) && !bytes.is_multiple_of(2048)
}

/// Packs all panels on all threads, each `steps` times `step` numbers, by `pack(panel, steps, to)`. Where lines are
/// neighbours in memory, not k, a few steps of all panels are taken together, so that memory is read from end to end.
pub(super) fn pack_all<E: Element, T: Send>(
    m: &Lines<E>,
    steps: usize,
    step: usize,
    out: &mut [T],
    pack: impl Fn(usize, Range<usize>, &mut [T]) + Sync,
) {
    let stride = steps * step;
    if m.k_stride == 1 {
        out.par_chunks_exact_mut(stride.max(1)).enumerate().for_each(|(panel, out)| pack(panel, 0..steps, out));
        return;
    }
    let (panels, first) = (out.len() / stride.max(1), Shared(out.as_mut_ptr()));
    const TOGETHER: usize = 4;
    (0..steps.div_ceil(TOGETHER)).into_par_iter().for_each(|some| {
        let first = &first;
        for at in some * TOGETHER..steps.min((some + 1) * TOGETHER) {
            for panel in 0..panels {
                // SAFETY: it lies within `out`, and nobody else has this step of this panel.
                let to = unsafe { std::slice::from_raw_parts_mut(first.0.add(panel * stride + at * step), step) };
                pack(panel, at..at + 1, to);
            }
        }
    });
}

/// Where threads write, each its own part.
struct Shared<T>(*mut T);

// SAFETY: the parts do not overlap.
unsafe impl<T: Send> Sync for Shared<T> {}

/// Panels [k][L] of lines `first..first + L` and these k, zeros past the end.
pub(super) fn interleave<E: Element, const L: usize>(m: &Lines<E>, first: usize, ks: Range<usize>, out: &mut [f32]) {
    let out = &mut out.as_chunks_mut::<L>().0[..ks.len()];
    let lines = m.lines.saturating_sub(first).min(L);
    let inside = m.k.min(ks.end).saturating_sub(ks.start);
    simd(
        #[inline(always)]
        || {
            let (inside, beyond) = out.split_at_mut(inside);
            beyond.as_flattened_mut().fill(0.0);
            if m.k_stride == 1 && lines > 0 {
                for (k, out) in (ks.start..).step_by(16).zip(inside.chunks_mut(16)) {
                    for at in (0..L).step_by(16) {
                        let mut square = Square([[0.0; 16]; 16]);
                        for (line, row) in (at..lines).zip(&mut square.0) {
                            let from = &m.data[(first + line) * m.line_stride + k..];
                            match from.first_chunk::<16>().filter(|_| out.len() == 16) {
                                Some(from) => *row = widened(from),
                                None => row.iter_mut().zip(&from[..out.len()]).for_each(|(x, from)| *x = from.to_f32()),
                            }
                        }
                        transpose(&mut square);
                        let columns = at..L.min(at + 16);
                        for (out, row) in out.iter_mut().zip(&square.0) {
                            out[columns.clone()].copy_from_slice(&row[..columns.len()]);
                        }
                    }
                }
            } else {
                for (k, out) in inside.iter_mut().enumerate() {
                    let at = (ks.start + k) * m.k_stride + first * m.line_stride;
                    out[lines..].fill(0.0);
                    for (out, x) in out[..lines].iter_mut().zip(&m.data[at..]) {
                        *out = x.to_f32();
                    }
                }
            }
        },
    );
}

#[inline(always)]
fn widened<E: Element>(x: &[E; 16]) -> [f32; 16] {
    let mut wide = [0.0; 16];
    for (wide, x) in wide.iter_mut().zip(x) {
        *wide = x.to_f32();
    }
    wide
}

/// bf16 of `low` and, in the upper halves, of `high`, rounded to the nearest, half away from zero.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn two_bf16<S: Simd>(simd: S, low: S::f32s, high: S::f32s) -> S::u32s {
    let half = simd.splat_u32s(0x8000);
    let low = simd.add_u32s(simd.transmute_u32s_f32s(low), half);
    let high = simd.add_u32s(simd.transmute_u32s_f32s(high), half);
    let low = simd.wrapping_dyn_shr_u32s(low, simd.splat_u32s(16));
    simd.or_u32s(simd.and_u32s(high, simd.splat_u32s(0xffff_0000)), low)
}

/// 16 × 16 numbers on cache lines.
#[repr(align(64))]
pub struct Square(pub [[f32; 16]; 16]);

/// Swaps rows and columns.
pub fn transpose(Square(block): &mut Square) {
    #[cfg(target_arch = "x86_64")]
    if matches!(*ARCH, pulp::Arch::V4(_)) {
        // SAFETY: AVX-512 is there.
        return unsafe { tiles::transpose_block(block) };
    }
    let rows = *block;
    for (i, row) in block.iter_mut().enumerate() {
        *row = std::array::from_fn(|j| rows[j][i]);
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use tiles::{put_tile, tiles_of_columns, tiles_of_columns_by_halves, tiles_of_rows};

#[cfg(target_arch = "x86_64")]
mod tiles {
    use std::arch::x86_64::*;

    use super::*;

    /// Lines of a panel, and values of k in a step.
    const LINES: usize = 32;
    const STEP: usize = 32;

    pub fn tiles_of_rows<E: Element>(m: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [u16]) {
        assert!(out.len() >= steps.len() * LINES * STEP && is_x86_feature_detected!("avx512bf16"));
        // SAFETY: AVX-512 with BF16 is there; `out` is large enough.
        unsafe { pack::<E, false>(m, first, steps, m.k_stride != 1, out.as_mut_ptr()) }
    }

    pub fn tiles_of_columns<E: Element>(m: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [u16]) {
        assert!(out.len() >= steps.len() * LINES * STEP && is_x86_feature_detected!("avx512bf16"));
        // SAFETY: AVX-512 with BF16 is there; `out` is large enough.
        unsafe { pack::<E, false>(m, first, steps, m.k_stride == 1, out.as_mut_ptr()) }
    }

    /// The same with pairs (k, k + 16).
    pub fn tiles_of_columns_by_halves<E: Element>(m: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [u16]) {
        assert!(out.len() >= steps.len() * LINES * STEP && is_x86_feature_detected!("avx512bf16"));
        // SAFETY: AVX-512 with BF16 is there; `out` is large enough.
        unsafe { pack::<E, true>(m, first, steps, m.k_stride == 1, out.as_mut_ptr()) }
    }

    /// # Safety
    /// `out` has 1024 elements a step.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn pack<E: Element, const HALVES: bool>(
        m: &Lines<E>,
        first: usize,
        steps: Range<usize>,
        transposed: bool,
        out: *mut u16,
    ) {
        for (at, step) in steps.enumerate() {
            for half in 0..2 {
                // SAFETY: reads are masked to the matrix; `out` holds two tiles of 512 a step.
                unsafe {
                    let mut rows = load::<E, HALVES>(m, first + half * 16, step * STEP);
                    if transposed {
                        transpose(&mut rows);
                    }
                    let to = out.add((2 * at + half) * 512);
                    for (i, row) in rows.iter().enumerate() {
                        _mm512_storeu_si512(to.add(i * 32).cast(), *row);
                    }
                }
            }
        }
    }

    /// The first `rows` × `columns` elements of a tile [.., 32], with rows `stride` apart.
    ///
    /// # Safety
    /// They exist there, and nobody else has them.
    pub unsafe fn put_tile<E: Element>(tile: &[f32], to: *mut E, stride: usize, rows: usize, columns: usize) {
        assert!(tile.len() >= rows * LINES && columns <= LINES && is_x86_feature_detected!("avx512bf16"));
        // SAFETY: AVX-512 with BF16 is there; else as the caller promises.
        unsafe { put_rows(tile.as_ptr(), to, stride, rows, columns) }
    }

    /// # Safety
    /// As [`put_tile`]; AVX-512 with BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn put_rows<E: Element>(tile: *const f32, to: *mut E, stride: usize, rows: usize, columns: usize) {
        let mask = if columns == 32 { u32::MAX } else { (1 << columns) - 1 };
        for row in 0..rows {
            // SAFETY: as the caller promises.
            unsafe {
                let from = tile.add(row * LINES);
                E::store_32(to.add(row * stride), mask, [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))]);
            }
        }
    }

    /// 16 lines × 32 k. Where k are neighbours: 16 rows of 32 k. Where lines are: 16 rows of pairs (k, k + 1). With
    /// `HALVES`, k come as 0, 16, 1, 17 … 31.
    ///
    /// # Safety
    /// AVX-512 with BF16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn load<E: Element, const HALVES: bool>(m: &Lines<E>, line: usize, k: usize) -> [__m512i; 16] {
        let mut rows = [_mm512_setzero_si512(); 16];
        if m.k_stride == 1 {
            let inside = m.k.saturating_sub(k).min(32);
            let mask = if inside == 32 { u32::MAX } else { (1 << inside) - 1 };
            for (i, row) in rows.iter_mut().enumerate().take(m.lines.saturating_sub(line)) {
                // SAFETY: the line exists, and of it what lies before m.k.
                *row = unsafe { E::load_32(m.at(line + i, k), mask) };
                if HALVES {
                    *row = interleaved(*row);
                }
            }
        } else {
            let inside = m.lines.saturating_sub(line).min(16);
            let mask = ((1u32 << inside) - 1) as u16;
            let of_pair = |k: usize| if k < m.k { mask } else { 0 };
            for (pair, row) in rows.iter_mut().enumerate() {
                let (k, other) = if HALVES { (k + pair, k + pair + 16) } else { (k + 2 * pair, k + 2 * pair + 1) };
                let masks = [of_pair(k), of_pair(other)];
                // SAFETY: masked to the lines and k that exist.
                *row = interleaved(unsafe { E::load_16_16(m.at(line, k), m.at(line, other), masks) });
            }
        }
        rows
    }

    /// Lower and upper 16 elements by turns.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn interleaved(x: __m512i) -> __m512i {
        let order = _mm512_set_epi16(
            31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17,
            1, 16, 0,
        );
        _mm512_permutexvar_epi16(order, x)
    }

    #[target_feature(enable = "avx512f")]
    pub fn transpose_block(block: &mut [[f32; 16]; 16]) {
        // SAFETY: a row is 64 bytes.
        let mut rows = std::array::from_fn(|i| unsafe { _mm512_loadu_si512(block[i].as_ptr().cast()) });
        transpose(&mut rows);
        for (to, row) in block.iter_mut().zip(rows) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), row) };
        }
    }

    /// 16 × 16 elements of 32 bits.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transpose(r: &mut [__m512i; 16]) {
        let mut t = [_mm512_setzero_si512(); 16];
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..4 {
            r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
            r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
            r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
            r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
        }
        for i in 0..4 {
            t[i] = _mm512_shuffle_i32x4::<0x88>(r[i], r[i + 4]);
            t[i + 4] = _mm512_shuffle_i32x4::<0xdd>(r[i], r[i + 4]);
            t[i + 8] = _mm512_shuffle_i32x4::<0x88>(r[i + 8], r[i + 12]);
            t[i + 12] = _mm512_shuffle_i32x4::<0xdd>(r[i + 8], r[i + 12]);
        }
        for i in 0..4 {
            r[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[i + 8]);
            r[i + 8] = _mm512_shuffle_i32x4::<0xdd>(t[i], t[i + 8]);
            r[i + 4] = _mm512_shuffle_i32x4::<0x88>(t[i + 4], t[i + 12]);
            r[i + 12] = _mm512_shuffle_i32x4::<0xdd>(t[i + 4], t[i + 12]);
        }
    }
}

impl Tiled for bf16 {
    const IN_TILES: bool = true;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn load_32(from: *const bf16, mask: u32) -> std::arch::x86_64::__m512i {
        // SAFETY: as the caller promises.
        unsafe { std::arch::x86_64::_mm512_maskz_loadu_epi16(mask, from.cast()) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn load_16_16(low: *const bf16, high: *const bf16, masks: [u16; 2]) -> std::arch::x86_64::__m512i {
        use std::arch::x86_64::*;
        // SAFETY: as the caller promises.
        let (low, high) = unsafe {
            (_mm256_maskz_loadu_epi16(masks[0], low.cast()), _mm256_maskz_loadu_epi16(masks[1], high.cast()))
        };
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn store_32(to: *mut bf16, mask: u32, [low, high]: [std::arch::x86_64::__m512; 2]) {
        use std::arch::x86_64::*;
        // SAFETY: as the caller promises; both types are 64 bytes of any content.
        unsafe {
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_epi16(to.cast(), mask, both);
        }
    }
}

impl Tiled for f32 {
    const IN_TILES: bool = false;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn load_32(from: *const f32, mask: u32) -> std::arch::x86_64::__m512i {
        // SAFETY: as the caller promises; a masked element is not read.
        unsafe { f32::load_16_16(from, from.wrapping_add(16), [mask as u16, (mask >> 16) as u16]) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn load_16_16(low: *const f32, high: *const f32, masks: [u16; 2]) -> std::arch::x86_64::__m512i {
        use std::arch::x86_64::*;
        // SAFETY: as the caller promises; both types are 64 bytes of any content.
        unsafe {
            let both = _mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(masks[1], high), _mm512_maskz_loadu_ps(masks[0], low));
            std::mem::transmute::<__m512bh, __m512i>(both)
        }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn store_32(to: *mut f32, mask: u32, [low, high]: [std::arch::x86_64::__m512; 2]) {
        use std::arch::x86_64::*;
        // SAFETY: as the caller promises.
        unsafe {
            _mm512_mask_storeu_ps(to, mask as u16, low);
            _mm512_mask_storeu_ps(to.wrapping_add(16), (mask >> 16) as u16, high);
        }
    }
}
