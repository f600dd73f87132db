//! How each weight of a block is rounded, learned from what the float model's block gives: the Z of each weight moves by its
//! gradient, from which the rounding is left out (straight through), and the scales with it, by Adam (block by block: BRECQ,
//! Li et al. 2021; all weights of a block and its scales: EfficientQAT's Block-AP, Chen et al. 2024).
//!
//! The block is given what the rounded blocks before it give, and its output is held against that of the float model: it
//! makes up for what they lost.

use rand_chacha::rand_core::Rng;

use super::forward::Batch;
use super::host::Source;
use super::ledger::{Activations, Keeping, Pass};
use super::names;
use super::params::{Params, Rate};
use super::weights::{Block, HostBlock, Model};
use crate::compute::backend::{AdamStep, Backend, Moments};
use crate::compute::cpu::Cpu;
use crate::compute::cpu::aligned::Aligned;
use crate::compute::cpu::element::Element;
use crate::compute::cpu::learned::{output_error, round};
use crate::error::Result;
use crate::quant::{Scheme, lowrank};

/// Batches of a step.
const TOGETHER: usize = 2;
/// Batches at the end that nothing is learned from: they say what came of it.
const HELD_BACK: usize = 4;
/// What Z moves by in the first step, in parts of the grid; down to nothing in the last. Of 16 integers a 160th of a step, of
/// 8 an 80th: gradients are of errors, which grow with the step.
const RATE: f32 = 0.1;
/// The same of the scales, in parts of their mean.
const SCALE_RATE: f32 = 3e-3;
/// Half of the weights lie within a quarter of a step from where they round otherwise, and gradients of few tokens do not agree:
/// what most of them say is waited for.
const BETAS: [f32; 2] = [0.95, 0.999];
/// Gradients are as small as errors are; their size says nothing.
const EPSILON: f32 = 1e-20;

/// Learns one block after another.
pub struct Learner<'a, E: Element> {
    backend: &'a Cpu<E>,
    batches: &'a [Batch],
    /// Without blocks; the parameters are those of the block at work.
    model: Model<Cpu<E>>,
    scheme: Scheme,
    acts: Pass<Cpu<E>>,
    steps: u64,
    seed: u64,
}

/// A block that was learned.
pub struct Learned {
    /// Z [n, k] and the masters of the scales [n, G] of each linear, in the order of [`names::LINEARS`].
    pub linears: Vec<[Vec<f32>; 2]>,
    /// What the output lacks of the float model's before and after, of the batches that nothing was learned from: mean of
    /// |y − target|² / |target|² over the rows.
    pub errors: [f64; 2],
}

/// What the rounded blocks before a block give, and what the float model's block gives [rows, d], batch by batch.
#[derive(Clone, Copy)]
pub struct Streams<'a> {
    pub inputs: &'a [Aligned<f32>],
    pub targets: &'a [Aligned<f32>],
}

impl<'a, E: Element> Learner<'a, E> {
    pub fn new(
        backend: &'a Cpu<E>,
        source: &dyn Source,
        batches: &'a [Batch],
        scheme: Scheme,
        steps: u64,
        seed: u64,
    ) -> Result<Learner<'a, E>> {
        assert!(batches.len() > HELD_BACK, "{} batches", batches.len());
        let positions = batches.iter().flat_map(|batch| batch.segments.windows(2)).map(|s| s[1] - s[0]).max();
        let rows = batches.iter().map(Batch::rows).max().unwrap_or(0);
        let model = Model::without_blocks(backend, source, positions.unwrap_or(0))?;
        let mut one = model.config.clone();
        one.layers = 1;
        let keeping = Keeping { attention: 1, gate_up: 1, integers: true };
        let acts = Activations::lengths(&one, rows, true).keeping(&one, keeping).allocate(backend)?;
        Ok(Learner { backend, batches, model, scheme, acts, steps, seed })
    }

    /// Learns a block, whose linears have a Z; `each` is told of each step.
    pub fn learn(&mut self, host: &HostBlock, streams: Streams, mut each: impl FnMut()) -> Result<Learned> {
        let b = self.backend;
        let mut params = Params::new();
        let block = host.load(b, &mut params)?;
        let zeros = || params.zeros_like(b);
        let (mut grads, mut moments) = (zeros()?, Moments::F32 { m: zeros()?, v: zeros()? });
        let rates: Vec<f32> =
            params.specs.iter().zip(&params.values).map(|(spec, x)| rate(spec.rate, x, self.scheme)).collect();
        self.model.params = params;
        self.round();
        let (started, before) = (self.linears(), self.error(&block, streams));
        let mut order = Order { batches: self.batches.len() - HELD_BACK, left: Vec::new() };
        let mut random = lowrank::generator(self.seed, &block.linears[0].name);
        for step in 0..self.steps {
            for grad in &mut grads {
                b.fill_zero(grad);
            }
            for _ in 0..TOGETHER {
                let at = order.next(&mut random);
                self.forward(&block, at, streams);
                self.model.block_backward(b, &block, &self.batches[at], 0, &mut self.acts, &mut grads);
            }
            let left = 1.0 - step as f32 / self.steps as f32;
            let rates: Vec<f32> = rates.iter().map(|rate| rate * left).collect();
            let [beta1, beta2] = BETAS;
            let adam = AdamStep { beta1, beta2, epsilon: EPSILON, step: step + 1, grad_factor: 1.0 };
            b.adamw(adam, &rates, &mut self.model.params.values, &grads, &mut moments);
            self.round();
            each();
        }
        let after = self.error(&block, streams);
        // What learned nothing of use stays as it was.
        if after < before {
            Ok(Learned { linears: self.linears(), errors: [before, after] })
        } else {
            Ok(Learned { linears: started, errors: [before, before] })
        }
    }

    /// The integers of the Z as they are.
    fn round(&mut self) {
        let latents = self.model.params.values.iter().skip(1).step_by(2);
        for (z, to) in latents.zip(self.acts.integers.of_mut(0)) {
            round(z, self.scheme, to);
        }
    }

    fn linears(&self) -> Vec<[Vec<f32>; 2]> {
        let (linears, rest) = self.model.params.values.as_chunks::<2>();
        assert!(linears.len() == names::LINEARS.len() && rest.is_empty(), "a scale and a Z of each linear");
        linears.iter().map(|[scale, z]| [z.to_vec(), scale.to_vec()]).collect()
    }

    /// Of the batches that are held back.
    fn error(&mut self, block: &Block<Cpu<E>>, streams: Streams) -> f64 {
        let held_back = self.batches.len() - HELD_BACK..self.batches.len();
        let rows: usize = self.batches[held_back.clone()].iter().map(Batch::rows).sum();
        held_back.map(|at| self.forward(block, at, streams)).sum::<f64>() / rows as f64
    }

    /// The forward pass of a batch, what its output lacks, and in `acts.dx` the gradient of that.
    fn forward(&mut self, block: &Block<Cpu<E>>, at: usize, streams: Streams) -> f64 {
        let (b, batch, acts, d) = (self.backend, &self.batches[at], &mut self.acts, self.model.config.d);
        let len = batch.rows() * d;
        acts.x[..len].copy_from_slice(&streams.inputs[at][..len]);
        b.round_both(&mut acts.x, &mut acts.checkpoints[0], len);
        acts.exchange(0);
        self.model.block_forward(b, block, batch, acts, Some(0), true);
        acts.exchange(0);
        output_error(&acts.x[..len], &streams.targets[at][..len], d, &mut acts.dx[..len])
    }
}

fn rate(rate: Rate, values: &[f32], scheme: Scheme) -> f32 {
    match rate {
        Rate::Latent => RATE / 2f32.powi(scheme.bits as i32),
        Rate::Scale => SCALE_RATE * values.iter().sum::<f32>() / values.len() as f32,
        Rate::LowRank => unreachable!("A and B are not trained here"),
    }
}

/// All batches in an order drawn anew each time.
struct Order {
    batches: usize,
    left: Vec<usize>,
}

impl Order {
    fn next(&mut self, random: &mut impl Rng) -> usize {
        if self.left.is_empty() {
            self.left = (0..self.batches).collect();
            for i in (1..self.batches).rev() {
                self.left.swap(i, (random.next_u64() % (i as u64 + 1)) as usize);
            }
        }
        self.left.pop().expect("some batches")
    }
}
