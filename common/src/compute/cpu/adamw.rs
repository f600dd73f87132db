//! AdamW without weight decay on f32 masters.

use rayon::prelude::*;

use super::reduce::dot;
use super::simd::simd;
use crate::compute::backend::AdamStep;

/// Elements in one unit of parallel work.
const PART: usize = 1 << 16;

/// m = β1·m + (1−β1)·g; v = β2·v + (1−β2)·g²; p −= rate/(1−β1ᵗ) · m / (√v/√(1−β2ᵗ) + ε), g being the clipped gradient.
pub fn adamw(s: AdamStep, rate: f32, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let rate = (rate as f64 / (1.0 - (s.beta1 as f64).powi(s.step as i32))) as f32;
    let root2 = (1.0 - (s.beta2 as f64).powi(s.step as i32)).sqrt() as f32;
    let parts = p.par_chunks_mut(PART).zip(g.par_chunks(PART)).zip(m.par_chunks_mut(PART)).zip(v.par_chunks_mut(PART));
    parts.for_each(|(((p, g), m), v)| {
        simd(
            #[inline(always)]
            || {
                for i in 0..p.len() {
                    let g = g[i] * s.grad_factor;
                    m[i] = s.beta1 * m[i] + (1.0 - s.beta1) * g;
                    v[i] = s.beta2 * v[i] + (1.0 - s.beta2) * g * g;
                    p[i] -= rate * m[i] / (v[i].sqrt() / root2 + s.epsilon);
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
