//! Cutting a long text into pieces that are encoded apart, on all cores, where that provably gives the same tokens.
//!
//! A cut is made only before a single space with a letter on both sides.
//!
//! Byte-level BPE: every splitting pattern named here lets a space begin a word but never lie inside or at the end of one
//! whose other characters are not spaces, and looks ahead only past spaces. So a word ends before such a space however
//! the text goes on, and what follows is split as if the text began there. Merges never cross words.
//!
//! SentencePiece: the space is "▁". A merge across the cut would make a piece in which "▁" follows that letter; where no
//! piece of the vocabulary holds such a pair, the merges on both sides do not touch each other. If the tokenizer puts a
//! space before each text, the piece after the cut is encoded without its own.
//!
//! Added tokens are matched before all this. Those that could take part in a cut (letters at their ends, spaces inside,
//! stripping) rule cutting out.

use std::collections::HashSet;

use serde_json::Value;

use super::byte_bpe::{DEFAULT_SPLITS, LLAMA3_SPLIT, QWEN2_SPLIT};
use super::spm::SPACE;

/// Bytes of a piece: large against what a call costs, small against a core's cache (the fastest of 1 B to 1 MB).
const PIECE: usize = 1 << 14;

#[derive(Debug, PartialEq)]
pub(super) struct Cut {
    /// The tokenizer puts the space before a text, so a piece leaves it out.
    drops_space: bool,
    /// Characters after which no cut is made.
    not_after: HashSet<char>,
    piece: usize,
}

impl Cut {
    /// How this tokenizer.json allows to cut, if it does.
    pub fn of(json: &Value) -> Option<Cut> {
        let model = &json["model"];
        if model["type"] != "BPE" || !model["dropout"].is_null() || !added_tokens_stay_apart(json) {
            return None;
        }
        for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if !matches!(model[affix].as_str(), None | Some("")) {
                return None;
            }
        }
        if json["normalizer"].is_null() && splits_into_words(&json["pre_tokenizer"]) {
            return Some(Cut { drops_space: false, not_after: HashSet::new(), piece: PIECE });
        }
        if model["ignore_merges"] == true {
            return None;
        }
        let drops_space = puts_a_space_before(json)?;
        let not_after = before_space(&model["vocab"]);
        // A character outside the vocabulary stands as bytes, "<0xE2>", or as "<unk>".
        (!not_after.contains(&'>')).then_some(Cut { drops_space, not_after, piece: PIECE })
    }

    /// The text in pieces of about 16 KiB; in one piece if there is nowhere to cut.
    pub fn pieces<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let mut pieces = Vec::new();
        let mut start = 0;
        while let Some(space) = self.find(text, start + self.piece) {
            pieces.push(&text[start..space]);
            start = space + self.drops_space as usize;
        }
        pieces.push(&text[start..]);
        pieces
    }

    /// The first space from byte `from` on before which a cut may be made.
    fn find(&self, text: &str, from: usize) -> Option<usize> {
        let bytes = text.as_bytes();
        let mut at = from;
        while let Some(next) = bytes.get(at..).and_then(|rest| rest.iter().position(|b| *b == b' ')) {
            at += next;
            let before = text[..at].chars().next_back();
            let after = text[at + 1..].chars().next();
            let letters = before.is_some_and(char::is_alphabetic) && after.is_some_and(char::is_alphabetic);
            if letters && !before.is_some_and(|c| self.not_after.contains(&c)) {
                return Some(at);
            }
            at += 1;
        }
        None
    }
}

fn added_tokens_stay_apart(json: &Value) -> bool {
    let Some(added) = json["added_tokens"].as_array() else { return json["added_tokens"].is_null() };
    added.iter().all(|token| {
        let Some(text) = token["content"].as_str() else { return false };
        let ends = [text.chars().next(), text.chars().next_back()];
        let strips = ["lstrip", "rstrip", "single_word"].iter().any(|key| token[key] == true);
        !strips && !text.contains([' ', '▁']) && ends.iter().all(|c| c.is_some_and(|c| !c.is_alphabetic()))
    })
}

/// Byte-level pre-tokenizers whose patterns are those argued about above.
fn splits_into_words(pre: &Value) -> bool {
    let steps = match pre["type"].as_str() {
        Some("Sequence") => pre["pretokenizers"].as_array().map_or(&[][..], Vec::as_slice),
        _ => std::slice::from_ref(pre),
    };
    let Some((last, steps)) = steps.split_last() else { return false };
    let known = |step: &Value| match step["type"].as_str() {
        Some("Digits") => true,
        Some("Split") => {
            let pattern = step["pattern"]["Regex"].as_str().unwrap_or("");
            let isolated = step["behavior"] == "Isolated" && step["invert"] != true;
            isolated && ([LLAMA3_SPLIT, QWEN2_SPLIT].contains(&pattern) || DEFAULT_SPLITS.contains(&pattern))
        }
        _ => false,
    };
    let words = last["use_regex"] != false || steps.iter().any(|step| step["type"] == "Split");
    last["type"] == "ByteLevel" && words && steps.iter().all(known)
}

/// Whether a SentencePiece tokenizer puts a space before each text; `None` if it is not one of the known forms: LLaMA's
/// normalizer (Prepend, Replace) alone, or the `Metaspace` that does the same, alone.
fn puts_a_space_before(json: &Value) -> Option<bool> {
    let (normalizer, pre) = (&json["normalizer"], &json["pre_tokenizer"]);
    if normalizer.is_null() && pre["type"] == "Metaspace" && pre["replacement"] == SPACE {
        return match pre["prepend_scheme"].as_str()? {
            "first" | "always" => Some(true),
            "never" => Some(false),
            _ => None,
        };
    }
    let steps = match normalizer["type"].as_str()? {
        "Sequence" => normalizer["normalizers"].as_array()?.as_slice(),
        _ => std::slice::from_ref(normalizer),
    };
    let (last, before) = steps.split_last()?;
    let replaces = last["type"] == "Replace" && last["pattern"]["String"] == " " && last["content"] == SPACE;
    match before {
        _ if !replaces || !pre.is_null() => None,
        [] => Some(false),
        [step] if step["type"] == "Prepend" && step["prepend"] == SPACE => Some(true),
        _ => None,
    }
}

/// Characters that some piece has right before a "▁".
fn before_space(vocab: &Value) -> HashSet<char> {
    let mut found = HashSet::new();
    for text in vocab.as_object().into_iter().flat_map(|v| v.keys()) {
        for (at, _) in text.match_indices(SPACE) {
            found.extend(text[..at].chars().next_back());
        }
    }
    found
}

#[cfg(test)]
impl Cut {
    pub fn with_pieces_of(mut self, bytes: usize) -> Cut {
        self.piece = bytes;
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bpe(normalizer: Value, pre: Value, vocab: Value, added: Value) -> Option<Cut> {
        let model = json!({"type": "BPE", "dropout": null, "vocab": vocab});
        Cut::of(&json!({"model": model, "normalizer": normalizer, "pre_tokenizer": pre, "added_tokens": added}))
    }

    fn llama() -> Value {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
    }

    #[test]
    fn cuts_stand_before_a_space_between_letters() {
        let words = json!({"type": "ByteLevel", "use_regex": true});
        let cut = bpe(Value::Null, words, json!({}), json!([])).unwrap().with_pieces_of(1);
        assert_eq!(cut.pieces("ab cd  ef, gh 1 é ü\n x y"), ["ab", " cd  ef, gh 1 é", " ü\n x", " y"]);
        let cut = bpe(llama(), Value::Null, json!({"a▁b": 0, "▁▁": 1}), json!([])).unwrap().with_pieces_of(1);
        // "a" may be followed by "▁" within a piece of this vocabulary, so nothing is cut after it.
        assert_eq!(cut.pieces("xa b cd e"), ["xa b", "cd", "e"]);
        assert_eq!(cut.pieces(""), [""]);
    }

    #[test]
    fn a_tokenizer_that_is_not_understood_is_not_cut() {
        let words = || json!({"type": "ByteLevel", "use_regex": true});
        let token = |key: &str, value: Value| {
            let mut token = json!({"content": "<s>", "lstrip": false});
            token[key] = value;
            json!([token])
        };
        let with = |added: Value| bpe(Value::Null, words(), json!({}), added);
        assert!(with(token("lstrip", json!(false))).is_some());
        assert!(with(token("lstrip", json!(true))).is_none());
        assert!(with(token("content", json!("<a b>"))).is_none());
        assert!(with(token("content", json!("stop"))).is_none());
        assert!(bpe(json!({"type": "NFC"}), words(), json!({}), json!([])).is_none());
        let split = json!({"type": "Split", "pattern": {"Regex": ".+"}, "behavior": "Isolated", "invert": false});
        let own = json!({"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": false}]});
        assert!(bpe(Value::Null, own, json!({}), json!([])).is_none());
        assert!(bpe(Value::Null, json!({"type": "ByteLevel", "use_regex": false}), json!({}), json!([])).is_none());
        assert!(bpe(llama(), words(), json!({}), json!([])).is_none());
        assert!(bpe(llama(), Value::Null, json!({"<0x41>▁": 0}), json!([])).is_none());
        assert_eq!(Cut::of(&json!({"model": {"type": "Unigram"}})), None);
    }
}
