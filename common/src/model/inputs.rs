//! How large the inputs of the linears are on real text: what an error in a column of a weight weighs.

use super::forward::Batch;
use super::host::Source;
use super::ledger::Activations;
use super::names;
use super::weights::Model;
use crate::compute::backend::{Backend, Output};
use crate::error::Result;

/// Mean squares of the columns of what the seven linears of each block are given, in the order of [`names::LINEARS`].
pub type MeanSquares = Vec<[Vec<f32>; 7]>;

/// Of these sequences, which go through the model one batch after another.
pub fn mean_squares<B: Backend>(b: &B, source: &dyn Source, batches: &[Batch]) -> Result<MeanSquares> {
    let positions = batches.iter().flat_map(|batch| batch.segments.windows(2)).map(|s| s[1] - s[0]).max();
    let most = batches.iter().map(Batch::rows).max().unwrap_or(0);
    let model = Model::load(b, source, positions.unwrap_or(0))?;
    let mut acts = Activations::lengths(&model.config, most, false).allocate(b)?;
    let mut wide = b.zeros(most * model.config.ffn.max(model.config.q_width()).max(model.config.d))?;
    let shapes = names::block_shapes(&model.config);
    let mut sums: Vec<[Vec<f64>; 7]> = vec![shapes.map(|(_, k)| vec![0.0; k]); model.config.layers];
    for batch in batches {
        b.embedding_forward(&model.embedding, &batch.tokens, model.config.d, &mut acts.x);
        for (block, sums) in model.blocks.iter().zip(&mut sums) {
            let rows = batch.rows();
            model.attention_forward(b, block, batch, &mut acts, None);
            let [q, k, v, o, gate, up, down] = sums;
            add(b, &acts.hidden, rows, &mut wide, &mut [q, k, v])?;
            add(b, &acts.attended, rows, &mut wide, &mut [o])?;
            model.mlp_forward(b, block, rows, &mut acts, None, false);
            add(b, &acts.hidden, rows, &mut wide, &mut [gate, up])?;
            add(b, &acts.inner, rows, &mut wide, &mut [down])?;
            let [.., last] = &block.linears;
            b.linear_forward(&acts.inner, rows, &model.weight(last, None), Output::add(&mut acts.x));
        }
    }
    let rows = batches.iter().map(Batch::rows).sum::<usize>().max(1) as f64;
    let mean = |sum: Vec<f64>| sum.into_iter().map(|x| (x / rows) as f32).collect();
    Ok(sums.into_iter().map(|of_block| of_block.map(mean)).collect())
}

/// Adds the squares of each column of x [rows, width] to all of `sums`.
fn add<B: Backend>(
    b: &B,
    x: &B::Activation,
    rows: usize,
    wide: &mut B::Buffer,
    sums: &mut [&mut Vec<f64>],
) -> Result<()> {
    let width = sums.first().map_or(0, |sum| sum.len());
    b.widen(x, wide, rows * width);
    for row in b.download(wide)?[..rows * width].chunks_exact(width) {
        for sum in sums.iter_mut() {
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum += f64::from(*x).powi(2);
            }
        }
    }
    Ok(())
}
