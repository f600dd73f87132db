//! The small kernels: norms, rotation, and what goes element by element.

use half::bf16;

use super::adapter::Mask;
use super::gpu::{Gpu, Grid};
use super::launch::kernels;
use super::memory::{Mut, Ref};
use crate::error::Result;

kernels! {
    /// `norm.cu`
    Norm in "norm";
    fn rmsnorm_forward(x: Ref<f32>, w: Ref<f32>, eps: f32, d: i32, y: Mut<bf16>);
    fn rmsnorm_backward(x: Ref<f32>, w: Ref<f32>, eps: f32, d: i32, dy: Ref<f32>, dx: Mut<f32>);
}

kernels! {
    /// `rope.cu`
    Rope in "rope";
    fn rope(
        x: Mut<bf16>, positions: Ref<i32>, cosines: Ref<f32>, sines: Ref<f32>, direction: f32, heads: i32, half: i32,
        pairs: i64,
    );
}

kernels! {
    /// `elementwise.cu`
    Elementwise in "elementwise";
    fn round_to_bf16(x: Ref<f32>, y: Mut<bf16>, len: i64);
    fn widen_to_f32(x: Ref<bf16>, y: Mut<f32>, len: i64);
    fn swiglu_forward(gate: Ref<bf16>, up: Ref<bf16>, out: Mut<bf16>, len: i64);
    fn swiglu_backward(dout: Ref<bf16>, gate: Mut<bf16>, up: Mut<bf16>, len: i64);
    fn embedding_forward(table: Ref<u8>, stored: i32, tokens: Ref<u32>, d: i32, x: Mut<f32>, len: i64);
    fn gather_rows(x: Ref<bf16>, rows: Ref<u32>, d: i32, y: Mut<bf16>, len: i64);
    fn drop(x: Ref<bf16>, dropout: Mask, k: i32, y: Mut<bf16>, len: i64);
    fn add_dropped_bf16(x: Ref<bf16>, dropout: Mask, k: i32, y: Mut<bf16>, len: i64);
    fn add_dropped_f32(x: Ref<bf16>, dropout: Mask, k: i32, y: Mut<f32>, len: i64);
}

pub struct Kernels {
    pub norm: Norm,
    pub rope: Rope,
    pub elementwise: Elementwise,
}

impl Kernels {
    /// Threads of a block that has a row of a norm.
    const ROW: u32 = 256;

    pub fn load(gpu: &Gpu) -> Result<Kernels> {
        Ok(Kernels { norm: Norm::load(gpu)?, rope: Rope::load(gpu)?, elementwise: Elementwise::load(gpu)? })
    }

    pub fn rows(rows: usize) -> Grid {
        Grid::blocks(rows, Self::ROW)
    }

    /// y = x as bf16.
    pub fn round(&self, gpu: &Gpu, x: Ref<f32>, y: Mut<bf16>, len: usize) {
        self.elementwise.round_to_bf16(gpu, Grid::elements(len), x, y, len as i64);
    }

    /// y[i] = x[rows[i]], rows of `width`; `len` elements of y.
    pub fn gather_rows(&self, gpu: &Gpu, x: Ref<bf16>, rows: Ref<u32>, width: usize, y: Mut<bf16>, len: usize) {
        self.elementwise.gather_rows(gpu, Grid::elements(len), x, rows, width as i32, y, len as i64);
    }
}
