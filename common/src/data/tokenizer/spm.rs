//! A SentencePiece BPE vocabulary as a tokenizer.json, built as Hugging Face builds LLaMA-2's: spaces become "▁", one is
//! put before the text, unknown characters fall back to bytes, and the merges follow from the scores (transformers,
//! `convert_slow_tokenizer.py`).

use std::collections::HashMap;

use serde_json::{Value, json};

use super::tokenizer_json::{Kind, Parts, Piece, Specials, assemble, merges, vocab};

pub(super) const SPACE: &str = "▁";

/// Every way to put a piece together from two others, best score first; among equal scores in the order of the pieces,
/// and of their parts, in the vocabulary. This is the order of the tokenizer.json that Mistral publishes.
fn merge_pairs(pieces: &[Piece]) -> Vec<(&str, &str)> {
    let merged = |p: &Piece| !matches!(p.kind, Kind::Control | Kind::Unknown | Kind::Byte);
    let ids: HashMap<&str, usize> =
        pieces.iter().enumerate().filter(|(_, p)| merged(p)).map(|(id, p)| (p.text.as_str(), id)).collect();
    let mut all = Vec::new();
    for piece in pieces.iter().filter(|p| merged(p)) {
        let mut ways = Vec::new();
        for (at, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                ways.push((l, r, left, right));
            }
        }
        ways.sort_unstable_by_key(|w| (w.0, w.1));
        all.extend(ways.into_iter().map(|(_, _, left, right)| (piece.score, left, right)));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all.into_iter().map(|(_, left, right)| (left, right)).collect()
}

/// `space_before`: a space is put before each text (SentencePiece's dummy prefix).
pub(super) fn tokenizer_json(pieces: &[Piece], specials: &Specials, space_before: bool) -> Value {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let mut normalizers = vec![replace];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if space_before {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": specials.unk.map(|id| pieces[id].text.as_str()),
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": pieces.iter().any(|p| p.kind == Kind::Byte),
        "ignore_merges": false,
        "vocab": vocab(pieces),
        "merges": merges(&merge_pairs(pieces)),
    });
    let parts = Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model,
    };
    assemble(pieces, specials, parts)
}
