//! RMSNorm (Zhang and Sennrich, 2019) as `LlamaRMSNorm` of transformers computes it:
//! y = w ∘ (x·r), r = 1/√(mean(x²) + ε), row by row. The weight is frozen.

use rayon::prelude::*;

use super::element::Element;
use super::reduce::{dot, dot3};
use super::rows_per_part;
use super::simd::simd;

/// y [rows, d] = w ∘ (x·r), d = w.len()
pub fn rmsnorm_forward<E: Element>(x: &[f32], w: &[f32], eps: f32, y: &mut [E]) {
    let d = w.len();
    assert!(x.len() == y.len() && x.len().is_multiple_of(d), "rmsnorm: shapes");
    let part = rows_per_part(d) * d;
    y.par_chunks_mut(part).zip(x.par_chunks(part)).for_each(|(y, x)| {
        simd(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                    forward_row(x, w, eps, y);
                }
            },
        )
    });
}

/// dx += r·(w∘dy) - x·r³·Σ(w∘dy∘x)/d
pub fn rmsnorm_backward(x: &[f32], w: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) {
    let d = w.len();
    assert!(x.len() == dx.len() && x.len() == dy.len() && x.len().is_multiple_of(d), "rmsnorm: shapes");
    let part = rows_per_part(d) * d;
    dx.par_chunks_mut(part).zip(x.par_chunks(part)).zip(dy.par_chunks(part)).for_each(|((dx, x), dy)| {
        simd(
            #[inline(always)]
            || {
                for ((dx, x), dy) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(dy.chunks_exact(d)) {
                    backward_row(x, w, eps, dy, dx);
                }
            },
        )
    });
}

#[inline(always)]
fn forward_row<E: Element>(x: &[f32], w: &[f32], eps: f32, y: &mut [E]) {
    let r = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = E::from_f32(w * (x * r));
    }
}

#[inline(always)]
fn backward_row(x: &[f32], w: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) {
    let d = x.len() as f32;
    let r = 1.0 / (dot(x, x) / d + eps).sqrt();
    let projection = dot3(w, dy, x);
    let along_x = -(r * r * r * projection / d);
    for (((dx, x), w), dy) in dx.iter_mut().zip(x).zip(w).zip(dy) {
        *dx += (w * dy).mul_add(r, x * along_x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::{
        assert_close, check_gradient, fixture, narrow, on_every_isa, on_thread_pools, random,
    };
    use half::bf16;

    #[test]
    fn as_pytorch() {
        for name in ["rmsnorm_8", "rmsnorm_77"] {
            let t = |part: &str| fixture(&format!("{name}.{part}"));
            let (x, w, dy) = (t("x"), t("w"), t("dy"));
            let mut y = vec![0.0; x.len()];
            rmsnorm_forward(&x, &w, 1e-5, &mut y);
            assert_close(&y, &t("y"), 1e-6);
            let mut dx = vec![1.0; x.len()];
            rmsnorm_backward(&x, &w, 1e-5, &dy, &mut dx);
            let accumulated: Vec<f32> = t("dx").iter().map(|dx| dx + 1.0).collect();
            assert_close(&dx, &accumulated, 2e-6);
        }
    }

    #[test]
    fn gradient_by_finite_differences() {
        let d = 45;
        let (x, w, dy) = (random(1, 3 * d), random(2, d), random(3, 3 * d));
        let mut dx = vec![0.0; x.len()];
        rmsnorm_backward(&x, &w, 1e-5, &dy, &mut dx);
        check_gradient(&x, &dx, 1e-5, |x| {
            let mut total = 0.0;
            for (x, dy) in x.chunks(d).zip(dy.chunks(d)) {
                let r = (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + 1e-5).sqrt().recip();
                total += (0..d).map(|i| x[i] * r * f64::from(w[i]) * f64::from(dy[i])).sum::<f64>();
            }
            total
        });
    }

    #[test]
    fn in_bf16_as_in_f32_rounded_once() {
        let d = 300;
        let (x, w) = (random(1, 101 * d), random(2, d));
        let (mut y, mut exact) = (vec![bf16::NAN; x.len()], vec![f32::NAN; x.len()]);
        rmsnorm_forward(&x, &w, 1e-5, &mut y);
        rmsnorm_forward(&x, &w, 1e-5, &mut exact);
        assert_eq!(y, narrow(&exact));
    }

    #[test]
    fn same_bits_for_every_pool_and_instruction_set() {
        let d = 300;
        let (x, w, dy) = (random(1, 501 * d), random(2, d), random(3, 501 * d));
        on_thread_pools(|| {
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![1.0; x.len()]);
            rmsnorm_forward(&x, &w, 1e-5, &mut y);
            rmsnorm_backward(&x, &w, 1e-5, &dy, &mut dx);
            [y, dx].concat()
        });
        on_every_isa(|| {
            let (mut y, mut dx) = (vec![0.0; d], vec![1.0; d]);
            forward_row(&x[..d], &w, 1e-5, &mut y);
            backward_row(&x[..d], &w, 1e-5, &dy[..d], &mut dx);
            [y, dx].concat()
        });
    }
}
