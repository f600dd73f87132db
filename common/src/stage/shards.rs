//! `shards/`: tokens of the training text.
//!
//! | tensor in `tokens-NNNNN.safetensors` | type | shape | |
//! |---|---|---|---|
//! | `tokens` | u32 | [n] | documents one after another, each ended by EOS; metadata `tokenizer`: its digest |
//!
//! A teacher's answers to them, if there are any, lie beside them ([`super::answers`]).

use std::path::Path;

use super::answers::Answered;
use super::record::{Kind, Stage};
use crate::data::order::Windows;
use crate::error::{Error, Result};
use crate::format::atomic::{FileDigest, OutputFile, PartDir};
use crate::format::safetensors::{Spec, TensorFile, TensorWriter};
use crate::format::tensor::{Dtype, Tensor};

/// Tokens of a full shard: 256 MiB.
const SHARD_TOKENS: usize = 64 << 20;

/// Cuts a stream of tokens into shard files.
pub struct ShardWriter<'a> {
    part: &'a PartDir,
    tokenizer: String,
    pending: Vec<u32>,
    pub files: Vec<(String, FileDigest)>,
    pub tokens: u64,
}

impl<'a> ShardWriter<'a> {
    pub fn new(part: &'a PartDir, tokenizer: &str) -> ShardWriter<'a> {
        ShardWriter { part, tokenizer: tokenizer.into(), pending: Vec::new(), files: Vec::new(), tokens: 0 }
    }

    pub fn push(&mut self, tokens: &[u32]) -> Result<()> {
        self.tokens += tokens.len() as u64;
        self.pending.extend_from_slice(tokens);
        while self.pending.len() >= SHARD_TOKENS {
            let rest = self.pending.split_off(SHARD_TOKENS);
            let full = std::mem::replace(&mut self.pending, rest);
            self.write(&full)?;
        }
        Ok(())
    }

    pub fn finish(&mut self) -> Result<()> {
        let last = std::mem::take(&mut self.pending);
        if last.is_empty() { Ok(()) } else { self.write(&last) }
    }

    fn write(&mut self, tokens: &[u32]) -> Result<()> {
        let name = format!("tokens-{:05}.safetensors", self.files.len());
        let specs = vec![Spec::new("tokens", Dtype::U32, [tokens.len()])];
        let metadata = [("tokenizer", self.tokenizer.clone())];
        let mut writer = TensorWriter::create(OutputFile::create(&self.part.join(&name))?, specs, &metadata)?;
        writer.put("tokens", bytemuck::cast_slice(tokens))?;
        self.files.push((name, writer.finish()?));
        Ok(())
    }
}

/// An open `shards/`.
pub struct Shards {
    pub stage: Stage,
    /// What a teacher said of them.
    pub answers: Option<Answered>,
    tokens: Vec<Tensor>,
    tokenizer: String,
}

/// The tokens of a file, and the digest of their tokenizer.
pub fn read_tokens(path: &Path) -> Result<(Tensor, String)> {
    let file = TensorFile::open(path)?;
    let tokenizer = file.metadata("tokenizer").unwrap_or_default().to_string();
    let len = file.get("tokens").map_or(0, |t| t.len());
    Ok((file.expect("tokens", Dtype::U32, &[len])?, tokenizer))
}

/// Tokens from..from+len; one that is past the vocabulary is an error. `name` is what messages name.
pub fn window(tokens: &Tensor, name: &Path, from: usize, len: usize, vocab: usize) -> Result<Vec<u32>> {
    let bytes = &tokens.bytes()[from * 4..(from + len) * 4];
    let found: Vec<u32> = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    match found.iter().position(|t| *t as usize >= vocab) {
        None => Ok(found),
        Some(at) => Err(Error::input(
            name,
            format!("token {} at position {}", found[at], from + at),
            format!("ids below the vocabulary's {vocab}"),
            "make the shards again with the model's own tokenizer",
        )),
    }
}

impl Shards {
    pub fn open(dir: &Path) -> Result<Shards> {
        let stage = Stage::open(dir, &[Kind::Shards])?;
        let names: Vec<&String> = stage.record.files.keys().filter(|name| name.starts_with("tokens")).collect();
        let (tokens, mut digests): (Vec<_>, Vec<_>) =
            names.iter().map(|name| read_tokens(&dir.join(name))).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let answers = match names.len() < stage.record.files.len() {
            true => {
                Some(Answered::open(dir, names.iter().map(|name| name.as_str()).zip(tokens.iter().map(Tensor::len)))?)
            }
            false => None,
        };
        digests.dedup();
        match digests.as_slice() {
            [tokenizer] => {
                let tokenizer = tokenizer.clone();
                Ok(Shards { stage, answers, tokens, tokenizer })
            }
            found => Err(Error::input(
                dir,
                format!("shards of {} tokenizers", found.len()),
                "those of one",
                "run shard again with --force",
            )),
        }
    }

    /// Refuses shards of another tokenizer than the model's.
    pub fn check_tokenizer(&self, model: &Path, digest: &str) -> Result<()> {
        if self.tokenizer == digest {
            return Ok(());
        }
        let short = |d: &str| d.chars().take(12).collect::<String>();
        Err(Error::input(
            &self.stage.dir,
            format!("made with tokenizer {}", short(&self.tokenizer)),
            format!("{} of {}", short(digest), model.display()),
            format!("run shard again with --tokenizer {}", model.display()),
        ))
    }

    /// Refuses answers of format 2 that are not whole: those were the largest, and the mass of the rest.
    pub fn check_answers(&self) -> Result<()> {
        let format = self.stage.record.format_version;
        if format >= 3 || self.answers.as_ref().is_none_or(|answers| answers.layout.whole()) {
            return Ok(());
        }
        Err(Error::input(
            &self.stage.dir,
            format!("a teacher's answers in format {format}"),
            "format 3, which has draws from those that are not among the largest",
            "run shard again with --force",
        ))
    }

    pub fn total(&self) -> u64 {
        self.tokens.iter().map(|t| t.len() as u64).sum()
    }

    /// The windows of `seq` tokens that training draws from: all of them, or only those that have answers of their own.
    pub fn windows(&self, seq: usize, answered: bool) -> Result<Windows> {
        let lengths = self.tokens.iter().map(|t| t.len()).collect();
        let windows = if answered { Windows::apart(lengths, seq) } else { Windows::new(lengths, seq) };
        windows.ok_or_else(|| {
            Error::input(
                &self.stage.dir,
                format!("{} tokens", self.total()),
                format!("a shard of at least --seq {seq}"),
                "add text, or lower --seq",
            )
        })
    }

    /// Tokens from..from+len of a shard; one that is past the vocabulary is an error.
    pub fn read(&self, shard: usize, from: usize, len: usize, vocab: usize) -> Result<Vec<u32>> {
        window(&self.tokens[shard], &self.stage.dir, from, len, vocab)
    }
}
