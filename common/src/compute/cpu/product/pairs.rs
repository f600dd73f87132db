//! Kernels that multiply pairs of bf16 and add both products to a sum in f32, as x86 does: by tiles (amx.rs) or by
//! vectors (dot.rs). Their panels are the same, and so is what is rounded to them.

use std::ops::Range;

use pulp::Simd;

use super::super::element::Element;
use super::kernel::{Ahead, Kernel, RowPanel};
use super::pack::{self, Lines};

/// A unit of the processor that does it.
pub trait Pairs: Copy + Send + Sync + 'static {
    /// As the compute path names it.
    const NAME: &'static str;
    /// Most steps of a chunk.
    const CHUNK: usize;
    /// What a thread holds while it computes.
    type Session;

    /// Panics where the machine has no such unit.
    fn session() -> Self::Session;

    /// C [32, 32] = or += A [32, 32·steps]·B [32·steps, 32], C in f32 with rows `ldc` bytes apart.
    ///
    /// A row of A holds 32 neighbouring k in 64 bytes. Of B there are two tiles a step (columns 0..16 and 16..32), each 16
    /// rows of 16 pairs (k, k + 1).
    ///
    /// # Safety
    /// A session of this thread lives; the pointers are good for these sizes; steps > 0.
    unsafe fn product(
        a: RowPanel,
        b: *const u16,
        steps: usize,
        c: *mut f32,
        ldc: usize,
        accumulate: bool,
        ahead: Ahead,
    );
}

impl<U: Pairs> Kernel for U {
    const NAME: &'static str = U::NAME;
    type Packed = u16;
    const ROWS: usize = 32;
    const STEP: usize = 32;
    const CHUNK: usize = U::CHUNK;
    const BLOCK: usize = 64;
    const READS_TILES: bool = true;
    type Session = U::Session;

    fn begin(self) -> U::Session {
        U::session()
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
        ahead: Ahead,
    ) {
        // SAFETY: as the caller promises.
        unsafe { U::product(a, b, steps, c, 4 * ldc, accumulate, ahead) }
    }

    unsafe fn put_tile<E: Element>(self, tile: &[f32], to: *mut E, stride: usize, rows: usize, columns: usize) {
        // SAFETY: as the caller promises.
        unsafe { pack::put_tile(tile, to, stride, rows, columns) }
    }

    fn pack_rows<E: Element>(self, rows: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [u16]) {
        pack::tiles_of_rows(rows, first, steps, out);
    }

    fn pack_columns<E: Element>(self, columns: &Lines<E>, first: usize, steps: Range<usize>, out: &mut [u16]) {
        pack::tiles_of_columns(columns, first, steps, out);
    }

    fn packed_rows(self, first: *const u16) -> RowPanel {
        RowPanel { first: first.cast(), row: 64, step: 2048 }
    }

    #[inline(always)]
    fn put_line<S: Simd, const V: usize>(simd: S, x: [S::f32s; V], row: usize, out: &mut [u16]) {
        let out = &mut out.as_chunks_mut::<32>().0[row];
        let out: &mut [u32; 16] = bytemuck::cast_mut(out);
        let out = S::as_mut_simd_u32s(out).0;
        for (v, out) in out[..V / 2].iter_mut().enumerate() {
            *out = pack::two_bf16(simd, x[v], x[v + V / 2]);
        }
    }

    #[inline(always)]
    fn put_pair<S: Simd, const V: usize>(simd: S, [low, high]: [[S::f32s; V]; 2], pair: usize, out: &mut [u16]) {
        let out = out.as_chunks_mut::<512>().0;
        for half in 0..2 {
            let out = &mut out[half].as_chunks_mut::<32>().0[pair];
            let out: &mut [u32; 16] = bytemuck::cast_mut(out);
            let out = S::as_mut_simd_u32s(out).0;
            for (v, out) in out[..V / 2].iter_mut().enumerate() {
                let at = half * V / 2 + v;
                *out = pack::two_bf16(simd, low[at], high[at]);
            }
        }
    }

    fn tiled_rows(self, first: *const u16) -> RowPanel {
        self.packed_rows(first)
    }

    fn pack_columns_for_tiles<E: Element>(
        self,
        columns: &Lines<E>,
        first: usize,
        steps: Range<usize>,
        out: &mut [u16],
    ) {
        pack::tiles_of_columns_by_halves(columns, first, steps, out);
    }
}
