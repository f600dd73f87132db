use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use crate::tiny_llama;
use crate::tools::Dir;

const CHAIN: &str = "\"$PTQ_INIT\" model/ --scheme w4g8 -o run/scales | \"$LR_WRAP\" - --rank 4 -o run/wrapped \
    | \"$QAT_STEP\" - --shards data/ --steps 3 --batch 2 --seq 32 -o run/ckpt \
    | \"$FOLD\" - --format compressed-tensors -o run/folded | \"$EVAL\" - --ppl text.txt --ctx 64";

/// Names, inodes and times of the files of the run: they tell whether anything was written again.
fn stamps(dir: &Dir) -> Vec<(String, u64, i64, i64)> {
    let files = crate::tools::walk(&dir.join("run")).into_iter();
    let stamp = files.map(|p| {
        let m = fs::metadata(&p).unwrap();
        (p.display().to_string(), m.ino(), m.mtime(), m.mtime_nsec())
    });
    stamp.collect()
}

#[test]
fn all_stages_through_pipes_and_again() {
    let dir = Dir::new();
    tiny_llama::write(&dir.join("model"));
    fs::write(dir.join("text.txt"), tiny_llama::text(6000)).unwrap();
    assert_eq!(dir.run("shard text.txt --tokenizer model -o data").ok(), "data\n");
    let table = dir.shell(CHAIN).ok();
    assert!(table.contains("run/folded") && table.contains("w4g8"), "{table}");
    let made = stamps(&dir);
    for stage in ["scales", "wrapped", "ckpt", "folded"] {
        assert!(dir.join("run").join(stage).join("stage.json").is_file(), "{stage}");
        assert!(!dir.join("run").join(format!("{stage}.part")).exists());
    }
    assert_eq!(dir.shell(CHAIN).ok(), table, "typed again");
    assert_eq!(stamps(&dir), made, "nothing is written again");
    assert_eq!(dir.run("shard text.txt --tokenizer model -o data").ok(), "data\n");
    assert_eq!(dir.run("ptq-init model --scheme w4g8 -o run/scales --json").ok(), "{\"path\":\"run/scales\"}\n");
}

/// The first stage fails; each one after it says so in one line, and nothing is made.
#[test]
fn a_pipe_ends_with_its_first_error() {
    let dir = Dir::new();
    let ran =
        dir.shell("\"$PTQ_INIT\" nowhere --scheme w4pc -o scales | \"$LR_WRAP\" - -o wrapped | \"$FOLD\" - -o folded");
    let errors: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!((ran.status, errors.len()), (Some(1), 3), "{}", ran.stderr);
    assert!(ran.stderr.contains("ptq-init: nowhere: does not exist"), "{}", ran.stderr);
    assert!(ran.stderr.contains("fold: standard input: no path"), "{}", ran.stderr);
    assert!(dir.listing().is_empty());
}

#[test]
fn other_arguments_need_force() {
    let dir = Dir::with_stages();
    for (line, names, same) in [
        ("ptq-init model --scheme w3g8 -o scales", "scheme \"w4g8\"", "ptq-init model --scheme w4g8 -o scales"),
        ("ptq-init model --scheme w4g8 --fit minmax -o scales", "fit \"lp:3\"", ""),
        ("lr-wrap scales --rank 8 -o wrapped", "rank 4", "lr-wrap scales --rank 4 -o wrapped"),
        ("qat-step wrapped --shards shards --steps 9 --batch 2 --seq 32 -o checkpoint", "steps 4", ""),
        ("fold half -o folded", "another checkpoint", "fold checkpoint -o folded"),
        ("fold checkpoint -o wrapped", "a \"wrapped\" directory", ""),
    ] {
        let before = dir.listing();
        let e = dir.run(line).fails(2);
        assert!(e.contains(names) && e.contains("--force"), "{line}: {e}");
        assert_eq!(dir.listing(), before, "{line}");
        if !same.is_empty() {
            dir.run(same).ok();
        }
    }
    let before = dir.contents("scales");
    dir.run("ptq-init model --scheme w3g8 -o scales --force").ok();
    assert_ne!(dir.contents("scales"), before);
    assert!(fs::read_to_string(dir.join("scales/stage.json")).unwrap().contains("w3g8"));
    let left: Vec<_> = dir.listing().into_iter().filter(|p| p.parent() == Some(dir.path())).collect();
    assert_eq!(left.len(), 8, "nothing beside the stages: {left:?}");
}

/// The schema of the design, every number there and finite.
#[test]
fn eval_reports_as_json() {
    let dir = Dir::with_stages();
    let line =
        "eval model scales wrapped half checkpoint folded --ppl text.txt --ctx 64 --max-blocks 5 --reference model";
    let report: Value = serde_json::from_str(&dir.run(&format!("{line} --json")).ok()).unwrap();
    let artefacts = report["artefacts"].as_array().unwrap();
    let kinds: Vec<&str> = artefacts.iter().map(|a| a["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["model", "scales", "wrapped", "checkpoint", "checkpoint", "folded"]);
    for (a, path) in artefacts.iter().zip(["model", "scales", "wrapped", "half", "checkpoint", "folded"]) {
        assert_eq!(a["path"], path);
        assert_eq!(a["scheme"], if path == "model" { Value::Null } else { "w4g8".into() });
        let p = &a["ppl"]["text.txt"];
        assert_eq!((p["ctx"].as_u64(), p["blocks"].as_u64(), p["tokens"].as_u64()), (Some(64), Some(5), Some(5 * 63)));
        assert_eq!(p["bos"], false);
        let (ppl, nll) = (p["ppl"].as_f64().unwrap(), p["nll"].as_f64().unwrap());
        assert!((ppl.ln() - nll).abs() < 1e-9 && ppl < 10.0 * tiny_llama::VOCAB as f64, "{p}");
        assert!(p["kl"].as_f64().unwrap() >= 0.0 && (0.0..=1.0).contains(&p["top1"].as_f64().unwrap()), "{p}");
        assert!(a["tasks"].is_object());
    }
    let own = &artefacts[0]["ppl"]["text.txt"];
    assert_eq!((own["kl"].as_f64(), own["top1"].as_f64()), (Some(0.0), Some(1.0)), "a model beside itself");
    let table = dir.run(line).ok();
    assert!(kinds.iter().all(|k| table.contains(k)), "{table}");
}

#[test]
fn eval_checks_a_limit() {
    let dir = Dir::with_stages();
    let ran = dir.run("eval folded --ppl text.txt --ctx 64 --max-ppl 1.5");
    assert_eq!(ran.status, Some(3), "{}", ran.stderr);
    assert!(ran.stdout.contains("folded"), "the report is printed all the same");
    assert!(
        ran.stderr.starts_with("eval: folded: perplexity ") && ran.stderr.contains("at most 1.5"),
        "{}",
        ran.stderr
    );
    dir.run("eval folded --ppl text.txt --ctx 64 --max-ppl 1e9").ok();
    let ppl = |line: &str| -> f64 {
        let report: Value = serde_json::from_str(&dir.run(line).ok()).unwrap();
        report["artefacts"][0]["ppl"]["text.txt"]["ppl"].as_f64().unwrap()
    };
    dir.run("ptq-init model --scheme w2pc --fit minmax -o rough").ok();
    let (model, rough) =
        (ppl("eval model --ppl text.txt --ctx 64 --json"), ppl("eval rough --ppl text.txt --ctx 64 --json"));
    let (better, worse) = if model < rough { ("model", "rough") } else { ("rough", "model") };
    let line = |first, last| format!("eval {first} {last} --ppl text.txt --ctx 64 --max-ppl {}", (model + rough) / 2.0);
    assert_ne!(model, rough);
    dir.run(&line(worse, better)).ok();
    assert_eq!(dir.run(&line(better, worse)).status, Some(3));
}

/// The reader of a pipe may leave early: no error, no message.
#[test]
fn a_closed_pipe_is_no_error() {
    let dir = Dir::with_stages();
    let status = |line: &str| dir.shell(&format!("{{ {line}; echo $? >&2; }} | head -c 0"));
    for line in [
        "\"$EVAL\" folded --ppl text.txt --ctx 64",
        "\"$PTQ_INIT\" model --scheme w4g8 -o scales",
        "\"$QAT_STEP\" wrapped --plan",
        "\"$FOLD\" --help",
    ] {
        assert_eq!(status(line).stderr, "0\n", "{line}");
    }
}

#[test]
fn a_plan_is_printed_and_nothing_is_written() {
    let dir = Dir::with_stages();
    let before = dir.listing();
    let plan = dir.run("qat-step wrapped --plan --batch 8 --seq 128").ok();
    for row in ["frozen weights", "A, B and s", "Adam", "activations", "workspace", "logits", "planned peak"] {
        assert!(plan.contains(row), "{row}: {plan}");
    }
    assert_eq!(dir.listing(), before);
    // Two moments of every trained number: rank·(N + K) and a scale for each group of 8, over all linears.
    let shapes = [(32, 32), (16, 32), (16, 32), (32, 32), (64, 32), (64, 32), (32, 64)];
    let trained: usize = shapes.iter().map(|(n, k)| 4 * (n + k) + n * k / 8).sum();
    let adam = format!("{:.1} MiB", (2 * 2 * 4 * trained) as f64 / (1 << 20) as f64);
    assert!(plan.lines().any(|l| l.starts_with("Adam") && l.contains(&adam)), "{adam}: {plan}");
    let json: Value =
        serde_json::from_str(&dir.run("qat-step wrapped --plan --batch 8 --seq 128 --json").ok()).unwrap();
    let rows = json["plan"].as_array().unwrap();
    assert!(rows.iter().any(|r| r["what"] == "Adam" && r["bytes"] == 2 * 2 * 4 * trained), "{json}");
    assert_eq!(rows.iter().map(|r| r["bytes"].as_u64().unwrap()).sum::<u64>(), json["total"]);
    assert!(json["on_host"].is_null(), "{json}");
}

/// More memory keeps more, and changes no byte of the result; too little is refused.
#[test]
fn memory_is_given() {
    let dir = Dir::with_stages();
    let line = "qat-step wrapped --shards shards --steps 2 --batch 4 --seq 64 --device cpu";
    let plan = |memory: &str| -> Value {
        serde_json::from_str(&dir.run(&format!("{line} --plan --json --memory {memory}")).ok()).unwrap()
    };
    let total = |plan: &Value| plan["total"].as_u64().unwrap();
    let kept = |plan: &Value| {
        let rows = plan["plan"].as_array().unwrap();
        rows.iter().find(|r| r["what"] == "kept").unwrap()["bytes"].as_u64().unwrap()
    };
    let (least, most) = (plan("least"), plan("1TB"));
    assert_eq!(kept(&least), 0);
    let some = plan(&((total(&least) + total(&most)) / 2).to_string());
    assert!(0 < kept(&some) && kept(&some) < kept(&most), "{some}");
    assert!(total(&least) < total(&some) && total(&some) <= (total(&least) + total(&most)) / 2, "{some}");
    let mut trained = Vec::new();
    for (name, plan) in [("least", least), ("some", some), ("most", most)] {
        dir.run(&format!("{line} --memory {} -o {name}", total(&plan))).ok();
        trained.push(fs::read(dir.join(name).join("trained.safetensors")).unwrap());
    }
    assert!(trained[0] == trained[1] && trained[0] == trained[2], "what is kept changes the result");
    let refused = dir.run(&format!("{line} --memory 1MiB -o none")).fails(2);
    assert!(refused.contains("expected at most --memory 1.0 MiB"), "{refused}");
}

/// Names that a format string would trip over, and standard input, read once for all artefacts.
#[test]
fn texts_of_any_name() {
    let dir = Dir::with_stages();
    fs::rename(dir.join("text.txt"), dir.join("a}{b:}.txt")).unwrap();
    let figures = |text: &str| text.lines().last().unwrap().split_whitespace().rev().take(2).collect::<String>();
    let named = dir.run("eval checkpoint folded --ppl a}{b:}.txt --ctx 64").ok();
    let piped = dir.shell("\"$EVAL\" checkpoint folded --ppl - --ctx 64 < 'a}{b:}.txt'").ok();
    assert_eq!(figures(&named), figures(&piped));
}

#[test]
fn quiet_says_nothing() {
    let dir = Dir::with_stages();
    for line in [
        "ptq-init model --scheme w3pc -o q/scales -q",
        "lr-wrap q/scales -o q/wrapped -q",
        "shard text.txt --tokenizer model -o q/shards -q",
        "qat-step q/wrapped --shards q/shards --steps 2 --seq 16 --stop-at 1 -o q/half -q",
        "qat-step q/half -o q/checkpoint -q",
        "fold q/checkpoint -o q/folded -q",
        "eval q/folded --ppl text.txt --ctx 32 -q",
    ] {
        let ran = dir.run(line);
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{line}");
        assert!(!ran.stdout.is_empty());
    }
    assert_eq!(dir.run("lr-wrap nowhere -o w -q").fails(1).lines().count(), 1, "errors are told");
}

/// A run directory moves as a whole: stages remember each other by relative path.
#[test]
fn a_run_can_be_moved() {
    let dir = Dir::new();
    fs::create_dir_all(dir.join("old")).unwrap();
    crate::tools::copy(crate::tools::stages(), &dir.join("old"));
    let before = dir.run("eval old/scales old/checkpoint --ppl old/text.txt --ctx 64 --json").ok();
    fs::rename(dir.join("old"), dir.join("new")).unwrap();
    let after = dir.run("eval new/scales new/checkpoint --ppl new/text.txt --ctx 64 --json").ok();
    assert_eq!(before.replace("old/", "new/"), after);
    dir.run("fold new/checkpoint -o new/folded").ok();
}

/// Paths through a symbolic link lead to the same inputs as those without it.
#[test]
fn stages_behind_a_link_find_their_inputs() {
    let dir = Dir::new();
    fs::create_dir_all(dir.join("disk/deep/down")).unwrap();
    std::os::unix::fs::symlink("disk/deep/down", dir.join("link")).unwrap();
    tiny_llama::write(&dir.join("model"));
    dir.run(&format!("ptq-init model --scheme w4pc -o {}", dir.join("link/run/scales").display())).ok();
    dir.run("lr-wrap link/run/scales -o link/other/wrapped").ok();
}

/// Text on standard input is told apart by its bytes, though its name is always `-`.
#[test]
fn standard_input_is_told_apart() {
    let dir = Dir::with_stages();
    let line = "shard - --tokenizer model -o piped";
    for _ in 0..2 {
        assert_eq!(dir.run_with(line, "once upon a time").ok(), "piped\n");
    }
    let said = dir.run_with(line, "another text").fails(2);
    assert!(said.contains("made from another text") && said.contains("--force"), "{said}");
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().filter(|e| e.as_ref().unwrap().path().is_file()).count(),
        fs::read_dir(Dir::with_stages().path()).unwrap().filter(|e| e.as_ref().unwrap().path().is_file()).count(),
        "the kept standard input is gone"
    );
}

/// The tokenizer.json that is named is the one that is used, whatever its name and whatever lies beside it.
#[test]
fn a_tokenizer_of_another_name() {
    let dir = Dir::with_stages();
    let digest = |line: &str| -> Value {
        let out = dir.run(line).ok();
        let record: Value =
            serde_json::from_slice(&fs::read(dir.join(out.trim()).join("stage.json")).unwrap()).unwrap();
        record["arguments"]["tokenizer"].clone()
    };
    let mut json: Value = serde_json::from_slice(&fs::read(dir.join("model/tokenizer.json")).unwrap()).unwrap();
    json["model"]["merges"].as_array_mut().unwrap().pop();
    fs::write(dir.join("model/other.json"), json.to_string()).unwrap();
    let (own, other) = (
        digest("shard text.txt --tokenizer model/tokenizer.json -o own"),
        digest("shard text.txt --tokenizer model/other.json -o other"),
    );
    assert_eq!(own, digest("shard text.txt --tokenizer model -o model-own"));
    fs::rename(dir.join("model/other.json"), dir.join("model/tokenizer.json")).unwrap();
    assert_eq!(other, digest("shard text.txt --tokenizer model -o model-other"));
    assert_ne!(own, other);
}

/// A report kept as a file is not measured again, and another question is.
#[test]
fn figures_of_a_report_are_kept() {
    let dir = Dir::with_stages();
    let line = "eval model scales --ppl text.txt --ctx 16 --max-blocks 2 -o report.json";
    dir.run("eval model --ppl text.txt --ctx 16 --max-blocks 2 -o report.json").ok();
    let first = fs::read_to_string(dir.join("report.json")).unwrap();
    let mut marked: Value = serde_json::from_str(&first).unwrap();
    marked["artefacts"][0]["ppl"]["text.txt"]["ppl"] = Value::from(1.5);
    fs::write(dir.join("report.json"), marked.to_string()).unwrap();
    let table = dir.run(line).ok();
    assert!(
        table.contains("1.500") && table.contains("round-to-nearest"),
        "the model's figure is the kept one: {table}"
    );
    let report: Value = serde_json::from_str(&fs::read_to_string(dir.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["artefacts"].as_array().unwrap().len(), 2);
    let anew = dir.run(&line.replace("--ctx 16", "--ctx 8")).ok();
    assert!(!anew.contains("1.500"), "another --ctx is another question: {anew}");
    assert!(!dir.join("report.json.part").exists());
    let before = fs::read_to_string(dir.join("report.json")).unwrap();
    let scales_alone = line.replace("eval model scales", "eval scales");
    let said = dir.run(&scales_alone).fails(2);
    assert!(said.contains("report.json: it holds figures of model, ") && said.contains("--force"), "{said}");
    assert_eq!(fs::read_to_string(dir.join("report.json")).unwrap(), before);
    // Of an evaluation that was stopped it is the unfinished file that has them.
    fs::rename(dir.join("report.json"), dir.join("report.json.part")).unwrap();
    let said = dir.run(&scales_alone).fails(2);
    assert!(said.contains("report.json.part: it holds figures of model, ") && said.contains("--force"), "{said}");
    fs::remove_file(dir.join("report.json.part")).unwrap();
    fs::write(dir.join("report.json"), marked.to_string()).unwrap();
    let forced = dir.run(&format!("{line} --force")).ok();
    assert!(!forced.contains("1.500"), "--force measures again: {forced}");
    dir.run(&format!("{scales_alone} --force")).ok();
    dir.run(&scales_alone.replace("report.json", "new/folder/report.json")).ok();
    assert!(dir.join("new/folder/report.json").is_file());
    fs::write(dir.join("report.json"), "mine").unwrap();
    let said = dir.run(line).fails(1);
    assert!(said.contains("report.json: no report of eval"), "{said}");
    assert_eq!(fs::read_to_string(dir.join("report.json")).unwrap(), "mine");
}

/// The JSON that a stage prints names the next one's input as well as the plain path does; no stage writes into a model.
#[test]
fn json_through_a_pipe_and_an_output_inside_the_input() {
    let dir = Dir::with_stages();
    let path = dir.run("ptq-init model --scheme w4g16 --json -o apart").ok();
    assert_eq!(dir.run_with("lr-wrap - --rank 2 -o apart-wrapped", &path).ok(), "apart-wrapped\n");
    let said = dir.run("ptq-init model --scheme w4g16 -o model/scales").fails(2);
    assert!(said.contains("model/scales: -o lies in the model that is read"), "{said}");
    assert!(!dir.join("model/scales").exists() && !dir.join("model/scales.part").exists());
}
