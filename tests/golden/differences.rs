//! Gradients against central finite differences of a tiny random model.
//!
//! The straight-through gradient of A and B is by design not the slope of the loss, which is a staircase in them.
//! What is: the slope of the loss in every single Ŵ (the same model with float weights), from which dA, dB and ds
//! follow by the formulas of design.md; in each scale, between neighbouring bf16 values; and in each element of the
//! embedding's output.

use common::compute::backend::{Head, Loss, NO_TARGET, Teaching};
use common::compute::cpu::aligned::Aligned;
use common::format::tensor::{Dtype, Tensor};
use common::model::forward::Batch;
use common::model::host::HostLowRank;
use common::model::names;
use common::quant::{Phi, grid};

use super::random::{Dense, Random, values};
use super::{Runner, real, relative_error};

/// Two blocks, grouped queries, heads wider than d/h; groups of 8 divide every width.
const DIMS: [usize; 7] = [16, 4, 2, 6, 24, 32, 2];
const LENGTHS: [usize; 2] = [9, 6];
/// Step of the differences: their truncation and the rounding of the f32 forward pass are then about alike.
const STEP: f32 = 1.0 / 128.0;
const TOLERANCE: f64 = 2e-3;

/// Weights of the cross entropy and of the divergence from a teacher.
const TAUGHT: [f32; 2] = [0.25, 0.75];

#[test]
fn per_channel() {
    alone(|| check(Random::new(DIMS, "w4pc", Phi::Q, 3), [1.0, 0.0]));
}

#[test]
fn groups_with_zero_points() {
    alone(|| check(Random::new(DIMS, "w2g8z", Phi::F32, 2), [1.0, 0.0]));
}

#[test]
fn taught_by_another_model() {
    alone(|| check(Random::new(DIMS, "w3g8", Phi::Q, 2), TAUGHT));
}

/// Work this small is done sooner by one thread.
fn alone(f: impl FnOnce() + Send) {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(f);
}

fn check(random: Random, [ce, kl]: [f32; 2]) {
    let batch = random.batch(&LENGTHS);
    let mut runner = Runner::new(&random, &batch);
    let mut grads = runner.model.params.zeros_like(&runner.cpu).unwrap();
    // Hidden states of any teacher, under the same head.
    let hidden = Aligned::of(&values("teacher", batch.rows() * runner.model.config.d)).unwrap();
    let of = Objective { ce, kl, log_p: log_p(&runner.logits_of(&hidden), runner.model.config.vocab) };
    let head = runner.model.head();
    let teacher = (kl > 0.0).then_some(Teaching::Live(Head { hidden: &hidden, weight: &head }));
    let loss = Loss { ce, kl, teacher };
    runner.model.loss_and_gradients(&runner.cpu, &batch, &loss, 1.0, &mut runner.acts, &mut grads).unwrap();
    let dx = runner.acts.dx.to_vec();
    drop(loss);
    let mut errors = vec![("dx".to_string(), relative_error(&dx, &embedding_slopes(&mut runner, &batch, &of)))];
    errors.push(("scale between neighbours".into(), scale_error(&mut runner, &batch, &grads, &of)));
    errors.extend(weight_errors(&random, &batch, &runner, &grads, &of));
    let worst = errors.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    eprintln!("{}: {} gradients, off by at most {:.1e} ({})", random.scheme, errors.len(), worst.1, worst.0);
    for (name, error) in &errors {
        assert!(*error <= TOLERANCE, "{name}: {error:.1e}");
    }
}

struct Objective {
    ce: f32,
    kl: f32,
    /// The teacher's log-probabilities [rows, v].
    log_p: Vec<f64>,
}

fn log_p(logits: &[f64], vocab: usize) -> Vec<f64> {
    let all = |row: &[f64]| row.iter().map(|l| l.exp()).sum::<f64>().ln();
    logits.chunks_exact(vocab).flat_map(|row| row.iter().map(move |l| l - all(row))).collect()
}

/// Σ ce·CE + kl·KL in f64, from the logits.
fn loss(runner: &mut Runner, batch: &Batch, of: &Objective) -> f64 {
    let vocab = runner.model.config.vocab;
    let own = log_p(&runner.logits(batch), vocab);
    let rows = own.chunks_exact(vocab).zip(of.log_p.chunks_exact(vocab)).zip(&batch.targets);
    rows.filter(|(_, target)| **target != NO_TARGET)
        .map(|((own, teachers), target)| {
            let kl: f64 = own.iter().zip(teachers).map(|(own, t)| t.exp() * (t - own)).sum();
            f64::from(of.kl) * kl - f64::from(of.ce) * own[*target as usize]
        })
        .sum()
}

/// The tokens are all different, so that a row of the table is one row of x.
fn embedding_slopes(runner: &mut Runner, batch: &Batch, of: &Objective) -> Vec<f32> {
    let d = runner.model.config.d;
    let mut table = runner.model.embedding.to_f32();
    let shape = runner.model.embedding.shape.clone();
    let mut slopes = Vec::new();
    for at in batch.tokens.iter().flat_map(|t| *t as usize * d..(*t as usize + 1) * d) {
        slopes.push(slope(&mut table, at, |table| {
            runner.model.embedding = Tensor::from_f32(table, Dtype::F32, shape.clone());
            loss(runner, batch, of)
        }));
    }
    runner.model.embedding = Tensor::from_f32(&table, Dtype::F32, shape);
    slopes
}

/// (f(v + h) − f(v − h)) / 2h in element `at`.
fn slope(values: &mut [f32], at: usize, mut f: impl FnMut(&[f32]) -> f64) -> f32 {
    let value = values[at];
    let mut at_distance = |h: f32| {
        values[at] = value + h;
        (f(values), f64::from(values[at]))
    };
    let (above, below) = (at_distance(STEP), at_distance(-STEP));
    values[at] = value;
    ((above.0 - below.0) / (above.1 - below.1)) as f32
}

/// ds of all linears against the chord from the next smaller to the next larger bf16 scale: the forward pass sees
/// no others.
fn scale_error(runner: &mut Runner, batch: &Batch, grads: &[Aligned<f32>], of: &Objective) -> f64 {
    let (mut chords, mut ds) = (Vec::new(), Vec::new());
    for row in (0..grads.len()).step_by(3) {
        assert!(runner.model.params.specs[row].name.ends_with(".scale"));
        for at in 0..grads[row].len() {
            let master = runner.model.params.values[row][at];
            let forward = grid::forward_scale(master).to_bits();
            let mut at_scale = |bits: u32| {
                let scale = f32::from_bits(bits);
                runner.model.params.values[row][at] = scale;
                (loss(runner, batch, of), f64::from(scale))
            };
            let (above, below) = (at_scale(forward + (1 << 16)), at_scale(forward - (1 << 16)));
            runner.model.params.values[row][at] = master;
            chords.push(((above.0 - below.0) / (above.1 - below.1)) as f32);
        }
        ds.extend_from_slice(&grads[row]);
    }
    relative_error(&ds, &chords)
}

/// What the grid makes of a linear's weights.
struct Grid {
    /// Ŵ.
    w: Vec<f32>,
    /// dŴ/ds = W_Z − z.
    by_scale: Vec<f32>,
    /// dŴ/dZ, straight through: s, the ends of the grid included, or 0 where Z is clipped.
    by_real: Vec<f32>,
}

impl Grid {
    fn of(host: &HostLowRank, k: usize) -> Grid {
        let scheme = host.scheme;
        let mut grid = Grid { w: Vec::new(), by_scale: Vec::new(), by_real: Vec::new() };
        for (at, z) in real(host, k).into_iter().enumerate() {
            let rounded = z.round_ties_even();
            let clipped = rounded.clamp(scheme.qmin(), scheme.qmax());
            let group = at / k * scheme.groups(k) + at % k / scheme.group_size(k);
            let s = grid::forward_scale(host.scale[group]);
            let integer = clipped - host.zero.as_ref().map_or(0.0, |z| z[group]);
            grid.w.push(s * integer);
            grid.by_scale.push(integer);
            grid.by_real.push(if rounded == clipped { s } else { 0.0 });
        }
        grid
    }
}

/// Errors of ds, dA and dB of every linear, as they follow from the slopes in every weight.
fn weight_errors(
    random: &Random,
    batch: &Batch,
    runner: &Runner,
    grads: &[Aligned<f32>],
    of: &Objective,
) -> Vec<(String, f64)> {
    let linears = names::linears(&random.config);
    let grids: Vec<Grid> = linears.iter().map(|l| Grid::of(&random.lowrank(l), l.k)).collect();
    let weights = linears.iter().zip(&grids).map(|(l, g)| (l.name.clone(), g.w.clone())).collect();
    let mut dense = Dense { of: random, weights };
    let mut errors = Vec::new();
    let clipped = grids.iter().flat_map(|g| &g.by_real).filter(|s| **s == 0.0).count();
    assert!(clipped > 0, "some weights are clipped");
    for (i, (linear, grid)) in linears.iter().zip(&grids).enumerate() {
        let host = random.lowrank(linear);
        let (n, k, r, factor) = (linear.n, linear.k, host.rank, host.alpha / host.rank as f32);
        let mut w = grid.w.clone();
        let dw: Vec<f32> = (0..n * k)
            .map(|at| {
                slope(&mut w, at, |w| {
                    dense.weights.insert(linear.name.clone(), w.to_vec());
                    loss(&mut Runner::new(&dense, batch), batch, of)
                })
            })
            .collect();
        dense.weights.insert(linear.name.clone(), w);
        let (scheme, groups) = (host.scheme, host.scheme.groups(k));
        let (mut ds, mut da, mut db) = (vec![0.0; n * groups], vec![0.0; n * r], vec![0.0; r * k]);
        for (at, dw) in dw.iter().enumerate() {
            let (row, col) = (at / k, at % k);
            ds[row * groups + col / scheme.group_size(k)] += dw * grid.by_scale[at];
            for j in 0..r {
                da[row * r + j] += factor * dw * grid.by_real[at] * host.b[j * k + col];
                db[j * k + col] += factor * dw * grid.by_real[at] * host.a[row * r + j];
            }
        }
        for (j, expected) in [ds, da, db].iter().enumerate() {
            let row = 3 * i + j;
            errors.push((runner.model.params.specs[row].name.clone(), relative_error(&grads[row], expected)));
        }
    }
    assert_eq!(errors.iter().map(|e| &e.0).collect::<std::collections::BTreeSet<_>>().len(), grads.len());
    errors
}
