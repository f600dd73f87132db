//! The CPU as a [`Backend`]: activations in f32 or bf16, all else in f32.

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::aligned::Aligned;
use super::attention::{Attention, AttentionSaved, attention_backward, attention_forward, thread_bytes};
use super::element::Element;
use super::linear::Workspace;
use super::product::kernel_name;
use super::rope::RopeTable;
use super::{
    adamw, attention_step, divergence, elementwise, embedding, gather, head, linear, made, rmsnorm, rope, swiglu,
};
use crate::compute::backend::{
    AdamStep, Backend, Branch, Extent, Head, Heads, Loss, Moments, Output, RowLoss, Teaching, TokenScore, Weight,
};
use crate::error::Result;
use crate::format::tensor::Tensor;

/// Computes with activations of type `E`.
#[derive(Default)]
pub struct Cpu<E> {
    workspace: Workspace,
    _of: PhantomData<E>,
}

impl<E: Element> Cpu<E> {
    pub fn new() -> Cpu<E> {
        Cpu { workspace: Workspace::default(), _of: PhantomData }
    }
}

impl<'a, E: Element> Head<'a, Cpu<E>> {
    fn logits(&self) -> head::Logits<'a, E> {
        let Weight::Float { w, n, k } = self.weight else { panic!("the head stays floating point") };
        head::Logits { hidden: self.hidden, weight: w, vocab: *n, d: *k }
    }
}

/// Measured: what qat-step has resident besides all that stands in the plan.
const PROGRAM_BYTES: u64 = 20 << 20;

fn shape(h: Heads, segments: &[usize]) -> Attention<'_> {
    Attention { segments, heads: h.heads, kv_heads: h.kv_heads, head_dim: h.head_dim, window: h.window }
}

impl<E: Element> Backend for Cpu<E> {
    type Buffer = Aligned<f32>;
    type Activation = Aligned<E>;
    type Integers = Aligned<i8>;
    type Half = Aligned<bf16>;
    type Frozen = Tensor;
    type Rope = RopeTable;

    const ACTIVATION_BYTES: usize = size_of::<E>();

    fn path(&self) -> String {
        format!("cpu-{}-{}", E::NAME, kernel_name::<E>())
    }

    fn scratch(of: &Extent) -> Vec<(&'static str, String, u64)> {
        let chunk = head::chunk_of(of.rows, of.vocab, of.heads_at_once);
        let (operands, threads) = linear::scratch::<E>(of, chunk);
        let segments = [0, of.tokens];
        let attention = rayon::current_num_threads() * thread_bytes::<E>(&shape(of.heads, &segments), of.tokens);
        vec![
            ("workspace", "packed operands of a product, partial sums of dB".into(), operands as u64),
            ("threads", "panels of weights, tiles, scores of attention".into(), (threads + attention) as u64),
            (
                "logits",
                format!("of {chunk} rows{}", if of.heads_at_once > 1 { ", the teacher's too" } else { "" }),
                (of.heads_at_once * 4 * chunk * head::row_stride(of.vocab)) as u64,
            ),
            ("program", "code, libraries, names and tables".into(), PROGRAM_BYTES),
        ]
    }

    fn zeros(&self, len: usize) -> Result<Aligned<f32>> {
        Aligned::zeros(len)
    }

    fn activation(&self, len: usize) -> Result<Aligned<E>> {
        Aligned::zeros(len)
    }

    fn integers(&self, len: usize) -> Result<Aligned<i8>> {
        Aligned::zeros(len)
    }

    fn upload(&self, values: &[f32]) -> Result<Aligned<f32>> {
        Aligned::of(values)
    }

    fn download(&self, buffer: &Aligned<f32>) -> Result<Vec<f32>> {
        Ok(buffer.to_vec())
    }

    fn half(&self, len: usize) -> Result<Aligned<bf16>> {
        Aligned::zeros(len)
    }

    fn upload_half(&self, values: &[f32]) -> Result<Aligned<bf16>> {
        let mut half = Aligned::zeros(values.len())?;
        elementwise::round(values, &mut half);
        Ok(half)
    }

    fn download_half(&self, half: &Aligned<bf16>) -> Result<Vec<f32>> {
        Ok(half.iter().map(|x| Element::to_f32(*x)).collect())
    }

    fn freeze(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn rope_table(&self, inverse_frequencies: &[f32], positions: usize) -> Result<RopeTable> {
        Ok(RopeTable::new(inverse_frequencies, positions))
    }

    fn round(&self, x: &Aligned<f32>, y: &mut Aligned<E>, len: usize) {
        elementwise::round(&x[..len], &mut y[..len]);
    }

    fn widen(&self, x: &Aligned<E>, y: &mut Aligned<f32>, len: usize) {
        elementwise::widen(&x[..len], &mut y[..len]);
    }

    fn round_both(&self, x: &mut Aligned<f32>, y: &mut Aligned<E>, len: usize) {
        elementwise::round_both(&mut x[..len], &mut y[..len]);
    }

    fn fill_zero(&self, buffer: &mut Aligned<f32>) {
        elementwise::fill_zero(buffer);
    }

    fn gather_rows(&self, x: &Aligned<E>, rows: &[u32], width: usize, y: &mut Aligned<E>) {
        gather::gather_rows(x, rows, width, &mut y[..rows.len() * width]);
    }

    fn embedding_forward(&self, table: &Tensor, tokens: &[u32], d: usize, x: &mut Aligned<f32>) {
        embedding::embedding_forward(table, tokens, d, &mut x[..tokens.len() * d]);
    }

    fn rmsnorm_forward(&self, x: &Aligned<f32>, w: &Aligned<f32>, eps: f32, rows: usize, d: usize, y: &mut Aligned<E>) {
        rmsnorm::rmsnorm_forward(&x[..rows * d], w, eps, &mut y[..rows * d]);
    }

    fn rmsnorm_backward(
        &self,
        x: &Aligned<f32>,
        w: &Aligned<f32>,
        eps: f32,
        rows: usize,
        d: usize,
        dy: &Aligned<f32>,
        dx: &mut Aligned<f32>,
    ) {
        rmsnorm::rmsnorm_backward(&x[..rows * d], w, eps, &dy[..rows * d], &mut dx[..rows * d]);
    }

    fn round_weight(&self, w: &Weight<Self>, to: &mut Aligned<i8>) {
        made::round_all(w, to);
    }

    fn linear_forward(&self, x: &Aligned<E>, rows: usize, w: &Weight<Self>, y: Output<Self>) {
        linear::forward(&self.workspace, x, rows, w, y);
    }

    fn linears_forward<const N: usize>(
        &self,
        x: &Aligned<E>,
        rows: usize,
        w: [Weight<Self>; N],
        y: [&mut Aligned<E>; N],
    ) {
        linear::forward_all(&self.workspace, x, rows, &w, y.map(|y| &mut y[..]).into());
    }

    fn linears_backward<const N: usize>(
        &self,
        x: &Aligned<E>,
        rows: usize,
        branches: [Branch<Self>; N],
        dx: Output<Self>,
    ) {
        linear::backward(&self.workspace, x, rows, branches.into(), dx);
    }

    fn swiglu_forward(
        &self,
        x: &Aligned<E>,
        rows: usize,
        gate_up: [Weight<Self>; 2],
        kept: Option<[&mut Aligned<E>; 2]>,
        out: &mut Aligned<E>,
    ) {
        linear::swiglu_forward(&self.workspace, x, rows, &gate_up, kept.map(|kept| kept.map(|y| &mut y[..])), out);
    }

    fn swiglu(&self, gate: &Aligned<E>, up: &Aligned<E>, out: &mut Aligned<E>, len: usize) {
        swiglu::swiglu_all(&gate[..len], &up[..len], &mut out[..len]);
    }

    fn swiglu_backward(
        &self,
        out: &Aligned<E>,
        rows: usize,
        down: Branch<Self>,
        gate: &mut Aligned<E>,
        up: &mut Aligned<E>,
    ) {
        linear::swiglu_backward(&self.workspace, out, rows, down, gate, up);
    }

    fn rope_forward(&self, table: &RopeTable, x: &mut Aligned<E>, heads: usize, head_dim: usize, segments: &[usize]) {
        let len = rows(segments) * heads * head_dim;
        rope::rope_forward(&mut x[..len], heads, head_dim, segments, table);
    }

    fn rope_backward(&self, table: &RopeTable, dx: &mut Aligned<E>, heads: usize, head_dim: usize, segments: &[usize]) {
        let len = rows(segments) * heads * head_dim;
        rope::rope_backward(&mut dx[..len], heads, head_dim, segments, table);
    }

    fn attention_forward(
        &self,
        q: &Aligned<E>,
        k: &Aligned<E>,
        v: &Aligned<E>,
        heads: Heads,
        segments: &[usize],
        out: &mut Aligned<E>,
        lse: &mut Aligned<f32>,
    ) {
        let (rows, wide, narrow) = (rows(segments), heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        attention_forward(
            &shape(heads, segments),
            &q[..rows * wide],
            &k[..rows * narrow],
            &v[..rows * narrow],
            &mut out[..rows * wide],
            &mut lse[..rows * heads.heads],
        );
    }

    fn attention_step(
        &self,
        table: &RopeTable,
        qkv: [&mut Aligned<E>; 3],
        heads: Heads,
        position: usize,
        kept: [&mut Aligned<E>; 2],
        out: &mut Aligned<E>,
    ) {
        let (qkv, kept) = (qkv.map(|x| &mut x[..]), kept.map(|x| &mut x[..]));
        attention_step::attention_step(table, qkv, heads, position, kept, out);
    }

    fn attention_backward(
        &self,
        q: &Aligned<E>,
        k: &Aligned<E>,
        v: &Aligned<E>,
        out: &Aligned<E>,
        lse: &Aligned<f32>,
        heads: Heads,
        segments: &[usize],
        dout: &Aligned<E>,
        dq: &mut Aligned<E>,
        dk: &mut Aligned<E>,
        dv: &mut Aligned<E>,
    ) {
        let (rows, wide, narrow) = (rows(segments), heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        let saved = AttentionSaved {
            q: &q[..rows * wide],
            k: &k[..rows * narrow],
            v: &v[..rows * narrow],
            out: &out[..rows * wide],
            lse: &lse[..rows * heads.heads],
        };
        attention_backward(
            &shape(heads, segments),
            saved,
            &dout[..rows * wide],
            &mut dq[..rows * wide],
            &mut dk[..rows * narrow],
            &mut dv[..rows * narrow],
        );
    }

    fn head_loss(
        &self,
        head: Head<Self>,
        targets: &[u32],
        loss: &Loss<Self>,
        grad_scale: f32,
        dhidden: Option<&mut Aligned<f32>>,
        losses: &mut [RowLoss],
    ) -> Result<()> {
        let teacher = match &loss.teacher {
            None => None,
            Some(Teaching::Live(teacher)) => Some(head::Teacher::Live(teacher.logits())),
            Some(Teaching::Stored(answers)) => Some(head::Teacher::Stored(answers)),
        };
        let by = divergence::Weights { ce: loss.ce, kl: loss.kl, scale: grad_scale };
        head::loss(&self.workspace, head.logits(), teacher, targets, by, dhidden.map(|d| &mut d[..]), losses);
        Ok(())
    }

    fn head_logits(&self, head: Head<Self>, rows: Range<usize>, logits: &mut [f32]) -> Result<()> {
        head::logits(&self.workspace, head.logits(), rows, logits);
        Ok(())
    }

    fn head_scores(
        &self,
        head: Head<Self>,
        reference: Option<Head<Self>>,
        targets: &[u32],
        scores: &mut [TokenScore],
    ) -> Result<()> {
        head::scores(&self.workspace, head.logits(), reference.map(|r| r.logits()), targets, scores);
        Ok(())
    }

    fn square_sums(&self, g: &[Aligned<f32>]) -> Result<Vec<f64>> {
        Ok(g.iter().map(|g| adamw::square_sum(g)).collect())
    }

    fn adamw(
        &self,
        step: AdamStep,
        rates: &[f32],
        p: &mut [Aligned<f32>],
        g: &[Aligned<f32>],
        moments: &mut Moments<Self>,
    ) {
        match moments {
            Moments::F32 { m, v } => adamw::table(step, rates, p, g, m, v),
            Moments::Bf16 { m, v } => adamw::table(step, rates, p, g, m, v),
        }
    }
}

fn rows(segments: &[usize]) -> usize {
    segments.last().copied().unwrap_or(0)
}
