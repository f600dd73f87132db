//! Every LR-QAT case against PyTorch: logits, loss and gradients at the start, then ten steps of AdamW.
//!
//! One convention differs. By the contract dZ passes where qmin ≤ round(Z) ≤ qmax, as `torch.clamp` did for years and
//! as the published code was run. The golden values are of a PyTorch whose clamp has no gradient at the ends themselves
//! (pytorch/pytorch#191142). Here the product is brought to that point by its own rule: Φ0 of a weight at an end of the
//! grid is pushed two steps outwards, so that it is clipped. No integer changes, so all but dA and dB must agree to the
//! bit with the model as it is. (The rule of the contract is what inclusive.rs and
//! differences.rs check.)

use common::compute::backend::Moments;
use common::compute::cpu::Cpu;
use common::compute::cpu::aligned::Aligned;
use common::error::Result;
use common::format::tensor::{Dtype, Tensor};
use common::model::Config;
use common::model::forward::Batch;
use common::model::host::{HostLinear, HostLowRank, Source};
use common::model::names::{self, LinearName};
use common::model::params::Params;
use common::model::weights::Model;
use common::quant::{Phi, Scheme, pack};
use common::train::optimizer;
use common::train::recipe::{MomentType, Recipe, Schedule};

use super::case::{CASES, Case, tokens};
use super::{Runner, bits, largest_difference, real, relative_error, shared};

a_test_of_each_case!(check);

fn check(case: usize) {
    let Some(shared) = shared(CASES[case].0) else { return };
    let case = Case::open(&shared, CASES[case]);
    let batch = tokens(&shared);
    let mut plain = Runner::new(&case, &batch);
    let logits = largest_difference(&plain.logits(&batch), &case.tensor("logits0"));
    let (loss, plain_grads) = plain.gradients(&batch);
    let mut runner = Runner::new(&OpenEnds { case: &case, params: &plain.model.params }, &batch);
    let (same_loss, grads) = runner.gradients(&batch);
    assert_eq!(loss.to_bits(), same_loss.to_bits());
    assert!(bits(&plain.acts.dx) == bits(&runner.acts.dx));
    assert!(grads.iter().zip(&plain_grads).step_by(3).all(|(a, b)| bits(a) == bits(b)), "gradients of the scales");

    let loss = (loss - f64::from(case.tensor("loss0")[0])).abs();
    let gradients = gradient_errors(&case, &runner, &grads);
    let (gradient, name) = gradients.iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    let n = gradients.len();
    eprintln!("{}: logits {logits:.1e}, loss {loss:.1e}, {n} gradients {gradient:.1e} (worst: {name})", case.name);

    let losses = train(&mut runner, &batch, |runner| {
        // Other weights are at the ends now.
        let ends = OpenEnds { case: &case, params: &runner.model.params };
        runner.model = Model::load(&runner.cpu, &ends, runner.model.positions).unwrap();
    });
    let later = largest_difference(&losses, &case.tensor("losses"));
    let (equal, scale) = compare_final(&case, &runner.model.params);
    eprintln!("{}: later losses {later:.1e}, integers equal {:.4} %, scales {scale:.1e}", case.name, equal * 100.0);

    assert!(logits <= 1e-4 && loss <= 1e-4 && later <= 5e-3);
    for (error, name) in gradients {
        assert!(error <= 1e-4, "{}: gradient of {name} is off by {error:.1e}", case.name);
    }
    assert!(equal >= if case.scheme.bits == 2 { 0.99 } else { 0.999 });
    assert!(scale <= 1e-4);
}

/// The case at the values of `params`, weights at the ends of the grid pushed out of it.
struct OpenEnds<'a> {
    case: &'a Case,
    params: &'a Params<Cpu<f32>>,
}

impl OpenEnds<'_> {
    fn lowrank(&self, linear: &LinearName) -> HostLowRank {
        self.case.lowrank(linear, |suffix| trained(self.params, &format!("{}.{suffix}", linear.name)))
    }
}

impl Source for OpenEnds<'_> {
    fn config(&self) -> &Config {
        self.case.config()
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.case.float(name, shape)
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        let mut w = self.lowrank(linear);
        let (qmin, qmax) = (w.scheme.qmin(), w.scheme.qmax());
        let mut phi = self.case.tensor(&format!("{}.phi", linear.name));
        for (phi, z) in phi.iter_mut().zip(real(&w, linear.k)) {
            let code = z.round_ties_even();
            *phi += if code == qmin {
                -2.0
            } else if code == qmax {
                2.0
            } else {
                0.0
            };
        }
        w.stored = Phi::F32;
        w.phi = Tensor::from_f32(&phi, Dtype::F32, vec![linear.n, linear.k]);
        Ok(HostLinear::LowRank(w))
    }
}

pub fn trained(params: &Params<Cpu<f32>>, name: &str) -> Vec<f32> {
    params.values[params.specs.iter().position(|s| s.name == name).unwrap()].to_vec()
}

/// ‖Δg‖/‖g‖ of every parameter and of the embedding's output.
fn gradient_errors(case: &Case, runner: &Runner, grads: &[Aligned<f32>]) -> Vec<(f64, String)> {
    let specs = &runner.model.params.specs;
    assert_eq!(specs.len(), 3 * names::linears(&runner.model.config).len());
    let golden = |name: &str| case.tensor(&format!("grad.{name}"));
    let mut errors: Vec<(f64, String)> =
        specs.iter().zip(grads).map(|(s, g)| (relative_error(g, &golden(&s.name)), s.name.clone())).collect();
    errors.push((relative_error(&runner.acts.dx, &golden("inputs_embeds")), "inputs_embeds".into()));
    errors
}

/// The loss before each of ten steps and after the last; `prepare` is called before each.
pub fn train(runner: &mut Runner, batch: &Batch, prepare: impl Fn(&mut Runner)) -> Vec<f64> {
    let schedule = Schedule::Constant;
    let recipe = Recipe { steps: 10, lr_ab: 1e-3, lr_scale: 1e-5, warmup: 0.0, schedule, ..Recipe::default() };
    let mut moments = Moments::zeros(&runner.cpu, MomentType::F32, &runner.model.params).unwrap();
    let mut losses = Vec::new();
    for t in 0..recipe.steps {
        prepare(runner);
        let (loss, grads) = runner.gradients(batch);
        losses.push(loss);
        let norm = optimizer::gradient_norm(&runner.cpu, &runner.model.params, &grads).unwrap().unwrap();
        optimizer::step(&runner.cpu, &recipe, t, norm, &mut runner.model.params, &grads, &mut moments);
    }
    prepare(runner);
    losses.push(runner.loss(batch) / batch.predictions() as f64);
    losses
}

/// The part of the integers that are equal, and the largest relative difference of a scale.
fn compare_final(case: &Case, params: &Params<Cpu<f32>>) -> (f64, f64) {
    let (mut equal, mut all, mut scales) = (0, 0, 0f64);
    for linear in names::linears(case.model.config()) {
        let lowrank = OpenEnds { case, params }.lowrank(&linear);
        let codes = unpack(&lowrank.fold(linear.n, linear.k).codes, case.scheme, linear.k);
        let golden = case.file.get(&format!("final.{}.codes", linear.name)).unwrap().bytes();
        assert_eq!(codes.len(), golden.len());
        equal += codes.iter().zip(golden).filter(|(ours, golden)| **ours == i32::from(**golden as i8)).count();
        all += golden.len();
        for (ours, golden) in lowrank.scale.iter().zip(case.tensor(&format!("final.{}.scale", linear.name))) {
            scales = scales.max(f64::from((ours - golden).abs() / golden));
        }
    }
    (equal as f64 / all as f64, scales)
}

pub fn unpack(codes: &Tensor, scheme: Scheme, k: usize) -> Vec<i32> {
    let mut all = Vec::new();
    for row in codes.bytes().chunks_exact(4 * pack::words(k, scheme.bits)) {
        pack::unpack(row, scheme.bits, k, |_, code| all.push(i32::from(code) + scheme.qmin() as i32));
    }
    all
}
