//! `shards/`: tokens of the training text.
//!
//! | tensor in `tokens-NNNNN.safetensors` | type | shape | |
//! |---|---|---|---|
//! | `tokens` | u32 | [n] | documents one after another, each ended by EOS; metadata `tokenizer`: its digest |

use std::path::Path;

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
    tokens: Vec<Tensor>,
    tokenizer: String,
}

impl Shards {
    pub fn open(dir: &Path) -> Result<Shards> {
        let stage = Stage::open(dir, &[Kind::Shards])?;
        let mut tokens = Vec::new();
        let mut digests = Vec::new();
        for name in stage.record.files.keys() {
            let file = TensorFile::open(&dir.join(name))?;
            digests.push(file.metadata("tokenizer").unwrap_or_default().to_string());
            let len = file.get("tokens").map_or(0, |t| t.len());
            tokens.push(file.expect("tokens", Dtype::U32, &[len])?);
        }
        digests.dedup();
        match digests.as_slice() {
            [tokenizer] => Ok(Shards { stage, tokens, tokenizer: tokenizer.clone() }),
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

    pub fn total(&self) -> u64 {
        self.tokens.iter().map(|t| t.len() as u64).sum()
    }

    /// The windows of `seq` tokens that training draws from.
    pub fn windows(&self, seq: usize) -> Result<Windows> {
        let lengths = self.tokens.iter().map(|t| t.len()).collect();
        Windows::new(lengths, seq).ok_or_else(|| {
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
        let bytes = &self.tokens[shard].bytes()[from * 4..(from + len) * 4];
        let tokens: Vec<u32> = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        match tokens.iter().position(|t| *t as usize >= vocab) {
            None => Ok(tokens),
            Some(at) => Err(Error::input(
                &self.stage.dir,
                format!("token {} at position {} of shard {shard}", tokens[at], from + at),
                format!("ids below the vocabulary's {vocab}"),
                "make the shards again with the model's own tokenizer",
            )),
        }
    }
}
