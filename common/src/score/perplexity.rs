//! Perplexity by the protocol of GPTQ's papers: one tokenization of the whole text, non-overlapping blocks of `ctx`
//! tokens, the tail dropped, ctx − 1 predictions a block; and the divergence from a reference model beside it.

use crate::compute::backend::{Backend, Head, NO_TARGET, TokenScore};
use crate::error::{Error, Result};
use crate::model::forward::Batch;
use crate::model::ledger::{Activations, Pass};
use crate::model::weights::Model;
use crate::stage::report::Perplexity;

/// A model with the buffers of its forward pass.
pub struct Reader<'a, B: Backend> {
    pub backend: &'a B,
    pub model: &'a Model<B>,
    pub acts: Pass<B>,
    pub room: Room,
}

/// The largest pass.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    pub rows: usize,
    /// Of sequences that share rows.
    pub tokens: usize,
}

impl Room {
    /// For sequences that share nothing.
    pub fn rows(rows: usize) -> Room {
        Room { rows, tokens: rows }
    }

    /// For sequences of which many begin with what another begins with.
    pub fn sharing(rows: usize) -> Room {
        Room { rows, tokens: 2 * rows }
    }
}

impl<'a, B: Backend> Reader<'a, B> {
    pub fn new(backend: &'a B, model: &'a Model<B>, room: Room) -> Result<Reader<'a, B>> {
        let Room { rows, tokens } = room;
        let lengths = Activations::lengths(&model.config, rows, false);
        let lengths = if tokens > rows { lengths.sharing(&model.config, tokens) } else { lengths };
        Ok(Reader { backend, model, acts: lengths.allocate(backend)?, room })
    }

    /// What the head says of every row.
    pub fn scores(&mut self, batch: &Batch, reference: Option<&mut Reader<B>>) -> Result<Vec<TokenScore>> {
        let mut scores = vec![TokenScore::default(); batch.rows()];
        self.model.forward(self.backend, batch, &mut self.acts);
        let head = self.model.head();
        let own = Head { hidden: &self.acts.hidden, weight: &head };
        match reference {
            Some(reference) => {
                reference.model.forward(reference.backend, batch, &mut reference.acts);
                let other_head = reference.model.head();
                let other = Head { hidden: &reference.acts.hidden, weight: &other_head };
                self.backend.head_scores(own, Some(other), &batch.targets, &mut scores)?;
            }
            None => self.backend.head_scores(own, None, &batch.targets, &mut scores)?,
        }
        Ok(scores)
    }
}

/// How a text is cut.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    pub ctx: usize,
    pub max_blocks: Option<usize>,
    /// The ids begin with one BOS.
    pub bos: bool,
}

impl Protocol {
    /// Blocks of a text of this many tokens; too few for one is an error.
    pub fn blocks(&self, text: &str, tokens: usize) -> Result<usize> {
        match (tokens / self.ctx).min(self.max_blocks.unwrap_or(usize::MAX)) {
            0 => Err(Error::input(
                text,
                format!("{tokens} tokens"),
                format!("at least one block of {}", self.ctx),
                "give a longer text, or a smaller --ctx",
            )),
            blocks => Ok(blocks),
        }
    }
}

/// Perplexity of `ids`; `each` is told after every block of how many, with the perplexity so far.
pub fn perplexity<B: Backend>(
    reader: &mut Reader<B>,
    mut reference: Option<&mut Reader<B>>,
    text: &str,
    ids: &[u32],
    protocol: Protocol,
    mut each: impl FnMut(usize, usize, f64),
) -> Result<Perplexity> {
    let Protocol { ctx, bos, .. } = protocol;
    let blocks = protocol.blocks(text, ids.len())?;
    let (mut nll, mut kl, mut same) = (0.0f64, 0.0f64, 0u64);
    for block in 0..blocks {
        let batch = Batch::next_token([&ids[block * ctx..(block + 1) * ctx]]);
        let scores = reader.scores(&batch, reference.as_deref_mut())?;
        for (score, target) in scores.iter().zip(&batch.targets) {
            if *target != NO_TARGET {
                nll -= score.log_prob;
                kl += score.kl;
                same += u64::from(score.top == score.reference_top);
            }
        }
        each(block + 1, blocks, (nll / ((block + 1) * (ctx - 1)) as f64).exp());
    }
    let tokens = (blocks * (ctx - 1)) as u64;
    let mean = nll / tokens as f64;
    let compared = reference.is_some();
    Ok(Perplexity {
        ppl: mean.exp(),
        nll: mean,
        ctx,
        blocks,
        tokens,
        bos,
        kl: compared.then(|| kl / tokens as f64),
        top1: compared.then(|| same as f64 / tokens as f64),
    })
}
