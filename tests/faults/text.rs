use std::fs;

use serde_json::json;

use super::{Fault, check, edit_json, one_line};
use crate::tiny_llama::{Tensor, safetensors};
use crate::tools::Dir;

const SHARD: &str = "shard x.txt --tokenizer model -o out";
const TRAIN: &str = "qat-step wrapped --shards shards --steps 2 --batch 2 --seq 32 -q -o out";

/// Another tokenizer of the same size.
fn other_tokenizer(dir: &Dir) {
    edit_json(&dir.join("model/tokenizer.json"), |t| {
        t["model"]["merges"].as_array_mut().unwrap().pop();
    });
}

/// Replaces the tokens of the shards, all else left as it was.
fn tokens(dir: &Dir, tokens: &[u32]) {
    let path = dir.join("shards/tokens-00000.safetensors");
    let old = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
    let at = old.find("\"tokenizer\":\"").unwrap() + 13;
    let digest = &old[at..at + 64];
    let t = Tensor {
        name: "tokens".into(),
        dtype: "U32",
        shape: vec![tokens.len()],
        bytes: tokens.iter().flat_map(|t| t.to_le_bytes()).collect(),
    };
    let bytes = safetensors(&[t]);
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header["__metadata__"] = json!({"tokenizer": digest});
    fs::write(path, crate::tiny_llama::with_header(&header.to_string(), &bytes[8 + length..])).unwrap();
}

#[test]
fn texts() {
    check(&[
        Fault {
            name: "an empty text",
            spoil: |d| fs::write(d.join("x.txt"), "").unwrap(),
            line: SHARD,
            status: 1,
            says: &["x.txt: no text", "expected at least one document", "; check the file"],
        },
        Fault {
            name: "a blank text",
            spoil: |d| fs::write(d.join("x.txt"), " \n\n").unwrap(),
            line: SHARD,
            status: 1,
            says: &["x.txt: no text", "expected at least one document", "; check the file"],
        },
        Fault {
            name: "an empty text, evaluated",
            spoil: |d| fs::write(d.join("x.txt"), "").unwrap(),
            line: "eval model --ppl x.txt",
            status: 1,
            says: &["x.txt: no text", "expected at least one document", "; check the file"],
        },
        Fault {
            name: "a text of less than a block",
            spoil: |_| {},
            line: "eval model --ppl text.txt --ctx 1000000000000",
            status: 1,
            says: &["text.txt: ", " tokens", "expected at least one block of 1000000000000", "; give a longer text"],
        },
        Fault {
            name: "a text that is not there",
            spoil: |_| {},
            line: SHARD,
            status: 1,
            says: &["x.txt: cannot open: No such file", "; check the path"],
        },
        Fault {
            name: "a text that is not there, evaluated",
            spoil: |_| {},
            line: "eval model --ppl x.txt",
            status: 1,
            says: &["x.txt: cannot open: No such file", "; check the path"],
        },
        Fault {
            name: "a text of a kind that is not known",
            spoil: |d| fs::write(d.join("x.pdf"), "text").unwrap(),
            line: "shard x.pdf --tokenizer model -o out",
            status: 1,
            says: &["x.pdf: ", "\".pdf\"", "expected .txt, .jsonl", "; rename or convert"],
        },
        Fault {
            name: "a text that is not UTF-8",
            spoil: |d| fs::write(d.join("x.txt"), b"caf\xe9").unwrap(),
            line: SHARD,
            status: 1,
            says: &["x.txt: ", "offset 3", "expected UTF-8", "; convert"],
        },
        Fault {
            name: "JSON lines without text",
            spoil: |d| fs::write(d.join("x.jsonl"), "{\"text\": \"a\"}\n{\"content\": \"b\"}\n").unwrap(),
            line: "shard x.jsonl --tokenizer model -o out",
            status: 1,
            says: &["x.jsonl", "2", "text", "expected", "; "],
        },
        Fault {
            name: "a .jsonl.zst that is none",
            spoil: |d| fs::write(d.join("x.jsonl.zst"), "{\"text\": \"a\"}\n").unwrap(),
            line: "shard x.jsonl.zst --tokenizer model -o out",
            status: 1,
            says: &["x.jsonl.zst: ", "; "],
        },
        Fault {
            name: "a .parquet that is none",
            spoil: |d| fs::write(d.join("x.parquet"), "PAR1PAR1").unwrap(),
            line: "shard x.parquet --tokenizer model -o out",
            status: 1,
            says: &["x.parquet: ", "expected", "; "],
        },
        Fault {
            name: "a task that is not known",
            spoil: |d| fs::write(d.join("sums.jsonl"), "{}\n").unwrap(),
            line: "eval model --tasks sums.jsonl",
            status: 1,
            says: &["sums.jsonl: ", "expected", "; "],
        },
        Fault {
            name: "a task without its fields",
            spoil: |d| fs::write(d.join("piqa.jsonl"), "{\"goal\": \"x\"}\n").unwrap(),
            line: "eval model --tasks piqa.jsonl",
            status: 1,
            says: &["piqa.jsonl", "expected", "; "],
        },
    ]);
}

#[test]
fn shards() {
    check(&[
        Fault {
            name: "shards of another tokenizer",
            spoil: |d| {
                other_tokenizer(d);
                d.run("shard text.txt --tokenizer model -o shards --force").ok();
            },
            line: TRAIN,
            status: 1,
            says: &[
                "shards: made with tokenizer ",
                "expected ",
                "of wrapped",
                "; run shard again with --tokenizer wrapped",
            ],
        },
        Fault {
            name: "a token past the vocabulary",
            spoil: |d| tokens(d, &[300; 4000]),
            line: TRAIN,
            status: 1,
            says: &[
                "shards: token 300 at position ",
                "expected ids below the vocabulary's 300",
                "; make the shards again",
            ],
        },
        Fault {
            name: "a tokenizer past the model's vocabulary",
            spoil: |d| {
                edit_json(&d.join("model/tokenizer.json"), |t| {
                    t["model"]["vocab"]["Ġmi"] = json!(300);
                    t["model"]["vocab"]["Ġmiller"] = json!(301);
                    t["added_tokens"].as_array_mut().unwrap().push(json!({"id": 302, "content": "miller",
                        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false}));
                });
            },
            line: "eval model --ppl text.txt --ctx 64",
            status: 1,
            says: &[
                "text.txt: token id 302",
                "expected ids below the vocabulary's 300",
                "; the tokenizer and the model",
            ],
        },
        Fault {
            name: "shards shorter than a sequence",
            spoil: |d| tokens(d, &[5; 31]),
            line: TRAIN,
            status: 1,
            says: &["shards: 31 tokens", "expected a shard of at least --seq 32", "; add text, or lower --seq"],
        },
        Fault {
            name: "a shard without tokens",
            spoil: |d| {
                fs::copy(d.join("scales/scales.safetensors"), d.join("shards/tokens-00000.safetensors"))
                    .map(drop)
                    .unwrap()
            },
            line: TRAIN,
            status: 1,
            says: &["shards/tokens-00000.safetensors: no tensor tokens", "expected", "; "],
        },
        Fault {
            name: "a missing shard",
            spoil: |d| fs::remove_file(d.join("shards/tokens-00000.safetensors")).unwrap(),
            line: TRAIN,
            status: 1,
            says: &["shards/tokens-00000.safetensors: cannot open", "; check the path"],
        },
        Fault {
            name: "no EOS to end documents with",
            spoil: |d| fs::write(d.join("model/tokenizer_config.json"), "{}").unwrap(),
            line: "shard text.txt --tokenizer model -o out",
            status: 1,
            says: &["model: ", "without an EOS token", "expected one", "; add eos_token"],
        },
    ]);
}

/// A document may fail after others were written.
#[test]
fn a_text_that_breaks_off() {
    let dir = Dir::with_stages();
    let line = "shard - --tokenizer model -o out";
    let ran = dir.run_with(line, "{\"text\": \"one\"}\n{\"text\": ");
    one_line("standard input", line, &ran, 1, &["-", "expected", "; "]);
    assert!(!dir.join("out").exists() && !dir.join("out.part").exists());
}
