//! Adapters beside a weight: y += h·Aᵀ with h = (α/r)·drop(x)·Bᵀ, and backwards dx += drop(dh·B) with dh = (α/r)·dy·A,
//! dA = dyᵀ·h, dB = dhᵀ·drop(x). Products of their own after the weight's.

use half::bf16;

use super::gpu::Grid;
use super::launch::Argument;
use super::linear::Target;
use super::memory::{Carve, Memory, Mut, Ref};
use super::product::{Product, To, Transposed};
use super::state::Cuda;
use crate::compute::backend::{Adapter, Weight};
use crate::compute::dropout::Dropout;

/// The mask of a linear, as the kernels read it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Mask {
    key: [u32; 2],
    threshold: u32,
    scale: f32,
}

// SAFETY: four numbers of four bytes, in the order of dropout.cuh.
unsafe impl Argument for Mask {
    const SIZE: usize = size_of::<Mask>();
}

impl Mask {
    fn new(of: Dropout) -> Mask {
        Mask { key: of.key, threshold: of.threshold, scale: of.scale }
    }
}

/// What an adapter needs in a pass.
struct Operands<'a> {
    a: Mut<'a, bf16>,
    b: Mut<'a, bf16>,
    h: Mut<'a, bf16>,
    dh: Mut<'a, bf16>,
    /// drop(x), then dh·B before it is dropped.
    dropped: Option<Mut<'a, bf16>>,
}

/// Bytes of the operands.
pub fn operands_len(n: usize, k: usize, rank: usize, rows: usize, dropout: bool) -> usize {
    let dropped = if dropout { rows * k } else { 0 };
    (rank * (n + k + 2 * rows) + dropped) * size_of::<bf16>() + 5 * Carve::ALIGNED
}

impl Cuda {
    fn with_adapter(
        &self,
        adapter: &Adapter<Cuda>,
        (n, k): (usize, usize),
        rows: usize,
        work: impl FnOnce(&Self, Operands),
    ) {
        let (r, dropout) = (adapter.rank, adapter.dropout.is_some());
        self.adapters.with(&self.gpu, operands_len(n, k, r, rows, dropout), |memory: &mut Memory<u8>| {
            let mut carve = memory.carve();
            let mut of = Operands {
                a: carve.take(n * r),
                b: carve.take(r * k),
                h: carve.take(rows * r),
                dh: carve.take(rows * r),
                dropped: dropout.then(|| carve.take(rows * k)),
            };
            self.kernels.round(&self.gpu, adapter.a.view(0..n * r), of.a.again(), n * r);
            self.kernels.round(&self.gpu, adapter.b.view(0..r * k), of.b.again(), r * k);
            work(self, of);
        });
    }

    /// drop(x), or x where nothing is dropped.
    fn dropped<'x>(
        &self,
        x: Ref<'x, bf16>,
        dropout: Option<Dropout>,
        k: usize,
        len: usize,
        to: Option<Mut<'x, bf16>>,
    ) -> Ref<'x, bf16> {
        let (Some(dropout), Some(mut to)) = (dropout, to) else { return x };
        let (mask, kernels) = (Mask::new(dropout), &self.kernels.elementwise);
        kernels.drop(&self.gpu, Grid::elements(len), x, mask, k as i32, to.again(), len as i64);
        to.in_place()
    }

    /// y += h·Aᵀ of a weight that has an adapter. x [rows, k], y [rows, n].
    pub fn adapter_forward(&self, x: Ref<bf16>, rows: usize, w: &Weight<Cuda>, mut y: Target) {
        let (Some(adapter), (n, k)) = (w.adapter(), w.shape()) else { return };
        let r = adapter.rank;
        self.with_adapter(adapter, (n, k), rows, |cuda, mut of| {
            let x = cuda.dropped(x, adapter.dropout, k, rows * k, of.dropped.as_mut().map(Mut::again));
            let to_h = Product { alpha: adapter.factor, ..Product::new(Transposed::Y, rows, r, k) };
            cuda.products.run(&cuda.gpu, to_h, x, of.b.read(), To::Bf16(of.h.again()));
            let to_y = Product { accumulate: true, ..Product::new(Transposed::Y, rows, n, r) };
            cuda.products.run(&cuda.gpu, to_y, of.h.read(), of.a.read(), y.at(0));
        });
    }

    /// dx += drop(dh·B), dA and dB += of a weight that has an adapter. x and dx [rows, k], dy [rows, n].
    pub fn adapter_backward(
        &self,
        x: Ref<bf16>,
        rows: usize,
        w: &Weight<Cuda>,
        dy: Ref<bf16>,
        grads: Option<&mut [&mut Memory<f32>; 2]>,
        mut dx: Target,
    ) {
        let (Some(adapter), (n, k)) = (w.adapter(), w.shape()) else { return };
        let (r, len) = (adapter.rank, rows * k);
        self.with_adapter(adapter, (n, k), rows, |cuda, mut of| {
            let (products, gpu) = (&cuda.products, &cuda.gpu);
            let to_dh = Product { alpha: adapter.factor, ..Product::new(Transposed::Neither, rows, r, n) };
            products.run(gpu, to_dh, dy, of.a.read(), To::Bf16(of.dh.again()));
            if let Some([da, db]) = grads {
                let x = cuda.dropped(x, adapter.dropout, k, len, of.dropped.as_mut().map(Mut::again));
                let to_h = Product { alpha: adapter.factor, ..Product::new(Transposed::Y, rows, r, k) };
                products.run(gpu, to_h, x, of.b.read(), To::Bf16(of.h.again()));
                let sum = |m, n| Product { accumulate: true, ..Product::new(Transposed::X, m, n, rows) };
                products.run(gpu, sum(n, r), dy, of.h.read(), To::F32(da.view_mut(0..n * r)));
                products.run(gpu, sum(r, k), of.dh.read(), x, To::F32(db.view_mut(0..r * k)));
            }
            let to_dx = Product::new(Transposed::Neither, rows, k, r);
            let (Some(dropout), Some(mut dropped)) = (adapter.dropout, of.dropped) else {
                return products.run(gpu, Product { accumulate: true, ..to_dx }, of.dh.read(), of.b.read(), dx.at(0));
            };
            products.run(gpu, to_dx, of.dh.read(), of.b.read(), To::Bf16(dropped.again()));
            let (mask, blocks, kernels) = (Mask::new(dropout), Grid::elements(len), &cuda.kernels.elementwise);
            match dx.at(0) {
                To::Bf16(dx) => kernels.add_dropped_bf16(gpu, blocks, dropped.read(), mask, k as i32, dx, len as i64),
                To::F32(dx) => kernels.add_dropped_f32(gpu, blocks, dropped.read(), mask, k as i32, dx, len as i64),
            }
        });
    }
}
