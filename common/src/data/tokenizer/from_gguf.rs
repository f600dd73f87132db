//! The tokenizer that a GGUF carries in its metadata, as the files of a Hugging Face directory.

use serde_json::{Value, json};

use super::tokenizer_json::{Kind, Piece, Specials, repeated};
use super::{CONFIG, TOKENIZER, byte_bpe, spm};
use crate::error::{Error, Result};
use crate::format::gguf::Gguf;

const CURE: &str = "give the model's Hugging Face directory";

fn wrong(gguf: &Gguf, found: String, expected: impl std::fmt::Display) -> Error {
    Error::input(gguf.path(), found, expected, CURE)
}

/// `tokenizer.json` and `tokenizer_config.json`: the same bytes for the same file.
pub fn hf_tokenizer_files(gguf: &Gguf) -> Result<Vec<(String, Vec<u8>)>> {
    let pieces = pieces(gguf)?;
    let mut specials = specials(gguf, pieces.len())?;
    let json = match gguf.text("tokenizer.ggml.model")? {
        Some("gpt2") => {
            let name = gguf.text("tokenizer.ggml.pre")?.unwrap_or("default");
            let Some(pre) = byte_bpe::pre(name) else {
                let expected = format!("one of: {}", byte_bpe::PRE_NAMES);
                return Err(wrong(gguf, format!("pre-tokenizer \"{name}\""), expected));
            };
            specials.add_bos = gguf.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(pre.adds_bos);
            byte_bpe::tokenizer_json(&pieces, &merges(gguf)?, &specials, pre)
        }
        Some("llama") => {
            specials.add_bos = gguf.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(true);
            specials.unk = specials.unk.or(pieces.iter().position(|p| p.kind == Kind::Unknown));
            let space = gguf.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
            spm::tokenizer_json(&pieces, &specials, space)
        }
        other => {
            let found = format!("tokenizer \"{}\"", other.unwrap_or("none"));
            return Err(wrong(gguf, found, "one of: gpt2 (byte-level BPE), llama (SentencePiece)"));
        }
    };
    let config = config(gguf, &pieces, &specials)?;
    Ok(vec![(TOKENIZER.into(), pretty(&json)), (CONFIG.into(), pretty(&config))])
}

fn pretty(json: &Value) -> Vec<u8> {
    let mut bytes = format!("{json:#}").into_bytes();
    bytes.push(b'\n');
    bytes
}

fn pieces(gguf: &Gguf) -> Result<Vec<Piece>> {
    let Some(texts) = gguf.texts("tokenizer.ggml.tokens")? else {
        return Err(wrong(gguf, "no tokenizer.ggml.tokens".into(), "a vocabulary"));
    };
    let scores = gguf.floats("tokenizer.ggml.scores")?;
    let kinds = gguf.ints("tokenizer.ggml.token_type")?;
    for (what, n) in [("scores", scores.map(<[f32]>::len)), ("token types", kinds.map(<[i64]>::len))] {
        if n.is_some_and(|n| n != texts.len()) {
            return Err(wrong(gguf, format!("{} {what}", n.unwrap_or(0)), format!("{}, one a token", texts.len())));
        }
    }
    if let Some(i) = scores.and_then(|s| s.iter().position(|s| s.is_nan())) {
        return Err(wrong(gguf, format!("token {i} with a score that is no number"), "numbers"));
    }
    let mut pieces = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        let code = kinds.map_or(1, |k| k[i]);
        let Some(kind) = Kind::from_code(code) else {
            return Err(wrong(gguf, format!("token {i} of type {code}"), "a type from 1 to 6"));
        };
        pieces.push(Piece { text: text.clone(), score: scores.map_or(0.0, |s| s[i]), kind });
    }
    match repeated(&pieces) {
        Some(text) => Err(wrong(gguf, format!("token {text:?} twice"), "each token once")),
        None => Ok(pieces),
    }
}

fn specials(gguf: &Gguf, vocab: usize) -> Result<Specials> {
    let id = |name: &str| match gguf.uint(&format!("tokenizer.ggml.{name}_token_id"))? {
        Some(id) if id >= vocab as u64 => {
            Err(wrong(gguf, format!("{name} token {id} in a vocabulary of {vocab}"), "an id within it"))
        }
        id => Ok(id.map(|id| id as usize)),
    };
    Ok(Specials {
        bos: id("bos")?,
        eos: id("eos")?,
        unk: id("unknown")?,
        pad: id("padding")?,
        add_bos: false,
        add_eos: gguf.boolean("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
    })
}

/// Each is "left right"; a token may begin with a space.
fn merges(gguf: &Gguf) -> Result<Vec<(&str, &str)>> {
    let Some(merges) = gguf.texts("tokenizer.ggml.merges")? else {
        return Err(wrong(gguf, "no tokenizer.ggml.merges".into(), "the merges of its BPE"));
    };
    let split = |m: &'_ String| -> Option<usize> { m.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at) };
    let pairs = merges.iter().map(|m| match split(m) {
        Some(at) => Ok((&m[..at], &m[at + 1..])),
        None => Err(wrong(gguf, format!("merge {m:?}"), "two tokens with a space between")),
    });
    pairs.collect()
}

fn config(gguf: &Gguf, pieces: &[Piece], specials: &Specials) -> Result<Value> {
    let text = |id: Option<usize>| id.map(|id| pieces[id].text.as_str());
    let arch = gguf.text("general.architecture")?.unwrap_or("llama");
    let mut config = json!({
        "add_bos_token": specials.add_bos,
        "add_eos_token": specials.add_eos,
        "bos_token": text(specials.bos),
        "clean_up_tokenization_spaces": false,
        "eos_token": text(specials.eos),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": text(specials.unk),
    });
    if let Some(n) = gguf.uint(&format!("{arch}.context_length"))? {
        config["model_max_length"] = json!(n);
    }
    if let Some(pad) = text(specials.pad) {
        config["pad_token"] = json!(pad);
    }
    if let Some(template) = gguf.text("tokenizer.chat_template")? {
        config["chat_template"] = json!(template);
    }
    Ok(config)
}
