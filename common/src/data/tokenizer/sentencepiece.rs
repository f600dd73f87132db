//! Reading a SentencePiece model (`sentencepiece_model.proto`: a protobuf `ModelProto`), for directories that have a
//! `tokenizer.model` and no tokenizer.json.

use std::path::Path;

use serde_json::Value;

use super::spm;
use super::tokenizer_json::{Kind, Piece, Specials, repeated};
use crate::error::{Error, Result};

const CURE: &str = "save the tokenizer as tokenizer.json with transformers";

/// One field of a protobuf message.
enum Field<'a> {
    Varint(u64),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
    /// 64-bit fields: not used by this format.
    Other,
}

/// Calls `each` with the number and value of every field, in order; `None` if the bytes are no protobuf message.
fn fields<'a>(bytes: &'a [u8], mut each: impl FnMut(u64, Field<'a>) -> Option<()>) -> Option<()> {
    let mut at = 0;
    while at < bytes.len() {
        let tag = varint(bytes, &mut at)?;
        let field = match tag & 7 {
            0 => Field::Varint(varint(bytes, &mut at)?),
            1 => take(bytes, &mut at, 8).map(|_| Field::Other)?,
            2 => {
                let n = varint(bytes, &mut at)?;
                Field::Bytes(take(bytes, &mut at, usize::try_from(n).ok()?)?)
            }
            5 => Field::Fixed32(take(bytes, &mut at, 4)?.try_into().ok()?),
            _ => return None,
        };
        each(tag >> 3, field)?;
    }
    Some(())
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= ((byte & 0x7f) as u64) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &'a [u8], at: &mut usize, n: usize) -> Option<&'a [u8]> {
    let end = at.checked_add(n)?;
    let part = bytes.get(*at..end)?;
    *at = end;
    Some(part)
}

/// What is used of a `ModelProto`, at the defaults of the .proto file.
struct Model {
    pieces: Vec<Piece>,
    /// 1 unigram, 2 BPE, 3 word, 4 char.
    algorithm: u64,
    unk: u64,
    bos: u64,
    eos: u64,
    space_before: bool,
    squeezes_spaces: bool,
    rewrites_characters: bool,
    space_after: bool,
}

impl Model {
    fn parse(bytes: &[u8]) -> Option<Model> {
        let mut m = Model {
            pieces: Vec::new(),
            algorithm: 1,
            unk: 0,
            bos: 1,
            eos: 2,
            space_before: true,
            squeezes_spaces: true,
            rewrites_characters: false,
            space_after: false,
        };
        fields(bytes, |number, field| {
            match (number, field) {
                (1, Field::Bytes(b)) => m.pieces.push(piece(b)?),
                (2, Field::Bytes(b)) => m.trainer(b)?,
                (3, Field::Bytes(b)) => m.normalizer(b)?,
                _ => {}
            }
            Some(())
        })?;
        Some(m)
    }

    fn trainer(&mut self, bytes: &[u8]) -> Option<()> {
        fields(bytes, |number, field| {
            match (number, field) {
                (3, Field::Varint(v)) => self.algorithm = v,
                (24, Field::Varint(v)) => self.space_after = v != 0,
                (40, Field::Varint(v)) => self.unk = v,
                (41, Field::Varint(v)) => self.bos = v,
                (42, Field::Varint(v)) => self.eos = v,
                _ => {}
            }
            Some(())
        })
    }

    fn normalizer(&mut self, bytes: &[u8]) -> Option<()> {
        fields(bytes, |number, field| {
            match (number, field) {
                (2, Field::Bytes(b)) => self.rewrites_characters = !b.is_empty(),
                (3, Field::Varint(v)) => self.space_before = v != 0,
                (4, Field::Varint(v)) => self.squeezes_spaces = v != 0,
                _ => {}
            }
            Some(())
        })
    }

    /// Ids that are not set are negative in the file.
    fn id(&self, id: u64) -> Option<usize> {
        usize::try_from(id).ok().filter(|id| *id < self.pieces.len())
    }
}

fn piece(bytes: &[u8]) -> Option<Piece> {
    let mut p = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    fields(bytes, |number, field| {
        match (number, field) {
            (1, Field::Bytes(b)) => p.text = std::str::from_utf8(b).ok()?.to_string(),
            (2, Field::Fixed32(b)) => p.score = Some(f32::from_le_bytes(b)).filter(|s| !s.is_nan())?,
            (3, Field::Varint(v)) => p.kind = Kind::from_code(i64::try_from(v).ok()?)?,
            _ => {}
        }
        Some(())
    })?;
    Some(p)
}

/// `config` is the directory's tokenizer_config.json, or null.
pub(super) fn tokenizer_json(path: &Path, bytes: &[u8], config: &Value) -> Result<Value> {
    let wrong = |found: &str, expected: &str| Err(Error::input(path, found, expected, CURE));
    let model = match Model::parse(bytes) {
        Some(model) if !model.pieces.is_empty() => model,
        _ => return wrong("not a SentencePiece model", "one, whole"),
    };
    match model.algorithm {
        2 => {}
        1 => return wrong("a unigram SentencePiece model", "a BPE model"),
        _ => return wrong("a SentencePiece model of words or characters", "a BPE model"),
    }
    if model.rewrites_characters || model.squeezes_spaces || model.space_after {
        return wrong(
            "a SentencePiece model that normalizes its text",
            "one that keeps it, as LLaMA's and Mistral's do",
        );
    }
    if let Some(text) = repeated(&model.pieces) {
        return wrong(&format!("piece {text:?} twice"), "each piece once");
    }
    let flag = |key: &str, default: bool| config.get(key).and_then(Value::as_bool).unwrap_or(default);
    let specials = Specials {
        bos: model.id(model.bos),
        eos: model.id(model.eos),
        unk: model.id(model.unk),
        pad: None,
        add_bos: flag("add_bos_token", true),
        add_eos: flag("add_eos_token", false),
    };
    Ok(spm::tokenizer_json(&model.pieces, &specials, model.space_before))
}

/// The pieces of a model, if it is one.
pub(super) fn pieces(bytes: &[u8]) -> Option<Vec<Piece>> {
    Model::parse(bytes).map(|model| model.pieces)
}

/// Names of BOS and EOS for a directory without a tokenizer_config.json.
pub(super) fn special_names(bytes: &[u8]) -> (Option<String>, Option<String>) {
    let Some(model) = Model::parse(bytes) else { return (None, None) };
    let name = |id| model.id(id).map(|id| model.pieces[id].text.clone());
    (name(model.bos), name(model.eos))
}
