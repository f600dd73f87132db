//! GPT-2's byte-level BPE as a tokenizer.json, with the pre-tokenizers that GGUF files name (`llama-vocab.cpp` of
//! llama.cpp), each as the tokenizer.json of the models that it is named after states it.

use serde_json::{Value, json};

use super::tokenizer_json::{Parts, Piece, Specials, assemble, merges, vocab};

/// Words of GPT-2; `ByteLevel` has it built in.
pub(super) const GPT2_SPLIT: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(super) const LLAMA3_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Llama 3's with single digits.
pub(super) const QWEN2_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Mistral-Nemo's: words end where capitals begin. llama.cpp takes only A-Z and a-z for cased letters.
const TEKKEN_SPLIT: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// DeepSeek-Coder's, one after the other.
const DEEPSEEK_CODER_SPLITS: [&str; 4] =
    ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+"];
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

/// One name for each; `pre` knows others of llama-bpe.
pub(super) const PRE_NAMES: [&str; 8] =
    ["smollm", "llama-bpe", "gpt-2", "smaug-bpe", "qwen2", "tekken", "deepseek-coder", "default"];

pub(super) fn pre(name: &str) -> Option<Pre> {
    let words = byte_level(true);
    let digits = json!({"type": "Digits", "individual_digits": true});
    let (pre_tokenizer, ignore_merges) = match name {
        "smollm" => (sequence(vec![digits, words]), false),
        "llama-bpe" | "llama3" | "llama-v3" => (splits(&[LLAMA3_SPLIT], None), true),
        "smaug-bpe" => (splits(&[LLAMA3_SPLIT], None), false),
        "qwen2" => (splits(&[QWEN2_SPLIT], None), false),
        "tekken" => (splits(&[TEKKEN_SPLIT], None), true),
        "deepseek-coder" => (splits(&DEEPSEEK_CODER_SPLITS, Some(digits)), false),
        "gpt-2" => (words, false),
        "default" => (splits(&DEFAULT_SPLITS, None), false),
        _ => return None,
    };
    // llama.cpp sets both for the same names.
    Some(Pre { pre_tokenizer, ignore_merges, adds_bos: ignore_merges })
}

/// Splits one after the other, `then` after them, and bytes as characters at the end.
fn splits(patterns: &[&str], then: Option<Value>) -> Value {
    let split = |p: &&str| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false});
    sequence(patterns.iter().map(split).chain(then).chain([byte_level(false)]).collect())
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
