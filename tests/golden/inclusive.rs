//! Every LR-QAT case, unchanged, against PyTorch with the gradient of the contract: dZ passes where
//! qmin ≤ round(Z) ≤ qmax, the ends of the grid included.
//!
//! The values are of `tests/data/make_inclusive_golden.py`: the cases of `../shared/golden` with a clamp of that gradient.
//! To keep them small only some linears are there; each has weights at both ends. (training.rs compares all of them, with
//! the weights at the ends pushed out.)

use std::path::Path;

use common::format::safetensors::TensorFile;
use common::model::forward::Batch;
use common::model::names;

use super::case::{CASES, Case, read, tokens};
use super::training::{train, trained, unpack};
use super::{Runner, largest_difference, relative_error, shared};

a_test_of_each_case!(check);

fn check(case: usize) {
    let Some(shared) = shared(CASES[case].0) else { return };
    let case = Case::open(&shared, CASES[case]);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/inclusive_golden.safetensors");
    let golden = TensorFile::open(Path::new(path)).unwrap();
    let batch = tokens(&shared);
    let mut runner = Runner::new(&case, &batch);
    let gradients = gradient_errors(&case, &golden, &mut runner, &batch);
    let (gradient, name) = gradients.iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    eprintln!("{}: {} gradients {gradient:.1e} (worst: {name})", case.name, gradients.len());

    let losses = train(&mut runner, &batch, |_| ());
    let later = largest_difference(&losses, &read(&golden, &format!("{}/losses", case.name)));
    let (equal, all) = compare_codes(&case, &golden, &runner);
    let part = equal as f64 / all as f64;
    eprintln!("{}: later losses {later:.1e}, {equal} of {all} integers equal ({:.4} %)", case.name, part * 100.0);

    for (error, name) in gradients {
        assert!(error <= 1e-4, "{}: gradient of {name} is off by {error:.1e}", case.name);
    }
    assert!(later <= 5e-3);
    assert!(part >= if case.scheme.bits == 2 { 0.99 } else { 0.999 });
}

/// ‖Δg‖/‖g‖ at the start of every gradient there is.
fn gradient_errors(case: &Case, golden: &TensorFile, runner: &mut Runner, batch: &Batch) -> Vec<(f64, String)> {
    let (_, grads) = runner.gradients(batch);
    let specs = &runner.model.params.specs;
    let ours = specs.iter().map(|s| s.name.as_str()).zip(&grads).chain([("inputs_embeds", &runner.acts.dx)]);
    let mut errors = Vec::new();
    for (name, ours) in ours {
        if let Some(theirs) = golden.get(&format!("{}/grad.{name}", case.name)) {
            errors.push((relative_error(ours, &theirs.to_f32()), name.to_string()));
        }
    }
    let expected = golden.names().filter(|name| name.starts_with(&format!("{}/grad.", case.name))).count();
    assert!(errors.len() == expected && expected > 0);
    errors
}

/// How many of the final integers are equal, and how many there are.
fn compare_codes(case: &Case, golden: &TensorFile, runner: &Runner) -> (usize, usize) {
    let (mut equal, mut all) = (0, 0);
    for linear in names::linears(&runner.model.config) {
        let Some(theirs) = golden.get(&format!("{}/final.{}.codes", case.name, linear.name)) else { continue };
        let params = &runner.model.params;
        let lowrank = case.lowrank(&linear, |suffix| trained(params, &format!("{}.{suffix}", linear.name)));
        let ours = unpack(&lowrank.fold(linear.n, linear.k).codes, case.scheme, linear.k);
        assert_eq!(ours.len(), theirs.bytes().len());
        equal += ours.iter().zip(theirs.bytes()).filter(|(ours, theirs)| **ours == i32::from(**theirs as i8)).count();
        all += ours.len();
    }
    assert!(all > 0);
    (equal, all)
}
