//! The numerics against PyTorch's values (`../shared/golden`, transformers, lm-evaluation-harness) and against
//! mathematics (finite differences, integers). The largest differences are printed: `cargo test -- --nocapture`.

/// A test of each of `case::CASES` by its name, which calls this with where it stands in the list.
macro_rules! a_test_of_each_case {
    ($check:ident) => {
        a_test_of_each_case!($check: w4pc_q44 0, w4pc_q44_warm 1, w3pc_int_warm 2, w2pc_f32_warm 3, w4g4_q44_warm 4,
            w2g4z_f32_warm 5);
    };
    ($check:ident: $($name:ident $case:literal),*) => {
        $(#[test]
        fn $name() {
            assert_eq!(crate::golden::case::CASES[$case].0, stringify!($name));
            $check($case);
        })*
    };
}

mod case; // an LR-QAT case of ../shared/golden as a model
mod random; // a random model, of any size and scheme
mod grids; // scales, zero points and Φ0
mod float_model; // logits and loss of the float model
mod training; // logits, gradients and ten steps of every case
mod inclusive; // the same as it is, against PyTorch with the contract's gradient at the ends of the grid
mod differences; // gradients against central finite differences
mod bits; // the same bits folded or not, and on any number of threads
mod types; // a step in bf16 beside the same in f32
mod rounding; // the one rounding rule at every tie
mod tiny_models; // sliding window, rotary scalings, head_dim, stored types, shards
mod zero_shot; // SmolLM2 against lm-evaluation-harness

use crate::beside::shared;
use common::compute::backend::{Head, Loss, RowLoss, Weight};
use common::compute::cpu::Cpu;
use common::compute::cpu::aligned::Aligned;
use common::compute::cpu::element::Element;
use common::model::forward::Batch;
use common::model::host::{HostLowRank, Source};
use common::model::ledger::{Activations, Keeping, Pass};
use common::model::weights::Model;

/// A model on the CPU with the buffers of its passes.
struct Runner<E: Element = f32> {
    cpu: Cpu<E>,
    model: Model<Cpu<E>>,
    acts: Pass<Cpu<E>>,
}

impl Runner {
    /// In f32, as PyTorch's values are.
    fn new(source: &dyn Source, batch: &Batch) -> Runner {
        Runner::in_type(source, batch)
    }
}

impl<E: Element> Runner<E> {
    fn in_type(source: &dyn Source, batch: &Batch) -> Runner<E> {
        Runner::keeping(source, batch, Keeping::default())
    }

    fn keeping(source: &dyn Source, batch: &Batch, keeping: Keeping) -> Runner<E> {
        let cpu = Cpu::new();
        let longest = batch.segments.windows(2).map(|w| w[1] - w[0]).max().unwrap();
        let model = Model::load(&cpu, source, longest).unwrap();
        let lengths = Activations::lengths(&model.config, batch.rows(), true).keeping(&model.config, keeping);
        let acts = lengths.allocate(&cpu).unwrap();
        Runner { cpu, model, acts }
    }

    /// The head's input.
    fn hidden(&mut self, batch: &Batch) -> &[E] {
        self.model.forward(&self.cpu, batch, &mut self.acts);
        &self.acts.hidden
    }

    /// Logits of all rows [rows, v], multiplied out here: the tools never hold them whole.
    fn logits(&mut self, batch: &Batch) -> Vec<f64> {
        self.hidden(batch);
        self.logits_of(&self.acts.hidden)
    }

    /// Of these hidden states.
    fn logits_of(&self, hidden: &[E]) -> Vec<f64> {
        let Weight::Float { w, k, .. } = self.model.head() else { panic!("the head is floating point") };
        let w: Vec<f64> = w.to_f32().into_iter().map(f64::from).collect();
        let dot = |x: &[E], w: &[f64]| x.iter().zip(w).map(|(x, w)| f64::from(x.to_f32()) * w).sum();
        hidden.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(move |w| dot(x, w))).collect()
    }

    /// Sum of the losses of all rows, by the product's head.
    fn loss(&mut self, batch: &Batch) -> f64 {
        use common::compute::backend::Backend;
        self.hidden(batch);
        let mut losses = vec![RowLoss::default(); batch.rows()];
        let head = Head { hidden: &self.acts.hidden, weight: &self.model.head() };
        self.cpu.head_loss(head, &batch.targets, &Loss::cross_entropy(), 1.0, None, &mut losses).unwrap();
        losses.iter().map(|l| f64::from(l.ce)).sum()
    }

    /// Mean loss and its gradients, one buffer per parameter; the embedding's gradient is in `acts.dx`.
    fn gradients(&mut self, batch: &Batch) -> (f64, Vec<Aligned<f32>>) {
        let mut grads = self.model.params.zeros_like(&self.cpu).unwrap();
        let n = batch.predictions() as f64;
        let (loss, scale) = (Loss::cross_entropy(), (1.0 / n) as f32);
        let terms = self.model.loss_and_gradients(&self.cpu, batch, &loss, scale, &mut self.acts, &mut grads);
        (terms.unwrap().ce / n, grads)
    }
}

fn largest_difference(a: &[f64], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    // Not max(): it passes over a NaN.
    a.iter().zip(b).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, |m, d| if d <= m { m } else { d })
}

/// ‖a − b‖ / ‖b‖; 0 where both are zero.
fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    if error == 0.0 { 0.0 } else { error / norm(&mut b.iter().map(|b| f64::from(*b))) }
}

/// Z = Φ0 + α/r·AB of all weights, by its definition.
fn real(w: &HostLowRank, k: usize) -> Vec<f32> {
    let mut all = Vec::new();
    let mut phi = vec![0.0; k];
    for (packed, a) in w.phi.bytes().chunks_exact(w.stored.row_bytes(w.scheme, k)).zip(w.a.chunks_exact(w.rank)) {
        w.stored.unpack_row(w.scheme, packed, &mut phi);
        for (col, phi) in phi.iter().enumerate() {
            let ab = a.iter().enumerate().fold(0f32, |c, (i, a)| a.mul_add(w.b[i * k + col], c));
            all.push((w.alpha / w.rank as f32).mul_add(ab, *phi));
        }
    }
    all
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
