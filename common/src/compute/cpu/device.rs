//! The CPU as a [`Backend`]: f32 buffers in memory, every op in f32.

use super::attention::{Attention, attention_forward};
use super::attention_backward::{AttentionSaved, attention_backward};
use super::rope::RopeTable;
use super::workspace::{Workspace, panel_rows};
use super::{adamw, elementwise, head, linear, rmsnorm, rope};
use crate::compute::backend::{AdamStep, Backend, Head, Heads, LowRankGrads, TokenScore, Weight};
use crate::error::Result;
use crate::format::tensor::Tensor;

#[derive(Default)]
pub struct Cpu {
    workspace: Workspace,
}

impl Cpu {
    pub fn new() -> Cpu {
        Cpu::default()
    }
}

impl<'a> Head<'a, Cpu> {
    fn logits(&self) -> head::Logits<'a> {
        let Weight::Float { w, n, k } = self.weight else { panic!("the head stays floating point") };
        head::Logits { hidden: self.hidden, weight: w, vocab: *n, d: *k }
    }
}

fn shape(h: Heads, segments: &[usize]) -> Attention<'_> {
    Attention { segments, heads: h.heads, kv_heads: h.kv_heads, head_dim: h.head_dim, window: h.window }
}

impl Backend for Cpu {
    type Buffer = Vec<f32>;
    type Frozen = Tensor;
    type Rope = RopeTable;

    fn path(&self) -> String {
        format!("cpu-f32-{}", std::env::consts::ARCH)
    }

    fn scratch(
        &self,
        linears: &[(usize, usize)],
        vocab: usize,
        d: usize,
        rows: usize,
    ) -> Vec<(&'static str, String, u64)> {
        let of_linears = linears.iter().map(|(n, k)| 2 * panel_rows(*n, *k, 2) * k).max().unwrap_or(0);
        let workspace = of_linears.max(panel_rows(vocab, d, 1) * d);
        let chunk = head::chunk_rows(vocab).min(rows);
        vec![
            ("workspace", "float weights and their gradients, by panels".into(), 4 * workspace as u64),
            ("logits", format!("of {chunk} rows"), (4 * chunk * vocab) as u64),
        ]
    }

    fn zeros(&self, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn upload(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn download(&self, buffer: &Vec<f32>) -> Result<Vec<f32>> {
        Ok(buffer.clone())
    }

    fn freeze(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn rope_table(&self, inverse_frequencies: &[f32], positions: usize) -> Result<RopeTable> {
        Ok(RopeTable::new(inverse_frequencies, positions))
    }

    fn copy(&self, from: &Vec<f32>, to: &mut Vec<f32>, len: usize) {
        to[..len].copy_from_slice(&from[..len]);
    }

    fn fill_zero(&self, buffer: &mut Vec<f32>) {
        buffer.fill(0.0);
    }

    fn embedding_forward(&self, table: &Tensor, tokens: &[u32], d: usize, x: &mut Vec<f32>) {
        for (token, x) in tokens.iter().zip(x.chunks_exact_mut(d)) {
            let from = *token as usize * d;
            table.read_f32(from..from + d, x);
        }
    }

    fn rmsnorm_forward(&self, x: &Vec<f32>, w: &Vec<f32>, eps: f32, rows: usize, d: usize, y: &mut Vec<f32>) {
        rmsnorm::rmsnorm_forward(&x[..rows * d], w, eps, &mut y[..rows * d]);
    }

    fn rmsnorm_backward(
        &self,
        x: &Vec<f32>,
        w: &Vec<f32>,
        eps: f32,
        rows: usize,
        d: usize,
        dy: &Vec<f32>,
        dx: &mut Vec<f32>,
    ) {
        rmsnorm::rmsnorm_backward(&x[..rows * d], w, eps, &dy[..rows * d], &mut dx[..rows * d]);
    }

    fn linear_forward(&self, x: &Vec<f32>, rows: usize, w: &Weight<Cpu>, accumulate: bool, y: &mut Vec<f32>) {
        linear::forward(&self.workspace, x, rows, w, accumulate, y);
    }

    fn linear_backward(
        &self,
        x: &Vec<f32>,
        rows: usize,
        w: &Weight<Cpu>,
        dy: &Vec<f32>,
        accumulate: bool,
        dx: &mut Vec<f32>,
        grads: Option<LowRankGrads<Cpu>>,
    ) {
        linear::backward(&self.workspace, x, rows, w, dy, accumulate, dx, grads);
    }

    fn rope_forward(&self, table: &RopeTable, x: &mut Vec<f32>, heads: usize, head_dim: usize, segments: &[usize]) {
        let len = rows(segments) * heads * head_dim;
        rope::rope_forward(&mut x[..len], heads, head_dim, segments, table);
    }

    fn rope_backward(&self, table: &RopeTable, dx: &mut Vec<f32>, heads: usize, head_dim: usize, segments: &[usize]) {
        let len = rows(segments) * heads * head_dim;
        rope::rope_backward(&mut dx[..len], heads, head_dim, segments, table);
    }

    fn attention_forward(
        &self,
        q: &Vec<f32>,
        k: &Vec<f32>,
        v: &Vec<f32>,
        heads: Heads,
        segments: &[usize],
        out: &mut Vec<f32>,
        lse: &mut Vec<f32>,
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

    fn attention_backward(
        &self,
        q: &Vec<f32>,
        k: &Vec<f32>,
        v: &Vec<f32>,
        out: &Vec<f32>,
        lse: &Vec<f32>,
        heads: Heads,
        segments: &[usize],
        dout: &Vec<f32>,
        dq: &mut Vec<f32>,
        dk: &mut Vec<f32>,
        dv: &mut Vec<f32>,
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

    fn swiglu_forward(&self, gate: &Vec<f32>, up: &Vec<f32>, len: usize, out: &mut Vec<f32>) {
        elementwise::swiglu_forward(&gate[..len], &up[..len], &mut out[..len]);
    }

    fn swiglu_backward(&self, gate: &mut Vec<f32>, up: &mut Vec<f32>, len: usize, dout: &Vec<f32>) {
        elementwise::swiglu_backward(&mut gate[..len], &mut up[..len], &dout[..len]);
    }

    fn head_loss(
        &self,
        head: Head<Cpu>,
        targets: &[u32],
        grad_scale: f32,
        dhidden: Option<&mut Vec<f32>>,
        losses: &mut [f32],
    ) {
        head::loss(&self.workspace, head.logits(), targets, grad_scale, dhidden.map(|d| &mut d[..]), losses);
    }

    fn head_scores(&self, head: Head<Cpu>, reference: Option<Head<Cpu>>, targets: &[u32], scores: &mut [TokenScore]) {
        head::scores(&self.workspace, head.logits(), reference.map(|r| r.logits()), targets, scores);
    }

    fn square_sum(&self, g: &Vec<f32>) -> f64 {
        adamw::square_sum(g)
    }

    fn adamw(&self, step: AdamStep, p: &mut Vec<f32>, g: &Vec<f32>, m: &mut Vec<f32>, v: &mut Vec<f32>) {
        adamw::adamw(step, p, g, m, v);
    }
}

fn rows(segments: &[usize]) -> usize {
    segments.last().copied().unwrap_or(0)
}
