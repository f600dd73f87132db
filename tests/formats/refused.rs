//! What cannot be written is refused with the reason and the way out, and nothing is left.

use std::fs;

use serde_json::{Value, json};

use super::read_back::offset;
use super::{train, wide};
use crate::tiny_llama::{self, Tensor};
use crate::tools::Dir;

/// `scales` and `wrapped`.
fn wrap(dir: &Dir, scheme: &str) {
    dir.run(&format!("ptq-init model --scheme {scheme} -o scales --fit minmax")).ok();
    dir.run("lr-wrap scales --rank 4 -o wrapped").ok();
}

fn nothing_left(dir: &Dir) {
    assert!(!dir.join("out").exists() && !dir.join("out.part").exists());
}

/// Rewrites the model's weights.
fn edit_weights(dir: &Dir, edit: impl Fn(&mut Tensor)) {
    let mut tensors = tiny_llama::tensors_of(&tiny_llama::WIDE);
    tensors.iter_mut().for_each(edit);
    fs::write(dir.join("model/model.safetensors"), tiny_llama::safetensors(&tensors)).unwrap();
}

#[test]
fn a_zero_point_of_zero_in_gptq_v1() {
    let dir = wide();
    // Rows of positive weights: the grid begins at zero.
    edit_weights(&dir, |t| {
        if t.name.ends_with("0.mlp.up_proj.weight") {
            t.bytes.chunks_exact_mut(2).for_each(|bf16| bf16[1] &= 0x7f);
        }
    });
    wrap(&dir, "w2g64z");
    let e = dir.run("fold wrapped --format gptq -o out -q").fails(1);
    assert!(e.contains("model.layers.0.mlp.up_proj") && e.contains("zero point") && e.contains("gptq-v2"), "{e}");
    assert_eq!(e.lines().count(), 1, "{e}");
    nothing_left(&dir);
    // The look before training says the same.
    assert_eq!(dir.run("fold wrapped --format gptq --check -q").fails(1), e);
    dir.run("fold wrapped --format gptq-v2 --check").ok();
    dir.run("fold wrapped --format gptq-v2 -o out").ok();
}

/// A scale beyond f16, which is how all but compressed-tensors store it.
#[test]
fn a_scale_too_large_for_f16() {
    let dir = wide();
    // A row of up to ±2^19: at 3 bits its scale is about 2^17.
    edit_weights(&dir, |t| {
        if t.name.ends_with("1.mlp.down_proj.weight") {
            t.bytes[..2 * tiny_llama::WIDE.ffn].chunks_exact_mut(2).for_each(|bf16| bf16[1] = bf16[1] & 0x80 | 0x48);
        }
    });
    wrap(&dir, "w3pc");
    for format in ["gptq", "gptq-v2", "gguf"] {
        let e = dir.run(&format!("fold wrapped --format {format} -o out -q")).fails(1);
        assert!(e.contains("model.layers.1.mlp.down_proj: the scale") && e.contains("row 0, group 0"), "{e}");
        assert!(e.ends_with("choose --format compressed-tensors\n"), "{e}");
        nothing_left(&dir);
    }
    dir.run("fold wrapped -o out").ok();
}

#[test]
fn widths_that_cannot_be_packed() {
    let dir = Dir::with_stages();
    dir.run("ptq-init model --scheme w3pc -o s3").ok();
    dir.run("lr-wrap s3 --rank 4 -o w3").ok();
    // Keys and values are 16 wide: no whole unit of 32 three-bit codes.
    let e = dir.run("fold w3 --format gptq -o out").fails(2);
    assert!(e.contains("k_proj") && e.contains("16") && e.contains("choose --format compressed-tensors"), "{e}");
    nothing_left(&dir);
}

#[test]
fn a_tokenizer_that_a_gguf_cannot_say() {
    let dir = wide();
    wrap(&dir, "w4g32");
    let path = dir.join("wrapped/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"String": "e"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
    ]});
    fs::write(&path, tokenizer.to_string()).unwrap();
    let e = dir.run("fold wrapped --format gguf -o out").fails(1);
    assert!(e.contains("tokenizer") && e.contains("--format compressed-tensors"), "{e}");
    nothing_left(&dir);
    assert_eq!(dir.run("fold wrapped --format gguf --check").fails(1), e);
}

/// A scale that training could not have used: from outside, in a quantized model.
#[test]
fn scales_that_are_too_small_or_no_numbers() {
    let dir = wide();
    wrap(&dir, "w4g32");
    dir.run("fold wrapped -o folded").ok();
    let name = "model.layers.1.mlp.down_proj.weight_scale";
    let place = offset(&dir.join("folded/model.safetensors"), name);
    for (bits, says) in [
        (0x3580u16, "a scale of 9.5"),
        (0xb580, "a scale of 9.5"),
        (0x7f80, "inf"),
        (0xff80, "-inf"),
        (0x7fc0, "NaN"),
        (0, "holds 0"),
    ] {
        let mut bytes = fs::read(dir.join("folded/model.safetensors")).unwrap();
        bytes[place..place + 2].copy_from_slice(&bits.to_le_bytes());
        tiny_llama::write_of(&dir.join("bad"), &tiny_llama::WIDE);
        fs::copy(dir.join("folded/config.json"), dir.join("bad/config.json")).unwrap();
        fs::write(dir.join("bad/model.safetensors"), bytes).unwrap();
        let e = dir.run("ptq-init bad -o out").fails(1);
        assert!(e.contains(says) && e.contains("down_proj"), "{says}: {e}");
        nothing_left(&dir);
    }
}

/// `--no-verify` writes the same bytes, and does not read them back: a tokenizer that cannot be read is only found by that.
#[test]
fn without_reading_back() {
    let dir = wide();
    train(&dir, "w4g32");
    for format in ["compressed-tensors", "gptq", "awq", "gguf"] {
        for out in [format!("{format} -o {format}"), format!("{format} --no-verify -o {format}-unread")] {
            dir.run(&format!("fold w4g32/checkpoint --format {out}")).ok();
        }
        assert!(dir.contents(format) == dir.contents(&format!("{format}-unread")), "{format}: other bytes");
    }
    fs::write(dir.join("w4g32/wrapped/tokenizer.json"), "{}").unwrap();
    let e = dir.run("fold w4g32/checkpoint -o out").fails(1);
    assert!(e.contains("an unusable tokenizer"), "{e}");
    nothing_left(&dir);
    dir.run("fold w4g32/checkpoint --no-verify -o out").ok();
    assert_eq!(fs::read_to_string(dir.join("out/tokenizer.json")).unwrap(), "{}");
}

#[test]
fn a_sliding_window_that_a_gguf_cannot_say_is_told() {
    let dir = wide();
    let path = dir.join("model/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in [
        ("architectures", json!(["MistralForCausalLM"])),
        ("model_type", json!("mistral")),
        ("sliding_window", json!(64)),
    ] {
        config[key] = value;
    }
    fs::write(&path, config.to_string()).unwrap();
    wrap(&dir, "w4g32");
    let ran = dir.run("fold wrapped --format gguf -o folded");
    assert!(ran.stderr.contains("no sliding window"), "{}", ran.stderr);
    ran.ok();
}

#[test]
fn wrong_usage() {
    let dir = Dir::with_stages();
    for (line, says) in [
        (
            "fold checkpoint --format ggml -o out",
            "format \"ggml\" is not known; choose one of compressed-tensors, int-q",
        ),
        ("fold checkpoint --embedding q8_0 -o out", "--embedding with --format compressed-tensors; only a GGUF"),
        ("fold checkpoint", "--output"),
        ("fold -o out", "<CHECKPOINT>"),
        ("ptq-init model -o out", "model: no --scheme for a model in floating point; give one"),
    ] {
        let e = dir.run(line).fails(2);
        assert!(e.contains(says) && e.lines().count() == 1, "{line}: {e}");
    }
    fs::write(dir.join("r.json"), "{\"artefacts\": []}").unwrap();
    let e = dir.run("fold checkpoint --report r.json -o out").fails(1);
    assert!(e.contains("r.json: no figures of checkpoint as it is now") && e.contains("run eval -o on it"), "{e}");
    nothing_left(&dir);
}

/// The card shows the figures of a report, and how each engine loads the model.
#[test]
fn the_card() {
    let dir = Dir::with_stages();
    dir.run("eval model scales checkpoint --ppl text.txt --ctx 64 -o report.json").ok();
    dir.run("fold checkpoint --report report.json -o card").ok();
    let card = fs::read_to_string(dir.join("card/README.md")).unwrap();
    for part in [
        "# model, 4-bit integers, one scale per 8 inputs",
        "4 steps of 2 sequences of 32 tokens: 256 tokens",
        "| ppl text.txt (ctx 64, ",
        "ptq-init model --scheme w4g8 --fit lp:3 -o scales\nlr-wrap scales --phi q --rank 4 --alpha 1.0 --seed 0 -o wrapped\n",
        "fold checkpoint --format compressed-tensors -o folded",
        "vllm serve folded",
        "AutoModelForCausalLM.from_pretrained(\"folded\")",
    ] {
        assert!(card.contains(part), "{part:?} is not in\n{card}");
    }
    // What is rounded besides is not passed over.
    let dir = wide();
    train(&dir, "w4g32");
    dir.run("eval w4g32/checkpoint --ppl text.txt --ctx 64 -o report.json").ok();
    dir.run("fold w4g32/checkpoint --report report.json --format gguf --embedding q8_0 -o card").ok();
    let card = fs::read_to_string(dir.join("card/README.md")).unwrap();
    assert!(card.contains("embedding and head were rounded to Q8_0 after that"), "{card}");
    let dir = Dir::with_stages();
    dir.run("eval checkpoint --ppl text.txt --ctx 64 -o report.json").ok();
    // Trained again, the old figures are refused.
    dir.run("qat-step wrapped --shards shards --steps 5 --batch 2 --seq 32 -o checkpoint --force").ok();
    let e = dir.run("fold checkpoint --report report.json -o out").fails(1);
    assert!(e.contains("no figures of checkpoint"), "{e}");
}

/// Before days of training: whether the format will hold the result.
#[test]
fn a_look_before_training() {
    let dir = Dir::with_stages();
    let before = dir.listing();
    assert_eq!(dir.run("fold wrapped --check").ok(), "");
    assert_eq!(dir.run("fold wrapped --check --format awq -o out").ok(), "");
    let e = dir.run("fold wrapped --check --format int-quantized").fails(2);
    assert!(e.contains("w4g8 cannot be written as int-quantized: int-quantized holds 8-bit"), "{e}");
    assert_eq!(dir.listing(), before);
}
