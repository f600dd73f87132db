//! What a device does for the model: buffers, and one function per op. Model code calls these by name, in order.
//!
//! What goes into a matrix product, and what comes out to be used as it is, is an `Activation`, in the type that the
//! device computes in. What is added up over the model (the residual stream and its gradient, the gradients of a normed
//! input) and what is trained is a `Buffer`, in f32. Each op computes in f32 and rounds once, as it stores.
//!
//! Activations are row-major [rows, width]; rows are all tokens of a ragged batch, `segments` the row offsets of
//! its sequences (first 0, last rows). `dx` of an activation is set (=) unless its op says accumulates (+=);
//! gradients of parameters accumulate.
//!
//! A device may run behind the host: an op that gives nothing back may fail later, which the next one that gives
//! something back says.

use std::ops::Range;

use super::answers::{Answers, Layout};
pub use super::dropout::Dropout;
use crate::error::Result;
use crate::format::tensor::Tensor;
use crate::quant::{Phi, Scheme};

/// Target of a row that predicts nothing.
pub use super::cpu::loss::NO_TARGET;

/// A linear's weight W [n, k] in whichever form an artefact holds it.
pub enum Weight<'a, B: Backend + ?Sized> {
    /// Floating point, as stored.
    Float { w: &'a B::Frozen, n: usize, k: usize },
    /// Integers that stay as they are.
    Codes(Codes<'a, B>),
    /// Frozen Φ0 with the trained A [n, r], B [r, k] and scale [n, G].
    LowRank(LowRank<'a, B>),
}

/// [`crate::quant::pack`]ed codes W_Z + 2^(b−1), scale and zero point [n, G]; and what is added beside them.
pub struct Codes<'a, B: Backend + ?Sized> {
    pub codes: &'a B::Frozen,
    pub scheme: Scheme,
    pub scale: &'a B::Buffer,
    /// The scale is a trained master, which the forward pass rounds; else it is the forward scale itself.
    pub master: bool,
    pub zero: Option<&'a B::Buffer>,
    /// W_Z of [`Backend::round_weight`], if it was kept.
    pub integers: Option<&'a B::Integers>,
    pub adapter: Option<Adapter<'a, B>>,
    pub n: usize,
    pub k: usize,
}

/// Low-rank factors outside the rounding (LoRA; Hu et al. 2021): y += (α/r)·drop(x)·Bᵀ·Aᵀ.
pub struct Adapter<'a, B: Backend + ?Sized> {
    /// [n, r]
    pub a: &'a B::Buffer,
    /// [r, k]
    pub b: &'a B::Buffer,
    pub rank: usize,
    /// α/r.
    pub factor: f32,
    /// Training only.
    pub dropout: Option<Dropout>,
}

pub struct LowRank<'a, B: Backend + ?Sized> {
    pub phi: &'a B::Frozen,
    pub stored: Phi,
    pub scheme: Scheme,
    pub scale: &'a B::Buffer,
    pub zero: Option<&'a B::Buffer>,
    /// round(Z) of [`Backend::round_weight`] since A, B and s were last changed, if it was kept.
    pub integers: Option<&'a B::Integers>,
    pub a: &'a B::Buffer,
    pub b: &'a B::Buffer,
    pub rank: usize,
    /// α/r.
    pub factor: f32,
    pub n: usize,
    pub k: usize,
}

impl<B: Backend + ?Sized> Weight<'_, B> {
    /// (n, k)
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Weight::Float { n, k, .. } => (*n, *k),
            Weight::Codes(w) => (w.n, w.k),
            Weight::LowRank(w) => (w.n, w.k),
        }
    }

    pub fn adapter(&self) -> Option<&Adapter<'_, B>> {
        match self {
            Weight::Codes(w) => w.adapter.as_ref(),
            _ => None,
        }
    }
}

/// Where a product goes.
pub enum Output<'a, B: Backend + ?Sized> {
    /// =, rounded to the type of activations.
    Activation(&'a mut B::Activation),
    /// = or +=, in f32.
    Buffer { to: &'a mut B::Buffer, accumulate: bool },
}

impl<'a, B: Backend + ?Sized> Output<'a, B> {
    pub fn set(to: &'a mut B::Buffer) -> Output<'a, B> {
        Output::Buffer { to, accumulate: false }
    }

    pub fn add(to: &'a mut B::Buffer) -> Output<'a, B> {
        Output::Buffer { to, accumulate: true }
    }
}

/// Where the gradients of a trained linear accumulate.
pub struct Gradients<'a, B: Backend + ?Sized> {
    /// None where the scales are not trained: then dŴ of a weight with fixed integers is never asked for.
    pub scale: Option<&'a mut B::Buffer>,
    /// Of A and B, where there are any.
    pub factors: Option<[&'a mut B::Buffer; 2]>,
    /// Of the Z [n, k] that fixed integers are rounded from, where each weight is learned on its own. On the CPU alone.
    pub latent: Option<&'a mut B::Buffer>,
}

/// A linear in the backward pass: the gradient of its output, and where those of a trained weight accumulate.
pub struct Branch<'a, B: Backend + ?Sized> {
    pub weight: Weight<'a, B>,
    pub dy: &'a B::Activation,
    pub grads: Option<Gradients<'a, B>>,
}

/// Heads of the attention op.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub window: Option<usize>,
}

/// What decides how much a device holds besides the ledger's buffers.
pub struct Extent<'a> {
    /// Shapes (n, k) of the linears.
    pub linears: &'a [(usize, usize)],
    pub training: Option<Training>,
    pub vocab: usize,
    pub d: usize,
    pub heads: Heads,
    /// Tokens of a pass, and of its longest sequence.
    pub rows: usize,
    pub tokens: usize,
    /// Models whose logits exist side by side: 2 with a teacher that runs along.
    pub heads_at_once: usize,
    /// Where a teacher has answered before.
    pub answer: Option<Layout>,
}

/// What of the linears is trained.
#[derive(Debug, Clone, Copy)]
pub struct Training {
    /// Of A and B; 0 if there are none.
    pub rank: usize,
    /// A and B are adapters beside fixed integers, and not inside the rounding.
    pub outside: bool,
    /// Some of the adapters' inputs are dropped.
    pub dropout: bool,
    pub scales: bool,
}

/// What the head says of one row during evaluation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TokenScore {
    /// Log-probability of the target; 0 without one.
    pub log_prob: f64,
    /// The most likely token.
    pub top: u32,
    /// Σ p_ref (log p_ref − log p), and the reference's most likely token, where there is a reference.
    pub kl: f64,
    pub reference_top: u32,
}

/// Hidden states and the head that turns them into logits.
pub struct Head<'a, B: Backend + ?Sized> {
    pub hidden: &'a B::Activation,
    pub weight: &'a Weight<'a, B>,
}

/// What each row is trained for: ce·CE(target) + kl·KL(teacher ‖ model).
pub struct Loss<'a, B: Backend + ?Sized> {
    pub ce: f32,
    /// Without a teacher it has no effect.
    pub kl: f32,
    pub teacher: Option<Teaching<'a, B>>,
}

/// Where the teacher's distribution comes from.
pub enum Teaching<'a, B: Backend + ?Sized> {
    /// Its hidden states of the same rows, and its head.
    Live(Head<'a, B>),
    Stored(Answers<'a>),
}

impl<B: Backend + ?Sized> Loss<'_, B> {
    pub fn cross_entropy() -> Loss<'static, B> {
        Loss { ce: 1.0, kl: 0.0, teacher: None }
    }
}

/// Both terms of the loss of a row, in nats and not weighted; 0 without a target. `kl` is 0 without a teacher.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct RowLoss {
    pub ce: f32,
    pub kl: f32,
}

/// Adam's moments, a row for each parameter. With β2 = 0.95 a step moves v by a twentieth of its way, many times what bf16
/// rounds by: no rounding by chance is needed for it to arrive.
pub enum Moments<B: Backend + ?Sized> {
    F32 { m: Vec<B::Buffer>, v: Vec<B::Buffer> },
    Bf16 { m: Vec<B::Half>, v: Vec<B::Half> },
}

/// AdamW (Loshchilov & Hutter 2019) without weight decay.
#[derive(Debug, Clone, Copy)]
pub struct AdamStep {
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    /// From 1.
    pub step: u64,
    /// The gradient is multiplied by this (clipping).
    pub grad_factor: f32,
}

pub trait Backend: Sync {
    /// f32 on the device: parameters, gradients, the residual stream.
    type Buffer: Send + Sync;
    /// Operands and results of matrix products, in the type that the device computes in.
    type Activation: Send + Sync;
    /// round(Z) of a linear.
    type Integers: Send + Sync;
    /// bf16, whatever the device computes in.
    type Half: Send + Sync;
    /// A frozen tensor in its stored form.
    type Frozen: Send + Sync;
    /// Cosines and sines of the rotary embedding.
    type Rope: Send + Sync;

    /// Bytes of one element of an `Activation`.
    const ACTIVATION_BYTES: usize;
    /// A table of which only rows are read stays with the host ([`Backend::freeze_table`]).
    const TABLES_ON_HOST: bool = false;

    /// The compute path, recorded in checkpoints: bytes are reproducible on one path.
    fn path(&self) -> String;

    /// What the device holds besides the ledger's buffers: name, detail, bytes.
    fn scratch(of: &Extent) -> Vec<(&'static str, String, u64)>;

    fn zeros(&self, len: usize) -> Result<Self::Buffer>;
    fn activation(&self, len: usize) -> Result<Self::Activation>;
    /// Zeros, a byte each.
    fn integers(&self, len: usize) -> Result<Self::Integers>;
    fn upload(&self, values: &[f32]) -> Result<Self::Buffer>;
    fn download(&self, buffer: &Self::Buffer) -> Result<Vec<f32>>;
    fn half(&self, len: usize) -> Result<Self::Half>;
    /// Rounded to the nearest.
    fn upload_half(&self, values: &[f32]) -> Result<Self::Half>;
    fn download_half(&self, half: &Self::Half) -> Result<Vec<f32>>;
    fn freeze(&self, tensor: &Tensor) -> Result<Self::Frozen>;
    /// A table for [`Backend::embedding_forward`] alone.
    fn freeze_table(&self, tensor: &Tensor) -> Result<Self::Frozen> {
        self.freeze(tensor)
    }
    fn rope_table(&self, inverse_frequencies: &[f32], positions: usize) -> Result<Self::Rope>;

    /// y = x in the type of activations: a gradient as an operand.
    fn round(&self, x: &Self::Buffer, y: &mut Self::Activation, len: usize);
    /// y = x in the type of activations, and x = y: a kept block input.
    fn round_both(&self, x: &mut Self::Buffer, y: &mut Self::Activation, len: usize) {
        self.round(x, y, len);
        self.widen(y, x, len);
    }
    /// y = x in f32.
    fn widen(&self, x: &Self::Activation, y: &mut Self::Buffer, len: usize);
    fn fill_zero(&self, buffer: &mut Self::Buffer);

    /// y[i] = x[rows[i]], rows of `width`.
    fn gather_rows(&self, x: &Self::Activation, rows: &[u32], width: usize, y: &mut Self::Activation);

    /// x[row] = table[token]; table [v, d].
    fn embedding_forward(&self, table: &Self::Frozen, tokens: &[u32], d: usize, x: &mut Self::Buffer);

    /// y = x · rsqrt(mean(x²) + ε) · w
    fn rmsnorm_forward(
        &self,
        x: &Self::Buffer,
        w: &Self::Buffer,
        eps: f32,
        rows: usize,
        d: usize,
        y: &mut Self::Activation,
    );
    /// `dx` accumulates (the residual stream).
    #[allow(clippy::too_many_arguments)]
    fn rmsnorm_backward(
        &self,
        x: &Self::Buffer,
        w: &Self::Buffer,
        eps: f32,
        rows: usize,
        d: usize,
        dy: &Self::Buffer,
        dx: &mut Self::Buffer,
    );

    /// round(Z) of a low-rank weight, W_Z of one with fixed integers, for passes that use it several times; of others, and
    /// where the backend has no use for it, nothing.
    fn round_weight(&self, w: &Weight<Self>, to: &mut Self::Integers);

    /// y = x·Ŵᵀ. x [rows, k], y [rows, n].
    fn linear_forward(&self, x: &Self::Activation, rows: usize, w: &Weight<Self>, y: Output<Self>);
    /// The same for several linears of one input.
    fn linears_forward<const N: usize>(
        &self,
        x: &Self::Activation,
        rows: usize,
        w: [Weight<Self>; N],
        y: [&mut Self::Activation; N],
    );
    /// dx = dy·Ŵ, summed over the branches of one input x, and the gradients of what is trained: from dŴ = dyᵀ·x, and of an
    /// adapter with h = (α/r)·drop(x)·Bᵀ and dh = (α/r)·dy·A: dA = dyᵀ·h, dB = dhᵀ·drop(x), dx += drop(dh·B). Several
    /// branches set a `Buffer`.
    fn linears_backward<const N: usize>(
        &self,
        x: &Self::Activation,
        rows: usize,
        branches: [Branch<Self>; N],
        dx: Output<Self>,
    );

    /// out = silu(gate)∘up with gate = x·Wgᵀ and up = x·Wuᵀ, both rounded, and kept if there is a place.
    fn swiglu_forward(
        &self,
        x: &Self::Activation,
        rows: usize,
        gate_up: [Weight<Self>; 2],
        kept: Option<[&mut Self::Activation; 2]>,
        out: &mut Self::Activation,
    );
    /// out = silu(gate)∘up, of what [`Backend::swiglu_forward`] kept the same bytes as from it.
    fn swiglu(&self, gate: &Self::Activation, up: &Self::Activation, out: &mut Self::Activation, len: usize);
    /// Backward through `down`, whose input was out = silu(gate)∘up: in place, gate becomes dgate, up becomes dup.
    fn swiglu_backward(
        &self,
        out: &Self::Activation,
        rows: usize,
        down: Branch<Self>,
        gate: &mut Self::Activation,
        up: &mut Self::Activation,
    );

    /// Rotates the halves of each head in place; x [rows, heads·head_dim].
    fn rope_forward(
        &self,
        table: &Self::Rope,
        x: &mut Self::Activation,
        heads: usize,
        head_dim: usize,
        segments: &[usize],
    );
    fn rope_backward(
        &self,
        table: &Self::Rope,
        dx: &mut Self::Activation,
        heads: usize,
        head_dim: usize,
        segments: &[usize],
    );

    /// Causal attention with grouped queries, scale 1/√head_dim; `lse` [rows, heads] is kept for the backward pass.
    #[allow(clippy::too_many_arguments)]
    fn attention_forward(
        &self,
        q: &Self::Activation,
        k: &Self::Activation,
        v: &Self::Activation,
        heads: Heads,
        segments: &[usize],
        out: &mut Self::Activation,
        lse: &mut Self::Buffer,
    );
    /// Attention of one more token: its q, k and v [1, …] turn by `position`, k and v become that row of the kept ones
    /// [_, kv·hd], keys and values, and out = attention to the rows up to it.
    fn attention_step(
        &self,
        table: &Self::Rope,
        qkv: [&mut Self::Activation; 3],
        heads: Heads,
        position: usize,
        kept: [&mut Self::Activation; 2],
        out: &mut Self::Activation,
    );
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        q: &Self::Activation,
        k: &Self::Activation,
        v: &Self::Activation,
        out: &Self::Activation,
        lse: &Self::Buffer,
        heads: Heads,
        segments: &[usize],
        dout: &Self::Activation,
        dq: &mut Self::Activation,
        dk: &mut Self::Activation,
        dv: &mut Self::Activation,
    );

    /// The loss over the softmax of x·Wᵀ, in chunks of rows: the terms of each row, and, if wanted,
    /// dhidden = grad_scale · d(Σ ce·CE + kl·KL)/d(hidden), 0 in rows without a target. With log-probabilities a of the
    /// teacher, z of the model: KL = Σ e^a (a − z), d/dlogit = e^z − e^a; with K stored ones of weights w, which are e^a on
    /// average, KL = Σ_K w (a − z), d/dlogit = e^z − w.
    fn head_loss(
        &self,
        head: Head<Self>,
        targets: &[u32],
        loss: &Loss<Self>,
        grad_scale: f32,
        dhidden: Option<&mut Self::Buffer>,
        losses: &mut [RowLoss],
    ) -> Result<()>;
    /// x·Wᵀ of these rows [_, v], on the host: for what is sorted or drawn from.
    fn head_logits(&self, head: Head<Self>, rows: Range<usize>, logits: &mut [f32]) -> Result<()>;
    /// Log-probabilities, most likely tokens, and the divergence from a reference, of the rows that have a target,
    /// in chunks of them.
    fn head_scores(
        &self,
        head: Head<Self>,
        reference: Option<Head<Self>>,
        targets: &[u32],
        scores: &mut [TokenScore],
    ) -> Result<()>;

    /// Σ g² of each, in f64.
    fn square_sums(&self, g: &[Self::Buffer]) -> Result<Vec<f64>>;
    /// A step of all parameters; `rates` has that of each. Moments in bf16 are rounded as they are stored.
    fn adamw(
        &self,
        step: AdamStep,
        rates: &[f32],
        p: &mut [Self::Buffer],
        g: &[Self::Buffer],
        moments: &mut Moments<Self>,
    );

    /// The largest rank of factors inside the rounding that its kernels take; none where there is no limit.
    fn max_rank(&self) -> Option<usize> {
        None
    }

    /// The most bytes that were held at a time; none where the device's memory is the host's.
    fn peak_memory(&self) -> Option<u64> {
        None
    }
    /// Bytes of the device that are free, or held by this program already; none where its memory is the host's.
    fn room(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}
