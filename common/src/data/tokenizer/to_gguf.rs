//! A model's tokenizer as the metadata of a GGUF file: the keys that llama.cpp's converter writes (`conversion/base.py`
//! and `gguf/vocab.py` there), so that `llama-vocab.cpp` gives the same ids as the tokenizer.json.

use std::fmt::Display;
use std::path::Path;

use serde_json::Value;
use tokenizers::Model;

use super::tokenizer_json::{Kind, Piece, padding, repeated};
use super::{CONFIG, SENTENCEPIECE, SPECIAL_MAP, TOKENIZER, Tokenizer};
use super::{byte_bpe, chat_template, definition, file, parse, pre_name, sentencepiece, special_name, spm, spm_scores};
use crate::error::{Error, Result};
use crate::format::gguf::entry::Entry;

type Files<'a> = &'a [(String, Vec<u8>)];

const CURE: &str = "fold with --format compressed-tensors and convert that directory with llama.cpp";
/// More than any vocabulary has; what is allocated by a number in config.json stays small.
const MAX_ROWS: u64 = 1 << 24;
/// llama.cpp's converter gives these to tokens that are no result of merges.
const ADDED_SCORE: f32 = -1000.0;
const PADDING_SCORE: f32 = -10000.0;

/// All `tokenizer.*` keys and values. `origin` is what messages name, `config` the model's config.json.
pub fn gguf_entries(origin: &Path, files: Files, config: &Value) -> Result<Vec<(String, Entry)>> {
    let json = definition(origin, files)?;
    let source = Source {
        origin,
        files,
        config,
        own: parse(origin, files, CONFIG)?,
        special_map: parse(origin, files, SPECIAL_MAP)?,
        generation: parse(origin, files, "generation_config.json")?,
        tokenizer: Tokenizer::defined(origin, files, &json)?,
        json,
    };
    source.only_plain_bpe()?;
    let mut entries = match source.json["pre_tokenizer"].to_string().contains("\"ByteLevel\"") {
        true => source.byte_level()?,
        false => source.sentencepiece()?,
    };
    entries.extend(source.specials());
    let templates = chat_template::entries(&source.own, source.jinja()?);
    let name = |(name, entry): (&str, Entry)| (format!("tokenizer.ggml.{name}"), entry);
    Ok(entries.into_iter().map(name).chain(templates).collect())
}

struct Source<'a> {
    origin: &'a Path,
    files: Files<'a>,
    config: &'a Value,
    /// tokenizer.json.
    json: Value,
    /// tokenizer_config.json.
    own: Value,
    special_map: Value,
    generation: Value,
    tokenizer: Tokenizer,
}

impl Source<'_> {
    fn wrong(&self, found: impl Display, expected: impl Display) -> Error {
        let path = match file(self.files, TOKENIZER) {
            Some(_) => self.origin.join(TOKENIZER),
            None => self.origin.join(SENTENCEPIECE),
        };
        Error::input(path, found, expected, CURE)
    }

    fn jinja(&self) -> Result<Option<&str>> {
        let name = "chat_template.jinja";
        file(self.files, name)
            .map(str::from_utf8)
            .transpose()
            .map_err(|e| Error::input(self.origin.join(name), format!("not text ({e})"), "UTF-8", "fetch it again"))
    }

    fn only_plain_bpe(&self) -> Result<()> {
        let model = &self.json["model"];
        let kind = model["type"].as_str().unwrap_or("of no type");
        if kind != "BPE" {
            let expected = "BPE, byte-level or with byte fallback, as LLaMA and Mistral models have";
            return Err(self.wrong(format!("a tokenizer of type {kind}"), expected));
        }
        for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if !matches!(model[affix].as_str(), None | Some("")) {
                return Err(self.wrong(format!("a BPE with {affix} {}", model[affix]), "one without"));
            }
        }
        match model["dropout"].as_f64() {
            Some(dropout) if dropout != 0.0 => Err(self.wrong("a BPE with dropout", "one without")),
            _ => Ok(()),
        }
    }

    fn byte_level(&self) -> Result<Vec<(&'static str, Entry)>> {
        let pre = self.pre_tokenizer()?;
        let pieces = self.pieces(false)?;
        // A merge is written "left right".
        let without_spaces = |text: &str| text.replace(' ', "\u{120}");
        let merges =
            self.merges().iter().map(|(l, r)| format!("{} {}", without_spaces(l), without_spaces(r))).collect();
        Ok(vec![
            ("model", Entry::Text("gpt2".into())),
            ("pre", Entry::Text(pre.into())),
            ("tokens", texts(&pieces)),
            ("token_type", kinds(&pieces)),
            ("merges", Entry::Texts(merges)),
            ("add_space_prefix", Entry::Bool(false)),
        ])
    }

    fn pre_tokenizer(&self) -> Result<&'static str> {
        let names = pre_name::byte_level_names(&self.json);
        let ignores = |name: &str| byte_bpe::pre(name).is_some_and(|pre| pre.ignore_merges);
        let wanted = self.json["model"]["ignore_merges"] == true;
        let same = names.iter().find(|name| ignores(name) == wanted);
        // It makes no difference where merges give every token.
        match same.or(names.first().filter(|_| !wanted && self.merges_give_every_token())) {
            Some(name) => Ok(name),
            None => {
                let part = |key: &str| self.json[key].to_string().chars().take(300).collect::<String>();
                let (pre, normalizer) = (part("pre_tokenizer"), part("normalizer"));
                let ignores = if wanted { " and ignore_merges" } else { "" };
                let found = format!("the pre-tokenizer {pre} with normalizer {normalizer}{ignores}");
                let expected = format!("one that splits as one of: {}", byte_bpe::PRE_NAMES.join(", "));
                Err(self.wrong(found, expected))
            }
        }
    }

    fn merges_give_every_token(&self) -> bool {
        let model = self.tokenizer.inner.get_model();
        let whole = |text: &String| model.tokenize(text).is_ok_and(|tokens| tokens.len() == 1);
        self.tokenizer.inner.get_vocab(false).keys().all(whole)
    }

    fn sentencepiece(&self) -> Result<Vec<(&'static str, Entry)>> {
        let Some(space_prefix) = pre_name::space_prefix(&self.json) else {
            let part = |key: &str| self.json[key].to_string().chars().take(300).collect::<String>();
            let found = format!("the normalizer {} with pre-tokenizer {}", part("normalizer"), part("pre_tokenizer"));
            let expected = "one that only writes spaces as \"▁\", as LLaMA's and Mistral's do, or a byte-level one";
            return Err(self.wrong(found, expected));
        };
        let mut pieces = self.pieces(true)?;
        let bytes = pieces.iter().filter(|p| p.kind == Kind::Byte).count();
        if bytes != 256 || self.json["model"]["byte_fallback"] != true {
            return Err(self.wrong(format!("{bytes} byte tokens"), "all 256, and byte_fallback"));
        }
        if !self.scores_of_the_model(&mut pieces)
            && let Err(found) = spm_scores::set(&mut pieces, &self.merges())
        {
            return Err(self.wrong(found, "merges made from a SentencePiece model, all of them"));
        }
        Ok(vec![
            ("model", Entry::Text("llama".into())),
            ("pre", Entry::Text("default".into())),
            ("tokens", texts(&pieces)),
            ("scores", Entry::Floats(pieces.iter().map(|p| p.score).collect())),
            ("token_type", kinds(&pieces)),
            ("add_space_prefix", Entry::Bool(space_prefix)),
        ])
    }

    /// Takes the scores of tokenizer.model, if it is there and has these pieces.
    fn scores_of_the_model(&self, pieces: &mut [Piece]) -> bool {
        let Some(model) = file(self.files, SENTENCEPIECE).and_then(sentencepiece::pieces) else { return false };
        let merged = |p: &Piece| p.kind == Kind::Normal;
        let same =
            pieces.iter().enumerate().all(|(id, p)| !merged(p) || model.get(id).is_some_and(|m| m.text == p.text));
        if same {
            for (piece, of_model) in pieces.iter_mut().zip(&model).filter(|(p, _)| merged(p)) {
                (piece.score, piece.kind) = (of_model.score, of_model.kind);
            }
        }
        same
    }

    fn merges(&self) -> Vec<(String, String)> {
        let pair = |merge: &Value| match merge {
            Value::String(text) => text.split_once(' ').map(|(l, r)| (l.to_string(), r.to_string())),
            pair => Some((pair.get(0)?.as_str()?.to_string(), pair.get(1)?.as_str()?.to_string())),
        };
        self.json["model"]["merges"].as_array().into_iter().flatten().filter_map(pair).collect()
    }

    /// One piece for each row of the embedding.
    fn pieces(&self, sentencepiece: bool) -> Result<Vec<Piece>> {
        let vocab = self.tokenizer.inner.get_vocab(true);
        let rows = self.rows()?;
        if self.tokenizer.vocab_size > rows {
            let found = format!("token ids up to {}", self.tokenizer.vocab_size - 1);
            let cure = "use the model's own tokenizer files, or resize its embedding";
            return Err(Error::input(self.origin, found, format!("fewer than config.json's vocab_size {rows}"), cure));
        }
        let unused = |id| Piece { text: padding(id), score: PADDING_SCORE, kind: Kind::Unused };
        let mut pieces: Vec<Piece> = (0..rows).map(unused).collect();
        let mut taken = vec![false; rows];
        let added = self.tokenizer.inner.get_added_tokens_decoder();
        for (text, id) in vocab {
            if std::mem::replace(&mut taken[id as usize], true) {
                return Err(self.wrong(format!("token {id} twice, once as {text:?}"), "one text for each id"));
            }
            pieces[id as usize] = match added.get(&id) {
                Some(token) => self.added(text, token.special, sentencepiece),
                None => self.plain(text, sentencepiece),
            };
        }
        match repeated(&pieces) {
            Some(text) => Err(self.wrong(format!("token {text:?} twice"), "each token once")),
            None => Ok(pieces),
        }
    }

    fn rows(&self) -> Result<usize> {
        match &self.config["vocab_size"] {
            Value::Null => Ok(self.tokenizer.vocab_size),
            size => match size.as_u64().filter(|n| *n <= MAX_ROWS) {
                Some(rows) => Ok(rows as usize),
                None => {
                    let found = format!("a vocab_size of {size} in config.json");
                    Err(Error::input(self.origin, found, format!("at most {MAX_ROWS}"), "fetch config.json again"))
                }
            },
        }
    }

    fn plain(&self, text: String, sentencepiece: bool) -> Piece {
        let kind = match sentencepiece {
            true if is_byte(&text) => Kind::Byte,
            true if self.json["model"]["unk_token"] == text.as_str() => Kind::Unknown,
            _ => Kind::Normal,
        };
        Piece { text, score: 0.0, kind }
    }

    fn added(&self, text: String, special: bool, sentencepiece: bool) -> Piece {
        let plain = self.plain(text, sentencepiece);
        if plain.kind != Kind::Normal {
            return Piece { score: ADDED_SCORE, ..plain };
        }
        // llama.cpp looks for a user-defined token in the text as it is.
        let (text, kind) = match special || looks_special(&plain.text) {
            true => (plain.text, Kind::Control),
            false => (plain.text.replace(spm::SPACE, " "), Kind::User),
        };
        Piece { text, score: ADDED_SCORE, kind }
    }

    fn specials(&self) -> Vec<(&'static str, Entry)> {
        let tokenizer = &self.tokenizer;
        let own = |key: &str| {
            let name = special_name(&self.own, key).or_else(|| special_name(&self.special_map, key));
            name.and_then(|name| tokenizer.inner.token_to_id(&name))
        };
        let unk = || tokenizer.inner.token_to_id(self.json["model"]["unk_token"].as_str()?);
        let of_model = |key: &str| {
            let id = |config: &Value| {
                let id = &config[key];
                id.as_u64().or(id[0].as_u64()).and_then(|id| u32::try_from(id).ok())
            };
            id(self.config).or(id(&self.generation)).filter(|id| tokenizer.inner.id_to_token(*id).is_some())
        };
        let bos = tokenizer.bos.or_else(|| of_model("bos_token_id"));
        let eos = tokenizer.eos.or_else(|| of_model("eos_token_id"));
        let ids = [
            ("bos_token_id", bos),
            ("eos_token_id", eos),
            ("unknown_token_id", own("unk_token").or_else(unk)),
            ("padding_token_id", own("pad_token").or_else(|| of_model("pad_token_id"))),
        ];
        let mut all: Vec<_> = ids.into_iter().filter_map(|(key, id)| Some((key, Entry::U32(id?)))).collect();
        // What the post-processor does counts; without one, what the settings ask for.
        let silent = self.json["post_processor"].is_null();
        let adds = |key: &str, id: Option<u32>, done: Option<&u32>| match silent {
            true => id.is_some() && self.own[key] == true,
            false => id.is_some() && id.as_ref() == done,
        };
        let (first, last) = (tokenizer.before.first(), tokenizer.after.last());
        all.push(("add_bos_token", Entry::Bool(adds("add_bos_token", bos, first))));
        all.push(("add_eos_token", Entry::Bool(adds("add_eos_token", eos, last))));
        all
    }
}

fn texts(pieces: &[Piece]) -> Entry {
    Entry::Texts(pieces.iter().map(|p| p.text.clone()).collect())
}

fn kinds(pieces: &[Piece]) -> Entry {
    Entry::Ints(pieces.iter().map(|p| p.kind.code()).collect())
}

/// "<0x0A>".
fn is_byte(text: &str) -> bool {
    let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Added tokens that some files do not mark as special but that the converter takes for control tokens.
fn looks_special(text: &str) -> bool {
    let between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    between("<|", "|>") || between("<｜", "｜>") || between("<unused", ">") || ["<pad>", "<mask>"].contains(&text)
}

#[cfg(test)]
#[path = "to_gguf_tests.rs"]
mod tests;
