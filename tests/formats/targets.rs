use serde_json::{Value, json};

use crate::tools::Dir;

#[test]
fn the_table_speaks_of_the_scheme_at_hand_or_of_all() {
    let dir = Dir::with_stages();
    let all = dir.run("fold --list-targets").ok();
    for word in ["w2pc", "w4g128z", "w8pc", "int-quantized", "gptq-v2", "vLLM", "llama.cpp", "[1]"] {
        assert!(all.contains(word), "{word}: {all}");
    }
    let one: Value = serde_json::from_str(&dir.run("fold checkpoint --list-targets --json").ok()).unwrap();
    let rows = one["targets"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    assert!(rows.iter().all(|row| row["scheme"] == "w4g8"), "{one:#}");
    // Blocks of 32 weights cannot have groups of 8.
    let gguf = rows.iter().find(|row| row["format"] == "gguf").unwrap();
    assert!(gguf["refused"].as_str().unwrap().contains("not groups of 8"), "{gguf}");
    assert_eq!(gguf["engines"], Value::Array(Vec::new()));
    let gptq = rows.iter().find(|row| row["format"] == "gptq").unwrap();
    let vllm = gptq["engines"].as_array().unwrap().iter().find(|cell| cell["engine"] == "vLLM").unwrap();
    assert_eq!(vllm["loads"], false, "its GPTQ kernels take groups of 32 and more");
}

/// What is said of vLLM is what was seen (tests/interop/RESULTS.md): a GGUF does not load, and its build for CPUs has
/// kernels of 4 bits only.
#[test]
fn both_builds_of_vllm_are_spoken_of() {
    let dir = Dir::new();
    let all: Value = serde_json::from_str(&dir.run("fold --list-targets --json").ok()).unwrap();
    let vllm = |scheme: &str, format: &str| {
        let mut rows = all["targets"].as_array().unwrap().iter();
        let row = rows.find(|row| row["scheme"] == scheme && row["format"] == format).unwrap();
        row["engines"].as_array().unwrap().iter().find(|cell| cell["engine"] == "vLLM").unwrap().clone()
    };
    for (scheme, format) in [("w3g64", "compressed-tensors"), ("w8pc", "compressed-tensors"), ("w8pc", "gptq")] {
        let cell = vllm(scheme, format);
        assert_eq!(cell["loads"], true, "{scheme} {format}: {cell}");
        let note = cell["note"].as_str().unwrap();
        assert!(note.contains("on GPUs") && note.contains("build for CPUs takes 4 bits only"), "{note}");
    }
    for format in ["compressed-tensors", "gptq", "gptq-v2", "awq"] {
        assert_eq!(vllm("w4pc", format), json!({"engine": "vLLM", "loads": true}));
    }
    let cell = vllm("w4pc", "gguf");
    assert_eq!(cell["loads"], false, "{cell}");
    assert!(cell["note"].as_str().unwrap().contains("BF16 or F16"), "{cell}");
}

/// What the file can hold but an engine will not load is told in a line, and written all the same.
#[test]
fn an_engine_that_will_not_load_it_is_named() {
    let dir = Dir::with_stages();
    let ran = dir.run("fold checkpoint --format gptq -o gptq");
    assert!(ran.stderr.contains("fold: vLLM will not load w4g8 as gptq: "), "{}", ran.stderr);
    ran.ok();
    let ran = dir.run("fold checkpoint --format gptq-v2 -o quiet -q");
    assert_eq!(ran.stderr, "");
    ran.ok();
}
