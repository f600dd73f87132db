//! Names of pre-tokenizers as the models that they are named after publish them, and in other words.

use super::*;

fn split(pattern: &str, behavior: &str, invert: bool) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert})
}

fn bytes(use_regex: bool, add_prefix_space: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex})
}

fn names(steps: Vec<Value>) -> Vec<&'static str> {
    byte_level_names(&json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}))
}

#[test]
fn published_forms_have_their_names() {
    let digits = || json!({"type": "Digits", "individual_digits": true});
    assert_eq!(byte_level_names(&json!({"normalizer": null, "pre_tokenizer": bytes(true, false)})), ["gpt-2"]);
    assert_eq!(names(vec![digits(), bytes(true, false)]), ["smollm"]);
    let llama3 = split(byte_bpe::LLAMA3_SPLIT, "Isolated", false);
    assert_eq!(names(vec![llama3, bytes(false, false)]), ["llama-bpe", "smaug-bpe"]);
    let qwen2 = split(byte_bpe::QWEN2_SPLIT, "Isolated", false);
    assert_eq!(names(vec![qwen2, bytes(false, false)]), ["qwen2"]);
}

#[test]
fn every_name_is_found_by_its_own_splits() {
    for name in byte_bpe::PRE_NAMES {
        let found = byte_level_names(&json!({"pre_tokenizer": byte_bpe::pre(name).unwrap().pre_tokenizer}));
        let others = if name.ends_with("a-bpe") || name == "smaug-bpe" { 2 } else { 1 };
        assert!(found.contains(&name) && found.len() == others, "{name}: {found:?}");
    }
}

#[test]
fn the_writing_does_not_matter() {
    let gpt2 = split(byte_bpe::GPT2_SPLIT, "Isolated", false);
    assert_eq!(names(vec![gpt2.clone(), bytes(false, false)]), ["gpt-2"]);
    // \s+ alone at the end is what the last two of GPT-2's alternatives leave over.
    let shorter = split(byte_bpe::GPT2_SPLIT.strip_suffix(r"|\s+").unwrap(), "Isolated", false);
    assert_eq!(names(vec![shorter, bytes(false, false)]), ["gpt-2"]);
    assert_eq!(names(vec![split(r"\p{N}", "Isolated", false), gpt2, bytes(false, false)]), ["smollm"]);
    // Matches kept and nothing else, where everything matches.
    let kept = split(byte_bpe::LLAMA3_SPLIT, "Removed", true);
    assert_eq!(names(vec![kept, bytes(false, false)]), ["llama-bpe", "smaug-bpe"]);
    let spelled = byte_bpe::LLAMA3_SPLIT.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)");
    let spelled = spelled.replace(r"\s*[\r\n]+", r"\s*[\r\n]");
    assert_eq!(names(vec![split(&spelled, "Isolated", false), bytes(false, false)]), ["llama-bpe", "smaug-bpe"]);
    let nothing = json!({"type": "Sequence", "normalizers": []});
    assert_eq!(byte_level_names(&json!({"normalizer": nothing, "pre_tokenizer": bytes(true, false)})), ["gpt-2"]);
}

#[test]
fn what_splits_otherwise_has_no_name() {
    let none = Vec::<&str>::new();
    assert_eq!(names(vec![bytes(true, true)]), none);
    assert_eq!(names(vec![bytes(false, false)]), none);
    let changed = [
        (r"\p{N}{1,3}", r"\p{N}{1,2}"),
        (r"\p{N}{1,3}", r"\p{N}+"),
        (r"\p{N}{1,3}", r"[0-9]{1,3}"),
        ("(?i:", "(?:"),
        (r"]?\p{L}+", r"]?[\p{L}\p{M}]+"),
        (r"+[\r\n]*", "+"),
        (r"+[\r\n]*", r"+[\r\n/]*"),
        (r"|\s+(?!\S)", ""),
        ("'ll|", ""),
    ];
    for (from, to) in changed {
        let pattern = byte_bpe::LLAMA3_SPLIT.replace(from, to);
        assert_ne!(pattern, byte_bpe::LLAMA3_SPLIT);
        assert_eq!(names(vec![split(&pattern, "Isolated", false), bytes(false, false)]), none, "{pattern}");
    }
    for normalizer in ["NFC", "NFKC", "NFD", "Lowercase"] {
        let json = json!({"normalizer": {"type": normalizer}, "pre_tokenizer": bytes(true, false)});
        assert_eq!(byte_level_names(&json), none, "{normalizer}");
    }
    assert_eq!(byte_level_names(&json!({"pre_tokenizer": {"type": "none of them"}})), none);
}

#[test]
fn sentencepiece_forms_tell_whether_a_space_is_put_before() {
    let replace = || json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "normalizers": steps});
    let prepend = || json!({"type": "Prepend", "prepend": SPACE});
    let metaspace = |scheme: &str, split: bool| {
        let metaspace = json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split});
        space_prefix(&json!({"normalizer": null, "pre_tokenizer": metaspace}))
    };
    assert_eq!(space_prefix(&json!({"normalizer": sequence(vec![prepend(), replace()])})), Some(true));
    assert_eq!(space_prefix(&json!({"normalizer": replace(), "pre_tokenizer": null})), Some(false));
    assert_eq!(metaspace("first", false), Some(true));
    assert_eq!(metaspace("always", false), Some(true));
    assert_eq!(metaspace("never", false), Some(false));
    assert_eq!(metaspace("first", true), None);
    let nfkc = json!({"type": "NFKC"});
    assert_eq!(space_prefix(&json!({"normalizer": sequence(vec![nfkc, prepend(), replace()])})), None);
    assert_eq!(space_prefix(&json!({})), None);
}
