//! The numerics against PyTorch's values (`../shared/golden`, transformers, lm-evaluation-harness) and against
//! mathematics (finite differences, integers). The largest differences are printed: `cargo test -- --nocapture`.

mod case; // an LR-QAT case of ../shared/golden as a model
mod random; // a random model, of any size and scheme
mod grids; // scales, zero points and Φ0
mod float_model; // logits and loss of the float model
mod training; // logits, gradients and ten steps of every case
mod inclusive; // the same as it is, against PyTorch with the contract's gradient at the ends of the grid
mod differences; // gradients against central finite differences
mod bits; // the same bits folded or not, and on any number of threads
mod rounding; // the one rounding rule at every tie
mod tiny_models; // sliding window, rotary scalings, head_dim, stored types, shards
mod zero_shot; // SmolLM2 against lm-evaluation-harness

use std::io::Write;
use std::path::PathBuf;

use common::compute::backend::{Head, Weight};
use common::compute::cpu::Cpu;
use common::model::forward::Batch;
use common::model::ledger::Activations;
use common::model::weights::{HostLowRank, Model, Source};

/// What lies beside the checkout; where it is absent, says so and gives nothing.
fn shared(test: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared");
    let path = std::env::var_os("LRQAT_SHARED").map_or(PathBuf::from(beside), PathBuf::from);
    if path.is_dir() {
        return Some(path);
    }
    // Not eprintln!, which the harness shows of failed tests only.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no shared/ data");
    None
}

/// A model on the CPU with the buffers of its passes.
struct Runner {
    cpu: Cpu,
    model: Model<Cpu>,
    acts: Activations<Vec<f32>>,
}

impl Runner {
    fn new(source: &dyn Source, batch: &Batch) -> Runner {
        let cpu = Cpu::new();
        let longest = batch.segments.windows(2).map(|w| w[1] - w[0]).max().unwrap();
        let model = Model::load(&cpu, source, longest).unwrap();
        let acts = Activations::lengths(&model.config, batch.rows(), true).allocate(&cpu).unwrap();
        Runner { cpu, model, acts }
    }

    /// The head's input.
    fn hidden(&mut self, batch: &Batch) -> &[f32] {
        self.model.forward(&self.cpu, batch, &mut self.acts);
        &self.acts.hidden
    }

    /// Logits of all rows [rows, v], multiplied out here: the tools never hold them whole.
    fn logits(&mut self, batch: &Batch) -> Vec<f64> {
        self.hidden(batch);
        let Weight::Float { w, k, .. } = self.model.head() else { panic!("the head is floating point") };
        let w: Vec<f64> = w.to_f32().into_iter().map(f64::from).collect();
        let dot = |x: &[f32], w: &[f64]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * w).sum();
        self.acts.hidden.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(move |w| dot(x, w))).collect()
    }

    /// Sum of the losses of all rows, by the product's head.
    fn loss(&mut self, batch: &Batch) -> f64 {
        use common::compute::backend::Backend;
        self.hidden(batch);
        let mut losses = vec![0.0; batch.rows()];
        let head = Head { hidden: &self.acts.hidden, weight: &self.model.head() };
        self.cpu.head_loss(head, &batch.targets, 1.0, None, &mut losses);
        losses.iter().map(|l| f64::from(*l)).sum()
    }

    /// Mean loss and its gradients, one buffer per parameter; the embedding's gradient is in `acts.dx`.
    fn gradients(&mut self, batch: &Batch) -> (f64, Vec<Vec<f32>>) {
        let mut grads = self.model.params.zeros_like(&self.cpu).unwrap();
        let n = batch.predictions() as f64;
        let loss = self.model.loss_and_gradients(&self.cpu, batch, (1.0 / n) as f32, &mut self.acts, &mut grads);
        (loss / n, grads)
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
