//! The teacher: a model that only runs forward, block by block. Each block is read once for all micro-batches of a step
//! and let go of, so that one block of it is held at a time, beside the residual stream of the whole step.

use std::mem::swap;

use super::config::Config;
use super::forward::Batch;
use super::host::Source;
use super::ledger::{Activations, Pass};
use super::params::Params;
use super::weights::{HostBlock, Model};
use crate::compute::backend::{Backend, Head, Weight};
use crate::error::Result;

pub struct Teacher<B: Backend> {
    /// Without its blocks.
    model: Model<B>,
    blocks: Vec<HostBlock>,
    /// The residual stream of each micro-batch [rows, d].
    streams: Vec<B::Buffer>,
    acts: Pass<B>,
}

impl<B: Backend> Teacher<B> {
    /// For up to `micro_batches` of up to `rows` tokens at a time, in sequences of up to `positions`.
    pub fn load(
        backend: &B,
        source: &dyn Source,
        positions: usize,
        rows: usize,
        micro_batches: usize,
    ) -> Result<Teacher<B>> {
        let model = Model::without_blocks(backend, source, positions)?;
        let blocks = (0..model.config.layers).map(|layer| HostBlock::read(source, layer)).collect::<Result<_>>()?;
        let stream = rows * model.config.d;
        let streams = (0..micro_batches).map(|_| backend.zeros(stream)).collect::<Result<_>>()?;
        Ok(Teacher { acts: lengths(&model.config, rows).allocate(backend)?, model, blocks, streams })
    }

    pub fn config(&self) -> &Config {
        &self.model.config
    }

    /// Runs all blocks over these micro-batches.
    pub fn read(&mut self, b: &B, batches: &[Batch]) -> Result<()> {
        assert!(batches.len() <= self.streams.len(), "{} micro-batches at a time", self.streams.len());
        for (batch, x) in batches.iter().zip(&mut self.streams) {
            b.embedding_forward(&self.model.embedding, &batch.tokens, self.model.config.d, x);
        }
        for host in &self.blocks {
            let block = host.load(b, &mut Params::new())?;
            for (batch, x) in batches.iter().zip(&mut self.streams) {
                // Each stream in turn takes the place that the ledger has for one.
                swap(&mut self.acts.x, x);
                // As the model that learns: of the same weights it has the same answers.
                b.round_both(&mut self.acts.x, &mut self.acts.hidden, batch.rows() * self.model.config.d);
                self.model.block_forward(b, &block, batch, &mut self.acts, None, false);
                swap(&mut self.acts.x, x);
            }
            host.forget();
        }
        Ok(())
    }

    /// Makes the normed output of the last block, of one of the micro-batches that were read last, the head's input.
    pub fn finish(&mut self, b: &B, micro_batch: usize, rows: usize) {
        let (c, x) = (&self.model.config, &self.streams[micro_batch]);
        b.rmsnorm_forward(x, &self.model.norm, c.norm_eps, rows, c.d, &mut self.acts.hidden);
    }

    pub fn weight(&self) -> Weight<'_, B> {
        self.model.head()
    }

    /// Of the micro-batch that was finished last.
    pub fn head<'a>(&'a self, weight: &'a Weight<'a, B>) -> Head<'a, B> {
        Head { hidden: &self.acts.hidden, weight }
    }
}

/// Buffers of its forward pass, but for the residual streams.
pub fn lengths(config: &Config, rows: usize) -> Activations<usize, usize, usize> {
    Activations { x: 0, ..Activations::lengths(config, rows, false) }
}
