//! The ledger of memory: every buffer of a forward or training pass with its length, in one place. Passes allocate
//! from it and the plan adds it up, so that they cannot disagree.

use super::config::Config;
use crate::compute::backend::Backend;
use crate::error::Result;

/// Activations and their gradients, generic over what stands for a buffer: its length, or the buffer.
pub struct Activations<T> {
    /// The residual stream [rows, d].
    pub x: T,
    /// A normed input [rows, d].
    pub hidden: T,
    pub q: T,
    pub k: T,
    pub v: T,
    pub attended: T,
    /// log-sum-exp of each row and head.
    pub lse: T,
    pub gate: T,
    pub up: T,
    pub inner: T,
    /// Training only (length 0 otherwise): the gradients.
    pub dx: T,
    pub dhidden: T,
    pub dq: T,
    pub dk: T,
    pub dv: T,
    pub dattended: T,
    pub dinner: T,
    /// Training only: the input of each block, from which the block is computed again in the backward pass.
    pub checkpoints: Vec<T>,
}

impl Activations<usize> {
    /// Elements of each buffer for `rows` tokens.
    pub fn lengths(c: &Config, rows: usize, training: bool) -> Activations<usize> {
        let (d, q, kv, f) = (rows * c.d, rows * c.q_width(), rows * c.kv_width(), rows * c.ffn);
        let grad = |len| if training { len } else { 0 };
        Activations {
            x: d,
            hidden: d,
            q,
            k: kv,
            v: kv,
            attended: q,
            lse: rows * c.heads,
            gate: f,
            up: f,
            inner: f,
            dx: grad(d),
            dhidden: grad(d),
            dq: grad(q),
            dk: grad(kv),
            dv: grad(kv),
            dattended: grad(q),
            dinner: grad(f),
            checkpoints: if training { vec![d; c.layers] } else { Vec::new() },
        }
    }

    pub fn allocate<B: Backend>(self, backend: &B) -> Result<Activations<B::Buffer>> {
        let new = |len: usize| backend.zeros(len);
        Ok(Activations {
            x: new(self.x)?,
            hidden: new(self.hidden)?,
            q: new(self.q)?,
            k: new(self.k)?,
            v: new(self.v)?,
            attended: new(self.attended)?,
            lse: new(self.lse)?,
            gate: new(self.gate)?,
            up: new(self.up)?,
            inner: new(self.inner)?,
            dx: new(self.dx)?,
            dhidden: new(self.dhidden)?,
            dq: new(self.dq)?,
            dk: new(self.dk)?,
            dv: new(self.dv)?,
            dattended: new(self.dattended)?,
            dinner: new(self.dinner)?,
            checkpoints: self.checkpoints.into_iter().map(new).collect::<Result<_>>()?,
        })
    }

    /// Elements that are kept from the forward to the backward pass.
    pub fn checkpointed(&self) -> usize {
        self.checkpoints.iter().sum()
    }

    /// Elements of one block's activations and gradients.
    pub fn block(&self) -> usize {
        self.x
            + self.hidden
            + self.q
            + self.k
            + self.v
            + self.attended
            + self.lse
            + self.gate
            + self.up
            + self.inner
            + self.dx
            + self.dhidden
            + self.dq
            + self.dk
            + self.dv
            + self.dattended
            + self.dinner
    }
}
