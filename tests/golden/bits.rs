//! To the bit: the forward pass with Φ0, A, B and s against that with the folded integers; answers read after one
//! question or each after its own; and training, on any number of threads, and whatever is kept for the backward pass.

use std::ops::Range;

use common::compute::backend::{Moments, NO_TARGET};
use common::compute::cpu::Cpu;
use common::compute::cpu::element::Element;
use common::model::forward::Batch;
use common::model::host::Source;
use common::model::inputs::{INPUTS, Stream};
use common::model::ledger::Keeping;
use common::model::weights::{HostBlock, Model};
use common::quant::Phi;
use common::score::likelihood;
use common::score::perplexity::{Reader, Room};
use common::score::tasks::Request;
use common::train::optimizer;
use common::train::recipe::{MomentType, Recipe};
use half::bf16;

use super::case::{Case, FoldedSource, tokens};
use super::random::Random;
use super::{Runner, bits, shared};

/// d, heads, kv heads, head_dim, ffn, vocabulary, layers: enough work for several threads, and odd widths.
const DIMS: [usize; 7] = [96, 6, 3, 16, 272, 330, 2];

fn randoms() -> [Random; 4] {
    [
        Random::new(DIMS, "w4pc", Phi::Q, 8),
        Random::new(DIMS, "w3g16z", Phi::Int, 5),
        Random::new(DIMS, "w2pc", Phi::F32, 4),
        Random::new(DIMS, "w5g16", Phi::Bf16, 3),
    ]
}

#[test]
fn folding_keeps_every_bit() {
    for random in randoms() {
        check_folding::<f32>(&random, &random.batch(&[128, 57]));
        check_folding::<bf16>(&random, &random.batch(&[128, 57]));
    }
}

#[test]
fn folding_keeps_every_bit_of_the_golden_cases() {
    let Some(shared) = shared("folding_keeps_every_bit_of_the_golden_cases") else { return };
    for case in Case::all(&shared) {
        check_folding::<f32>(&case, &tokens(&shared));
        check_folding::<bf16>(&case, &tokens(&shared));
    }
}

fn check_folding<E: Element>(source: &dyn Source, batch: &Batch) {
    let scores = |source: &dyn Source| {
        let mut runner = Runner::<E>::in_type(source, batch);
        let loss = runner.loss(batch);
        let hidden: Vec<u32> = runner.acts.hidden.iter().map(|x| x.to_f32().to_bits()).collect();
        (hidden, loss.to_bits())
    };
    assert!(scores(source) == scores(&FoldedSource(source)));
}

#[test]
fn answers_read_after_one_question_score_as_each_with_its_own() {
    for random in randoms() {
        check_answers::<f32>(&random);
        check_answers::<bf16>(&random);
    }
}

fn check_answers<E: Element>(source: &dyn Source) {
    let ids = |seed: usize, n: usize| (0..n).map(|i| (seed + i * i * 7) as u32 % 330).collect::<Vec<u32>>();
    let ask = |context: &[u32], continuation: Vec<u32>| Request { context: context.to_vec(), continuation };
    let (first, second, third) = (ids(1, 67), ids(2, 70), ids(3, 1));
    // Answers of several tokens and of one; contexts that part before their ends; one of a single token, twice.
    let mut requests =
        vec![ask(&first, ids(4, 9)), ask(&first, ids(5, 1)), ask(&first, ids(6, 33)), ask(&second, ids(7, 2))];
    let parted = [&second[..30], &ids(8, 12)].concat();
    requests.extend([ask(&parted, ids(7, 2)), ask(&second, ids(9, 4)), ask(&third, ids(1, 3)), ask(&third, ids(2, 3))]);
    let cpu = Cpu::<E>::new();
    let model = Model::load(&cpu, source, 128).unwrap();
    // So that both passes have whole panels of rows: a last one that is not whole adds up in another order.
    requests.push(ask(&ids(10, 45), ids(11, 2)));
    let mut apart = Batch { segments: vec![0], ..Batch::default() };
    for r in &requests {
        apart.tokens.extend(r.context.iter().chain(&r.continuation[..r.continuation.len() - 1]));
        apart.targets.extend(std::iter::repeat_n(NO_TARGET, r.context.len() - 1).chain(r.continuation.iter().copied()));
        apart.segments.push(apart.tokens.len());
    }
    let mut reader = Reader::new(&cpu, &model, Room::sharing(480)).unwrap();
    let read = reader.scores(&apart, None).unwrap();
    let of_request = |w: &[usize]| {
        let scored: Vec<usize> = (w[0]..w[1]).filter(|row| apart.targets[*row] != NO_TARGET).collect();
        let loglik: f64 = scored.iter().map(|row| read[*row].log_prob).sum();
        (loglik, scored.iter().all(|row| read[*row].top == apart.targets[*row]))
    };
    let apart: Vec<(f64, bool)> = apart.segments.windows(2).map(of_request).collect();
    // The 480 tokens in 288 rows; where they do not fit, the next pass begins with the whole context.
    for (rows, expected, limit) in [(288, 1, 0.0), (287, 2, 0.002), (128, 3, 0.002)] {
        let mut reader = Reader::new(&cpu, &model, Room::sharing(rows)).unwrap();
        let mut passes = 0;
        let scored = likelihood::score(&mut reader, &requests, |_| passes += 1).unwrap();
        assert_eq!((scored.len(), passes), (apart.len(), expected), "{rows} rows");
        for (scored, (loglik, greedy)) in scored.iter().zip(&apart) {
            let off = (scored.loglik / loglik - 1.0).abs();
            assert!(off <= limit && scored.greedy == *greedy, "{rows} rows: {scored:?}, apart {loglik}, {greedy}");
        }
    }
}

#[test]
fn inputs_of_a_block_one_by_one_are_those_shown_together() {
    let [random, ..] = randoms();
    let cpu = Cpu::<f32>::new();
    let (folded, batches) = (FoldedSource(&random), [random.batch(&[128, 57]), random.batch(&[31])]);
    let mut stream = Stream::new(&cpu, &folded, &batches).unwrap();
    let block = stream.load(&HostBlock::read(&folded, 0).unwrap()).unwrap();
    let mut show = |inputs: Range<usize>, goes_through: bool| {
        let mut seen = Vec::new();
        for batch in 0..batches.len() {
            stream
                .show(&block, batch, inputs.clone(), goes_through, |input, x| seen.push((batch, input, x.to_vec())))
                .unwrap();
        }
        seen
    };
    let mut apart: Vec<_> = (0..INPUTS).flat_map(|input| show(input..input + 1, false)).collect();
    apart.sort_by_key(|(batch, input, _)| (*batch, *input));
    let before = show(0..INPUTS, false);
    assert!(apart == before && before.len() == 2 * INPUTS);
    assert!(show(0..INPUTS, true) == before && show(0..INPUTS, false) != before);
}

#[test]
fn what_is_kept_changes_no_bit() {
    for random in randoms() {
        check_kept::<f32>(&random, &random.batch(&[128, 57]));
        check_kept::<bf16>(&random, &random.batch(&[128, 57]));
    }
}

/// Of two blocks.
fn check_kept<E: Element>(source: &dyn Source, batch: &Batch) {
    let least = Runner::<E>::in_type(source, batch).gradients(batch);
    for (attention, gate_up, integers) in [(1, 0, false), (2, 0, true), (2, 1, false), (2, 2, true)] {
        let keeping = Keeping { attention, gate_up, integers };
        let mut runner = Runner::<E>::keeping(source, batch, keeping);
        // Twice, with the integers that were kept of the first time.
        for _ in 0..2 {
            let (loss, grads) = runner.gradients(batch);
            assert_eq!(loss.to_bits(), least.0.to_bits(), "{keeping:?}");
            assert!(grads.iter().zip(&least.1).all(|(a, b)| bits(a) == bits(b)), "{keeping:?}");
        }
    }
}

#[test]
fn training_does_not_depend_on_threads() {
    for random in randoms() {
        check_threads::<f32>(&random, &random.batch(&[128, 128, 57]));
        check_threads::<bf16>(&random, &random.batch(&[128, 128, 57]));
    }
}

#[test]
fn training_of_the_golden_cases_does_not_depend_on_threads() {
    let Some(shared) = shared("training_of_the_golden_cases_does_not_depend_on_threads") else { return };
    for case in Case::all(&shared) {
        check_threads::<f32>(&case, &tokens(&shared));
        check_threads::<bf16>(&case, &tokens(&shared));
    }
}

fn check_threads<E: Element>(source: &dyn Source, batch: &Batch) {
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| train::<E>(source, batch))
    };
    let one = on(1);
    for threads in [2, 3] {
        let other = on(threads);
        for ((what, one), (_, other)) in one.iter().zip(&other) {
            assert!(one == other, "{what} differs between 1 and {threads} threads");
        }
    }
}

/// Bits of all that two steps make: losses, gradients, trained values.
fn train<E: Element>(source: &dyn Source, batch: &Batch) -> Vec<(String, Vec<u32>)> {
    let mut runner = Runner::<E>::in_type(source, batch);
    let recipe = Recipe { steps: 2, warmup: 0.0, ..Recipe::default() };
    let mut moments = Moments::zeros(&runner.cpu, MomentType::F32, &runner.model.params).unwrap();
    let mut made = Vec::new();
    for t in 0..recipe.steps {
        let (loss, grads) = runner.gradients(batch);
        let norm = optimizer::gradient_norm(&runner.cpu, &runner.model.params, &grads).unwrap().unwrap();
        optimizer::step(&runner.cpu, &recipe, t, norm, &mut runner.model.params, &grads, &mut moments);
        let sums = [loss.to_bits(), norm.to_bits()].iter().flat_map(|b| [*b as u32, (b >> 32) as u32]).collect();
        made.push((format!("loss or norm of step {t}"), sums));
        made.push((format!("dx of step {t}"), bits(&runner.acts.dx)));
        for (spec, (g, p)) in runner.model.params.specs.iter().zip(grads.iter().zip(&runner.model.params.values)) {
            made.push((format!("gradient of {}, step {t}", spec.name), bits(g)));
            made.push((format!("{} after step {t}", spec.name), bits(p)));
        }
    }
    made
}
