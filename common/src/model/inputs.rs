//! What the linears are given on real text: how much an error in a column of a weight weighs.

use std::mem::swap;
use std::ops::Range;

use super::forward::Batch;
use super::host::Source;
use super::ledger::Pass;
use super::names;
use super::params::Params;
use super::teacher;
use super::weights::{Block, HostBlock, Model};
use crate::compute::backend::{Backend, Output};
use crate::error::Result;

/// Inputs of the linears of a block that differ: of q, k and v; of o; of gate and up; of down.
pub const INPUTS: usize = 4;
/// The input of each linear, in the order of [`names::LINEARS`].
pub const INPUT_OF: [usize; 7] = [0, 0, 0, 1, 2, 2, 3];

/// Some text on its way through a model, block by block.
pub struct Stream<'a, B: Backend> {
    backend: &'a B,
    model: Model<B>,
    batches: &'a [Batch],
    /// The residual stream of each batch [rows, d].
    streams: Vec<B::Buffer>,
    acts: Pass<B>,
    wide: B::Buffer,
}

impl<'a, B: Backend> Stream<'a, B> {
    /// Before the first block.
    pub fn new(backend: &'a B, source: &dyn Source, batches: &'a [Batch]) -> Result<Stream<'a, B>> {
        let positions = batches.iter().flat_map(|batch| batch.segments.windows(2)).map(|s| s[1] - s[0]).max();
        let most = batches.iter().map(Batch::rows).max().unwrap_or(0);
        let model = Model::without_blocks(backend, source, positions.unwrap_or(0))?;
        let c = &model.config;
        let mut streams = Vec::new();
        for batch in batches {
            let mut x = backend.zeros(most * c.d)?;
            backend.embedding_forward(&model.embedding, &batch.tokens, c.d, &mut x);
            streams.push(x);
        }
        let acts = teacher::lengths(c, most).allocate(backend)?;
        let wide = backend.zeros(most * c.ffn.max(c.q_width()).max(c.d))?;
        Ok(Stream { backend, model, batches, streams, acts, wide })
    }

    /// A block on the backend.
    pub fn load(&self, host: &HostBlock) -> Result<Block<B>> {
        host.load(self.backend, &mut Params::new())
    }

    /// The residual stream of each batch [rows, d], where the model has come to.
    pub fn streams(&self) -> &[B::Buffer] {
        &self.streams
    }

    /// Shows some of the inputs of a block [rows, k] for a batch, and computes no further. Its stream stays before the block,
    /// or, after the last input, goes through it.
    pub fn show(
        &mut self,
        block: &Block<B>,
        batch: usize,
        inputs: Range<usize>,
        goes_through: bool,
        mut see: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        assert!(inputs.end <= INPUTS && (inputs.end == INPUTS || !goes_through), "inputs {inputs:?}");
        let (b, model, acts) = (self.backend, &self.model, &mut self.acts);
        let (c, batch, x) = (&model.config, &self.batches[batch], &mut self.streams[batch]);
        let rows = batch.rows();
        let mut show = |input: usize, x: &B::Activation, width: usize| -> Result<()> {
            if inputs.contains(&input) {
                b.widen(x, &mut self.wide, rows * width);
                see(input, &b.download(&self.wide)?[..rows * width]);
            }
            Ok(())
        };
        if inputs.end == 1 {
            b.rmsnorm_forward(x, &block.attention_norm, c.norm_eps, rows, c.d, &mut acts.hidden);
            return show(0, &acts.hidden, c.d);
        }
        let before = if goes_through { None } else { Some(b.upload(&b.download(x)?)?) };
        swap(&mut acts.x, x);
        model.attention_forward(b, block, batch, acts, None);
        // The normed input of attention is still there.
        show(0, &acts.hidden, c.d)?;
        show(1, &acts.attended, c.q_width())?;
        if inputs.end > 3 {
            model.mlp_forward(b, block, rows, acts, None, false);
            show(2, &acts.hidden, c.d)?;
            show(3, &acts.inner, c.ffn)?;
        } else if inputs.end > 2 {
            b.rmsnorm_forward(&acts.x, &block.mlp_norm, c.norm_eps, rows, c.d, &mut acts.hidden);
            show(2, &acts.hidden, c.d)?;
        }
        if goes_through {
            let [.., down] = &block.linears;
            b.linear_forward(&acts.inner, rows, &model.weight(down, None), Output::add(&mut acts.x));
        }
        swap(&mut acts.x, x);
        if let Some(before) = before {
            *x = before;
        }
        Ok(())
    }

    /// Takes the streams through a block.
    pub fn pass(&mut self, block: &Block<B>) -> Result<()> {
        let (b, acts) = (self.backend, &mut self.acts);
        for (batch, x) in self.batches.iter().zip(&mut self.streams) {
            swap(&mut acts.x, x);
            self.model.block_forward(b, block, batch, acts, None, false);
            swap(&mut acts.x, x);
        }
        Ok(())
    }
}

/// Mean squares of the columns of what the linears of each block are given, as [`INPUT_OF`] counts them.
pub type MeanSquares = Vec<[Vec<f32>; INPUTS]>;

/// Of these sequences, which go through the model one batch after another.
pub fn mean_squares<B: Backend>(b: &B, source: &dyn Source, batches: &[Batch]) -> Result<MeanSquares> {
    let mut stream = Stream::new(b, source, batches)?;
    let rows = batches.iter().map(Batch::rows).sum::<usize>().max(1) as f64;
    let mut found = Vec::new();
    for layer in 0..source.config().layers {
        let host = HostBlock::read(source, layer)?;
        let block = stream.load(&host)?;
        let mut sums = widths(source).map(|k| vec![0.0; k]);
        for batch in 0..batches.len() {
            stream.show(&block, batch, 0..INPUTS, true, |input, x| {
                for row in x.chunks_exact(sums[input].len()) {
                    for (sum, x) in sums[input].iter_mut().zip(row) {
                        *sum += f64::from(*x).powi(2);
                    }
                }
            })?;
        }
        host.forget();
        found.push(sums.map(|sum| sum.into_iter().map(|x| (x / rows) as f32).collect()));
    }
    Ok(found)
}

/// Of the inputs of a block.
pub fn widths(source: &dyn Source) -> [usize; INPUTS] {
    let [(_, q), _, _, (_, o), (_, gate), _, (_, down)] = names::block_shapes(source.config());
    [q, o, gate, down]
}
