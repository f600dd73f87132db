//! The head: losses and gradients, log-probabilities, divergence.

use super::{Case, compare, devices, narrow, random};
use crate::compute::backend::{Backend, Head, NO_TARGET, TokenScore, Weight};
use crate::format::tensor::{Dtype, Tensor};

struct Loss {
    rows: usize,
    vocab: usize,
    d: usize,
    dtype: Dtype,
}

impl Loss {
    fn targets(&self) -> Vec<u32> {
        let target = |i: usize| if i % 5 == 3 { NO_TARGET } else { (i * 7 % self.vocab) as u32 };
        (0..self.rows).map(target).collect()
    }

    fn table(&self, seed: u64) -> Tensor {
        Tensor::from_f32(&random(seed, self.vocab * self.d), self.dtype, vec![self.vocab, self.d])
    }
}

impl Case for Loss {
    fn run<B: Backend>(&self, b: &B) -> Vec<(&'static str, Vec<f32>)> {
        let (rows, n, k) = (self.rows, self.vocab, self.d);
        let hidden = narrow(b, &random(2, rows * k));
        let table = b.freeze(&self.table(1)).unwrap();
        let weight = Weight::Float { w: &table, n, k };
        let mut losses = vec![7.0; rows];
        let mut dhidden = b.zeros(rows * k).unwrap();
        let head = || Head { hidden: &hidden, weight: &weight };
        b.head_loss(head(), &self.targets(), 0.5, Some(&mut dhidden), &mut losses).unwrap();
        let mut again = vec![7.0; rows];
        b.head_loss(head(), &self.targets(), 0.5, None, &mut again).unwrap();
        assert_eq!(losses, again);

        let (other_table, other_hidden) = (b.freeze(&self.table(3)).unwrap(), narrow(b, &random(4, rows * k)));
        let other_weight = Weight::Float { w: &other_table, n, k };
        let mut scores = vec![TokenScore::default(); rows];
        let reference = Head { hidden: &other_hidden, weight: &other_weight };
        b.head_scores(head(), Some(reference), &self.targets(), &mut scores).unwrap();
        let mut alone = vec![TokenScore { top: 9, ..TokenScore::default() }; rows];
        b.head_scores(head(), None, &self.targets(), &mut alone).unwrap();
        for (score, alone) in scores.iter().zip(alone) {
            assert_eq!((score.log_prob, score.top), (alone.log_prob, alone.top));
        }
        vec![
            ("losses", losses),
            ("dhidden", b.download(&dhidden).unwrap()),
            ("log_prob", scores.iter().map(|s| s.log_prob as f32).collect()),
            ("kl", scores.iter().map(|s| s.kl as f32).collect()),
            ("top", scores.iter().map(|s| s.top as f32).collect()),
            ("reference_top", scores.iter().map(|s| s.reference_top as f32).collect()),
        ]
    }
}

/// Sums in f32 in another order; the gradient of the logits is rounded to bf16 by both, now and then to neighbours.
#[test]
fn loss_and_scores() {
    for device in devices() {
        device.run(|| {
            for (rows, vocab, d, dtype) in
                [(1, 7, 8, Dtype::BF16), (40, 70, 24, Dtype::F32), (33, 600, 40, Dtype::BF16), (5, 1030, 9, Dtype::F16)]
            {
                let limit = |name: &str| match name {
                    "dhidden" => 4e-3,
                    "top" | "reference_top" => 0.0,
                    _ => 2e-6,
                };
                compare(&format!("{rows} × {vocab} × {d} {dtype:?}"), &Loss { rows, vocab, d, dtype }, limit);
            }
        });
    }
}
