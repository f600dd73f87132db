//! A training step in bf16 beside the same in f32.

use common::quant::Phi;
use half::bf16;

use super::Runner;
use super::random::Random;

/// d, heads, kv heads, head_dim, ffn, vocabulary, layers.
const DIMS: [usize; 7] = [96, 6, 3, 16, 272, 330, 2];

#[test]
fn bf16_follows_f32() {
    for (scheme, stored, rank) in [("w4pc", Phi::Q, 8), ("w3g16z", Phi::Int, 5), ("w5g16", Phi::Bf16, 3)] {
        let random = Random::new(DIMS, scheme, stored, rank);
        let batch = random.batch(&[128, 128, 57]);
        let (exact, exact_grads) = Runner::<f32>::in_type(&random, &batch).gradients(&batch);
        let mut runner = Runner::<bf16>::in_type(&random, &batch);
        let (loss, grads) = runner.gradients(&batch);
        let off = (loss / exact - 1.0).abs();
        let cosines = exact_grads.iter().zip(&grads).map(|(a, b)| cosine(a, b));
        let named = runner.model.params.specs.iter().map(|s| &s.name).zip(cosines);
        let (name, least) = named.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        eprintln!("{scheme}: loss off by {:.3} %, cosines of gradients at least {least:.5} ({name})", off * 100.0);
        assert!(off < 0.005, "{scheme}: loss {loss}, in f32 {exact}");
        assert!(least > 0.99, "{scheme}: {name} {least}");
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
