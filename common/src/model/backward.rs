//! The backward pass: the forward list, reversed. What is not kept of a block is computed again from its input first, to
//! the same bytes.

use super::forward::Batch;
use super::ledger::{AtHand, Pass};
use super::weights::{Block, Linear, Model};
use crate::compute::backend::{Backend, Branch, Head, Loss, Output, RowLoss};
use crate::error::Result;

/// Sums of the terms of the loss, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Terms {
    pub ce: f64,
    pub kl: f64,
}

impl<B: Backend> Model<B> {
    /// One forward and backward pass. Returns the sums of both terms over all rows; `grads` (one buffer per parameter)
    /// accumulate d(grad_scale·Σ ce·CE + kl·KL). `acts.dx` ends as the gradient at the embedding's output.
    pub fn loss_and_gradients(
        &self,
        b: &B,
        batch: &Batch,
        loss: &Loss<B>,
        grad_scale: f32,
        acts: &mut Pass<B>,
        grads: &mut [B::Buffer],
    ) -> Result<Terms> {
        let (c, rows) = (&self.config, batch.rows());
        self.forward(b, batch, acts);
        let mut losses = vec![RowLoss::default(); rows];
        let head = Head { hidden: &acts.hidden, weight: &self.head() };
        b.head_loss(head, &batch.targets, loss, grad_scale, Some(&mut acts.dhidden), &mut losses)?;
        b.fill_zero(&mut acts.dx);
        b.rmsnorm_backward(&acts.x, &self.norm, c.norm_eps, rows, c.d, &acts.dhidden, &mut acts.dx);
        for (layer, block) in self.blocks.iter().enumerate().rev() {
            if !acts.integers.all {
                self.round_block(b, block, acts.integers.of_mut(layer));
            }
            self.block_backward(b, block, batch, layer, acts, grads);
        }
        let add = |sum: Terms, row: &RowLoss| Terms { ce: sum.ce + f64::from(row.ce), kl: sum.kl + f64::from(row.kl) };
        Ok(losses.iter().fold(Terms::default(), add))
    }

    /// dx of a block's output becomes that of its input; the gradients of its parameters accumulate.
    pub(super) fn block_backward(
        &self,
        b: &B,
        block: &Block<B>,
        batch: &Batch,
        layer: usize,
        acts: &mut Pass<B>,
        grads: &mut [B::Buffer],
    ) {
        let rows = batch.rows();
        b.widen(&acts.checkpoints[layer], &mut acts.x, rows * self.config.d);
        acts.exchange(layer);
        self.block_again(b, block, batch, layer, acts);
        self.mlp_backward(b, block, rows, layer, acts, grads);
        self.attention_backward(b, block, batch, layer, acts, grads);
        acts.exchange(layer);
    }

    /// All that the backward pass of a block reads, but for the input of q, k and v.
    fn block_again(&self, b: &B, block: &Block<B>, batch: &Batch, layer: usize, a: &mut Pass<B>) {
        let (c, rows) = (&self.config, batch.rows());
        let AtHand { attention, gate_up } = a.at_hand(layer);
        if attention {
            self.add_attended(b, &block.linears[3], rows, a, Some(layer));
        } else {
            self.attention_forward(b, block, batch, a, Some(layer));
        }
        if gate_up {
            b.rmsnorm_forward(&a.x, &block.mlp_norm, c.norm_eps, rows, c.d, &mut a.hidden);
            b.swiglu(&a.gate, &a.up, &mut a.inner, rows * c.ffn);
        } else {
            self.mlp_forward(b, block, rows, a, Some(layer), true);
        }
    }

    fn mlp_backward(
        &self,
        b: &B,
        block: &Block<B>,
        rows: usize,
        layer: usize,
        a: &mut Pass<B>,
        grads: &mut [B::Buffer],
    ) {
        let (c, integers) = (&self.config, a.integers.of(layer));
        let [.., gate, up, down] = &block.linears;
        b.round(&a.dx, &mut a.dresidual, rows * c.d);
        let [dgate, dup, ddown] = Linear::grads([gate, up, down], grads);
        let weight = self.weight(down, Some(&integers[6]));
        let branch = Branch { weight, dy: &a.dresidual, grads: ddown };
        // From here on `gate` and `up` hold their gradients.
        b.swiglu_backward(&a.inner, rows, branch, &mut a.gate, &mut a.up);
        let branches = [
            Branch { weight: self.weight(gate, Some(&integers[4])), dy: &a.gate, grads: dgate },
            Branch { weight: self.weight(up, Some(&integers[5])), dy: &a.up, grads: dup },
        ];
        b.linears_backward(&a.hidden, rows, branches, Output::set(&mut a.dhidden));
        b.rmsnorm_backward(&a.x, &block.mlp_norm, c.norm_eps, rows, c.d, &a.dhidden, &mut a.dx);
    }

    fn attention_backward(
        &self,
        b: &B,
        block: &Block<B>,
        batch: &Batch,
        layer: usize,
        a: &mut Pass<B>,
        grads: &mut [B::Buffer],
    ) {
        let (c, rows) = (&self.config, batch.rows());
        let integers = a.integers.of(layer);
        let [q, k, v, o, ..] = &block.linears;
        let [gq, gk, gv, go] = Linear::grads([q, k, v, o], grads);
        assert!(batch.shared.is_none(), "a backward pass of shared rows");
        let segments = &batch.segments;
        b.round(&a.dx, &mut a.dresidual, rows * c.d);
        let weight = self.weight(o, Some(&integers[3]));
        let branch = Branch { weight, dy: &a.dresidual, grads: go };
        b.linears_backward(&a.attended, rows, [branch], Output::Activation(&mut a.dattended));
        b.attention_backward(
            &a.q,
            &a.k,
            &a.v,
            &a.attended,
            &a.lse,
            c.attention_heads(),
            segments,
            &a.dattended,
            &mut a.dq,
            &mut a.dk,
            &mut a.dv,
        );
        b.rope_backward(&self.rope, &mut a.dk, c.kv_heads, c.head_dim, segments);
        b.rope_backward(&self.rope, &mut a.dq, c.heads, c.head_dim, segments);
        // The block's input and its norm, the input of q, k and v.
        b.widen(&a.checkpoints[layer], &mut a.x, rows * c.d);
        b.rmsnorm_forward(&a.x, &block.attention_norm, c.norm_eps, rows, c.d, &mut a.hidden);
        let branches = [
            Branch { weight: self.weight(q, Some(&integers[0])), dy: &a.dq, grads: gq },
            Branch { weight: self.weight(k, Some(&integers[1])), dy: &a.dk, grads: gk },
            Branch { weight: self.weight(v, Some(&integers[2])), dy: &a.dv, grads: gv },
        ];
        b.linears_backward(&a.hidden, rows, branches, Output::set(&mut a.dhidden));
        b.rmsnorm_backward(&a.x, &block.attention_norm, c.norm_eps, rows, c.d, &a.dhidden, &mut a.dx);
    }
}
