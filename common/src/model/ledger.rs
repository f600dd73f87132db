//! The ledger of memory: every buffer of a forward or training pass with its length, in one place. Passes allocate
//! from it and the plan adds it up, so that they cannot disagree.

use std::mem::swap;

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
    /// Where q, and k or v, of rows that sequences share go when each sequence gets its own.
    pub spare: [A; 2],
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
    /// What the first blocks leave for the backward pass, so that it need not be computed again.
    pub kept: Vec<Kept<T, A>>,
    /// Training only.
    pub integers: Rounded<I>,
}

/// The places in which a block leaves what its backward pass reads, in those of `Activations` when it is at work.
pub struct Kept<T, A> {
    /// q, k, v and `attended`.
    attention: [A; 4],
    lse: T,
    gate_up: Option<[A; 2]>,
}

/// What a training pass keeps besides the input of each block. All of it could be computed again, to the same bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keeping {
    /// Of so many blocks: q, k, v, the output of attention and its log-sum-exp.
    pub attention: usize,
    /// Of so many of these: gate and up.
    pub gate_up: usize,
    /// The integers of all blocks, until the weights change.
    pub integers: bool,
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
            spare: [0; 2],
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
            kept: Vec::new(),
            integers: Rounded { blocks: vec![integers], all: false, made: false },
        }
    }

    /// Of a pass whose sequences share rows and have so many tokens.
    pub fn sharing(mut self, c: &Config, tokens: usize) -> Self {
        let (q, kv) = (tokens * c.q_width(), tokens * c.kv_width());
        (self.q, self.k, self.v, self.attended, self.lse) = (q, kv, kv, q, tokens * c.heads);
        self.spare = [q, kv];
        self
    }

    /// Of a training pass that keeps this besides.
    pub fn keeping(mut self, c: &Config, keeping: Keeping) -> Self {
        let gate_up = |block| (block < keeping.gate_up).then_some([self.gate, self.up]);
        let attention = [self.q, self.k, self.v, self.attended];
        let kept = |block| Kept { attention, lse: self.lse, gate_up: gate_up(block) };
        self.kept = (0..keeping.attention).map(kept).collect();
        if keeping.integers {
            let blocks = vec![*self.integers.of(0); c.layers];
            self.integers = Rounded { blocks, all: true, made: false };
        }
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
        let kept_of_block = |of: Kept<usize, usize>| {
            let [q, k, v, attended] = of.attention;
            let gate_up = of.gate_up.map(|[gate, up]| Ok([activation(gate)?, activation(up)?])).transpose()?;
            let attention = [activation(q)?, activation(k)?, activation(v)?, activation(attended)?];
            Ok(Kept { attention, lse: buffer(of.lse)?, gate_up })
        };
        let kept = self.kept.into_iter().map(kept_of_block).collect::<Result<_>>()?;
        let integers = Rounded { blocks, all: self.integers.all, made: false };
        let [spare_q, spare_kv] = self.spare;
        Ok(Activations {
            x: buffer(self.x)?,
            hidden: activation(self.hidden)?,
            q: activation(self.q)?,
            k: activation(self.k)?,
            v: activation(self.v)?,
            attended: activation(self.attended)?,
            lse: buffer(self.lse)?,
            spare: [activation(spare_q)?, activation(spare_kv)?],
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
            kept,
            integers,
        })
    }

    /// Bytes of the inputs of the blocks.
    pub fn checkpoint_bytes<B: Backend>(&self) -> usize {
        B::ACTIVATION_BYTES * self.checkpoints.iter().sum::<usize>()
    }

    /// Bytes of what is kept besides, but for the integers.
    pub fn kept_bytes<B: Backend>(&self) -> usize {
        let activations =
            |of: &Kept<usize, usize>| of.attention.iter().sum::<usize>() + of.gate_up.iter().flatten().sum::<usize>();
        let bytes = |of| B::ACTIVATION_BYTES * activations(of) + size_of::<f32>() * of.lse;
        self.kept.iter().map(bytes).sum()
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
            self.spare[0],
            self.spare[1],
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

/// What is at hand of a block in the backward pass.
#[derive(Debug, Clone, Copy)]
pub struct AtHand {
    pub attention: bool,
    pub gate_up: bool,
}

impl<T, A, I> Activations<T, A, I> {
    pub fn at_hand(&self, block: usize) -> AtHand {
        let kept = self.kept.get(block);
        AtHand { attention: kept.is_some(), gate_up: kept.is_some_and(|of| of.gate_up.is_some()) }
    }

    /// Before and after a pass through a block: what it leaves, or left, lies where it is kept, if it is.
    pub fn exchange(&mut self, block: usize) {
        let Some(kept) = self.kept.get_mut(block) else { return };
        let [q, k, v, attended] = &mut kept.attention;
        swap(&mut self.q, q);
        swap(&mut self.k, k);
        swap(&mut self.v, v);
        swap(&mut self.attended, attended);
        swap(&mut self.lse, &mut kept.lse);
        if let Some([gate, up]) = &mut kept.gate_up {
            swap(&mut self.gate, gate);
            swap(&mut self.up, up);
        }
    }
}
