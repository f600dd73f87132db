//! Matrix products: cuBLASLt, or, where it is not installed, a kernel of our own.
//!
//! C (+)= α·op(X)·op(Y), all row-major, in bf16 with sums in f32.

use std::sync::Arc;

use half::bf16;

use super::cublaslt::CublasLt;
use super::gpu::{Gpu, Grid};
use super::launch::{Argument, kernels};
use super::memory::{Mut, Ref};
use crate::error::Result;

kernels! {
    /// `product.cu`
    Kernels in "product";
    fn product_bf16(x: Ref<bf16>, y: Ref<bf16>, shape: Shape, c: Mut<bf16>);
    fn product_f32(x: Ref<bf16>, y: Ref<bf16>, shape: Shape, c: Mut<f32>);
    fn product_yt_bf16(x: Ref<bf16>, y: Ref<bf16>, shape: Shape, c: Mut<bf16>);
    fn product_yt_f32(x: Ref<bf16>, y: Ref<bf16>, shape: Shape, c: Mut<f32>);
    fn product_xt_bf16(x: Ref<bf16>, y: Ref<bf16>, shape: Shape, c: Mut<bf16>);
    fn product_xt_f32(x: Ref<bf16>, y: Ref<bf16>, shape: Shape, c: Mut<f32>);
}

/// What the kernels take.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    m: i32,
    n: i32,
    k: i32,
    x_leading: i32,
    y_leading: i32,
    c_leading: i32,
    alpha: f32,
    accumulate: i32,
}

// SAFETY: eight numbers of four bytes, in the order of product.cu.
unsafe impl Argument for Shape {
    const SIZE: usize = size_of::<Shape>();
}

/// Edge of a block's tile in product.cu.
const TILE: usize = 64;
const THREADS: u32 = 128;

/// Which operand lies transposed: X as [k, m], or Y as [n, k].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transposed {
    Neither,
    X,
    Y,
}

/// A product: C [m, n] of inner dimension k, and from a row of each stored matrix to the next.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub transposed: Transposed,
    pub x_leading: usize,
    pub y_leading: usize,
    pub c_leading: usize,
    pub alpha: f32,
    /// += instead of =
    pub accumulate: bool,
}

impl Product {
    /// Of dense matrices.
    pub fn new(transposed: Transposed, m: usize, n: usize, k: usize) -> Product {
        Product {
            m,
            n,
            k,
            transposed,
            x_leading: if transposed == Transposed::X { m } else { k },
            y_leading: if transposed == Transposed::Y { k } else { n },
            c_leading: n,
            alpha: 1.0,
            accumulate: false,
        }
    }

    fn shape(&self) -> Shape {
        let int = |x: usize| x as i32;
        Shape {
            m: int(self.m),
            n: int(self.n),
            k: int(self.k),
            x_leading: int(self.x_leading),
            y_leading: int(self.y_leading),
            c_leading: int(self.c_leading),
            alpha: self.alpha,
            accumulate: self.accumulate.into(),
        }
    }
}

/// Where C goes.
pub enum To<'a> {
    Bf16(Mut<'a, bf16>),
    F32(Mut<'a, f32>),
}

impl To<'_> {
    pub fn address(&self) -> u64 {
        match self {
            To::Bf16(c) => c.address(),
            To::F32(c) => c.address(),
        }
    }
}

pub struct Products {
    kernels: Kernels,
    library: Option<CublasLt>,
}

impl Products {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Products> {
        Ok(Products { kernels: Kernels::load(gpu)?, library: CublasLt::new(gpu)? })
    }

    pub fn name(&self) -> &'static str {
        if self.library.is_some() { "cublaslt" } else { "mma" }
    }

    pub fn run(&self, gpu: &Gpu, p: Product, x: Ref<bf16>, y: Ref<bf16>, to: To) {
        if p.m == 0 || p.n == 0 {
            return;
        }
        match &self.library {
            Some(library) => library.run(gpu, &p, x, y, &to),
            None => self.run_kernel(gpu, &p, x, y, to),
        }
    }

    fn run_kernel(&self, gpu: &Gpu, p: &Product, x: Ref<bf16>, y: Ref<bf16>, to: To) {
        let k = &self.kernels;
        let grid = Grid { blocks: (p.n.div_ceil(TILE), p.m.div_ceil(TILE)), threads: THREADS, shared: 0 };
        match (p.transposed, to) {
            (Transposed::Neither, To::Bf16(c)) => k.product_bf16(gpu, grid, x, y, p.shape(), c),
            (Transposed::Neither, To::F32(c)) => k.product_f32(gpu, grid, x, y, p.shape(), c),
            (Transposed::Y, To::Bf16(c)) => k.product_yt_bf16(gpu, grid, x, y, p.shape(), c),
            (Transposed::Y, To::F32(c)) => k.product_yt_f32(gpu, grid, x, y, p.shape(), c),
            (Transposed::X, To::Bf16(c)) => k.product_xt_bf16(gpu, grid, x, y, p.shape(), c),
            (Transposed::X, To::F32(c)) => k.product_xt_f32(gpu, grid, x, y, p.shape(), c),
        }
    }
}
