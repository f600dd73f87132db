//! The quantized linear: panels of Ŵ made from the stored form, and the gradients of A, B and s from panels of dŴ.

use std::ops::Range;

use rayon::prelude::*;

use super::boundary::{round_in_place, widened, write_product};
use super::element::Element;
use super::gemm::parallel_gemm;
use super::simd::simd;
use super::workspace::{Workspace, panel_rows};
use crate::compute::backend::{LowRank, LowRankGrads, Output, Weight};
use crate::compute::cpu::Cpu;
use crate::format::tensor::Tensor;
use crate::quant::{Scheme, grid, pack};

/// y [rows, n] = x [rows, k]·Ŵᵀ (+ y).
pub fn forward<E: Element>(ws: &Workspace, x: &[E], rows: usize, w: &Weight<Cpu<E>>, y: Output<Cpu<E>>) {
    let (n, k) = w.shape();
    let x = widened(&x[..rows * k]);
    write_product(y, rows * n, |y, accumulate| forward_f32(ws, &x, rows, w, accumulate, y));
}

fn forward_f32<E: Element>(
    ws: &Workspace,
    x: &[f32],
    rows: usize,
    w: &Weight<Cpu<E>>,
    accumulate: bool,
    y: &mut [f32],
) {
    let (n, k) = w.shape();
    let panel = panel_rows(n, k, 2);
    let mut ws = ws.take(panel * k);
    for from in (0..n).step_by(panel) {
        let range = from..(from + panel).min(n);
        let width = range.len();
        let w_hat = &mut ws[..width * k];
        weight_panel(w, range, w_hat);
        round_in_place::<E>(w_hat);
        parallel_gemm(rows, width, k, 1.0, x, (k, 1), w_hat, (1, k), accumulate, &mut y[from..], (n, 1));
    }
}

/// dx [rows, k] = dy [rows, n]·Ŵ (+ dx), and the gradients of a low-rank weight.
pub fn backward<E: Element>(
    ws: &Workspace,
    x: &[E],
    rows: usize,
    w: &Weight<Cpu<E>>,
    dy: &[E],
    dx: Output<Cpu<E>>,
    grads: Option<LowRankGrads<Cpu<E>>>,
) {
    let (n, k) = w.shape();
    let (x, dy) = (widened(&x[..rows * k]), widened(&dy[..rows * n]));
    write_product(dx, rows * k, |dx, accumulate| backward_f32(ws, &x, rows, w, &dy, accumulate, dx, grads));
}

#[allow(clippy::too_many_arguments)]
fn backward_f32<E: Element>(
    ws: &Workspace,
    x: &[f32],
    rows: usize,
    w: &Weight<Cpu<E>>,
    dy: &[f32],
    accumulate: bool,
    dx: &mut [f32],
    mut grads: Option<LowRankGrads<Cpu<E>>>,
) {
    let (n, k) = w.shape();
    let panel = panel_rows(n, k, 2);
    let mut ws = ws.take(2 * panel * k);
    let (first, second) = ws.split_at_mut(panel * k);
    for from in (0..n).step_by(panel) {
        let range = from..(from + panel).min(n);
        let width = range.len();
        let (z, w_hat) = (&mut first[..width * k], &mut second[..width * k]);
        match w {
            Weight::LowRank(w) => {
                real_panel(w, range.clone(), z);
                w_hat.par_chunks_mut(k).zip(z.par_chunks(k)).enumerate().for_each(|(i, (w_hat, z))| {
                    simd(
                        #[inline(always)]
                        || {
                            w_hat.copy_from_slice(z);
                            grid_row(w_hat, &w.scale_row(from + i), w.zero_row(from + i), w.scheme);
                        },
                    )
                });
            }
            other => weight_panel(other, range.clone(), w_hat),
        }
        round_in_place::<E>(w_hat);
        let adds = accumulate || from > 0;
        parallel_gemm(rows, k, width, 1.0, &dy[from..], (n, 1), w_hat, (k, 1), adds, dx, (k, 1));
        if let (Some(grads), Weight::LowRank(w)) = (&mut grads, w) {
            let dw = w_hat;
            parallel_gemm(width, k, rows, 1.0, &dy[from..], (1, n), x, (k, 1), false, dw, (k, 1));
            panel_gradients(w, range, z, dw, grads);
        }
    }
}

/// From dŴ of a panel of rows (which becomes dZ) to ds, dA and dB.
fn panel_gradients<E: Element>(
    w: &LowRank<Cpu<E>>,
    range: Range<usize>,
    z: &[f32],
    dw: &mut [f32],
    grads: &mut LowRankGrads<Cpu<E>>,
) {
    let (k, r, groups) = (w.k, w.rank, w.scheme.groups(w.k));
    let (qmin, qmax) = (w.scheme.qmin(), w.scheme.qmax());
    let ds = &mut grads.scale[range.start * groups..range.end * groups];
    dw.par_chunks_mut(k).zip(z.par_chunks(k)).zip(ds.par_chunks_mut(groups)).enumerate().for_each(
        |(i, ((dw, z), ds))| {
            let (scale, zero) = (w.scale_row(range.start + i), w.zero_row(range.start + i));
            simd(
                #[inline(always)]
                || grid::row_backward(dw, z, &scale, zero, qmin, qmax, ds),
            )
        },
    );
    let rows = range.len();
    let a = &w.a[range.start * r..range.end * r];
    let da = &mut grads.a[range.start * r..range.end * r];
    parallel_gemm(rows, r, k, w.factor, dw, (k, 1), w.b, (1, k), true, da, (r, 1));
    parallel_gemm(r, k, rows, w.factor, a, (1, r), dw, (k, 1), true, grads.b, (k, 1));
}

impl<E: Element> LowRank<'_, Cpu<E>> {
    /// Forward scales of a row.
    fn scale_row(&self, row: usize) -> Vec<f32> {
        let groups = self.scheme.groups(self.k);
        self.scale[row * groups..(row + 1) * groups].iter().map(|s| grid::forward_scale(*s)).collect()
    }

    /// Zero points of a row; empty for a symmetric scheme.
    fn zero_row(&self, row: usize) -> &[f32] {
        let groups = self.scheme.groups(self.k);
        self.zero.map_or(&[], |z| &z[row * groups..(row + 1) * groups])
    }
}

/// Z of rows `range`, in parallel by blocks of [`grid::ROWS`].
fn real_panel<E: Element>(w: &LowRank<Cpu<E>>, range: Range<usize>, z: &mut [f32]) {
    let (k, r) = (w.k, w.rank);
    let row_bytes = w.stored.row_bytes(w.scheme, k);
    let phi = w.phi.bytes();
    z.par_chunks_mut(grid::ROWS * k).enumerate().for_each(|(block, z)| {
        let first = range.start + block * grid::ROWS;
        let rows = z.len() / k;
        simd(
            #[inline(always)]
            || {
                for (i, z) in z.chunks_exact_mut(k).enumerate() {
                    let row = first + i;
                    w.stored.unpack_row(w.scheme, &phi[row * row_bytes..(row + 1) * row_bytes], z);
                }
                grid::add_lowrank(z, &w.a[first * r..(first + rows) * r], w.b, r, w.factor);
            },
        )
    });
}

/// Z to Ŵ, in place.
#[inline(always)]
fn grid_row(z: &mut [f32], scale: &[f32], zero: &[f32], scheme: Scheme) {
    let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
    let group = z.len() / scale.len();
    for (g, z) in z.chunks_exact_mut(group).enumerate() {
        let (s, zero) = (scale[g], zero.get(g).copied().unwrap_or(0.0));
        for z in z {
            *z = grid::dequantize(grid::code(*z, qmin, qmax), zero, s);
        }
    }
}

/// Ŵ of rows `range` in f32, whatever the stored form.
fn weight_panel<E: Element>(w: &Weight<Cpu<E>>, range: Range<usize>, out: &mut [f32]) {
    match w {
        Weight::Float { w, k, .. } => float_panel(w, *k, range, out),
        Weight::Codes { codes, scheme, scale, zero, k, .. } => {
            let groups = scheme.groups(*k);
            out.par_chunks_mut(*k).enumerate().for_each(|(i, out)| {
                let row = range.start + i;
                let at = row * groups..(row + 1) * groups;
                let zero = zero.map_or(&[][..], |z| &z[at.clone()]);
                simd(
                    #[inline(always)]
                    || codes_row(codes, *scheme, row, &scale[at], zero, out),
                )
            });
        }
        Weight::LowRank(w) => {
            real_panel(w, range.clone(), out);
            out.par_chunks_mut(w.k).enumerate().for_each(|(i, out)| {
                let row = range.start + i;
                simd(
                    #[inline(always)]
                    || grid_row(out, &w.scale_row(row), w.zero_row(row), w.scheme),
                )
            });
        }
    }
}

/// A row of folded integers to Ŵ; `scale` are forward scales.
#[inline(always)]
fn codes_row(codes: &Tensor, scheme: Scheme, row: usize, scale: &[f32], zero: &[f32], out: &mut [f32]) {
    let words = pack::words(out.len(), scheme.bits);
    let packed = &codes.bytes()[row * words * 4..(row + 1) * words * 4];
    let offset = scheme.qmin();
    pack::unpack(packed, scheme.bits, out.len(), |k, code| out[k] = code as f32 + offset);
    let group = out.len() / scale.len();
    for (g, out) in out.chunks_exact_mut(group).enumerate() {
        let (s, zero) = (scale[g], zero.get(g).copied().unwrap_or(0.0));
        for out in out {
            *out = grid::dequantize(*out, zero, s);
        }
    }
}

/// Rows `range` of a floating-point [n, k] tensor.
pub fn float_panel(w: &Tensor, k: usize, range: Range<usize>, out: &mut [f32]) {
    const ROWS: usize = 16;
    out.par_chunks_mut(ROWS * k).enumerate().for_each(|(block, out)| {
        let from = (range.start + block * ROWS) * k;
        simd(
            #[inline(always)]
            || w.read_f32(from..from + out.len(), out),
        )
    });
}
