use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use crate::tools::{Dir, ended};

/// `artefacts[i]` of `eval --json`, without its path and kind.
fn figures(report: &str) -> Vec<Value> {
    let mut report: Value = serde_json::from_str(report).unwrap();
    let artefacts = report["artefacts"].as_array_mut().unwrap();
    for a in artefacts.iter_mut() {
        a["path"] = Value::Null;
        a["kind"] = Value::Null;
    }
    artefacts.clone()
}

/// A checkpoint and its folded integers have the same figures to the last digit.
#[test]
fn a_checkpoint_and_its_folded_integers() {
    let dir = Dir::with_stages();
    for (scheme, phi) in [
        ("w4g8", "q"),
        ("w2g4z", "q"),
        ("w3g8", "q"),
        ("w8pc", "q"),
        ("w4pc", "int"),
        ("w3g16z", "int"),
        ("w5pcz", "int"),
        ("w4pc", "bf16"),
        ("w4g32z", "f32"),
    ] {
        let at = format!("{scheme}-{phi}");
        dir.run(&format!("ptq-init model --scheme {scheme} -o {at}/scales")).ok();
        dir.run(&format!("lr-wrap {at}/scales --rank 4 --phi {phi} -o {at}/wrapped")).ok();
        // Rates high enough that integers and scales move in a few steps.
        let recipe = "--steps 6 --batch 2 --seq 32 --lr-ab 0.3 --lr-scale 1e-3";
        dir.run(&format!("qat-step {at}/wrapped --shards shards {recipe} -o {at}/checkpoint")).ok();
        dir.run(&format!("fold {at}/checkpoint -o {at}/folded")).ok();
        dir.run(&format!("fold {at}/wrapped -o {at}/folded0")).ok();
        let pairs = format!("{at}/checkpoint {at}/folded {at}/wrapped {at}/folded0");
        for compute in ["f32", "bf16"] {
            let eval = format!("eval {pairs} --ppl text.txt --ctx 64 --reference model --json --compute {compute}");
            let all = figures(&dir.run(&eval).ok());
            assert_eq!(all[0], all[1], "{at}, {compute}: checkpoint and folded");
            assert_eq!(all[2], all[3], "{at}, {compute}: wrapped and folded");
            assert_ne!(all[0]["ppl"], all[2]["ppl"], "{at}, {compute}: training moved nothing");
        }
    }
}

/// The bytes of every stage and the report do not depend on the number of threads.
#[test]
fn any_number_of_threads() {
    let dir = Dir::with_stages();
    for compute in ["f32", "bf16"] {
        check_threads(&dir, compute);
    }
}

fn check_threads(dir: &Dir, compute: &str) {
    let one = made(dir, compute, "1", None);
    assert!(one.0.len() > 15, "{:?}", one.0.keys());
    for threads in ["2", "3"] {
        check_same(&one, &made(dir, compute, threads, None), threads);
    }
}

/// In f32 the bytes of every stage and the report do not depend on the instruction set; in bf16 they do not among those
/// without tiles.
#[cfg(target_arch = "x86_64")]
#[test]
fn any_instruction_set() {
    let dir = Dir::with_stages();
    let best = made(&dir, "f32", "2", None);
    let portable = made(&dir, "bf16", "2", Some("portable"));
    for (isa, here) in [
        ("portable", true),
        ("avx2", is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
        ("avx512", is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl")),
    ] {
        if here {
            check_same(&best, &made(&dir, "f32", "2", Some(isa)), isa);
            check_same(&portable, &made(&dir, "bf16", "2", Some(isa)), isa);
        } else {
            eprintln!("SKIPPED any_instruction_set: this machine has no {isa}");
        }
    }
}

type Made = (BTreeMap<PathBuf, Vec<u8>>, Vec<Value>);

/// All stages and their report, made with so many threads and on this instruction set.
fn made(dir: &Dir, compute: &str, threads: &str, isa: Option<&str>) -> Made {
    let run = |line: &str| {
        let mut command = dir.command(&format!("{line} --threads {threads}"));
        ended(match isa {
            Some(isa) => {
                command.env("LRQAT_CPU", isa);
                command
            }
            None => command,
        })
        .ok()
    };
    // Paths lie in the files, so every variant is made in the same place.
    let _ = std::fs::remove_dir_all(dir.join("same"));
    for line in [
        "ptq-init model --scheme w3g8z -o same/scales",
        "lr-wrap same/scales --rank 4 -o same/wrapped",
        "shard text.txt --tokenizer model -o same/shards",
        &format!(
            "qat-step same/wrapped --shards same/shards --steps 6 --stop-at 5 --batch 3 --seq 48 --lr-ab 0.1 \
             --compute {compute} -o same/half"
        ),
        "fold same/half -o same/folded",
    ] {
        run(line);
    }
    let report = run(&format!("eval same/scales same/half --ppl text.txt --ctx 64 --json --compute {compute}"));
    (dir.contents("same"), figures(&report))
}

fn check_same((files, report): &Made, (other_files, other_report): &Made, what: &str) {
    assert_eq!(files.keys().collect::<Vec<_>>(), other_files.keys().collect::<Vec<_>>());
    for (name, bytes) in files {
        assert!(*bytes == other_files[name], "{} differs: {what}", name.display());
    }
    assert_eq!(report, other_report, "{what}");
}
