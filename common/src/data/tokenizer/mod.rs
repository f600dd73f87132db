//! A model's own tokenizer: a Hugging Face `tokenizer.json` run by the crate `tokenizers`, or one made from a GGUF's
//! metadata or from a SentencePiece model.

mod byte_bpe;
mod chat_template;
mod files;
mod from_gguf;
mod long_text;
mod pre_name;
mod sentencepiece;
mod spm;
mod spm_scores;
mod to_gguf;
mod tokenizer_json;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

pub use files::hf_files;
pub use from_gguf::hf_tokenizer_files;
pub use to_gguf::gguf_entries;

use crate::error::{Error, Result};
use long_text::Cut;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_MAP: &str = "special_tokens_map.json";
const SENTENCEPIECE: &str = "tokenizer.model";

pub struct Tokenizer {
    origin: PathBuf,
    inner: tokenizers::Tokenizer,
    /// How a long text may be cut without changing its tokens, if it may.
    cut: Option<Cut>,
    /// What encoding with special tokens puts before and after the text.
    before: Vec<u32>,
    after: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    vocab_size: usize,
    digest: String,
}

impl Tokenizer {
    /// From a directory with `tokenizer.json` (and `tokenizer_config.json`), or with a SentencePiece `tokenizer.model`.
    pub fn from_dir(dir: &Path) -> Result<Tokenizer> {
        Tokenizer::from_files(dir, &read_files(dir, &[TOKENIZER, CONFIG, SPECIAL_MAP, SENTENCEPIECE])?)
    }

    /// From a `tokenizer.json`, whatever its name; what lies beside it names the special tokens.
    pub fn from_json(path: &Path) -> Result<Tokenizer> {
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut files = read_files(dir, &[CONFIG, SPECIAL_MAP])?;
        files.push((TOKENIZER.to_string(), std::fs::read(path).map_err(Error::io(path, "read"))?));
        Tokenizer::from_files(path, &files)
    }

    /// From the files that a directory would hold; `origin` is what messages name.
    pub fn from_files(origin: &Path, files: &[(String, Vec<u8>)]) -> Result<Tokenizer> {
        Tokenizer::defined(origin, files, &definition(origin, files)?)
    }

    /// By this definition; the other files name its special tokens.
    fn defined(origin: &Path, files: &[(String, Vec<u8>)], json: &Value) -> Result<Tokenizer> {
        let (config, special_map) = (parse(origin, files, CONFIG)?, parse(origin, files, SPECIAL_MAP)?);
        let model_names = match (file(files, TOKENIZER), file(files, SENTENCEPIECE)) {
            (None, Some(model)) => sentencepiece::special_names(model),
            _ => (None, None),
        };
        let named = |key: &str| special_name(&config, key).or_else(|| special_name(&special_map, key));
        Tokenizer::new(origin, json, named("bos_token").or(model_names.0), named("eos_token").or(model_names.1))
    }

    fn new(origin: &Path, json: &Value, bos: Option<String>, eos: Option<String>) -> Result<Tokenizer> {
        let refuse = |e: &dyn std::fmt::Display| {
            let cure = "fetch it again, or save it with a current transformers";
            Error::input(origin, format!("an unusable tokenizer ({e})"), "one that the crate tokenizers loads", cure)
        };
        let mut inner: tokenizers::Tokenizer = serde_json::from_value(json.clone()).map_err(|e| refuse(&e))?;
        // A text is never cut or filled up here, whatever the file asks for.
        inner.with_truncation(None).map_err(|e| refuse(&e))?.with_padding(None);
        let id = |name: Option<String>| name.and_then(|n| inner.token_to_id(&n));
        let (bos, eos) = (id(bos), id(eos));
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        let mut made = Tokenizer {
            origin: origin.to_path_buf(),
            cut: Cut::of(json),
            before: Vec::new(),
            after: Vec::new(),
            bos,
            eos,
            vocab_size,
            digest: tokenizer_json::digest(json),
            inner,
        };
        (made.before, made.after) = made.around()?;
        made.bos = made.bos.or(made.before.first().copied());
        Ok(made)
    }

    /// What the post-processor adds, found by encoding a probe with and without it.
    fn around(&self) -> Result<(Vec<u32>, Vec<u32>)> {
        let plain = self.encode_piece("a", false)?;
        let whole = self.encode_piece("a", true)?;
        match whole.windows(plain.len().max(1)).position(|w| w == plain) {
            Some(at) => Ok((whole[..at].to_vec(), whole[at + plain.len()..].to_vec())),
            None if plain.is_empty() => Ok((whole, Vec::new())),
            None => {
                let found = "a post-processor that changes the text's own tokens";
                Err(Error::input(&self.origin, found, "one that only adds tokens", "use another tokenizer.json"))
            }
        }
    }

    fn encode_piece(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        match self.inner.encode_fast(text, special) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(e) => Err(Error::input(
                &self.origin,
                format!("a tokenizer that cannot encode this text ({e})"),
                "one with byte fallback or an unknown token",
                "use the model's own tokenizer",
            )),
        }
    }

    /// Token ids of a text of any length; `special` adds what the tokenizer adds around a text (BOS, as a rule).
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let pieces = match &self.cut {
            Some(cut) => cut.pieces(text),
            None => vec![text],
        };
        let ids: Vec<Vec<u32>> =
            pieces.par_iter().map(|piece| self.encode_piece(piece, false)).collect::<Result<_>>()?;
        match special {
            true => Ok([&self.before, &ids.concat(), &self.after].map(|v| v.as_slice()).concat()),
            false => Ok(ids.concat()),
        }
    }

    /// The text of these ids, special tokens included.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|e| {
            Error::input(&self.origin, format!("ids it cannot decode ({e})"), "ids of its vocabulary", "check the ids")
        })
    }

    /// One more than the largest id. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether encoding with special tokens begins with BOS.
    pub fn adds_bos(&self) -> bool {
        self.bos.is_some() && self.before.first() == self.bos.as_ref()
    }

    /// BLAKE3 of the canonical tokenizer.json: the same for files that differ only in how they are written.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

/// Those of these files that the directory has.
fn read_files(dir: &Path, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let there = names.iter().map(|name| (name, dir.join(name))).filter(|(_, path)| path.is_file());
    let read = |path: &Path| std::fs::read(path).map_err(Error::io(path, "read"));
    there.map(|(name, path)| Ok((name.to_string(), read(&path)?))).collect()
}

fn file<'a>(files: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a [u8]> {
    files.iter().find(|f| f.0 == name).map(|f| f.1.as_slice())
}

/// Null if there is no such file.
fn parse(origin: &Path, files: &[(String, Vec<u8>)], name: &str) -> Result<Value> {
    let Some(bytes) = file(files, name) else { return Ok(Value::Null) };
    serde_json::from_slice(bytes)
        .map_err(|e| Error::input(origin.join(name), format!("not JSON ({e})"), "a JSON object", "fetch it again"))
}

/// tokenizer.json, or what it would be for the SentencePiece model.
fn definition(origin: &Path, files: &[(String, Vec<u8>)]) -> Result<Value> {
    match (file(files, TOKENIZER), file(files, SENTENCEPIECE)) {
        (Some(_), _) => parse(origin, files, TOKENIZER),
        (None, Some(model)) => {
            let config = parse(origin, files, CONFIG)?;
            sentencepiece::tokenizer_json(&origin.join(SENTENCEPIECE), model, &config)
        }
        (None, None) => {
            let expected = format!("{TOKENIZER} or {SENTENCEPIECE}");
            Err(Error::input(origin, "no tokenizer", expected, "copy the model's tokenizer files there"))
        }
    }
}

/// `"bos_token": "<s>"` or `"bos_token": {"content": "<s>", …}`.
fn special_name(config: &Value, key: &str) -> Option<String> {
    let value = config.get(key)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string)
}

#[cfg(test)]
mod tests;
