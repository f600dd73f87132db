use std::fs;

use serde_json::Value;

use crate::tools::Dir;

const RECIPE: &str = "--batch 2 --seq 32 --lr-ab 0.03 --lr-scale 1e-4";

fn metrics(dir: &Dir, checkpoint: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.join(checkpoint).join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn column(dir: &Dir, checkpoint: &str, name: &str) -> Vec<f64> {
    metrics(dir, checkpoint).iter().map(|m| m[name].as_f64().unwrap_or_else(|| panic!("no {name} in {m}"))).collect()
}

fn trained(dir: &Dir, checkpoint: &str) -> Vec<u8> {
    fs::read(dir.join(checkpoint).join("trained.safetensors")).unwrap()
}

fn divergence(dir: &Dir, artefact: &str) -> f64 {
    let report = dir.run(&format!("eval {artefact} --ppl text.txt --ctx 64 --reference model --json")).ok();
    let report: Value = serde_json::from_str(&report).unwrap();
    report["artefacts"][0]["ppl"]["text.txt"]["kl"].as_f64().unwrap()
}

#[test]
fn a_teacher_brings_the_model_closer() {
    let dir = Dir::with_stages();
    dir.run("ptq-init model --scheme w2g8 -o coarse/scales").ok();
    dir.run("lr-wrap coarse/scales --rank 16 -o coarse/wrapped").ok();
    let line = "qat-step coarse/wrapped --shards shards --steps 80 --batch 4 --seq 32 --lr-ab 0.1";
    dir.run(&format!("{line} --loss kl --teacher model -o taught")).ok();
    let (before, after) = (divergence(&dir, "coarse/wrapped"), divergence(&dir, "taught"));
    assert!(after < 0.85 * before, "{before} {after}");
    assert_eq!(column(&dir, "taught", "loss"), column(&dir, "taught", "kl"));
    assert!(column(&dir, "taught", "ce")[0] > 0.0);
}

/// The loss of a step is its weighted terms; INT2.1's weighting sums the divergence over a sequence.
#[test]
fn both_terms_are_weighted() {
    let dir = Dir::with_stages();
    let line = format!("qat-step wrapped --shards shards --steps 1 {RECIPE} --teacher scales");
    for (name, flags, ce, kl) in [
        ("a", "--loss kl", 0.0, 1.0),
        ("b", "--kl-weight 0.5 --ce-weight 0.25", 0.25, 0.5),
        ("c", "--loss kl --ce-weight 120 --loss-norm paper", 120.0, 31.0),
        // INT2.1 at 2 bits: 120 to the sum over 2048 positions.
        ("d", "--loss lrec", 120.0 / 2048.0, 1.0),
        ("e", "--loss lrec --loss-norm paper", 120.0, 31.0),
    ] {
        dir.run(&format!("{line} {flags} -o {name}")).ok();
        let m = &metrics(&dir, name)[0];
        let expected = ce * m["ce"].as_f64().unwrap() + kl * m["kl"].as_f64().unwrap();
        assert!((m["loss"].as_f64().unwrap() - expected).abs() < 1e-9 * expected.abs(), "{m}");
    }
    dir.run(&format!("qat-step wrapped --shards shards --steps 1 {RECIPE} -o plain")).ok();
    let (alone, beside) = (column(&dir, "plain", "loss")[0], column(&dir, "a", "ce")[0]);
    assert!((alone - beside).abs() < 1e-6, "the same tokens: {alone} {beside}");
    assert!(metrics(&dir, "plain")[0]["kl"].is_null());
}

/// What `eval --reference` takes: and from its own integers a model has nothing to learn.
#[test]
fn every_artefact_can_teach() {
    let dir = Dir::with_stages();
    for teacher in ["model", "scales", "wrapped", "half", "checkpoint", "folded"] {
        let line = format!("qat-step wrapped --shards shards --steps 1 {RECIPE} --loss kl --teacher {teacher}");
        dir.run(&format!("{line} -o of-{teacher}")).ok();
        let kl = column(&dir, &format!("of-{teacher}"), "kl")[0];
        assert!(if teacher == "wrapped" { kl.abs() < 1e-6 } else { kl > 1e-4 }, "{teacher}: {kl}");
    }
    // One of other widths too.
    crate::tiny_llama::write_of(&dir.join("wide"), &crate::tiny_llama::WIDE);
    let line = format!("qat-step wrapped --shards shards --steps 1 --accum 2 {RECIPE} --loss kl --teacher wide");
    dir.run(&format!("{line} -o of-wide")).ok();
    assert!(column(&dir, "of-wide", "kl")[0] > 0.1);
}

#[test]
fn micro_batches_of_one_reading() {
    let dir = Dir::with_stages();
    let line =
        "qat-step wrapped --shards shards --steps 6 --seq 32 --lr-ab 1e-3 --compute f32 --loss kl --teacher model";
    dir.run(&format!("{line} --batch 4 -o whole")).ok();
    dir.run(&format!("{line} --batch 1 --accum 4 -o parts")).ok();
    for (a, b) in column(&dir, "whole", "kl").into_iter().zip(column(&dir, "parts", "kl")) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
}

/// On shards with answers the live teacher reads the same windows, so all of its answers teach the same, but for their
/// rounding.
#[test]
fn answers_from_a_file_teach_the_same() {
    let dir = Dir::with_stages();
    let train = "qat-step wrapped --steps 4 --batch 3 --accum 2 --seq 32 --lr-ab 0.01 --loss kl";
    answer(&dir, "all", 2 * crate::tiny_llama::VOCAB);
    dir.run(&format!("{train} --shards of-all -o stored")).ok();
    dir.run(&format!("{train} --shards of-all --teacher model -o live")).ok();
    let (live, stored) = (column(&dir, "live", "kl"), column(&dir, "stored", "kl"));
    assert!(off(&live[0], &stored[0]) < 1e-3, "{live:?} {stored:?}");
    // A weight that is rounded the other way, and the runs part a little.
    assert!(live.iter().zip(&stored).all(|(a, b)| off(a, b) < 1e-2), "{live:?} {stored:?}");
}

/// Some of its answers say on average what all of them say.
#[test]
fn drawn_answers_teach_the_same_on_average() {
    let dir = Dir::with_stages();
    dir.run("ptq-init model --scheme w2g8 -o coarse/scales").ok();
    dir.run("lr-wrap coarse/scales --rank 16 -o coarse/wrapped").ok();
    let train = "qat-step coarse/wrapped --steps 1 --batch 32 --accum 4 --seq 32 --loss kl";
    for (top, bytes, limit) in [("16", 66, 0.06), ("64", 258, 0.03), ("200", 802, 0.02)] {
        let of = answer(&dir, top, bytes);
        dir.run(&format!("{train} --shards {of} -o stored-{top}")).ok();
        dir.run(&format!("{train} --shards {of} --teacher model -o live-{top}")).ok();
        let [live, stored] = ["live", "stored"].map(|name| column(&dir, &format!("{name}-{top}"), "kl")[0]);
        assert!(off(&live, &stored) < limit, "{top}: {live} {stored}");
    }
}

/// The draws depend on the seed and the place in the text, not on threads.
#[test]
fn draws_can_be_repeated() {
    let dir = Dir::with_stages();
    let bytes = |flags: &str, name: &str| {
        let line = "shard text.txt --tokenizer model --teacher model --top-k 8 --seq 32";
        dir.run(&format!("{line} {flags} -o {name}")).ok();
        fs::read(dir.join(name).join("answers-00000.safetensors")).unwrap()
    };
    let first = bytes("--threads 1", "a");
    assert!(first == bytes("--threads 3 --seed 0", "b"));
    assert!(first != bytes("--seed 1", "c"));
    // A record: 8 log-probabilities, the mass of the others, 8 ids. Those that are kept are the same.
    let (other, words) = (bytes("--seed 2", "d"), 17 * 2);
    let records = first[first.len() % words..].chunks(words).zip(other[other.len() % words..].chunks(words));
    let kept = |record: &[u8]| record.chunks(2).take(8).filter(|log_p| log_p[1] & 0x80 != 0).count();
    let mut different = 0;
    for (a, b) in records {
        assert_eq!(kept(a), kept(b));
        assert!(a[..2 * kept(a)] == b[..2 * kept(a)] && a[16..18] == b[16..18]);
        different += usize::from(a != b);
    }
    assert!(different > 0);
}

fn answer(dir: &Dir, top: &str, bytes: usize) -> String {
    let ran = dir.run(&format!("shard text.txt --tokenizer model --teacher model --top-k {top} --seq 32 -o of-{top}"));
    assert!(ran.stderr.contains(&format!("answers of {bytes} bytes per token")), "{}", ran.stderr);
    ran.ok();
    format!("of-{top}")
}

fn off(a: &f64, b: &f64) -> f64 {
    (b / a - 1.0).abs()
}

/// Wherever a window lies, its answers are those to its own tokens: from its own a model has nothing to learn.
#[test]
fn windows_have_their_own_answers() {
    let dir = Dir::with_stages();
    dir.run("shard text.txt --tokenizer model --teacher wrapped --top-k all --seq 32 -o own").ok();
    let line = "qat-step wrapped --shards own --steps 1 --batch 16 --accum 2 --seq 32 --loss kl -o out";
    dir.run(line).ok();
    let kl = column(&dir, "out", "kl")[0];
    assert!(kl.abs() < 1e-4, "{kl}");
}

#[test]
fn shards_with_answers_are_told_apart() {
    let dir = Dir::with_stages();
    let plain = "shard text.txt --tokenizer model";
    let taught = format!("{plain} --teacher model --top-k 8 --seq 32");
    dir.run(&format!("{taught} -o answered")).ok();
    assert_eq!(dir.run(&format!("{taught} -o answered")).ok(), "answered\n");
    for other in
        [plain.to_string(), taught.replace("--top-k 8", "--top-k 9"), taught.replace("r model --t", "r folded --t")]
    {
        let e = dir.run(&format!("{other} -o answered")).fails(2);
        assert!(e.contains("answered: it exists") && e.contains("--force"), "{e}");
    }
    let version = |name: &str| {
        let stage: Value = serde_json::from_slice(&fs::read(dir.join(name).join("stage.json")).unwrap()).unwrap();
        stage["format_version"].as_u64().unwrap()
    };
    assert_eq!((version("shards"), version("answered")), (1, 3));
    // Tokens are the same, so cross entropy trains the same on both; windows of any length can be drawn.
    let train = "qat-step wrapped --steps 2 --batch 2 --seq 48";
    dir.run(&format!("{train} --shards shards -o a")).ok();
    dir.run(&format!("{train} --shards answered -o b")).ok();
    assert!(trained(&dir, "a") == trained(&dir, "b"));
    dir.run(&format!("{train} --shards answered --loss kl --teacher model -o c")).ok();
    assert_eq!((version("a"), version("c")), (1, 2));
    dir.run("qat-step wrapped --steps 2 --shards answered --seq 32 --loss kl --verify -o d").ok();
}

/// To the bit, whether the job was stopped, or saved, by whichever teacher.
#[test]
fn what_was_stopped_goes_on() {
    let dir = Dir::with_stages();
    dir.run("shard text.txt --tokenizer model --teacher model --top-k 8 --seq 32 -o answered").ok();
    for (name, flags) in [("live", "--shards shards --teacher model"), ("stored", "--shards answered")] {
        let line = format!("qat-step wrapped --steps 5 --accum 2 --loss kl --ce-weight 0.1 {RECIPE} {flags}");
        dir.run(&format!("{line} --threads 3 -o {name}")).ok();
        dir.run(&format!("{line} -o {name}-half --stop-at 2")).ok();
        dir.run(&format!("qat-step {name}-half --threads 1 -o {name}-end")).ok();
        dir.run(&format!("{line} -o {name}-part --time-limit 0s")).fails(75);
        dir.run(&format!("{line} -o {name}-part")).ok();
        for other in ["end", "part"] {
            assert!(trained(&dir, name) == trained(&dir, &format!("{name}-{other}")), "{name}-{other}");
        }
        let losses = column(&dir, name, "loss");
        assert_eq!(column(&dir, &format!("{name}-end"), "loss"), losses);
        // Neither another teacher, nor another loss.
        for (other, says) in [
            ("--teacher folded", "was begun with another teacher"),
            ("--loss ce", "at step 2 of a schedule with --kl-weight"),
            ("--ce-weight 0.2", "--ce-weight 0.1"),
            ("--loss-norm paper", "--loss-norm token"),
        ] {
            let e = dir.run(&format!("qat-step {name}-half {other} -o x")).fails(2);
            assert!(e.contains(says), "{other}: {e}");
        }
    }
    let line = format!("qat-step wrapped --shards shards --steps 5 --loss kl {RECIPE}");
    dir.run(&format!("{line} --teacher model -o x --time-limit 0s")).fails(75);
    let e = dir.run(&format!("{line} --teacher folded -o x")).fails(2);
    assert!(e.contains("x.part: an unfinished run with another recipe or other inputs"), "{e}");
    let e = dir.run("qat-step stored-half --teacher model -o y").fails(2);
    assert!(e.contains("was begun with another teacher"), "{e}");
}

#[test]
fn the_plan_counts_a_teacher() {
    let dir = Dir::with_stages();
    dir.run("shard text.txt --tokenizer model --teacher model --top-k 8 --seq 32 -o answered").ok();
    let rows = |flags: &str| {
        let line = format!("qat-step wrapped --plan --json --batch 2 --accum 3 --seq 32 {flags}");
        let plan: Value = serde_json::from_str(&dir.run(&line).ok()).unwrap();
        plan["plan"].as_array().unwrap().clone()
    };
    let bytes =
        |rows: &[Value], what: &str| rows.iter().find(|r| r["what"] == what).map(|r| r["bytes"].as_u64().unwrap());
    let (plain, live, stored) = (rows(""), rows("--loss kl --teacher model"), rows("--loss kl --shards answered"));
    assert_eq!(bytes(&plain, "teacher"), None);
    // One block of it in bf16, and embedding, head and norms.
    let shapes = [(32, 32), (16, 32), (16, 32), (32, 32), (64, 32), (64, 32), (32, 64)];
    let block: usize = shapes.iter().map(|(n, k)| 2 * n * k).sum();
    let floats = bytes(&plain, "frozen floats").unwrap();
    assert_eq!(bytes(&live, "teacher"), Some(block as u64 + floats));
    assert!(bytes(&live, "its states").unwrap() > 4 * 3 * 2 * 32 * 32);
    assert_eq!(bytes(&live, "logits").map(|b| b / 2), bytes(&plain, "logits"));
    assert_eq!(bytes(&stored, "answers"), Some(3 * 2 * 32 * 34));
    assert_eq!(bytes(&stored, "logits"), bytes(&plain, "logits"));
}
