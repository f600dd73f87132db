//! AdamW without weight decay on f32 masters; the moments in f32 or bf16.

use rayon::prelude::*;

use super::aligned::Aligned;
use super::element::Element;
use super::reduce::dot;
use super::simd::simd;
use crate::compute::backend::AdamStep;

/// Elements in one unit of parallel work.
const PART: usize = 1 << 16;

/// A step of all tensors.
pub fn table<T: Element>(
    step: AdamStep,
    rates: &[f32],
    p: &mut [Aligned<f32>],
    g: &[Aligned<f32>],
    m: &mut [Aligned<T>],
    v: &mut [Aligned<T>],
) {
    for ((((p, g), m), v), rate) in p.iter_mut().zip(g).zip(m).zip(v).zip(rates) {
        adamw(step, *rate, p, g, m, v);
    }
}

/// m = β1·m + (1−β1)·g; v = β2·v + (1−β2)·g²; p −= rate/(1−β1ᵗ) · m / (√v/√(1−β2ᵗ) + ε), g being the clipped gradient.
pub fn adamw<T: Element>(s: AdamStep, rate: f32, p: &mut [f32], g: &[f32], m: &mut [T], v: &mut [T]) {
    let rate = (rate as f64 / (1.0 - (s.beta1 as f64).powi(s.step as i32))) as f32;
    let root2 = (1.0 - (s.beta2 as f64).powi(s.step as i32)).sqrt() as f32;
    let parts = p.par_chunks_mut(PART).zip(g.par_chunks(PART)).zip(m.par_chunks_mut(PART)).zip(v.par_chunks_mut(PART));
    parts.for_each(|(((p, g), m), v)| {
        simd(
            #[inline(always)]
            || {
                for i in 0..p.len() {
                    let g = g[i] * s.grad_factor;
                    let of_m = s.beta1 * m[i].to_f32() + (1.0 - s.beta1) * g;
                    let of_v = s.beta2 * v[i].to_f32() + (1.0 - s.beta2) * g * g;
                    (m[i], v[i]) = (T::from_f32(of_m), T::from_f32(of_v));
                    p[i] -= rate * of_m / (of_v.sqrt() / root2 + s.epsilon);
                }
            },
        )
    });
}

/// Σ g² in f64, the parts added in order.
pub fn square_sum(g: &[f32]) -> f64 {
    let sums: Vec<f64> = g.par_chunks(PART).map(|part| part.chunks(1024).map(|c| f64::from(dot(c, c))).sum()).collect();
    sums.iter().sum()
}
