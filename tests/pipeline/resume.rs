use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::tiny_llama::Random;
use crate::tools::{Dir, Ran, outcome};

const RECIPE: &str = "--batch 2 --seq 64 --lr-ab 0.03 --lr-scale 1e-4";

/// Steps in a metrics.jsonl, in order; a torn last line is left out.
fn steps(metrics: &Path) -> Vec<u64> {
    let text = fs::read_to_string(metrics).unwrap_or_default();
    let step = |line: &str| serde_json::from_str::<Value>(line).ok()?["step"].as_u64();
    text.lines().map_while(step).collect()
}

fn losses(metrics: &Path) -> Vec<f64> {
    let text = fs::read_to_string(metrics).unwrap();
    text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64().unwrap()).collect()
}

/// The step that a run said it resumed at.
fn resumed(stderr: &str) -> Option<u64> {
    let at = stderr.find("resumed at step ")? + "resumed at step ".len();
    stderr[at..].split_whitespace().next()?.parse().ok()
}

/// Every step from 1 to `n` once, and the files of an uninterrupted run.
#[track_caller]
fn same_as_uninterrupted(dir: &Dir, whole: &str, other: &str, n: u64) {
    assert_eq!(steps(&dir.join(other).join("metrics.jsonl")), (1..=n).collect::<Vec<_>>());
    let (whole, other) = (dir.contents(whole), dir.contents(other));
    assert_eq!(whole.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>(), "the same files");
    for (name, bytes) in whole {
        assert!(bytes == other[&name], "{} differs", name.display());
    }
}

/// Killed after random times until it gets to its end: what is saved is whole at any moment.
#[test]
fn killed_at_any_moment() {
    let dir = Dir::with_stages();
    let line = format!("qat-step wrapped --shards shards --steps 60 --save-every 2 {RECIPE} -o");
    let begun = Instant::now();
    dir.run(&format!("{line} whole")).ok();
    let whole = begun.elapsed().as_micros() as u64;
    let mut random = Random(std::process::id() as u64);
    let (mut kills, mut resumes) = (0, 0);
    // Short lives first: kills while it starts, writes its first save, and so on; then longer ones, so that it ends.
    loop {
        let done = steps(&dir.join("killed.part/metrics.jsonl")).len() as u64;
        let mut child = dir.start(&format!("{line} killed"));
        let life = Duration::from_micros(random.below(whole / 6 + kills * whole / 40));
        if !ends_within(&mut child, life) {
            child.kill().unwrap();
            kills += 1;
        }
        let ran = outcome(child);
        if let Some(step) = resumed(&ran.stderr) {
            assert!(step <= done && done - step <= 2, "resumed at {step}, {done} steps were done");
            resumes += 1;
        }
        match dir.join("killed").exists() {
            true if kills > 1 && resumes > 0 => break,
            // The machine was faster than just now: once more.
            true => fs::remove_dir_all(dir.join("killed")).unwrap(),
            false => assert!(ran.status.is_none() || ran.status == Some(0), "{:?}: {}", ran.status, ran.stderr),
        }
        assert!(kills < 200, "it never ends");
    }
    assert_eq!(dir.run(&format!("{line} killed")).ok(), "killed\n");
    assert!(!dir.join("killed.part").exists());
    same_as_uninterrupted(&dir, "whole", "killed", 60);
}

fn ends_within(child: &mut Child, life: Duration) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < life {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    child.try_wait().unwrap().is_some()
}

/// A save, and a checkpoint, made in bf16 are gone on from to the bit, on any number of threads; on another compute path
/// not to the bit, and it is said.
#[test]
fn stopped_in_bf16() {
    let dir = Dir::with_stages();
    let line = format!("qat-step wrapped --shards shards --steps 5 {RECIPE}");
    dir.run(&format!("{line} --compute bf16 --threads 3 -o whole")).ok();
    let trained = |name: &str| fs::read(dir.join(name).join("trained.safetensors")).unwrap();
    for (begun, on) in [("bf16", "bf16"), ("bf16", "f32"), ("f32", "bf16")] {
        let at = format!("{begun}-{on}");
        dir.run(&format!("{line} --compute {begun} -o {at} --time-limit 0s")).fails(75);
        dir.run(&format!("{line} --compute {begun} -o {at}-half --stop-at 2")).ok();
        for (going_on, to) in [(line.as_str(), at.clone()), (&format!("qat-step {at}-half"), format!("{at}-end"))] {
            let ran = dir.run(&format!("{going_on} --compute {on} --threads 1 -o {to}"));
            let said =
                ran.stderr.contains(&format!("saved on cpu-{begun}")) && ran.stderr.contains("not the same bytes");
            assert_eq!(said, begun != on, "{}", ran.stderr);
            ran.ok();
            assert_eq!(trained(&to) == trained("whole"), begun == on, "{to}");
        }
    }
}

/// Killed between two of the last writes, as a copy of the unfinished directory in each such state shows.
#[test]
fn killed_between_the_last_writes() {
    let dir = Dir::with_stages();
    let line = format!("qat-step wrapped --shards shards --steps 5 --save-every 2 {RECIPE} -o");
    dir.run(&format!("{line} whole")).ok();
    let ran = dir.run(&format!("{line} x --time-limit 0s")).fails(75);
    assert!(ran.contains("stopped at step 1"), "{ran}");
    let part = dir.join("x.part");
    let saved = dir.contents("x.part");
    type Edit = fn(&Path);
    let states: [(&str, Edit); 5] = [
        ("a save begun", |part| {
            fs::create_dir(part.join("saving")).unwrap();
            fs::write(part.join("saving/trained.safetensors"), "torn").unwrap();
        }),
        ("final files begun", |part| {
            fs::write(part.join("trained.safetensors"), "torn").unwrap();
            fs::write(part.join("optimizer.safetensors"), "of a job that stopped earlier").unwrap();
        }),
        ("a torn line of the log", |part| {
            let log = fs::read_to_string(part.join("metrics.jsonl")).unwrap();
            fs::write(part.join("metrics.jsonl"), format!("{log}{}", &log[..20])).unwrap();
        }),
        ("the lock of a dead process", |part| fs::write(part.join(".lock"), "").unwrap()),
        ("no log", |part| fs::remove_file(part.join("metrics.jsonl")).unwrap()),
    ];
    for (state, edit) in states {
        let _ = fs::remove_dir_all(&part);
        let _ = fs::remove_dir_all(dir.join("x"));
        for (name, bytes) in &saved {
            fs::create_dir_all(part.join(name).parent().unwrap()).unwrap();
            fs::write(part.join(name), bytes).unwrap();
        }
        let log = r#"{"step":1,"loss":5.0,"grad_norm":1.0,"lr_ab":0.0,"lr_scale":0.0,"tokens_per_s":1.0,"peak_rss":1}"#;
        fs::write(part.join("metrics.jsonl"), format!("{log}\n")).unwrap();
        edit(&part);
        let ran = dir.run(&format!("{line} x"));
        assert_eq!(resumed(&ran.stderr), Some(1), "{state}: {}", ran.stderr);
        ran.ok();
        let (whole, x) = (dir.contents("whole"), dir.contents("x"));
        assert!(whole == x, "{state}: {:?} and {:?}", whole.keys(), x.keys());
    }
}

/// All files written and only the rename left: it becomes the checkpoint that was asked for, not another one.
#[test]
fn killed_before_the_rename() {
    let dir = Dir::with_stages();
    let line = format!("qat-step wrapped --shards shards --save-every 2 {RECIPE}");
    dir.run(&format!("{line} --steps 5 -o x")).ok();
    dir.run(&format!("{line} --steps 4 -o other")).ok();
    let (five, four) = (dir.contents("x"), dir.contents("other"));
    let unnamed = || {
        fs::rename(dir.join("x"), dir.join("x.part")).unwrap();
        fs::write(dir.join("x.part/.lock"), "").unwrap();
    };
    unnamed();
    dir.run(&format!("{line} --steps 5 -o x")).ok();
    assert!(dir.contents("x") == five);
    unnamed();
    let e = dir.run("fold wrapped -o x").fails(1);
    assert!(e.contains("x.part: a training that was stopped") && e.contains("--force"), "{e}");
    let e = dir.run(&format!("{line} --steps 4 -o x")).fails(2);
    assert!(e.contains("x.part: ") && e.contains("--force"), "{e}");
    dir.run(&format!("{line} --steps 4 -o x --force")).ok();
    assert!(dir.contents("x") == four);
}

/// Another tool with the same -o leaves the saves of a training that was stopped, and nobody's .part is removed.
#[test]
fn a_stopped_training_stands_in_the_way() {
    let dir = Dir::with_stages();
    let line = format!("qat-step wrapped --shards shards --save-every 2 {RECIPE} --steps 5 -o x");
    signalled(&dir, &line, "x.part", "TERM");
    let saved = dir.contents("x.part");
    assert!(saved.keys().any(|name| name.to_string_lossy().starts_with("step-")), "{saved:?}");
    for other in ["ptq-init model --scheme w4g16", "lr-wrap scales --rank 2", "fold wrapped"] {
        let e = dir.run(&format!("{other} -o x")).fails(1);
        assert!(e.contains("x.part: a training that was stopped") && e.contains("--force"), "{e}");
        assert!(dir.contents("x.part") == saved, "{other}");
    }
    dir.run("ptq-init model --scheme w4g16 -o x --force").ok();
    assert!(dir.join("x/stage.json").is_file() && !dir.join("x.part").exists());
    fs::create_dir(dir.join("y.part")).unwrap();
    fs::write(dir.join("y.part/mine"), "mine").unwrap();
    for force in ["", " --force"] {
        let e = dir.run(&format!("ptq-init model --scheme w4g16 -o y{force}")).fails(1);
        assert!(e.contains("y.part: it is in the way, and not of lrqat"), "{e}");
        assert_eq!(fs::read_to_string(dir.join("y.part/mine")).unwrap(), "mine");
    }
}

/// Waits for the first step of a run, then sends it a signal.
fn signalled(dir: &Dir, line: &str, part: &str, signal: &str) -> Ran {
    let child = dir.start(line);
    let metrics = dir.join(part).join("metrics.jsonl");
    let begun = Instant::now();
    while steps(&metrics).is_empty() && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
    dir.shell(&format!("kill -{signal} {}", child.id())).ok();
    outcome(child)
}

#[test]
fn signals_end_a_run_in_order() {
    let dir = Dir::with_stages();
    let line = format!("qat-step wrapped --shards shards --steps 300 --stop-at 150 {RECIPE} -o");
    dir.run(&format!("{line} whole")).ok();
    for signal in ["TERM", "USR1", "INT"] {
        let _ = fs::remove_dir_all(dir.join("x"));
        let stderr = signalled(&dir, &format!("{line} x"), "x.part", signal).fails(75);
        let last = steps(&dir.join("x.part/metrics.jsonl")).len();
        let says = format!("x.part: stopped at step {last}: ");
        assert!(stderr.contains(&says) && stderr.contains("same command again"), "{signal}: {stderr}");
        assert!(!dir.join("x").exists());
        let ran = dir.run(&format!("{line} x"));
        assert_eq!(resumed(&ran.stderr), Some(last as u64), "no step is repeated");
        ran.ok();
        same_as_uninterrupted(&dir, "whole", "x", 150);
    }
}

/// The same command until it is done, each time stopped by the time limit after one step.
#[test]
fn a_time_limit_ends_a_run_in_order() {
    let dir = Dir::with_stages();
    let line = format!("qat-step wrapped --shards shards --steps 5 {RECIPE} -o");
    dir.run(&format!("{line} whole")).ok();
    for step in 1..5 {
        let e = dir.run(&format!("{line} x --time-limit 1ms")).fails(75);
        assert!(e.contains(&format!("stopped at step {step}: the time limit")), "{e}");
    }
    dir.run(&format!("{line} x --time-limit 1ms")).ok();
    same_as_uninterrupted(&dir, "whole", "x", 5);
    let begun = Instant::now();
    let line = format!("qat-step wrapped --shards shards --steps 1000000 {RECIPE} -o long --time-limit 1s");
    dir.run(&line).fails(75);
    assert!((Duration::from_secs(1)..Duration::from_secs(30)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

/// Moments in bf16 take half the memory, go on to the bit, and stay what they were begun as.
#[test]
fn moments_in_bf16() {
    let dir = Dir::with_stages();
    let line = format!("qat-step wrapped --shards shards --steps 6 {RECIPE} -o");
    dir.run(&format!("{line} wide")).ok();
    dir.run(&format!("{line} whole --moments bf16")).ok();
    dir.run(&format!("{line} begun --moments bf16 --stop-at 3")).ok();
    dir.run("qat-step begun -o end").ok();
    let trained = |name: &str| fs::read(dir.join(name).join("trained.safetensors")).unwrap();
    assert!(trained("whole") == trained("end"));
    assert!(trained("whole") != trained("wide"));
    let close = losses(&dir.join("wide/metrics.jsonl")).into_iter().zip(losses(&dir.join("whole/metrics.jsonl")));
    for (wide, narrow) in close {
        assert!((wide - narrow).abs() < 1e-3 * wide, "{wide} {narrow}");
    }
    let e = dir.run("qat-step begun --moments f32 -o other").fails(2);
    assert!(e.contains("with --moments f32, expected --moments bf16"), "{e}");
    let adam = |flags: &str| -> u64 {
        let plan = dir.run(&format!("qat-step wrapped --plan --json {flags}")).ok();
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        let rows = plan["plan"].as_array().unwrap();
        rows.iter().find(|row| row["what"] == "Adam").unwrap()["bytes"].as_u64().unwrap()
    };
    assert_eq!(adam(""), 2 * adam("--moments bf16"));
}

#[test]
fn a_stopped_checkpoint_goes_on_to_the_bit() {
    let dir = Dir::with_stages();
    let line = format!("qat-step wrapped --shards shards --steps 6 {RECIPE} -o");
    dir.run(&format!("{line} whole")).ok();
    dir.run(&format!("{line} a --stop-at 2")).ok();
    dir.run("qat-step a -o b --stop-at 5").ok();
    dir.run("qat-step b --shards shards --steps 6 -o c").ok();
    let trained = |name: &str| fs::read(dir.join(name).join("trained.safetensors")).unwrap();
    assert!(trained("whole") == trained("c"));
    assert!(dir.join("b/optimizer.safetensors").is_file() && !dir.join("c/optimizer.safetensors").exists());
    assert_eq!(steps(&dir.join("b/metrics.jsonl")), [1, 2, 3, 4, 5]);
    assert_eq!(losses(&dir.join("b/metrics.jsonl")), losses(&dir.join("whole/metrics.jsonl"))[..5]);
    // A checkpoint in the middle of its schedule goes on as it was begun, or not at all.
    for (other, names) in [
        ("--steps 7", "--steps 6"),
        ("--lr-ab 0.5", "--lr-ab 0.03"),
        ("--seq 32", "--seq 64"),
        ("--seed 1", "--seed 0"),
        ("--stop-at 2", "--stop-at 2"),
    ] {
        let e = dir.run(&format!("qat-step a {other} -o d")).fails(2);
        assert!(e.contains(names), "{other}: {e}");
    }
    // From one at its end a new schedule begins, with fresh moments and any recipe.
    dir.run("qat-step c --steps 2 --seq 16 -o again").ok();
    assert_eq!(steps(&dir.join("again/metrics.jsonl")), [1, 2]);
    assert!(trained("again") != trained("c"));
}

/// The shards may move once they are given again.
#[test]
fn shards_that_moved_are_given_again() {
    let dir = Dir::with_stages();
    fs::rename(dir.join("shards"), dir.join("moved")).unwrap();
    let e = dir.run("qat-step half -o x").fails(1);
    assert!(e.contains("half: its shards") && e.contains("is gone"), "{e}");
    dir.run("qat-step half --shards moved -o x").ok();
    dir.run("qat-step checkpoint --shards moved --steps 2 --seq 16 -o y").ok();
}

/// Two micro-batches of 2 see the samples of one batch of 4, so their mean gradients agree but for rounding.
#[test]
fn accumulation_equals_a_larger_batch() {
    let dir = Dir::with_stages();
    let line = "qat-step wrapped --shards shards --steps 8 --seq 32 --lr-ab 1e-3 --compute f32";
    dir.run(&format!("{line} --batch 4 -o whole")).ok();
    dir.run(&format!("{line} --batch 2 --accum 2 -o parts")).ok();
    let (a, b) = (losses(&dir.join("whole/metrics.jsonl")), losses(&dir.join("parts/metrics.jsonl")));
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
    assert_eq!(a.len(), 8);
}

/// --force starts over what was finished, and a forced run that was stopped goes on as any other.
#[test]
fn a_forced_run_goes_on_too() {
    let dir = Dir::with_stages();
    let line = format!("qat-step wrapped --shards shards --steps 4 {RECIPE} -o");
    dir.run(&format!("{line} whole")).ok();
    dir.run(&format!("{line} x --seed 5")).ok();
    dir.run(&format!("{line} x --force --time-limit 1ms")).fails(75);
    let e = dir.run(&format!("{line} x --force --time-limit 1ms")).fails(75);
    assert!(e.contains("resumed at step 1") && e.contains("stopped at step 2"), "{e}");
    dir.run(&format!("{line} x --force")).ok();
    same_as_uninterrupted(&dir, "whole", "x", 4);
}
