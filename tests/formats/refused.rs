//! What cannot be written is refused with the reason and the way out, and nothing is left; what was written wrongly is
//! found by reading it back.

use std::fs;
use std::path::Path;

use common::error::Result;
use common::format::atomic::PartDir;
use common::format::safetensors::TensorFile;
use common::stage::checkpoint::Checkpoint;
use common::stage::float::SupportFiles;
use common::stage::folded::Format;
use common::stage::folded::digest::Digests;
use common::stage::folded::verify::verify;
use common::stage::folded::write::{Target, Written, write};
use serde_json::{Value, json};

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
    for (bits, says) in
        [(0x3580u16, "a scale of 9.5"), (0x7f80, "inf"), (0x7fc0, "NaN"), (0, "holds 0"), (0xbf80, "-1")]
    {
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

/// Where the data of a tensor begin in the file.
fn offset(path: &Path, name: &str) -> usize {
    let file = TensorFile::open(path).unwrap();
    file.get(name).unwrap().bytes().as_ptr() as usize - file.map().as_ptr() as usize
}

/// What `fold` does with its output before it gets its name.
struct ReadBack {
    checkpoint: Checkpoint,
    support: SupportFiles,
    format: Format,
}

impl ReadBack {
    fn of(dir: &Dir, scheme: &str, format: Format) -> ReadBack {
        let checkpoint = Checkpoint::open(&dir.join(&format!("{scheme}/checkpoint"))).unwrap();
        let support = checkpoint.wrapped.support_files().unwrap();
        ReadBack { checkpoint, support, format }
    }

    fn of_folder(&self, folded: &Path) -> Result<()> {
        verify(folded, &self.target(), &Digests::new(), || {})
    }

    fn target(&self) -> Target<'_> {
        Target {
            from: &self.checkpoint.stage.dir,
            name: "model",
            source: &self.checkpoint,
            config_json: &self.checkpoint.wrapped.config_json,
            support: &self.support,
            scheme: self.checkpoint.wrapped.scheme,
            format: self.format,
            embedding: None,
        }
    }
}

/// What stays floating point, the configuration and the tokenizer are read back as well.
#[test]
fn the_rest_of_the_model_written_wrongly_is_found() {
    let dir = wide();
    train(&dir, "w4g32");
    dir.run("fold w4g32/checkpoint -o folded").ok();
    let read_back = ReadBack::of(&dir, "w4g32", Format::CompressedTensors);
    let spoil = |name: &str, edit: &dyn Fn(&mut Vec<u8>), says: &str| {
        let path = dir.join("folded").join(name);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        edit(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let e = read_back.of_folder(&dir.join("folded")).unwrap_err().to_string();
        assert!(e.contains(says), "{name}: {e}");
        fs::write(&path, whole).unwrap();
    };
    let norm = "model.layers.1.input_layernorm.weight";
    let at = offset(&dir.join("folded/model.safetensors"), norm);
    spoil("model.safetensors", &|b| b[at] ^= 1, &format!("{norm} reads back changed"));
    let edit = |from: &'static str, to: &'static str| {
        move |b: &mut Vec<u8>| {
            let text = String::from_utf8(std::mem::take(b)).unwrap();
            assert!(text.contains(from), "{from}");
            *b = text.replacen(from, to, 1).into_bytes();
        }
    };
    spoil("config.json", &edit("10000.0", "20000.0"), "configuration reads as another model's");
    spoil("config.json", &edit("\"group_size\": 32", "\"group_size\": 64"), "it reads as w4g64");
    spoil(
        "tokenizer.json",
        &edit("\"add_prefix_space\":false", "\"add_prefix_space\":true"),
        "tokenizer.json reads back",
    );
    // What readers advise is for somebody else's file; this one is gone when it is read.
    let nothing_kept = "report this; nothing was kept";
    spoil("tokenizer.json", &edit("{", "["), nothing_kept);
    spoil("config.json", &edit("{", "["), nothing_kept);
    spoil("model.safetensors", &|b| b.truncate(b.len() - 1), nothing_kept);
    read_back.of_folder(&dir.join("folded")).unwrap();
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

/// One byte of the codes, the scales, the zero points: the tensor and the element are named.
#[test]
fn what_was_written_wrongly_is_found() {
    let dir = wide();
    train(&dir, "w4g128z");
    train(&dir, "w8pc");
    let linear = "model.layers.1.self_attn.v_proj";
    for (scheme, format, spoilt) in [
        (
            "w4g128z",
            Format::CompressedTensors,
            [("weight_packed", "W_Z["), ("weight_scale", "scale["), ("weight_zero_point", "zero point[")],
        ),
        ("w4g128z", Format::GptqV2, [("qweight", "W_Z["), ("scales", "scale["), ("qzeros", "zero point[")]),
        ("w4g128z", Format::Awq, [("qweight", "W_Z["), ("scales", "scale["), ("qzeros", "zero point[")]),
        ("w8pc", Format::IntQuantized, [("weight", "W_Z["), ("weight_scale", "scale["), ("weight", "W_Z[")]),
    ] {
        let folded = format!("{scheme}-{format}");
        dir.run(&format!("fold {scheme}/checkpoint --format {format} -o {folded}")).ok();
        let read_back = ReadBack::of(&dir, scheme, format);
        read_back.of_folder(&dir.join(&folded)).unwrap();
        let path = dir.join(&folded).join("model.safetensors");
        let whole = fs::read(&path).unwrap();
        for (suffix, what) in spoilt {
            let mut bytes = whole.clone();
            bytes[offset(&path, &format!("{linear}.{suffix}"))] ^= 1;
            fs::write(&path, bytes).unwrap();
            let e = read_back.of_folder(&dir.join(&folded)).unwrap_err().to_string();
            assert!(e.contains(&format!("{linear} {what}")) && e.contains("reads back as"), "{format} {suffix}: {e}");
            fs::write(&path, &whole).unwrap();
        }
    }
}

/// What `fold` does: it compares digests of the integers as they were made, and names the tensor and the element of those
/// that were packed, or lie in the file, otherwise.
#[test]
fn what_differs_from_what_was_packed_is_found() {
    let dir = wide();
    for (scheme, formats) in [
        ("w4g32", &[Format::CompressedTensors, Format::Gptq, Format::GptqV2, Format::Awq, Format::Gguf][..]),
        ("w8pc", &[Format::IntQuantized]),
    ] {
        train(&dir, scheme);
        for format in formats {
            let read_back = ReadBack::of(&dir, scheme, *format);
            let target = read_back.target();
            let part = PartDir::open(&dir.join(&format!("{scheme}-{format}")), false).unwrap();
            let Written { files, mut digests } = write(&part, &target, |_| {}).unwrap();
            verify(part.path(), &target, &digests, || {}).unwrap();
            assert_eq!(digests.len(), target.linears().len());
            let linear = "model.layers.1.mlp.down_proj";
            let found = |digests: &Digests| verify(part.path(), &target, digests, || {}).unwrap_err().to_string();

            let weights = files.keys().find(|name| name.starts_with("model.")).unwrap();
            let path = part.join(weights);
            let whole = fs::read(&path).unwrap();
            let mut bytes = whole.clone();
            let at = match format {
                Format::Gguf => bytes.len() - 1,
                Format::CompressedTensors => offset(&path, &format!("{linear}.weight_packed")),
                Format::IntQuantized => offset(&path, &format!("{linear}.weight")),
                _ => offset(&path, &format!("{linear}.qweight")),
            };
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            let e = found(&digests);
            assert!(e.contains(&format!("{linear} W_Z[")) && e.contains("reads back as"), "{format}: {e}");
            fs::write(&path, whole).unwrap();

            // Integers that were others as they were packed.
            *digests.get_mut(linear).unwrap() ^= 1 << 100;
            let e = found(&digests);
            assert!(e.contains(&format!("{linear} was written from other integers")), "{format}: {e}");
        }
    }
}

/// The same in a GGUF, whose blocks mix scales and codes.
#[test]
fn a_gguf_written_wrongly_is_found() {
    let dir = wide();
    train(&dir, "w4g32");
    dir.run("fold w4g32/checkpoint --format gguf -o folded").ok();
    let read_back = ReadBack::of(&dir, "w4g32", Format::Gguf);
    read_back.of_folder(&dir.join("folded")).unwrap();
    let path = dir.join("folded/model.gguf");
    let whole = fs::read(&path).unwrap();
    // Linears lie behind the floats, in model order: the last bytes are codes of the last down_proj.
    for (back, what) in [(1, "W_Z["), (18, "scale[")] {
        let mut bytes = whole.clone();
        let at = bytes.len() - back;
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        let e = read_back.of_folder(&dir.join("folded")).unwrap_err().to_string();
        assert!(e.contains(&format!("model.layers.1.mlp.down_proj {what}")), "{e}");
    }
    // A token: "Ġthe".
    let mut bytes = whole;
    let at = bytes.windows(5).position(|w| w == "\u{120}the".as_bytes()).unwrap();
    bytes[at + 2] = b'x';
    fs::write(&path, bytes).unwrap();
    let e = read_back.of_folder(&dir.join("folded")).unwrap_err().to_string();
    assert!(e.contains("token") && e.contains("nothing was kept"), "{e}");
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
