use serde_json::Value;

use crate::tools::Dir;

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
    let make = |threads: usize| {
        let at = format!("{compute}-{threads}");
        let train = "qat-step AT/wrapped --shards AT/shards --steps 6 --stop-at 5 --batch 3 --seq 48 --lr-ab 0.1";
        for line in [
            "ptq-init model --scheme w3g8z -o AT/scales",
            "lr-wrap AT/scales --rank 4 -o AT/wrapped",
            "shard text.txt --tokenizer model -o AT/shards",
            &format!("{train} --compute {compute} -o AT/half"),
            "fold AT/half -o AT/folded",
        ] {
            dir.run(&format!("{} --threads {threads}", line.replace("AT", &at))).ok();
        }
        let eval = format!(
            "eval {at}/scales {at}/half --ppl text.txt --ctx 64 --json --compute {compute} --threads {threads}"
        );
        (dir.contents(&at), figures(&dir.run(&eval).ok()))
    };
    let (files, report) = make(1);
    assert!(files.len() > 15, "{:?}", files.keys());
    for threads in [2, 3] {
        let (other_files, other_report) = make(threads);
        assert_eq!(files.keys().collect::<Vec<_>>(), other_files.keys().collect::<Vec<_>>());
        for (name, bytes) in &files {
            assert!(*bytes == other_files[name], "{} differs with {threads} threads", name.display());
        }
        assert_eq!(report, other_report, "{threads} threads");
    }
}
