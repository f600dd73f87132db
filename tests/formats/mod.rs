//! `fold --format`: every scheme in every format that holds it, read back by `eval` and `ptq-init`.

mod read_back;
mod readers;
mod refused;
mod targets;

use std::fs;

use common::format::safetensors::TensorFile;
use serde_json::Value;

use crate::tiny_llama;
use crate::tools::Dir;

const FORMATS: [&str; 6] = ["compressed-tensors", "int-quantized", "gptq", "gptq-v2", "awq", "gguf"];

/// Which formats hold a scheme of the wide model, as the formats' own documents say: bits that they pack, and for GGUF
/// the block types with an exact map (peers.md, section 4.5).
const HOLD: [(&str, &[&str]); 20] = [
    ("w2pc", &["compressed-tensors", "gptq", "gptq-v2", "gguf"]),
    ("w2g64", &["compressed-tensors", "gptq", "gptq-v2", "gguf"]),
    ("w2g64s", &["compressed-tensors", "gptq", "gptq-v2", "gguf"]),
    ("w2pcs", &["compressed-tensors", "gptq", "gptq-v2", "gguf"]),
    ("w2pcz", &["compressed-tensors", "gptq-v2", "gguf"]),
    ("w2g128z", &["compressed-tensors", "gptq-v2", "gguf"]),
    ("w3pc", &["compressed-tensors", "gptq", "gptq-v2", "gguf"]),
    ("w3g64", &["compressed-tensors", "gptq", "gptq-v2", "gguf"]),
    ("w3g128", &["compressed-tensors", "gptq", "gptq-v2", "gguf"]),
    ("w3pcs", &["compressed-tensors", "gptq", "gptq-v2", "gguf"]),
    ("w4pc", &["compressed-tensors", "gptq", "gptq-v2", "awq", "gguf"]),
    ("w4g32", &["compressed-tensors", "gptq", "gptq-v2", "awq", "gguf"]),
    ("w4g128", &["compressed-tensors", "gptq", "gptq-v2", "awq", "gguf"]),
    ("w4g32s", &["compressed-tensors", "gptq", "gptq-v2", "awq", "gguf"]),
    ("w4g128z", &["compressed-tensors", "gptq-v2", "awq", "gguf"]),
    ("w5g64", &["compressed-tensors", "gguf"]),
    ("w5g64s", &["compressed-tensors", "gguf"]),
    ("w8pc", &["compressed-tensors", "int-quantized", "gptq", "gptq-v2", "gguf"]),
    ("w8g128", &["compressed-tensors", "int-quantized", "gptq", "gptq-v2", "gguf"]),
    ("w8pcz", &["compressed-tensors", "gptq-v2"]),
];

/// A directory with the wide model, its shards and a text.
fn wide() -> Dir {
    let dir = Dir::new();
    tiny_llama::write_of(&dir.join("model"), &tiny_llama::WIDE);
    fs::write(dir.join("text.txt"), tiny_llama::text(4000)).unwrap();
    dir.run("shard text.txt --tokenizer model -o shards").ok();
    dir
}

/// `run/scales`, `run/wrapped`, `run/checkpoint` at `scheme`, with integers that training has moved.
fn train(dir: &Dir, scheme: &str) {
    let steps = "--steps 2 --batch 1 --seq 16 --lr-ab 0.05 --lr-scale 1e-3";
    for line in [
        format!("ptq-init model --scheme {scheme} -o {scheme}/scales"),
        format!("lr-wrap {scheme}/scales --rank 4 --alpha 16 -o {scheme}/wrapped"),
        format!("qat-step {scheme}/wrapped --shards shards {steps} -o {scheme}/checkpoint"),
    ] {
        dir.run(&line).ok();
    }
}

/// Negative log-likelihoods of the text, one per artefact.
fn nll(dir: &Dir, artefacts: &[String]) -> Vec<f64> {
    let line = format!("eval {} --ppl text.txt --ctx 64 --max-blocks 2 --json", artefacts.join(" "));
    let report: Value = serde_json::from_str(&dir.run(&line).ok()).unwrap();
    report["artefacts"].as_array().unwrap().iter().map(|a| a["ppl"]["text.txt"]["nll"].as_f64().unwrap()).collect()
}

/// The file with the weights.
fn weights(dir: &Dir, folded: &str) -> Vec<u8> {
    let gguf = dir.join(folded).join("model.gguf");
    let path = if gguf.is_file() { gguf } else { dir.join(folded).join("model.safetensors") };
    fs::read(path).unwrap()
}

/// The folded model evaluates like the checkpoint, to the bit; and quantized again, by its own scheme, it gives the same
/// file.
#[test]
fn every_scheme_in_every_format_that_holds_it() {
    let dir = wide();
    for (scheme, hold) in HOLD {
        train(&dir, scheme);
        let mut artefacts = vec![format!("{scheme}/checkpoint")];
        for format in hold {
            let folded = format!("{scheme}/{format}");
            dir.run(&format!("fold {scheme}/checkpoint --format {format} -o {folded}")).ok();
            assert!(dir.join(&folded).join("README.md").is_file());
            artefacts.push(folded);
        }
        let measured = nll(&dir, &artefacts);
        for (artefact, nll) in artefacts.iter().zip(&measured) {
            assert_eq!(nll.to_bits(), measured[0].to_bits(), "{artefact}: {nll}, expected {}", measured[0]);
        }
        let plain = nll(&dir, &[format!("{scheme}/wrapped")]);
        assert_ne!(plain[0].to_bits(), measured[0].to_bits(), "{scheme}: training moved nothing");
        for folded in &artefacts[1..] {
            let format = folded.rsplit('/').next().unwrap();
            dir.run(&format!("ptq-init {folded} -o {folded}-scales")).ok();
            dir.run(&format!("lr-wrap {folded}-scales --rank 4 -o {folded}-wrapped")).ok();
            dir.run(&format!("fold {folded}-wrapped --format {format} -o {folded}-again")).ok();
            assert!(weights(&dir, folded) == weights(&dir, &format!("{folded}-again")), "{folded}: other bytes");
        }
    }
}

/// A format that does not hold a scheme refuses it before anything is written, and names one that does.
#[test]
fn what_a_format_cannot_hold_is_refused() {
    let dir = wide();
    for (scheme, hold) in HOLD {
        dir.run(&format!("ptq-init model --scheme {scheme} -o {scheme}/scales")).ok();
        dir.run(&format!("lr-wrap {scheme}/scales --rank 4 -o {scheme}/wrapped")).ok();
        // GPTQ v1 can say most zero points; only the data decide.
        let by_data = |format: &str| format == "gptq" && scheme.ends_with('z');
        for format in FORMATS.iter().filter(|f| !hold.contains(f) && !by_data(f)) {
            let e = dir.run(&format!("fold {scheme}/wrapped --format {format} -o out")).fails(2);
            assert!(e.contains(&format!("{scheme} cannot be written as {format}: ")), "{e}");
            assert!(e.contains("choose --format compressed-tensors"), "{e}");
            assert!(!dir.join("out").exists() && !dir.join("out.part").exists());
        }
    }
}

/// AutoRound's symmetric models have negative scales, as ours of w4g32s may have. Where those of up_proj and of down_proj are all negative their signs
/// cancel out, and the model computes what it did, to the bit.
#[test]
fn negative_scales_of_a_symmetric_model() {
    let dir = wide();
    train(&dir, "w4g32");
    for format in ["gptq", "gptq-v2", "awq"] {
        dir.run(&format!("fold w4g32/checkpoint --format {format} -o {format}")).ok();
        let before = nll(&dir, &[format.to_string()])[0];
        let path = dir.join(format).join("model.safetensors");
        let file = TensorFile::open(&path).unwrap();
        let turned = file.names().filter(|n| n.ends_with("up_proj.scales") || n.ends_with("down_proj.scales"));
        let places: Vec<_> = turned.map(|n| (read_back::offset(&path, n), file.get(n).unwrap().len())).collect();
        assert_eq!(places.len(), 4);
        let mut bytes = fs::read(&path).unwrap();
        for (at, count) in places {
            (0..count).for_each(|i| bytes[at + 2 * i + 1] ^= 0x80);
        }
        // Somebody else's model: no digests.
        fs::remove_file(dir.join(format).join("stage.json")).unwrap();
        fs::write(&path, bytes).unwrap();
        assert_eq!(nll(&dir, &[format.to_string()])[0].to_bits(), before.to_bits(), "{format}");

        // Its integers are kept, and written as they were.
        dir.run(&format!("ptq-init {format} -o {format}-scales")).ok();
        dir.run(&format!("lr-wrap {format}-scales --rank 0 -o {format}-wrapped")).ok();
        for again in ["gptq", "gptq-v2", "awq", "compressed-tensors", "gguf"] {
            let folded = format!("{format}-{again}");
            dir.run(&format!("fold {format}-wrapped --format {again} -o {folded}")).ok();
            assert_eq!(nll(&dir, std::slice::from_ref(&folded))[0].to_bits(), before.to_bits(), "{folded}");
            assert!(again != format || weights(&dir, &folded) == weights(&dir, format), "{folded}: other bytes");
        }
    }
}

/// No weight is above zero, so that no group wants a negative scale: what is read back is the scheme all the same.
#[test]
fn scales_of_both_signs_that_are_all_positive() {
    let dir = wide();
    let mut tensors = tiny_llama::tensors_of(&tiny_llama::WIDE);
    for t in tensors.iter_mut().filter(|t| t.name.contains("proj")) {
        t.bytes.chunks_exact_mut(2).for_each(|bf16| bf16[1] |= 0x80);
    }
    fs::write(dir.join("model/model.safetensors"), tiny_llama::safetensors(&tensors)).unwrap();
    dir.run("ptq-init model --scheme w4g32s --fit minmax -o scales").ok();
    dir.run("lr-wrap scales --rank 0 -o wrapped").ok();
    for format in ["compressed-tensors", "gptq", "awq", "gguf"] {
        dir.run(&format!("fold wrapped --format {format} -o {format}")).ok();
        let of = nll(&dir, &["wrapped".into(), format.into()]);
        assert_eq!(of[0].to_bits(), of[1].to_bits(), "{format}");
    }
}

/// Another scheme than its own rounds a quantized model again, and says so.
#[test]
fn a_quantized_model_at_another_scheme() {
    let dir = wide();
    train(&dir, "w4g32");
    dir.run("fold w4g32/checkpoint --format gptq -o gptq").ok();
    let ran = dir.run("ptq-init gptq --scheme w3g64 -o scales");
    assert!(ran.stderr.contains("its w4g32 integers are rounded again to w3g64"), "{}", ran.stderr);
    ran.ok();
    dir.run("lr-wrap scales --rank 4 -o wrapped").ok();
    dir.run("fold wrapped -o folded").ok();
    let four = nll(&dir, &["gptq".into()])[0];
    let three = nll(&dir, &["folded".into()])[0];
    assert!((three - four).abs() > 1e-6 && (three - four).abs() < 1.0, "{four} {three}");
}
