//! One optimizer step over the parameter table: finite check, global norm, clipping, AdamW.

use crate::compute::backend::{AdamStep, Backend, Moments};
use crate::error::Result;
use crate::model::params::{ParamSpec, Params, Rate};

use super::recipe::{MomentType, Recipe};

impl<B: Backend> Moments<B> {
    pub fn zeros(backend: &B, of: MomentType, params: &Params<B>) -> Result<Moments<B>> {
        let halves = || params.specs.iter().map(|spec| backend.half(spec.len())).collect::<Result<Vec<_>>>();
        Ok(match of {
            MomentType::F32 => Moments::F32 { m: params.zeros_like(backend)?, v: params.zeros_like(backend)? },
            MomentType::Bf16 => Moments::Bf16 { m: halves()?, v: halves()? },
        })
    }
}

/// Global norm of the gradients, or the name of the first one that is not finite.
pub fn gradient_norm<B: Backend>(backend: &B, params: &Params<B>, grads: &[B::Buffer]) -> Result<Result<f64, String>> {
    let squares = backend.square_sums(grads)?;
    let not_finite = params.specs.iter().zip(&squares).find(|(_, square)| !square.is_finite());
    Ok(match not_finite {
        Some((spec, _)) => Err(spec.name.clone()),
        None => Ok(squares.iter().sum::<f64>().sqrt()),
    })
}

/// Updates every parameter; `t` counts from 0.
pub fn step<B: Backend>(
    backend: &B,
    recipe: &Recipe,
    t: u64,
    norm: f64,
    params: &mut Params<B>,
    grads: &[B::Buffer],
    moments: &mut Moments<B>,
) {
    // As torch.nn.utils.clip_grad_norm_: max_norm / (norm + 1e-6), at most 1.
    let clip = if recipe.clip > 0.0 { (recipe.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
    let factor = recipe.rate_factor(t);
    let rate = |spec: &ParamSpec| {
        let peak = match spec.rate {
            Rate::LowRank => recipe.lr_ab,
            Rate::Scale => recipe.lr_scale,
            Rate::Latent => unreachable!("{}: trained in floating point", spec.name),
        };
        (peak * factor) as f32
    };
    let rates: Vec<f32> = params.specs.iter().map(rate).collect();
    let adam = AdamStep {
        beta1: Recipe::BETA1,
        beta2: Recipe::BETA2,
        epsilon: Recipe::EPSILON,
        step: t + 1,
        grad_factor: clip as f32,
    };
    backend.adamw(adam, &rates, &mut params.values, grads, moments);
}
