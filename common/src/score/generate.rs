//! Text that a model writes: the most likely token each time, or one that is drawn.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::compute::backend::Backend;
use crate::error::Result;
use crate::model::generate::Generation;
use crate::model::weights::Model;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f64,
    /// Drawn from the most likely tokens that have this much of the probability (Holtzman et al., 2020, nucleus sampling).
    pub top_p: f64,
    pub seed: u64,
}

/// The tokens that follow `prompt`, at most `most`, without the `eos` that ends them.
pub fn generate<B: Backend>(
    backend: &B,
    model: &Model<B>,
    prompt: &[u32],
    most: usize,
    eos: Option<u32>,
    sampling: Sampling,
    mut each: impl FnMut(usize),
) -> Result<Vec<u32>> {
    let mut text = Generation::new(backend, model)?;
    let mut random = ChaCha8Rng::seed_from_u64(sampling.seed);
    let mut logits = vec![0.0; model.config.vocab];
    text.begin(prompt, &mut logits)?;
    let mut tokens = Vec::new();
    loop {
        let next = choose(&logits, sampling, &mut random);
        if eos == Some(next) {
            return Ok(tokens);
        }
        tokens.push(next);
        each(tokens.len());
        if tokens.len() == most {
            return Ok(tokens);
        }
        text.step(next, &mut logits)?;
    }
}

fn choose(logits: &[f32], sampling: Sampling, random: &mut ChaCha8Rng) -> u32 {
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if sampling.temperature == 0.0 {
        return ids.into_iter().min_by(order).unwrap_or(0);
    }
    ids.sort_unstable_by(order);
    let most = f64::from(logits[ids[0] as usize]);
    let mut sums = Vec::with_capacity(ids.len());
    let mut sum = 0.0;
    for id in &ids {
        sum += ((f64::from(logits[*id as usize]) - most) / sampling.temperature).exp();
        sums.push(sum);
    }
    let kept = sums.partition_point(|s| *s < sampling.top_p * sum).min(ids.len() - 1);
    // 53 random bits give every multiple of 2^-53 in [0, 1).
    let drawn = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * sums[kept];
    ids[sums[..=kept].partition_point(|s| *s <= drawn).min(kept)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u32 = 40_000;

    fn drawn(logits: &[f32], temperature: f64, top_p: f64) -> Vec<f64> {
        let sampling = Sampling { temperature, top_p, seed: 1 };
        let mut random = ChaCha8Rng::seed_from_u64(sampling.seed);
        let mut counts = vec![0u32; logits.len()];
        for _ in 0..DRAWS {
            counts[choose(logits, sampling, &mut random) as usize] += 1;
        }
        counts.into_iter().map(|n| f64::from(n) / f64::from(DRAWS)).collect()
    }

    fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
        let e: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / temperature).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|e| e / sum).collect()
    }

    /// Within five standard deviations.
    fn like(found: &[f64], expected: &[f64]) {
        for (found, p) in found.iter().zip(expected) {
            assert!((found - p).abs() <= 5.0 * (p * (1.0 - p) / f64::from(DRAWS)).sqrt(), "{found} {p}");
        }
    }

    #[test]
    fn drawn_as_the_softmax_says() {
        let logits = [0.5, 2.0, -1.0, 1.0, -30.0];
        like(&drawn(&logits, 1.0, 1.0), &softmax(&logits, 1.0));
        like(&drawn(&logits, 2.0, 1.0), &softmax(&logits, 2.0));
        like(&drawn(&logits, 1e-3, 1.0), &[0.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn the_nucleus_is_the_fewest_tokens_that_have_enough() {
        let logits = [0.1f32, 0.5, 0.15, 0.25].map(f32::ln);
        like(&drawn(&logits, 1.0, 0.45), &[0.0, 1.0, 0.0, 0.0]);
        like(&drawn(&logits, 1.0, 0.6), &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        like(&drawn(&logits, 1.0, 0.80), &[0.0, 0.5 / 0.9, 0.15 / 0.9, 0.25 / 0.9]);
        like(&drawn(&logits, 1.0, 1e-9), &[0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let greedy = Sampling { temperature: 0.0, top_p: 1.0, seed: 0 };
        assert_eq!(choose(&[1.0, 3.0, 3.0, 2.0], greedy, &mut random), 1);
    }
}
