//! A teacher's answers beside the tokens of `shards/`.
//!
//! | tensor in `answers-NNNNN.safetensors` | type | shape | |
//! |---|---|---|---|
//! | `answers` | u16 | [n, words] | records ([`crate::compute::answers`]) of the first n tokens of the shard, whole windows of `seq` tokens, each window read by itself; metadata `vocab`, `top_k`, `seq` |

use std::path::Path;

use crate::compute::answers::Layout;
use crate::error::{Error, Result};
use crate::format::atomic::{FileDigest, OutputFile};
use crate::format::safetensors::{Spec, TensorFile, TensorWriter};
use crate::format::tensor::{Dtype, Tensor};

const ANSWERS: &str = "answers";

/// The name of the file beside `tokens-NNNNN.safetensors`.
pub fn file_name(tokens: &str) -> String {
    tokens.replacen("tokens", ANSWERS, 1)
}

/// Writes the answers to `windows` windows of `seq` tokens; `make` hands over their records in order.
pub fn write(
    path: &Path,
    layout: Layout,
    (windows, seq): (usize, usize),
    make: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
) -> Result<FileDigest> {
    let metadata =
        [("vocab", layout.vocab), ("top_k", layout.top), ("seq", seq)].map(|(name, value)| (name, value.to_string()));
    let specs = vec![Spec::new(ANSWERS, Dtype::U16, [windows * seq, layout.words()])];
    let mut writer = TensorWriter::create(OutputFile::create(path)?, specs, &metadata)?;
    writer.put_parts(ANSWERS, make)?;
    writer.finish()
}

/// The answers of all shards.
pub struct Answered {
    pub layout: Layout,
    /// Tokens of the windows that the teacher read.
    pub seq: usize,
    shards: Vec<Tensor>,
}

impl Answered {
    /// `tokens`: the names of the token files and their lengths.
    pub fn open<'a>(dir: &Path, tokens: impl Iterator<Item = (&'a str, usize)>) -> Result<Answered> {
        let mut found: Option<Answered> = None;
        for (name, len) in tokens {
            let path = dir.join(file_name(name));
            let file = TensorFile::open(&path)?;
            let value = |key: &str| {
                let number = file.metadata(key).and_then(|v| v.parse::<u32>().ok()).map(|v| v as usize);
                number.filter(|v| *v > 0).ok_or_else(|| wrong(&path, format!("no {key} in its metadata"), "a number"))
            };
            let (layout, seq) = (Layout { vocab: value("vocab")?, top: value("top_k")? }, value("seq")?);
            if layout.top > layout.vocab {
                let expected = format!("at most the vocabulary's {}", layout.vocab);
                return Err(wrong(&path, format!("top_k {}", layout.top), &expected));
            }
            let answers = file.expect(ANSWERS, Dtype::U16, &[len / seq * seq, layout.words()])?;
            match &mut found {
                Some(all) if (all.layout, all.seq) == (layout, seq) => all.shards.push(answers),
                Some(_) => return Err(wrong(&path, "answers of another kind".into(), "those of the first shard")),
                None => found = Some(Answered { layout, seq, shards: vec![answers] }),
            }
        }
        found.ok_or_else(|| wrong(dir, "no shards".into(), "one or more"))
    }

    /// A record for each token of a window.
    pub fn window(&self, shard: usize, from: usize) -> impl Iterator<Item = &[u8]> {
        let bytes = self.layout.bytes();
        self.shards[shard].bytes()[from * bytes..(from + self.seq) * bytes].chunks_exact(bytes)
    }

    /// Lets go of the pages that were read.
    pub fn forget(&self) {
        self.shards.iter().for_each(Tensor::forget);
    }
}

fn wrong(path: &Path, found: String, expected: &str) -> Error {
    Error::input(path, found, expected, "run shard again with --force")
}
