use std::fs;
use std::path::Path;

use serde_json::json;

use super::{Fault, check, edit_json, truncate};
use crate::tools::Dir;

fn stage(dir: &Dir, name: &str, edit: impl Fn(&mut serde_json::Value)) {
    edit_json(&dir.join(name).join("stage.json"), edit);
}

#[test]
fn stages_of_the_wrong_kind() {
    check(&[
        Fault {
            name: "scales for wrapped",
            spoil: |_| {},
            line: "qat-step scales --shards shards -o out",
            status: 1,
            says: &["scales: this is \"scales\"", "expected \"wrapped\" or \"checkpoint\"", "; run lr-wrap first"],
        },
        Fault {
            name: "wrapped for scales",
            spoil: |_| {},
            line: "lr-wrap wrapped -o out",
            status: 1,
            says: &["wrapped: this is \"wrapped\"", "expected \"scales\"", "; run ptq-init first"],
        },
        Fault {
            name: "wrapped for shards",
            spoil: |_| {},
            line: "qat-step wrapped --shards wrapped -o out",
            status: 1,
            says: &["wrapped: this is \"wrapped\"", "expected \"shards\"", "; run shard first"],
        },
        Fault {
            name: "shards for a model",
            spoil: |_| {},
            line: "eval shards --ppl text.txt",
            status: 1,
            says: &["shards: this is \"shards\"", "expected a model", "; give the model's directory"],
        },
        Fault {
            name: "a model for a checkpoint",
            spoil: |_| {},
            line: "fold model -o out",
            status: 1,
            says: &["model: it holds no stage.json", "expected \"checkpoint\" or \"wrapped\"", "; give a directory"],
        },
        Fault {
            name: "scales for a model",
            spoil: |_| {},
            line: "ptq-init scales --scheme w4g8 -o out",
            status: 1,
            says: &["scales: it holds no config.json", "expected a Hugging Face model", "; "],
        },
        Fault {
            name: "a path that leads nowhere",
            spoil: |_| {},
            line: "fold checkpiont -o out",
            status: 1,
            says: &["checkpiont: does not exist", "expected \"checkpoint\" or \"wrapped\"", "; run qat-step first"],
        },
        Fault {
            name: "shards that are nowhere",
            spoil: |_| {},
            line: "qat-step wrapped --shards shard -o out",
            status: 1,
            says: &["shard: does not exist", "expected \"shards\"", "; run shard first"],
        },
        Fault {
            name: "an unfinished stage",
            spoil: |d| fs::rename(d.join("wrapped"), d.join("wrapped.part")).unwrap(),
            line: "qat-step wrapped --shards shards -o out",
            status: 1,
            says: &[
                "wrapped: it is not finished",
                "expected \"wrapped\"",
                "; run lr-wrap again with the same arguments",
            ],
        },
        Fault {
            name: "an unfinished stage, evaluated",
            spoil: |d| fs::rename(d.join("checkpoint"), d.join("checkpoint.part")).unwrap(),
            line: "eval checkpoint --ppl text.txt",
            status: 1,
            says: &["checkpoint: ", "not finished", "expected a complete", "; run its tool again"],
        },
    ]);
}

#[test]
fn stages_that_changed() {
    check(&[
        Fault {
            name: "a newer format version",
            spoil: |d| stage(d, "wrapped", |s| s["format_version"] = json!(3)),
            line: "qat-step wrapped --shards shards -o out",
            status: 1,
            says: &["wrapped: format version 3", "expected at most 2", "; use the newer lrqat"],
        },
        Fault {
            name: "a kind of a newer version",
            spoil: |d| stage(d, "wrapped", |s| s["kind"] = json!("pruned")),
            line: "fold wrapped -o out",
            status: 1,
            says: &["wrapped/stage.json: kind \"pruned\"", "expected one that", "; use the newer"],
        },
        Fault {
            name: "a stage.json that is no JSON",
            spoil: |d| truncate(&d.join("scales/stage.json"), 0.5),
            line: "lr-wrap scales -o out",
            status: 1,
            says: &["scales/stage.json: not JSON", "expected a whole stage.json", "; run the stage again with --force"],
        },
        Fault {
            name: "a stage.json without inputs",
            spoil: |d| stage(d, "scales", |s| s["inputs"] = json!([])),
            line: "lr-wrap scales -o out",
            status: 1,
            says: &["scales: its stage.json names no model", "expected the path", "; run ptq-init again"],
        },
        Fault {
            name: "a stage.json of an unknown scheme",
            spoil: |d| stage(d, "scales", |s| s["scheme"] = json!("w4g0")),
            line: "lr-wrap scales -o out",
            status: 1,
            says: &["scales/stage.json: scheme \"w4g0\"", "expected a scheme such as", "; run the stage again"],
        },
        Fault {
            name: "a stage.json of no recipe",
            spoil: |d| stage(d, "half", |s| s["arguments"]["steps"] = json!("many")),
            line: "qat-step half -o out",
            status: 1,
            says: &["half: ", "stage.json", "expected qat-step's arguments", "; run qat-step again"],
        },
        Fault {
            name: "an input made again since",
            spoil: |d| {
                d.run("lr-wrap scales --rank 4 --seed 1 -o wrapped --force").ok();
            },
            line: "fold checkpoint -o out",
            status: 1,
            says: &[
                "checkpoint: its wrapped, wrapped, was ",
                "made again since",
                "expected the one it was made from",
                "; run qat-step",
            ],
        },
        Fault {
            name: "a model that changed",
            spoil: |d| edit_json(&d.join("model/config.json"), |c| c["rope_theta"] = json!(5e5)),
            line: "lr-wrap scales -o out",
            status: 1,
            says: &["scales: its model, model, changed since", "expected the one", "; run ptq-init again with --force"],
        },
        Fault {
            name: "a model moved away",
            spoil: |d| fs::rename(d.join("model"), d.join("elsewhere")).unwrap(),
            line: "eval scales --ppl text.txt",
            status: 1,
            says: &["scales: its model, model, is gone", "expected it where it was", "; put it back"],
        },
        Fault {
            name: "wrapped moved away",
            spoil: |d| fs::rename(d.join("wrapped"), d.join("elsewhere")).unwrap(),
            line: "eval checkpoint --ppl text.txt",
            status: 1,
            says: &["checkpoint: its wrapped, wrapped, is gone", "expected it where it was", "; put it back"],
        },
        Fault {
            name: "a truncated file of a stage",
            spoil: |d| truncate(&d.join("wrapped/wrapped.safetensors"), 0.9),
            line: "fold checkpoint -o out",
            status: 1,
            says: &["wrapped/wrapped.safetensors: ", "expected", "; fetch or make it again"],
        },
        Fault {
            name: "a file of a stage removed",
            spoil: |d| fs::remove_file(d.join("checkpoint/trained.safetensors")).unwrap(),
            line: "fold checkpoint -o out",
            status: 1,
            says: &["checkpoint/trained.safetensors: cannot open", "; check the path"],
        },
        Fault {
            name: "moments removed",
            spoil: |d| fs::remove_file(d.join("half/optimizer.safetensors")).unwrap(),
            line: "qat-step half -o out",
            status: 1,
            says: &["half/optimizer.safetensors: cannot open", "; check the path"],
        },
        Fault {
            name: "tensors of another rank",
            spoil: |d| {
                d.run("lr-wrap scales --rank 2 -o two").ok();
                fs::copy(d.join("two/wrapped.safetensors"), d.join("checkpoint/trained.safetensors")).unwrap();
            },
            line: "fold checkpoint -o out",
            status: 1,
            says: &["trained.safetensors: model.layers.0.", ".lora_a is F32 [32, 2]", "expected F32 [32, 4]", "; "],
        },
        Fault {
            name: "a changed byte, asked to verify",
            spoil: |d| change_last_byte(&d.join("wrapped/wrapped.safetensors")),
            line: "fold wrapped -o out --verify",
            status: 1,
            says: &[
                "wrapped/wrapped.safetensors: its bytes changed",
                "expected blake3",
                "; run lr-wrap again with --force",
            ],
        },
        Fault {
            name: "a changed byte behind the input, asked to verify",
            spoil: |d| change_last_byte(&d.join("wrapped/wrapped.safetensors")),
            line: "fold checkpoint -o out --verify",
            status: 1,
            says: &["wrapped/wrapped.safetensors: its bytes changed", "; run lr-wrap again with --force"],
        },
        Fault {
            name: "a changed byte of shards, asked to verify",
            spoil: |d| change_last_byte(&d.join("shards/tokens-00000.safetensors")),
            line: "qat-step wrapped --shards shards --verify -o out",
            status: 1,
            says: &["shards/tokens-00000.safetensors: its bytes changed", "; run shard again with --force"],
        },
        Fault {
            name: "a changed byte of shards that weigh inputs, asked to verify",
            spoil: |d| change_last_byte(&d.join("shards/tokens-00000.safetensors")),
            line: "lr-wrap scales --rounding gptq --shards shards --verify -o out",
            status: 1,
            says: &["shards/tokens-00000.safetensors: its bytes changed", "; run shard again with --force"],
        },
        Fault {
            name: "a changed byte of integers to start from, asked to verify",
            spoil: |d| change_last_byte(&d.join("folded/model.safetensors")),
            line: "ptq-init folded --verify -o out",
            status: 1,
            says: &["folded/model.safetensors: its bytes changed", "; run fold again with --force"],
        },
        Fault {
            name: "a changed byte, asked to verify, evaluated",
            spoil: |d| change_last_byte(&d.join("folded/model.safetensors")),
            line: "eval model folded --ppl text.txt --ctx 64 --verify",
            status: 1,
            says: &["folded/model.safetensors: its bytes changed", "; run fold again with --force"],
        },
        Fault {
            name: "a tensor that is not finite, trained",
            spoil: |d| {
                let path = d.join("checkpoint/trained.safetensors");
                let mut bytes = fs::read(&path).unwrap();
                let end = bytes.len();
                bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
                fs::write(path, bytes).unwrap();
            },
            line: "fold checkpoint -o out",
            status: 1,
            says: &["checkpoint/trained.safetensors: ", "not finite", "expected finite", "; "],
        },
    ]);
}

fn change_last_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Shards with a teacher's answers to windows of 32 tokens.
fn answer(dir: &Dir) {
    dir.run("shard text.txt --tokenizer model --teacher model --top-k 8 --seq 32 -o answered").ok();
}

/// With the header of the answers changed.
fn answer_with(dir: &Dir, from: &str, to: &str) {
    answer(dir);
    assert_eq!(from.len(), to.len());
    let path = dir.join("answered/answers-00000.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn teachers_that_do_not_fit() {
    const TRAIN: &str = "qat-step wrapped --shards answered --loss kl --seq 32 -o out";
    check(&[
        Fault {
            name: "answers to other windows",
            spoil: answer,
            line: "qat-step wrapped --shards answered --loss kl --seq 64 -o out",
            status: 2,
            says: &["answered: answers to windows of 32 tokens", "expected --seq 64", "; give --seq 32"],
        },
        Fault {
            name: "answers without their number",
            spoil: |d| answer_with(d, "\"top_k\":\"8\"", "\"top_q\":\"8\""),
            line: TRAIN,
            status: 1,
            says: &["answers-00000.safetensors: no top_k", "expected a number", "; run shard again"],
        },
        Fault {
            name: "answers of an older format",
            spoil: |d| {
                answer(d);
                let path = d.join("answered/stage.json");
                let text = fs::read_to_string(&path).unwrap();
                fs::write(path, text.replace("\"format_version\": 3", "\"format_version\": 2")).unwrap();
            },
            line: TRAIN,
            status: 1,
            says: &["answered: a teacher's answers in format 2", "expected format 3", "; run shard again with --force"],
        },
        Fault {
            name: "answers of another number",
            spoil: |d| answer_with(d, "\"top_k\":\"8\"", "\"top_k\":\"9\""),
            line: TRAIN,
            status: 1,
            says: &["answers-00000.safetensors: answers is U16", "expected U16", "; make the file again"],
        },
        Fault {
            name: "answers to windows of none",
            spoil: |d| answer_with(d, "\"seq\":\"32\"", "\"seq\":\"00\""),
            line: TRAIN,
            status: 1,
            says: &["answers-00000.safetensors: no seq", "; run shard again"],
        },
        Fault {
            name: "answers that are gone",
            spoil: |d| {
                answer(d);
                fs::remove_file(d.join("answered/answers-00000.safetensors")).unwrap();
            },
            line: TRAIN,
            status: 1,
            says: &["answers-00000.safetensors: cannot open", "; check the path"],
        },
        Fault {
            name: "answers that changed",
            spoil: |d| answer_with(d, "\"answers\":{", "\"answers\":\t"),
            line: TRAIN,
            status: 1,
            says: &["answers-00000.safetensors: ", "; "],
        },
        Fault {
            name: "a teacher of another vocabulary",
            spoil: |d| {
                let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny/linear_rope");
                crate::tools::copy(&other, &d.join("other"));
            },
            line: "qat-step wrapped --shards shards --loss kl --teacher other -o out",
            status: 1,
            says: &["other: a vocabulary of ", "of wrapped", "; learn from the model"],
        },
        Fault {
            name: "a teacher that is not there",
            spoil: |_| {},
            line: "qat-step wrapped --shards shards --loss kl --teacher nowhere -o out",
            status: 1,
            says: &["nowhere: does not exist", "; check the path"],
        },
        Fault {
            name: "a teacher that is gone",
            spoil: |d| {
                let line = "qat-step wrapped --shards shards --steps 2 --stop-at 1 --batch 1 --seq 32 --loss kl -q";
                fs::create_dir(d.join("away")).unwrap();
                crate::tools::copy(&d.join("model"), &d.join("away/model"));
                d.run(&format!("{line} --teacher away/model -o begun")).ok();
                fs::remove_dir_all(d.join("away")).unwrap();
            },
            line: "qat-step begun -o out",
            status: 1,
            says: &["begun: its teacher, away/model, is gone", "; put it back"],
        },
    ]);
}
