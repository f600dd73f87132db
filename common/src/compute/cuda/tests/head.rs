//! The head: losses and gradients, log-probabilities, divergence.

use super::{Case, compare, devices, narrow, random};
use crate::compute::answers::{Answers, Layout};
use crate::compute::backend::{Backend, Head, Loss, NO_TARGET, RowLoss, Teaching, TokenScore, Weight};
use crate::format::tensor::{Dtype, Tensor};

struct HeadOf {
    rows: usize,
    vocab: usize,
    d: usize,
    dtype: Dtype,
}

/// Stored answers.
struct Records {
    layout: Layout,
    bytes: Vec<u8>,
}

impl Records {
    fn of(layout: Layout, logits: &[f32]) -> Records {
        let mut bytes = vec![0; logits.len() / layout.vocab * layout.bytes()];
        layout.write(logits, &vec![0.375; logits.len() / layout.vocab], &mut bytes);
        Records { layout, bytes }
    }

    fn answers(&self) -> Answers<'_> {
        Answers { layout: self.layout, rows: self.bytes.chunks_exact(self.layout.bytes()).collect() }
    }
}

impl HeadOf {
    fn targets(&self) -> Vec<u32> {
        let target = |i: usize| if i % 5 == 3 { NO_TARGET } else { (i * 7 % self.vocab) as u32 };
        (0..self.rows).map(target).collect()
    }

    fn table(&self, seed: u64) -> Tensor {
        Tensor::from_f32(&random(seed, self.vocab * self.d), self.dtype, vec![self.vocab, self.d])
    }
}

impl Case for HeadOf {
    fn run<B: Backend>(&self, b: &B) -> Vec<(&'static str, Vec<f32>)> {
        let (rows, n, k) = (self.rows, self.vocab, self.d);
        let hidden = narrow(b, &random(2, rows * k));
        let table = b.freeze(&self.table(1)).unwrap();
        let weight = Weight::Float { w: &table, n, k };
        let head = || Head { hidden: &hidden, weight: &weight };
        let (other_table, other_hidden) = (b.freeze(&self.table(3)).unwrap(), narrow(b, &random(4, rows * k)));
        let other_weight = Weight::Float { w: &other_table, n, k };
        let mut logits = vec![0.0; rows * n];
        b.head_logits(Head { hidden: &other_hidden, weight: &other_weight }, 0..rows, &mut logits).unwrap();
        let records = [n, n.div_ceil(5)].map(|top| Records::of(Layout { vocab: n, top }, &logits));

        let mut found = Vec::new();
        for (ce, kl, teacher) in [
            (1.0, 0.0, None),
            (0.25, 1.0, Some(Teaching::Live(Head { hidden: &other_hidden, weight: &other_weight }))),
            (0.0, 1.0, Some(Teaching::Stored(records[0].answers()))),
            (0.5, 0.5, Some(Teaching::Stored(records[1].answers()))),
        ] {
            let loss = Loss { ce, kl, teacher };
            let mut losses = vec![RowLoss { ce: 7.0, kl: 7.0 }; rows];
            let mut dhidden = b.zeros(rows * k).unwrap();
            b.head_loss(head(), &self.targets(), &loss, 0.5, Some(&mut dhidden), &mut losses).unwrap();
            let mut again = vec![RowLoss { ce: 7.0, kl: 7.0 }; rows];
            b.head_loss(head(), &self.targets(), &loss, 0.5, None, &mut again).unwrap();
            assert_eq!(losses, again);
            found.push(("ce", losses.iter().map(|loss| loss.ce).collect()));
            found.push(("kl", losses.iter().map(|loss| loss.kl).collect()));
            found.push(("dhidden", b.download(&dhidden).unwrap()));
        }
        let mut scores = vec![TokenScore::default(); rows];
        let reference = Head { hidden: &other_hidden, weight: &other_weight };
        b.head_scores(head(), Some(reference), &self.targets(), &mut scores).unwrap();
        let mut alone = vec![TokenScore { top: 9, ..TokenScore::default() }; rows];
        b.head_scores(head(), None, &self.targets(), &mut alone).unwrap();
        for (score, alone) in scores.iter().zip(alone) {
            assert_eq!((score.log_prob, score.top), (alone.log_prob, alone.top));
        }
        found.push(("logits", logits));
        found.push(("log_prob", scores.iter().map(|s| s.log_prob as f32).collect()));
        found.push(("divergence", scores.iter().map(|s| s.kl as f32).collect()));
        found.push(("top", scores.iter().map(|s| s.top as f32).collect()));
        found.push(("reference_top", scores.iter().map(|s| s.reference_top as f32).collect()));
        found
    }
}

/// Sums in f32 in another order; the gradient of the logits is rounded to bf16 by both, now and then to neighbours. The
/// answers are those to logits that differ in the last bits, which now and then are neighbours as halves: 2^-11 of a
/// log-probability.
#[test]
fn loss_and_scores() {
    for device in devices() {
        device.run(|| {
            for (rows, vocab, d, dtype) in
                [(1, 7, 8, Dtype::BF16), (40, 70, 24, Dtype::F32), (33, 600, 40, Dtype::BF16), (5, 1030, 9, Dtype::F16)]
            {
                let limit = |name: &str| match name {
                    "dhidden" => 4e-3,
                    "kl" => 1e-3,
                    "top" | "reference_top" => 0.0,
                    _ => 2e-6,
                };
                compare(&format!("{rows} × {vocab} × {d} {dtype:?}"), &HeadOf { rows, vocab, d, dtype }, limit);
            }
        });
    }
}
