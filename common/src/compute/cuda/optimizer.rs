//! Σ g² and AdamW over the whole parameter table, in a launch each.

use bytemuck::Pod;

use super::gpu::Grid;
use super::launch::kernels;
use super::memory::{Memory, Mut, Ref};
use crate::compute::backend::AdamStep;

kernels! {
    /// `optimizer.cu`
    Kernels in "optimizer";
    fn square_sums(parts: Ref<Part>, sums: Mut<f64>);
    fn adamw(parts: Ref<Part>, half: i32, grad_factor: f32, beta1: f32, beta2: f32, epsilon: f32, root2: f32);
}

/// Elements of a part.
const PART: usize = 1 << 16;
/// Threads of a block.
pub const THREADS: u32 = 256;

/// A part of a tensor, as the kernels read it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Part {
    p: u64,
    g: u64,
    m: u64,
    v: u64,
    len: i32,
    /// Rate of the step over 1 − β1ᵗ.
    rate: f32,
}

/// Parts of a tensor of `len` elements.
pub fn parts(len: usize) -> usize {
    len.div_ceil(PART)
}

pub fn grid(parts: usize) -> Grid {
    Grid::blocks(parts, THREADS)
}

/// The parts of gradients alone.
pub fn gradient_parts(g: &[Memory<f32>]) -> Vec<Part> {
    let each = |g: &Memory<f32>| split([0, g.all().address(), 0, 0], 0, g.len(), 0.0);
    g.iter().flat_map(each).collect()
}

/// The parts of the whole table.
pub fn table<T: Pod>(
    step: AdamStep,
    rates: &[f32],
    p: &mut [Memory<f32>],
    g: &[Memory<f32>],
    m: &mut [Memory<T>],
    v: &mut [Memory<T>],
) -> Vec<Part> {
    let correction = 1.0 - f64::from(step.beta1).powi(step.step as i32);
    let rows = p.iter_mut().zip(g).zip(m).zip(v).zip(rates);
    rows.flat_map(|((((p, g), m), v), rate)| {
        let at = [p.all_mut().address(), g.all().address(), m.all_mut().address(), v.all_mut().address()];
        split(at, size_of::<T>(), g.len(), (f64::from(*rate) / correction) as f32)
    })
    .collect()
}

/// `moment` is the bytes of an element of m and v.
fn split([p, g, m, v]: [u64; 4], moment: usize, len: usize, rate: f32) -> Vec<Part> {
    let at = |address: u64, from: usize, bytes: usize| if address == 0 { 0 } else { address + (from * bytes) as u64 };
    let part = |from: usize| {
        let [p, g] = [p, g].map(|address| at(address, from, size_of::<f32>()));
        let [m, v] = [m, v].map(|address| at(address, from, moment));
        Part { p, g, m, v, len: PART.min(len - from) as i32, rate }
    };
    (0..len).step_by(PART).map(part).collect()
}
