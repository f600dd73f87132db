//! What the tokenizer.json of a byte-level BPE and of a SentencePiece model have in common, and its digest.

use serde_json::{Map, Value, json};

/// What a piece of the vocabulary is, in SentencePiece's and GGUF's numbering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    User,
    Unused,
    Byte,
}

impl Kind {
    pub fn from_code(code: i64) -> Option<Kind> {
        use Kind::*;
        [Normal, Unknown, Control, User, Unused, Byte].get(usize::try_from(code).ok()?.checked_sub(1)?).copied()
    }

    pub fn code(self) -> i32 {
        self as i32 + 1
    }
}

#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: Kind,
}

/// Ids within the vocabulary; the reader has checked them.
#[derive(Debug, Clone, Default)]
pub(super) struct Specials {
    pub bos: Option<usize>,
    pub eos: Option<usize>,
    pub unk: Option<usize>,
    pub pad: Option<usize>,
    pub add_bos: bool,
    pub add_eos: bool,
}

impl Specials {
    fn is_special(&self, id: usize, kind: Kind) -> bool {
        let named = [self.bos, self.eos, self.unk, self.pad].contains(&Some(id));
        named || matches!(kind, Kind::Control | Kind::Unknown)
    }
}

/// The text of a piece that occurs twice, which a vocabulary by text cannot hold.
pub(super) fn repeated(pieces: &[Piece]) -> Option<&str> {
    let mut seen = std::collections::HashSet::new();
    pieces.iter().map(|p| p.text.as_str()).find(|text| !seen.insert(*text))
}

/// The name that llama.cpp's converter gives to a row of the embedding that no token has.
pub(super) fn padding(id: usize) -> String {
    format!("[PAD{id}]")
}

/// Without padding, which no text gives.
pub(super) fn vocab(pieces: &[Piece]) -> Value {
    let real = |(id, p): &(usize, &Piece)| p.kind != Kind::Unused || p.text != padding(*id);
    Value::Object(pieces.iter().enumerate().filter(real).map(|(id, p)| (p.text.clone(), json!(id))).collect())
}

/// Pairs of texts as "left right", the form that every version reads, unless a text holds a space.
pub(super) fn merges(pairs: &[(&str, &str)]) -> Value {
    if pairs.iter().any(|(l, r)| l.contains(' ') || r.contains(' ')) {
        return pairs.iter().map(|(l, r)| json!([l, r])).collect();
    }
    pairs.iter().map(|(l, r)| json!(format!("{l} {r}"))).collect()
}

/// The parts of a tokenizer.json that depend on the kind of model.
pub(super) struct Parts {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub decoder: Value,
    pub model: Value,
}

pub(super) fn assemble(pieces: &[Piece], specials: &Specials, parts: Parts) -> Value {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(pieces, specials),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": post_processor(pieces, specials),
        "decoder": parts.decoder,
        "model": parts.model,
    })
}

/// Control tokens are matched whole and special; user-defined ones are matched whole.
fn added_tokens(pieces: &[Piece], specials: &Specials) -> Value {
    let added = pieces.iter().enumerate().filter_map(|(id, p)| {
        let special = specials.is_special(id, p.kind);
        (special || p.kind == Kind::User).then(|| {
            json!({
                "id": id,
                "content": p.text,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": special,
            })
        })
    });
    added.collect()
}

fn post_processor(pieces: &[Piece], specials: &Specials) -> Value {
    let bos = specials.bos.filter(|_| specials.add_bos);
    let eos = specials.eos.filter(|_| specials.add_eos);
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let token = |id: usize, ty: u32| json!({"SpecialToken": {"id": pieces[id].text, "type_id": ty}});
    let around = |sequence: &str, ty: u32| {
        let text = json!({"Sequence": {"id": sequence, "type_id": ty}});
        bos.map(|id| token(id, ty)).into_iter().chain([text]).chain(eos.map(|id| token(id, ty))).collect::<Vec<_>>()
    };
    let mut used = Map::new();
    for id in bos.into_iter().chain(eos) {
        let text = &pieces[id].text;
        used.insert(text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": Value::Array([around("A", 0), around("B", 1)].concat()),
        "special_tokens": used,
    })
}

/// BLAKE3, in hex, of the tokenizer.json with sorted keys, no blanks and merges as pairs, without the truncation and
/// padding that a text's length settings leave there.
pub(super) fn digest(json: &Value) -> String {
    let mut canonical = sorted(json);
    if let Some(top) = canonical.as_object_mut() {
        top.remove("truncation");
        top.remove("padding");
    }
    if let Some(merges) = canonical.pointer_mut("/model/merges").and_then(Value::as_array_mut) {
        for merge in merges {
            if let Some((left, right)) = merge.as_str().and_then(|m| m.split_once(' ')) {
                *merge = json!([left, right]);
            }
        }
    }
    blake3::hash(canonical.to_string().as_bytes()).to_hex().to_string()
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            Value::Object(keys.into_iter().map(|k| (k.clone(), sorted(&map[k]))).collect())
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}
