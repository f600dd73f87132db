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
                let expected = format!("one of: {}", byte_bpe::PRE_NAMES.join(", "));
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
    let split =
        |m: &'_ String| -> Option<usize> { m.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at) };
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
    if let Some(template) = chat_template(gguf)? {
        config["chat_template"] = template;
    }
    Ok(config)
}

/// A text, or the list of named templates where there are others than the default one.
fn chat_template(gguf: &Gguf) -> Result<Option<Value>> {
    let default = gguf.text("tokenizer.chat_template")?;
    let Some(names) = gguf.texts("tokenizer.chat_templates")? else { return Ok(default.map(Value::from)) };
    let mut all: Vec<Value> = default.iter().map(|text| json!({"name": "default", "template": text})).collect();
    for name in names {
        match gguf.text(&format!("tokenizer.chat_template.{name}"))? {
            Some(text) => all.push(json!({"name": name, "template": text})),
            None => return Err(wrong(gguf, format!("chat template {name:?} only by name"), "its text")),
        }
    }
    Ok(Some(Value::Array(all)))
}

#[cfg(test)]
mod tests {
    use super::super::Tokenizer;
    use super::*;
    use crate::format::gguf::testing::{kv_ints, kv_text, kv_texts, kv_uint, write};

    /// Six tokens of a byte-level BPE, the last one control.
    fn small() -> Vec<Vec<u8>> {
        vec![
            kv_text("tokenizer.ggml.model", "gpt2"),
            kv_text("tokenizer.ggml.pre", "llama-bpe"),
            kv_texts("tokenizer.ggml.tokens", &["a", "b", "\u{120}", "ab", "\u{120}ab", "<|end|>"]),
            kv_ints("tokenizer.ggml.token_type", &[1, 1, 1, 1, 1, 3]),
            kv_texts("tokenizer.ggml.merges", &["a b"]),
            kv_uint("tokenizer.ggml.bos_token_id", 5),
        ]
    }

    fn files(entries: &[Vec<u8>]) -> Result<Vec<(String, Vec<u8>)>> {
        let (_dir, path) = write(entries, &[]);
        hf_tokenizer_files(&Gguf::open(&path)?)
    }

    #[test]
    fn llama_bpe_takes_whole_words_first_and_adds_bos() {
        let made = files(&small()).unwrap();
        assert_eq!(made, files(&small()).unwrap());
        let t = Tokenizer::from_files("x".as_ref(), &made).unwrap();
        // " ab" is a token that no merge makes.
        assert_eq!(t.encode("ab ab<|end|>b", true).unwrap(), [5, 3, 4, 5, 1]);
        assert_eq!((t.bos(), t.eos(), t.adds_bos(), t.vocab_size()), (Some(5), None, true, 6));
        let mut plain = small();
        plain[1] = kv_text("tokenizer.ggml.pre", "smollm");
        let t = Tokenizer::from_files("x".as_ref(), &files(&plain).unwrap()).unwrap();
        assert_eq!(t.encode("ab ab<|end|>b", true).unwrap(), [3, 2, 3, 5, 1]);
        assert!(!t.adds_bos());
    }

    #[test]
    fn what_cannot_be_a_tokenizer_is_refused() {
        let refused = |i: usize, entry: Vec<u8>, part: &str| {
            let mut entries = small();
            entries[i] = entry;
            let e = files(&entries).unwrap_err().to_string();
            assert!(e.contains(part), "{e}");
        };
        refused(0, kv_text("tokenizer.ggml.model", "bert"), "tokenizer \"bert\", expected one of: gpt2");
        refused(
            1,
            kv_text("tokenizer.ggml.pre", "falcon"),
            "pre-tokenizer \"falcon\", expected one of: smollm, llama-bpe",
        );
        refused(2, kv_uint("tokenizer.ggml.tokens", 6), "is an integer");
        refused(2, kv_uint("other", 6), "no tokenizer.ggml.tokens");
        refused(2, kv_texts("tokenizer.ggml.tokens", &["a", "b", "c", "ab", "a", "d"]), "token \"a\" twice");
        refused(3, kv_ints("tokenizer.ggml.token_type", &[1, 1]), "2 token types, expected 6");
        refused(3, kv_ints("tokenizer.ggml.token_type", &[1, 1, 1, 1, 1, 9]), "token 5 of type 9");
        refused(4, kv_uint("other", 6), "no tokenizer.ggml.merges");
        refused(4, kv_texts("tokenizer.ggml.merges", &["ab"]), "merge \"ab\"");
        refused(5, kv_uint("tokenizer.ggml.bos_token_id", 6), "bos token 6 in a vocabulary of 6");
        let mut entries = small();
        entries[4] = kv_texts("tokenizer.ggml.merges", &["b z"]);
        let e = Tokenizer::from_files("x".as_ref(), &files(&entries).unwrap()).map(|_| ()).unwrap_err();
        assert!(e.to_string().contains("an unusable tokenizer"), "{e}");
    }
}
