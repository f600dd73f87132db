//! Generating text, a token at a time: keys and values of the tokens before are kept, so that a step reads each weight
//! once and computes one row.

use std::mem::swap;

use super::forward::Batch;
use super::ledger::{Activations, Pass};
use super::weights::Model;
use crate::compute::backend::{Backend, Head, Output};
use crate::error::Result;

/// A text that grows.
pub struct Generation<'a, B: Backend> {
    backend: &'a B,
    model: &'a Model<B>,
    /// Keys and values [positions, kv·hd] of each block.
    kept: Vec<[B::Activation; 2]>,
    /// Of one row.
    acts: Pass<B>,
    tokens: usize,
}

impl<'a, B: Backend> Generation<'a, B> {
    /// For as many tokens as the model's rotary table has positions.
    pub fn new(backend: &'a B, model: &'a Model<B>) -> Result<Generation<'a, B>> {
        let len = model.positions * model.config.kv_width();
        let kept = model.blocks.iter().map(|_| Ok([backend.activation(len)?, backend.activation(len)?]));
        let kept = kept.collect::<Result<_>>()?;
        let acts = Activations::lengths(&model.config, 1, false).allocate(backend)?;
        Ok(Generation { backend, model, kept, acts, tokens: 0 })
    }

    /// Reads the beginning of a text whole; the logits of the token after it.
    pub fn begin(&mut self, tokens: &[u32], logits: &mut [f32]) -> Result<()> {
        let (b, model) = (self.backend, self.model);
        let mut lengths = Activations::lengths(&model.config, tokens.len(), false);
        // What is kept takes their place.
        (lengths.k, lengths.v) = (0, 0);
        let mut acts = lengths.allocate(b)?;
        let batch = Batch::next_token([tokens]);
        b.embedding_forward(&model.embedding, tokens, model.config.d, &mut acts.x);
        for (block, [keys, values]) in model.blocks.iter().zip(&mut self.kept) {
            swap(&mut acts.k, keys);
            swap(&mut acts.v, values);
            model.block_forward(b, block, &batch, &mut acts, None, false);
            swap(&mut acts.k, keys);
            swap(&mut acts.v, values);
        }
        self.tokens = tokens.len();
        let (c, last) = (&model.config, tokens.len() - 1);
        b.rmsnorm_forward(&acts.x, &model.norm, c.norm_eps, tokens.len(), c.d, &mut acts.hidden);
        b.head_logits(Head { hidden: &acts.hidden, weight: &model.head() }, last..last + 1, logits)
    }

    /// Adds a token; the logits of the one after it.
    pub fn step(&mut self, token: u32, logits: &mut [f32]) -> Result<()> {
        let (b, model, a) = (self.backend, self.model, &mut self.acts);
        let c = &model.config;
        assert!(self.tokens < model.positions, "a text of {} tokens", model.positions);
        b.embedding_forward(&model.embedding, &[token], c.d, &mut a.x);
        for (block, [keys, values]) in model.blocks.iter().zip(&mut self.kept) {
            let [q, k, v, o, .., down] = &block.linears;
            b.rmsnorm_forward(&a.x, &block.attention_norm, c.norm_eps, 1, c.d, &mut a.hidden);
            let qkv = [q, k, v].map(|linear| model.weight(linear, None));
            b.linears_forward(&a.hidden, 1, qkv, [&mut a.q, &mut a.k, &mut a.v]);
            let (heads, at, qkv) = (c.attention_heads(), self.tokens, [&mut a.q, &mut a.k, &mut a.v]);
            b.attention_step(&model.rope, qkv, heads, at, [keys, values], &mut a.attended);
            b.linear_forward(&a.attended, 1, &model.weight(o, None), Output::add(&mut a.x));
            model.mlp_forward(b, block, 1, a, None, false);
            b.linear_forward(&a.inner, 1, &model.weight(down, None), Output::add(&mut a.x));
        }
        b.rmsnorm_forward(&a.x, &model.norm, c.norm_eps, 1, c.d, &mut a.hidden);
        b.head_logits(Head { hidden: &a.hidden, weight: &model.head() }, 0..1, logits)?;
        self.tokens += 1;
        Ok(())
    }
}
