//! The ledger of memory: every buffer of a forward or training pass with its length, in one place. Passes allocate
//! from it and the plan adds it up, so that they cannot disagree.

use super::config::Config;
use super::names;
use crate::compute::backend::Backend;
use crate::error::Result;

/// Activations and their gradients, generic over what stands for a `Buffer`, an `Activation` and `Integers` of the
/// backend: its length, or itself.
pub struct Activations<T, A, I> {
    /// The residual stream [rows, d].
    pub x: T,
    /// A normed input [rows, d].
    pub hidden: A,
    pub q: A,
    pub k: A,
    pub v: A,
    pub attended: A,
    /// log-sum-exp of each row and head.
    pub lse: T,
    /// silu(gate)∘up.
    pub inner: A,
    /// Training only (length 0 otherwise): gate and up of the block in the backward pass, then their gradients.
    pub gate: A,
    pub up: A,
    /// Training only: the gradients.
    pub dx: T,
    pub dhidden: T,
    /// `dx` as an operand of products.
    pub dresidual: A,
    pub dq: A,
    pub dk: A,
    pub dv: A,
    pub dattended: A,
    /// Training only: the input of each block, from which the block is computed again in the backward pass.
    pub checkpoints: Vec<A>,
    /// Training only.
    pub integers: Rounded<I>,
}

/// The integers of the linears: of one block, from its second forward pass to its backward pass; or of all, until the
/// weights change.
pub struct Rounded<I> {
    blocks: Vec<[I; 7]>,
    pub all: bool,
    /// Those of all are made.
    pub made: bool,
}

impl<I> Rounded<I> {
    pub fn of(&self, layer: usize) -> &[I; 7] {
        &self.blocks[if self.all { layer } else { 0 }]
    }

    pub fn of_mut(&mut self, layer: usize) -> &mut [I; 7] {
        &mut self.blocks[if self.all { layer } else { 0 }]
    }
}

/// The buffers of a pass on a backend.
pub type Pass<B> = Activations<<B as Backend>::Buffer, <B as Backend>::Activation, <B as Backend>::Integers>;

impl Activations<usize, usize, usize> {
    /// Elements of each buffer for `rows` tokens.
    pub fn lengths(c: &Config, rows: usize, training: bool) -> Activations<usize, usize, usize> {
        let (d, q, kv, f) = (rows * c.d, rows * c.q_width(), rows * c.kv_width(), rows * c.ffn);
        let grad = |len| if training { len } else { 0 };
        let integers = names::block_shapes(c).map(|(n, k)| grad(n * k));
        Activations {
            x: d,
            hidden: d,
            q,
            k: kv,
            v: kv,
            attended: q,
            lse: rows * c.heads,
            inner: f,
            gate: grad(f),
            up: grad(f),
            dx: grad(d),
            dhidden: grad(d),
            dresidual: grad(d),
            dq: grad(q),
            dk: grad(kv),
            dv: grad(kv),
            dattended: grad(q),
            checkpoints: if training { vec![d; c.layers] } else { Vec::new() },
            integers: Rounded { blocks: vec![integers], all: false, made: false },
        }
    }

    /// With the integers of all blocks, until the weights change.
    pub fn keeping_integers(mut self, c: &Config) -> Self {
        let all = vec![*self.integers.of(0); c.layers];
        self.integers = Rounded { blocks: all, all: true, made: false };
        self
    }

    pub fn allocate<B: Backend>(self, backend: &B) -> Result<Pass<B>> {
        let buffer = |len: usize| backend.zeros(len);
        let activation = |len: usize| backend.activation(len);
        let of_block = |lengths: [usize; 7]| {
            let integers = lengths.into_iter().map(|len| backend.integers(len)).collect::<Result<Vec<_>>>()?;
            Ok(integers.try_into().unwrap_or_else(|_| unreachable!("a block has seven linears")))
        };
        let blocks = self.integers.blocks.into_iter().map(of_block).collect::<Result<_>>()?;
        let integers = Rounded { blocks, all: self.integers.all, made: false };
        Ok(Activations {
            x: buffer(self.x)?,
            hidden: activation(self.hidden)?,
            q: activation(self.q)?,
            k: activation(self.k)?,
            v: activation(self.v)?,
            attended: activation(self.attended)?,
            lse: buffer(self.lse)?,
            inner: activation(self.inner)?,
            gate: activation(self.gate)?,
            up: activation(self.up)?,
            dx: buffer(self.dx)?,
            dhidden: buffer(self.dhidden)?,
            dresidual: activation(self.dresidual)?,
            dq: activation(self.dq)?,
            dk: activation(self.dk)?,
            dv: activation(self.dv)?,
            dattended: activation(self.dattended)?,
            checkpoints: self.checkpoints.into_iter().map(activation).collect::<Result<_>>()?,
            integers,
        })
    }

    /// Bytes that are kept from the forward to the backward pass.
    pub fn checkpoint_bytes<B: Backend>(&self) -> usize {
        B::ACTIVATION_BYTES * self.checkpoints.iter().sum::<usize>()
    }

    /// Bytes of the integers.
    pub fn integer_bytes(&self) -> usize {
        self.integers.blocks.as_flattened().iter().sum()
    }

    /// Bytes of one block's activations and gradients.
    pub fn block_bytes<B: Backend>(&self) -> usize {
        let buffers = [self.x, self.lse, self.dx, self.dhidden];
        let activations = [
            self.hidden,
            self.q,
            self.k,
            self.v,
            self.attended,
            self.gate,
            self.up,
            self.inner,
            self.dresidual,
            self.dq,
            self.dk,
            self.dv,
            self.dattended,
        ];
        size_of::<f32>() * buffers.iter().sum::<usize>() + B::ACTIVATION_BYTES * activations.iter().sum::<usize>()
    }
}
