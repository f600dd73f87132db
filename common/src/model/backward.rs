//! The backward pass: the forward list, reversed. Each block is computed again from its input first.

use super::forward::Batch;
use super::ledger::Pass;
use super::weights::{Block, Model};
use crate::compute::backend::{Backend, Head, Output};

impl<B: Backend> Model<B> {
    /// One forward and backward pass. Returns the sum of the losses of all rows; `grads` (one buffer per parameter)
    /// accumulate d(grad_scale·Σ losses). `acts.dx` ends as the gradient at the embedding's output.
    pub fn loss_and_gradients(
        &self,
        b: &B,
        batch: &Batch,
        grad_scale: f32,
        acts: &mut Pass<B>,
        grads: &mut [B::Buffer],
    ) -> f64 {
        let (c, rows) = (&self.config, batch.rows());
        self.forward(b, batch, acts);
        let mut losses = vec![0f32; rows];
        let head = Head { hidden: &acts.hidden, weight: &self.head() };
        b.head_loss(head, &batch.targets, grad_scale, Some(&mut acts.dhidden), &mut losses);
        b.fill_zero(&mut acts.dx);
        b.rmsnorm_backward(&acts.x, &self.norm, c.norm_eps, rows, c.d, &acts.dhidden, &mut acts.dx);
        for (layer, block) in self.blocks.iter().enumerate().rev() {
            b.widen(&acts.checkpoints[layer], &mut acts.x, rows * c.d);
            for (linear, integers) in block.linears.iter().zip(&mut acts.integers) {
                b.round_weight(&linear.weight(&self.params.values, None), integers);
            }
            self.attention_forward(b, block, batch, acts, true);
            self.mlp_forward(b, block, rows, acts, true);
            self.mlp_backward(b, block, rows, acts, grads);
            self.attention_backward(b, block, batch, layer, acts, grads);
        }
        losses.iter().map(|l| f64::from(*l)).sum()
    }

    fn mlp_backward(&self, b: &B, block: &Block<B>, rows: usize, a: &mut Pass<B>, grads: &mut [B::Buffer]) {
        let (c, params) = (&self.config, &self.params.values);
        let [.., gate, up, down] = &block.linears;
        b.round(&a.dx, &mut a.dresidual, rows * c.d);
        b.linear_backward(
            &a.inner,
            rows,
            &down.weight(params, Some(&a.integers[6])),
            &a.dresidual,
            Output::Activation(&mut a.dinner),
            down.grads(grads),
        );
        // From here on `gate` and `up` hold their gradients.
        b.swiglu_backward(&mut a.gate, &mut a.up, rows * c.ffn, &a.dinner);
        b.linear_backward(
            &a.hidden,
            rows,
            &up.weight(params, Some(&a.integers[5])),
            &a.up,
            Output::set(&mut a.dhidden),
            up.grads(grads),
        );
        b.linear_backward(
            &a.hidden,
            rows,
            &gate.weight(params, Some(&a.integers[4])),
            &a.gate,
            Output::add(&mut a.dhidden),
            gate.grads(grads),
        );
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
        let (c, rows, params) = (&self.config, batch.rows(), &self.params.values);
        let [q, k, v, o, ..] = &block.linears;
        let segments = &batch.segments;
        b.round(&a.dx, &mut a.dresidual, rows * c.d);
        b.linear_backward(
            &a.attended,
            rows,
            &o.weight(params, Some(&a.integers[3])),
            &a.dresidual,
            Output::Activation(&mut a.dattended),
            o.grads(grads),
        );
        b.attention_backward(
            &a.q,
            &a.k,
            &a.v,
            &a.attended,
            &a.lse,
            self.heads(),
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
        b.linear_backward(
            &a.hidden,
            rows,
            &v.weight(params, Some(&a.integers[2])),
            &a.dv,
            Output::set(&mut a.dhidden),
            v.grads(grads),
        );
        b.linear_backward(
            &a.hidden,
            rows,
            &k.weight(params, Some(&a.integers[1])),
            &a.dk,
            Output::add(&mut a.dhidden),
            k.grads(grads),
        );
        b.linear_backward(
            &a.hidden,
            rows,
            &q.weight(params, Some(&a.integers[0])),
            &a.dq,
            Output::add(&mut a.dhidden),
            q.grads(grads),
        );
        b.rmsnorm_backward(&a.x, &block.attention_norm, c.norm_eps, rows, c.d, &a.dhidden, &mut a.dx);
    }
}
