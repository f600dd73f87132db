use serde_json::Value;

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
