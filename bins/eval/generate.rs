//! `eval --generate`: what people look at first.

use std::path::Path;
use std::time::Instant;

use clap::Args;
use common::cli::{flags::Common, progress};
use common::compute::backend::Backend;
use common::data::tokenizer::Tokenizer;
use common::error::{Error, Result};
use common::model::weights::Model;
use common::score::generate::{Sampling, generate};
use common::stage::report::Generated;
use serde_json::Value;

#[derive(Debug, Args)]
pub struct GenerateFlags {
    /// Also print what each model writes after this
    #[arg(long, value_name = "PROMPT")]
    generate: Vec<String>,
    /// Tokens that it writes at most
    #[arg(long, value_name = "N", default_value_t = 60, requires = "generate")]
    max_tokens: usize,
    /// Draw tokens, from logits divided by this; 0 takes the most likely one
    #[arg(long, value_name = "T", default_value_t = 0.0, requires = "generate")]
    temperature: f64,
    /// Draw from the most likely tokens that have this much of the probability together
    #[arg(long, value_name = "P", default_value_t = 1.0, requires = "generate")]
    top_p: f64,
    /// Seed of what is drawn
    #[arg(long, default_value_t = 0, requires = "generate")]
    seed: u64,
}

/// A prompt and its tokens.
pub struct Prompt<'a> {
    text: &'a str,
    ids: Vec<u32>,
}

impl GenerateFlags {
    /// All that decides the texts, if any are asked for.
    pub fn asked(&self) -> Option<Value> {
        let asked = serde_json::json!({
            "prompts": self.generate, "max_tokens": self.max_tokens, "temperature": self.temperature,
            "top_p": self.top_p, "seed": self.seed,
        });
        (!self.generate.is_empty()).then_some(asked)
    }

    pub fn check(&self) -> Result<()> {
        if !(1..=1 << 20).contains(&self.max_tokens) {
            return Err(Error::usage(format!("--max-tokens {}", self.max_tokens), "give 1 to 1048576"));
        }
        if !(0.0..=1e6).contains(&self.temperature) || !(0.0..=1.0).contains(&self.top_p) {
            let what = format!("--temperature {} --top-p {}", self.temperature, self.top_p);
            return Err(Error::usage(what, "give a temperature from 0 on, and a part of 1 such as 0.9"));
        }
        Ok(())
    }

    pub fn prompts(&self, path: &Path, tokenizer: &Tokenizer, bos: bool, vocab: usize) -> Result<Vec<Prompt<'_>>> {
        let encode = |text: &String| {
            let mut ids = tokenizer.encode(text, false)?;
            // Of nothing, a model that has a beginning goes on from there.
            if bos || ids.is_empty() {
                ids.splice(0..0, tokenizer.bos().or(tokenizer.eos()));
            }
            if ids.is_empty() {
                return Err(Error::usage("--generate \"\": no token in it", "give some words"));
            }
            super::check_ids(path, &ids, vocab)?;
            Ok(ids)
        };
        self.generate.iter().map(|text| Ok(Prompt { text, ids: encode(text)? })).collect()
    }

    /// Tokens of the longest text that there could be.
    pub fn positions(&self, prompts: &[Prompt]) -> usize {
        prompts.iter().map(|p| p.ids.len() + self.max_tokens).max().unwrap_or(0)
    }

    pub fn run<B: Backend>(
        &self,
        common: &Common,
        backend: &B,
        model: &Model<B>,
        tokenizer: &Tokenizer,
        prompts: &[Prompt],
    ) -> Result<Vec<Generated>> {
        let sampling = Sampling { temperature: self.temperature, top_p: self.top_p, seed: self.seed };
        let write = |prompt: &Prompt| {
            let bar = progress::count(common, "generate", self.max_tokens as u64);
            let begun = Instant::now();
            let each = |done| bar.set_position(done as u64);
            let ids = generate(backend, model, &prompt.ids, self.max_tokens, tokenizer.eos(), sampling, each)?;
            bar.finish_and_clear();
            Ok(Generated {
                prompt: prompt.text.to_string(),
                text: continuation(tokenizer, &prompt.ids, &ids)?,
                tokens: ids.len(),
                seconds: begun.elapsed().as_secs_f64(),
            })
        };
        prompts.iter().map(write).collect()
    }
}

/// What the new tokens add to the text: decoded by themselves they could lose a blank, or half a character.
fn continuation(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) -> Result<String> {
    let (before, whole) = (tokenizer.decode(prompt)?, tokenizer.decode(&[prompt, ids].concat())?);
    match whole.strip_prefix(&before) {
        Some(text) => Ok(text.to_string()),
        None => tokenizer.decode(ids),
    }
}
