//! GPT-2's byte-level BPE as a tokenizer.json, with the pre-tokenizers that GGUF files name (`llama-vocab.cpp` of
//! llama.cpp; SmolLM2's and Llama 3's own tokenizer.json state the same).

use serde_json::{Value, json};

use super::tokenizer_json::{Parts, Piece, Specials, assemble, merges, vocab};

/// Words of GPT-2; `ByteLevel` has it built in.
pub(super) const GPT2_SPLIT: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(super) const LLAMA3_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// llama.cpp's splits, one after the other, for a file that names none.
pub(super) const DEFAULT_SPLITS: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2_SPLIT, r"\p{N}+", "[0-9][0-9][0-9]"];

/// A pre-tokenizer by its GGUF name.
pub(super) struct Pre {
    pub pre_tokenizer: Value,
    /// A word that is a token as it stands is not built by merges.
    pub ignore_merges: bool,
    /// Whether BOS is added where the file does not say.
    pub adds_bos: bool,
}

pub(super) const PRE_NAMES: &str = "smollm, llama-bpe (llama3, llama-v3), gpt-2, default";

pub(super) fn pre(name: &str) -> Option<Pre> {
    let words = byte_level(true);
    let splits = |patterns: &[&str]| {
        let split =
            |p: &&str| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false});
        sequence(patterns.iter().map(split).chain([byte_level(false)]).collect())
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    let (pre_tokenizer, llama3) = match name {
        "smollm" => (sequence(vec![digits, words]), false),
        "llama-bpe" | "llama3" | "llama-v3" => (splits(&[LLAMA3_SPLIT]), true),
        "gpt-2" => (words, false),
        "default" => (splits(&DEFAULT_SPLITS), false),
        _ => return None,
    };
    Some(Pre { pre_tokenizer, ignore_merges: llama3, adds_bos: llama3 })
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn sequence(items: Vec<Value>) -> Value {
    json!({"type": "Sequence", "pretokenizers": items})
}

pub(super) fn tokenizer_json(pieces: &[Piece], pairs: &[(&str, &str)], specials: &Specials, pre: Pre) -> Value {
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": pre.ignore_merges,
        "vocab": vocab(pieces),
        "merges": merges(pairs),
    });
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let parts = Parts { normalizer: Value::Null, pre_tokenizer: pre.pre_tokenizer, decoder, model };
    assemble(pieces, specials, parts)
}
