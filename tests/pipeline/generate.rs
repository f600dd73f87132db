use std::fs;

use common::compute::backend::Backend;
use common::compute::cpu::Cpu;
use common::compute::cpu::element::Element;
use common::model::forward::Batch;
use common::model::generate::Generation;
use common::model::ledger::Activations;
use common::model::weights::Model;
use common::stage::open::Artefact;
use half::bf16;
use serde_json::Value;

use crate::tools::Dir;

/// Step by step as by reading all of it again, whatever kind of weight, and within a window.
#[test]
fn steps_are_as_whole_passes() {
    let dir = Dir::with_stages();
    let tiny = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny");
    for path in [dir.join("model"), dir.join("checkpoint"), dir.join("folded"), tiny.join("mistral_window")] {
        let artefact = Artefact::open(&path).unwrap();
        let exact = furthest::<f32>(&artefact);
        let rounded = furthest::<bf16>(&artefact);
        eprintln!("{}: off by {exact:.1e}, in bf16 {rounded:.1e}", path.display());
        assert!(exact < 1e-4 && rounded < 0.1, "{}: {exact} {rounded}", path.display());
    }
}

/// The largest difference of the logits of steps from those of a pass over the same tokens.
fn furthest<E: Element>(artefact: &Artefact) -> f32 {
    const TOKENS: usize = 24;
    let cpu = Cpu::<E>::new();
    let model = Model::load(&cpu, artefact, TOKENS).unwrap();
    let vocab = model.config.vocab;
    let tokens: Vec<u32> = (0..TOKENS).map(|i| ((i * 37 + 5) % vocab) as u32).collect();
    let mut acts = Activations::lengths(&model.config, TOKENS, false).allocate(&cpu).unwrap();
    model.forward(&cpu, &Batch::next_token([&tokens[..]]), &mut acts);
    let mut whole = vec![0.0; TOKENS * vocab];
    let head = common::compute::backend::Head { hidden: &acts.hidden, weight: &model.head() };
    cpu.head_logits(head, 0..TOKENS, &mut whole).unwrap();
    let mut furthest = 0.0f32;
    for prompt in [1, 7] {
        let mut text = Generation::new(&cpu, &model).unwrap();
        let mut logits = vec![0.0; vocab];
        text.begin(&tokens[..prompt], &mut logits).unwrap();
        for at in prompt..=TOKENS {
            let expected = &whole[(at - 1) * vocab..at * vocab];
            // Not max(): it passes over a NaN.
            furthest = logits
                .iter()
                .zip(expected)
                .map(|(a, b)| (a - b).abs())
                .fold(furthest, |m, d| if d <= m { m } else { d });
            if at < TOKENS {
                text.step(tokens[at], &mut logits).unwrap();
            }
        }
    }
    furthest
}

fn generated(json: &str) -> Vec<Value> {
    let report: Value = serde_json::from_str(json).unwrap();
    report["artefacts"].as_array().unwrap().iter().map(|a| a["generated"].clone()).collect()
}

fn texts(dir: &Dir, flags: &str) -> Vec<String> {
    let found = generated(&dir.run(&format!("eval checkpoint folded --generate the --json {flags}")).ok());
    found.iter().map(|g| g[0]["text"].as_str().unwrap().to_string()).collect()
}

#[test]
fn texts_are_printed_and_repeat() {
    let dir = Dir::with_stages();
    let greedy = texts(&dir, "--max-tokens 20");
    assert_eq!(greedy[0], greedy[1], "a checkpoint writes what its integers write");
    assert_eq!(greedy, texts(&dir, "--max-tokens 20 --threads 1"));
    let drawn = texts(&dir, "--max-tokens 20 --temperature 1.5 --seed 3");
    assert_eq!(drawn, texts(&dir, "--max-tokens 20 --temperature 1.5 --seed 3"));
    assert!(drawn[0] != greedy[0] && drawn != texts(&dir, "--max-tokens 20 --temperature 1.5 --seed 4"));
    // Of a nucleus that holds one token, the most likely one is drawn.
    assert_eq!(greedy, texts(&dir, "--max-tokens 20 --temperature 1.5 --top-p 0"));
    let json = dir.run("eval model --generate the --generate a --max-tokens 3 --json").ok();
    let both = generated(&json);
    assert_eq!(both[0].as_array().unwrap().len(), 2);
    assert_eq!((both[0][1]["prompt"].as_str(), both[0][1]["tokens"].as_u64()), (Some("a"), Some(3)));
    let table = dir.run("eval model folded --generate the --max-tokens 20").ok();
    assert!(table.contains("folded, 20 tokens") && table.contains(&format!("\nthe{}\n", greedy[1])), "{table}");
}

/// Texts are kept with the figures of a report, and other prompts are another question.
#[test]
fn texts_are_kept_in_a_report() {
    let dir = Dir::with_stages();
    let line = "eval model --generate the --max-tokens 4 -o report.json";
    dir.run(line).ok();
    let path = dir.join("report.json");
    let mut report: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    report["artefacts"][0]["generated"][0]["text"] = " marked".into();
    fs::write(&path, report.to_string()).unwrap();
    assert!(dir.run(line).ok().contains("the marked"));
    assert!(!dir.run(&line.replace("tokens 4", "tokens 5")).ok().contains("the marked"));
}
