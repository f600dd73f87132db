//! Entries against files of llama.cpp's own converter (shared/), and back to what they came from.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::json;

use super::super::hf_tokenizer_files;
use super::*;
use crate::format::gguf::testing::{kv, kv_ints, kv_text, kv_texts, kv_uint, write};
use crate::format::gguf::{Gguf, Value as Meta};

fn in_file(key: &str, entry: &Entry) -> Vec<u8> {
    match entry {
        Entry::U32(v) => kv_uint(key, *v),
        Entry::F32(v) => kv(key, 6, &v.to_le_bytes()),
        Entry::Bool(v) => kv(key, 7, &[*v as u8]),
        Entry::Text(v) => kv_text(key, v),
        Entry::Texts(v) => kv_texts(key, &v.iter().map(String::as_str).collect::<Vec<_>>()),
        Entry::Ints(v) => kv_ints(key, v),
        Entry::Floats(v) => {
            let head = [6u32.to_le_bytes().as_slice(), &(v.len() as u64).to_le_bytes()].concat();
            kv(key, 9, &[head, v.iter().flat_map(|v| v.to_le_bytes()).collect()].concat())
        }
    }
}

fn file_of(entries: &[(String, Entry)]) -> (tempfile::TempDir, PathBuf) {
    write(&entries.iter().map(|(key, entry)| in_file(key, entry)).collect::<Vec<_>>(), &[])
}

fn again(gguf: &Gguf, rows: usize) -> Vec<(String, Entry)> {
    let files = hf_tokenizer_files(gguf).unwrap();
    gguf_entries(gguf.path(), &files, &json!({"vocab_size": rows})).unwrap()
}

/// The tokenizer of a GGUF, through the files of a Hugging Face directory and back.
fn comes_back(gguf: &Gguf, not_stated: &[&str]) {
    let rows = gguf.texts("tokenizer.ggml.tokens").unwrap().unwrap().len();
    let entries = again(gguf, rows);
    let (_dir, path) = file_of(&entries);
    let made = Gguf::open(&path).unwrap();
    for key in ["model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "unknown_token_id"]
        .map(|key| format!("tokenizer.ggml.{key}"))
        .iter()
        .map(String::as_str)
        .chain(["tokenizer.ggml.padding_token_id", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"])
        .chain(["tokenizer.ggml.add_space_prefix", "tokenizer.chat_template", "tokenizer.chat_templates"])
        .filter(|key| !not_stated.contains(key))
    {
        assert!(gguf.get(key) == made.get(key), "{key}");
    }
    assert!(again(&made, rows) == entries);
}

fn entry<'a>(entries: &'a [(String, Entry)], key: &str) -> Option<&'a Entry> {
    entries.iter().find(|(name, _)| name.strip_prefix("tokenizer.") == Some(key)).map(|(_, entry)| entry)
}

const BYTES_AND_MORE: [&str; 7] = ["a", "b", "\u{120}", "ab", "\u{120}ab", "<|end|>", "two words"];

/// A byte-level BPE with a control token, a user-defined one and two rows of padding.
fn byte_level() -> Vec<(String, Entry)> {
    let mut tokens: Vec<String> = BYTES_AND_MORE.map(String::from).to_vec();
    tokens.extend(["[PAD7]".into(), "[PAD8]".into()]);
    let templates = vec!["tool_use".to_string()];
    [
        ("ggml.model", Entry::Text("gpt2".into())),
        ("ggml.pre", Entry::Text("smollm".into())),
        ("ggml.tokens", Entry::Texts(tokens)),
        ("ggml.token_type", Entry::Ints(vec![1, 1, 1, 1, 1, 3, 4, 5, 5])),
        ("ggml.merges", Entry::Texts(vec!["a b".into(), "\u{120} ab".into()])),
        ("ggml.add_space_prefix", Entry::Bool(false)),
        ("ggml.eos_token_id", Entry::U32(5)),
        ("ggml.add_bos_token", Entry::Bool(false)),
        ("ggml.add_eos_token", Entry::Bool(false)),
        ("chat_template", Entry::Text("{{ messages }}".into())),
        ("chat_template.tool_use", Entry::Text("{{ tools }}".into())),
        ("chat_templates", Entry::Texts(templates)),
    ]
    .map(|(key, entry)| (format!("tokenizer.{key}"), entry))
    .to_vec()
}

/// A SentencePiece BPE with all bytes; "▁a" can be made in one way, "aab" in two.
fn sentencepiece() -> Vec<(String, Entry)> {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(["aa", "ab", "▁a", "aab", "▁", "a", "b", "[PAD266]"].map(String::from));
    let kinds = [vec![2, 3, 3], vec![6; 256], vec![1; 7], vec![5]].concat();
    let mut scores = vec![ADDED_SCORE; 3];
    scores.extend([0.0; 256]);
    scores.extend([0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, PADDING_SCORE]);
    [
        ("model", Entry::Text("llama".into())),
        ("pre", Entry::Text("default".into())),
        ("tokens", Entry::Texts(tokens)),
        ("scores", Entry::Floats(scores)),
        ("token_type", Entry::Ints(kinds)),
        ("add_space_prefix", Entry::Bool(true)),
        ("bos_token_id", Entry::U32(1)),
        ("eos_token_id", Entry::U32(2)),
        ("unknown_token_id", Entry::U32(0)),
        ("add_bos_token", Entry::Bool(true)),
        ("add_eos_token", Entry::Bool(false)),
    ]
    .map(|(key, entry)| (format!("tokenizer.ggml.{key}"), entry))
    .to_vec()
}

#[test]
fn synthetic_tokenizers_come_back_as_they_were() {
    for entries in [byte_level(), sentencepiece()] {
        let (_dir, path) = file_of(&entries);
        let gguf = Gguf::open(&path).unwrap();
        let Some(Meta::Texts(tokens)) = gguf.get("tokenizer.ggml.tokens") else { panic!() };
        assert!(again(&gguf, tokens.len()) == entries, "{:?}", again(&gguf, tokens.len()));
        comes_back(&gguf, &[]);
    }
}

fn shared(test: &str) -> Option<PathBuf> {
    crate::beside::shared(test).map(|shared| shared.join("data/tokenizers"))
}

#[test]
fn tokenizers_of_llama_cpp_come_back_as_they_were() {
    let Some(data) = shared("tokenizers_of_llama_cpp_come_back_as_they_were") else { return };
    let open = |name: &str| Gguf::open(&data.join("llamacpp_vocab").join(name)).unwrap();
    let (bos, eos) = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token");
    let space = "tokenizer.ggml.add_space_prefix";
    comes_back(&open("ggml-vocab-gpt-2.gguf"), &[bos, eos, space]);
    comes_back(&open("ggml-vocab-llama-spm.gguf"), &[space]);
}

#[test]
fn smollm2_comes_back_as_it_was() {
    let Some(path) = std::env::var_os("LRQAT_SMOLLM2").map(PathBuf::from) else {
        let what = "LRQAT_SMOLLM2 is not set to SmolLM2-135M-Instruct.Q4_1.gguf";
        return crate::beside::skipped("smollm2_comes_back_as_it_was", what);
    };
    comes_back(&Gguf::open(&path).unwrap(), &["tokenizer.ggml.add_eos_token"]);
}

fn read(dir: &Path, names: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    names.iter().map(|(from, to)| (to.to_string(), std::fs::read(dir.join(from)).unwrap())).collect()
}

/// LLaMA 2's tokenizer.model gives what llama.cpp's converter made of it.
#[test]
fn llama_2_as_sentencepiece_gives_the_entries_of_llama_cpp() {
    let Some(data) = shared("llama_2_as_sentencepiece_gives_the_entries_of_llama_cpp") else { return };
    let files = read(&data.join("llama2"), &[("tokenizer.model", "tokenizer.model")]);
    let entries = gguf_entries(&data, &files, &json!({"vocab_size": 32000})).unwrap();
    let theirs = Gguf::open(&data.join("llamacpp_vocab/ggml-vocab-llama-spm.gguf")).unwrap();
    let (_dir, path) = file_of(&entries);
    let ours = Gguf::open(&path).unwrap();
    for key in ["model", "pre", "tokens", "token_type", "bos_token_id", "eos_token_id", "unknown_token_id"] {
        let key = format!("tokenizer.ggml.{key}");
        assert!(ours.get(&key) == theirs.get(&key), "{key}");
    }
    let scores = |gguf: &Gguf| gguf.floats("tokenizer.ggml.scores").unwrap().unwrap()[3..].to_vec();
    assert!(scores(&ours) == scores(&theirs));
}

/// Mistral's tokenizer.json alone gives scores in the order of those of its SentencePiece model, and the same rest.
#[test]
fn scores_from_merges_are_in_the_order_of_the_sentencepiece_model() {
    let Some(data) = shared("scores_from_merges_are_in_the_order_of_the_sentencepiece_model") else { return };
    let dir = data.join("mistral");
    let names = [("tokenizer.json", TOKENIZER), ("tokenizer_config.json", CONFIG)];
    let from_merges = gguf_entries(&dir, &read(&dir, &names), &json!({"vocab_size": 32000})).unwrap();
    let with_model = [names[0], names[1], ("tokenizer.model.v1", SENTENCEPIECE)];
    let from_model = gguf_entries(&dir, &read(&dir, &with_model), &json!({"vocab_size": 32000})).unwrap();
    // Pieces of several characters: only their scores are ever asked for.
    let order = |entries: &[(String, Entry)]| {
        let (Some(Entry::Floats(scores)), Some(Entry::Texts(tokens))) =
            (entry(entries, "ggml.scores"), entry(entries, "ggml.tokens"))
        else {
            panic!("no scores")
        };
        let mut made: Vec<usize> = (259..tokens.len()).filter(|id| tokens[*id].chars().count() > 1).collect();
        made.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        made
    };
    assert!(order(&from_merges).len() > 20000 && order(&from_merges) == order(&from_model));
    let rest =
        |entries: Vec<(String, Entry)>| entries.into_iter().filter(|e| !e.0.ends_with(".scores")).collect::<Vec<_>>();
    assert!(rest(from_merges) == rest(from_model));
}

/// tokenizer.json and tokenizer_config.json of the synthetic byte-level BPE, as values.
fn hf(entries: &[(String, Entry)]) -> (Value, Value) {
    let (_dir, path) = file_of(entries);
    let files: HashMap<String, Vec<u8>> =
        hf_tokenizer_files(&Gguf::open(&path).unwrap()).unwrap().into_iter().collect();
    let value = |name: &str| serde_json::from_slice(&files[name]).unwrap();
    (value(TOKENIZER), value(CONFIG))
}

fn entries_of(json: &Value, own: &Value, config: Value, more: &[(&str, &str)]) -> Result<Vec<(String, Entry)>> {
    let mut files: Vec<(String, Vec<u8>)> =
        [(TOKENIZER, json), (CONFIG, own)].map(|(name, v)| (name.to_string(), v.to_string().into_bytes())).to_vec();
    files.extend(more.iter().map(|(name, text)| (name.to_string(), text.as_bytes().to_vec())));
    gguf_entries("model".as_ref(), &files, &config)
}

#[test]
fn types_ids_and_templates_follow_the_files() {
    let (mut json, mut own) = hf(&byte_level());
    json["added_tokens"].as_array_mut().unwrap().push(json!({"id": 7, "content": "<|tool|>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": false}));
    own.as_object_mut().unwrap().remove("chat_template");
    own.as_object_mut().unwrap().remove("eos_token");
    own["add_eos_token"] = json!(true);
    own["pad_token"] = json!({"content": "<|tool|>"});
    let config = json!({"vocab_size": 9, "eos_token_id": [5, 7], "bos_token_id": 1000});
    let made = entries_of(&json, &own, config, &[("chat_template.jinja", "{{ x }}")]).unwrap();
    // "<|tool|>" looks like a control token, whatever the file says.
    assert_eq!(entry(&made, "ggml.token_type"), Some(&Entry::Ints(vec![1, 1, 1, 1, 1, 3, 4, 3, 5])));
    assert_eq!(entry(&made, "ggml.eos_token_id"), Some(&Entry::U32(5)));
    assert_eq!(entry(&made, "ggml.padding_token_id"), Some(&Entry::U32(7)));
    assert_eq!(entry(&made, "ggml.bos_token_id"), None);
    assert_eq!(entry(&made, "ggml.add_eos_token"), Some(&Entry::Bool(true)));
    assert_eq!(entry(&made, "chat_template"), Some(&Entry::Text("{{ x }}".into())));
    assert_eq!(entry(&made, "chat_templates"), None);
}

#[test]
fn ignoring_merges_counts_only_where_it_makes_a_difference() {
    let (mut json, own) = hf(&byte_level());
    let pre = |json: &Value| entries_of(json, &own, json!({"vocab_size": 9}), &[]);
    json["pre_tokenizer"] = byte_bpe::pre("llama-bpe").unwrap().pre_tokenizer;
    assert_eq!(entry(&pre(&json).unwrap(), "ggml.pre"), Some(&Entry::Text("smaug-bpe".into())));
    json["model"]["ignore_merges"] = json!(true);
    assert_eq!(entry(&pre(&json).unwrap(), "ggml.pre"), Some(&Entry::Text("llama-bpe".into())));
    json["pre_tokenizer"] = byte_bpe::pre("gpt-2").unwrap().pre_tokenizer;
    let e = pre(&json).unwrap_err().to_string();
    assert!(e.contains("and ignore_merges"), "{e}");
}

#[test]
fn what_llama_cpp_would_split_otherwise_is_refused() {
    let refused = |json: &Value, own: &Value, rows: Value, parts: &[&str]| {
        let e = entries_of(json, own, json!({"vocab_size": rows}), &[]).unwrap_err().to_string();
        assert!(parts.iter().all(|part| e.contains(part)) && !e.contains('\n'), "{e}");
    };
    let (json, own) = hf(&byte_level());
    let cure = "--format compressed-tensors";
    let set = |key: &str, value: Value| {
        let mut changed = json.clone();
        *changed.pointer_mut(key).unwrap() = value;
        changed
    };
    let words = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    refused(&set("/pre_tokenizer", words), &own, json!(9), &["ByteLevel", "one of: smollm, llama-bpe", cure]);
    refused(&set("/normalizer", json!({"type": "NFC"})), &own, json!(9), &["\"NFC\"", cure]);
    refused(&set("/pre_tokenizer", json!(null)), &own, json!(9), &["normalizer null", "byte-level", cure]);
    refused(&set("/model/end_of_word_suffix", json!("</w>")), &own, json!(9), &["end_of_word_suffix", cure]);
    refused(&set("/model/dropout", json!(0.1)), &own, json!(9), &["dropout", cure]);
    let unigram = json!({"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["<|end|>", 0.0]]});
    let mut changed = set("/model", unigram);
    changed["added_tokens"] = json!([]);
    refused(&changed, &own, json!(9), &["a tokenizer of type Unigram", "expected BPE", cure]);
    refused(&json, &own, json!(6), &["token ids up to 6", "vocab_size 6"]);
    refused(&json, &own, json!(1u64 << 40), &["vocab_size of 1099511627776"]);

    let (json, own) = hf(&sentencepiece());
    let mut fewer = json.clone();
    fewer["model"]["merges"].as_array_mut().unwrap().pop();
    refused(&fewer, &own, json!(267), &["1 of the 2 merges that give \"aab\"", cure]);
    let mut without = json.clone();
    without["model"]["vocab"].as_object_mut().unwrap().remove("<0x41>");
    refused(&without, &own, json!(267), &["255 byte tokens", cure]);
}
