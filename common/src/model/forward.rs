//! The forward pass, as a list of ops.

use std::mem::swap;

use super::ledger::Pass;
use super::weights::{Block, Linear, Model};
use crate::compute::backend::{Backend, NO_TARGET, Output};

/// Tokens of one or more sequences, one after another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub tokens: Vec<u32>,
    /// The next token of the same sequence, or [`NO_TARGET`].
    pub targets: Vec<u32>,
    /// Offsets of the sequences: first 0, last the number of their tokens, each of which has a row of its own, but for
    /// what is `shared`.
    pub segments: Vec<usize>,
    /// In forward passes alone.
    pub shared: Option<Shared>,
}

/// Which rows stand for a token of several sequences: at the same position, after the same tokens. They are computed
/// once, and attention takes them for each sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shared {
    /// The row of each token.
    pub rows: Vec<u32>,
    /// A token of each row.
    pub tokens: Vec<u32>,
}

impl Batch {
    /// Each row predicts the token after it.
    pub fn next_token<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Batch {
        let mut batch = Batch { segments: vec![0], ..Batch::default() };
        for tokens in sequences {
            batch.tokens.extend_from_slice(tokens);
            batch.targets.extend_from_slice(&tokens[1..]);
            batch.targets.push(NO_TARGET);
            batch.segments.push(batch.tokens.len());
        }
        batch
    }

    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Rows that predict something.
    pub fn predictions(&self) -> usize {
        self.targets.iter().filter(|t| **t != NO_TARGET).count()
    }
}

impl<B: Backend> Model<B> {
    /// Leaves the normed output of the last block in `acts.hidden`, for the head.
    pub fn forward(&self, b: &B, batch: &Batch, acts: &mut Pass<B>) {
        let (rows, d) = (batch.rows(), self.config.d);
        b.embedding_forward(&self.embedding, &batch.tokens, d, &mut acts.x);
        for (layer, block) in self.blocks.iter().enumerate() {
            if let Some(kept) = acts.checkpoints.get_mut(layer) {
                // The backward pass begins with the same bytes.
                b.round_both(&mut acts.x, kept, rows * d);
            }
            if acts.integers.all && !acts.integers.made {
                self.round_block(b, block, acts.integers.of_mut(layer));
            }
            let of = acts.integers.all.then_some(layer);
            let gate_up = acts.at_hand(layer).gate_up;
            acts.exchange(layer);
            self.block_forward(b, block, batch, acts, of, gate_up);
            acts.exchange(layer);
        }
        acts.integers.made = acts.integers.all;
        b.rmsnorm_forward(&acts.x, &self.norm, self.config.norm_eps, rows, d, &mut acts.hidden);
    }

    pub(super) fn round_block(&self, b: &B, block: &Block<B>, integers: &mut [B::Integers; 7]) {
        for (linear, integers) in block.linears.iter().zip(integers) {
            b.round_weight(&self.weight(linear, None), integers);
        }
    }

    /// x += attention(norm(x)), x += mlp(norm(x)); from the integers that the pass keeps of a layer, if it does. q, k, v,
    /// `attended` and `lse` are left for a backward pass; gate and up, if they are wanted.
    pub(super) fn block_forward(
        &self,
        b: &B,
        block: &Block<B>,
        batch: &Batch,
        acts: &mut Pass<B>,
        rounded: Option<usize>,
        gate_up: bool,
    ) {
        self.attention_forward(b, block, batch, acts, rounded);
        self.mlp_forward(b, block, batch.rows(), acts, rounded, gate_up);
        let down = self.weight(&block.linears[6], rounded.map(|layer| &acts.integers.of(layer)[6]));
        b.linear_forward(&acts.inner, batch.rows(), &down, Output::add(&mut acts.x));
    }

    /// x += attention(norm(x))
    pub(super) fn attention_forward(
        &self,
        b: &B,
        block: &Block<B>,
        batch: &Batch,
        a: &mut Pass<B>,
        rounded: Option<usize>,
    ) {
        let (c, rows) = (&self.config, batch.rows());
        let [q, k, v, o, ..] = &block.linears;
        let integers = |i: usize| rounded.map(|layer| &a.integers.of(layer)[i]);
        b.rmsnorm_forward(&a.x, &block.attention_norm, c.norm_eps, rows, c.d, &mut a.hidden);
        let qkv = [self.weight(q, integers(0)), self.weight(k, integers(1)), self.weight(v, integers(2))];
        b.linears_forward(&a.hidden, rows, qkv, [&mut a.q, &mut a.k, &mut a.v]);
        if let Some(shared) = &batch.shared {
            let [spare_q, spare_kv] = &mut a.spare;
            let spread = |x: &mut B::Activation, width: usize, spare: &mut B::Activation| {
                b.gather_rows(x, &shared.rows, width, spare);
                swap(x, spare);
            };
            spread(&mut a.q, c.q_width(), spare_q);
            spread(&mut a.k, c.kv_width(), spare_kv);
            spread(&mut a.v, c.kv_width(), spare_kv);
        }
        b.rope_forward(&self.rope, &mut a.q, c.heads, c.head_dim, &batch.segments);
        b.rope_forward(&self.rope, &mut a.k, c.kv_heads, c.head_dim, &batch.segments);
        b.attention_forward(&a.q, &a.k, &a.v, c.attention_heads(), &batch.segments, &mut a.attended, &mut a.lse);
        if let Some(shared) = &batch.shared {
            b.gather_rows(&a.attended, &shared.tokens, c.q_width(), &mut a.spare[0]);
            swap(&mut a.attended, &mut a.spare[0]);
        }
        self.add_attended(b, o, rows, a, rounded);
    }

    pub(super) fn add_attended(&self, b: &B, o: &Linear<B>, rows: usize, a: &mut Pass<B>, rounded: Option<usize>) {
        let integers = rounded.map(|layer| &a.integers.of(layer)[3]);
        b.linear_forward(&a.attended, rows, &self.weight(o, integers), Output::add(&mut a.x));
    }

    /// inner = silu(gate)∘up of norm(x), and gate and up where a backward pass follows; the down projection is left to the
    /// caller, since the backward pass does not need it again.
    pub(super) fn mlp_forward(
        &self,
        b: &B,
        block: &Block<B>,
        rows: usize,
        a: &mut Pass<B>,
        rounded: Option<usize>,
        gate_up: bool,
    ) {
        let c = &self.config;
        let [.., gate, up, _] = &block.linears;
        let integers = |i: usize| rounded.map(|layer| &a.integers.of(layer)[i]);
        b.rmsnorm_forward(&a.x, &block.mlp_norm, c.norm_eps, rows, c.d, &mut a.hidden);
        let weights = [self.weight(gate, integers(4)), self.weight(up, integers(5))];
        let kept = gate_up.then_some([&mut a.gate, &mut a.up]);
        b.swiglu_forward(&a.hidden, rows, weights, kept, &mut a.inner);
    }
}
