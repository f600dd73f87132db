//! The GPU as a [`Backend`]: activations in bf16, all else in f32. Every op hands its kernels to one stream and returns;
//! what fails is said where something is read back.

use std::ops::Range;
use std::sync::PoisonError;

use half::bf16;

use super::attention::{self, Given, Operands, Shape, Tile};
use super::frozen::Frozen;
use super::gpu::Grid;
use super::kernels::Kernels;
use super::linear::Target;
use super::memory::{Memory, Ref};
use super::state::{CONTEXT, Cuda, Rotations};
use super::weight::stored_kind;
use super::{optimizer, state, weight};
use crate::compute::backend::{
    AdamStep, Backend, Branch, Extent, Head, Heads, Loss, Moments, Output, RowLoss, TokenScore, Weight,
};
use crate::compute::cpu::rope::RopeTable;
use crate::error::{Error, Result};
use crate::format::tensor::Tensor;

impl Backend for Cuda {
    type Buffer = Memory<f32>;
    type Activation = Memory<bf16>;
    type Integers = Memory<i8>;
    type Half = Memory<bf16>;
    type Frozen = Frozen;
    type Rope = Rotations;

    const ACTIVATION_BYTES: usize = size_of::<bf16>();
    const TABLES_ON_HOST: bool = true;

    fn path(&self) -> String {
        let (major, minor) = self.gpu.capability;
        format!("cuda-sm{major}{minor}-{}", self.products.name())
    }

    fn scratch(of: &Extent) -> Vec<(&'static str, String, u64)> {
        state::scratch(of)
    }

    fn zeros(&self, len: usize) -> Result<Memory<f32>> {
        Memory::zeros(&self.gpu, len)
    }

    fn activation(&self, len: usize) -> Result<Memory<bf16>> {
        Memory::zeros(&self.gpu, len)
    }

    fn integers(&self, len: usize) -> Result<Memory<i8>> {
        Memory::zeros(&self.gpu, len)
    }

    fn upload(&self, values: &[f32]) -> Result<Memory<f32>> {
        Memory::of(&self.gpu, values)
    }

    fn download(&self, buffer: &Memory<f32>) -> Result<Vec<f32>> {
        buffer.read(buffer.len())
    }

    fn half(&self, len: usize) -> Result<Memory<bf16>> {
        Memory::zeros(&self.gpu, len)
    }

    fn upload_half(&self, values: &[f32]) -> Result<Memory<bf16>> {
        Memory::of(&self.gpu, &values.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>())
    }

    fn download_half(&self, half: &Memory<bf16>) -> Result<Vec<f32>> {
        Ok(half.read(half.len())?.iter().map(|x| x.to_f32()).collect())
    }

    fn freeze(&self, tensor: &Tensor) -> Result<Frozen> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Frozen::device(staging.upload(&self.gpu, tensor)?, tensor.dtype))
    }

    fn freeze_table(&self, tensor: &Tensor) -> Result<Frozen> {
        Ok(Frozen::host(tensor.clone()))
    }

    fn rope_table(&self, inverse_frequencies: &[f32], positions: usize) -> Result<Rotations> {
        let head_dim = 2 * inverse_frequencies.len();
        if attention::width(head_dim).is_none() {
            let what = format!("heads of {head_dim} dimensions: the GPU's attention takes up to 128");
            return Err(Error::device(what, "use --device cpu"));
        }
        let table = RopeTable::new(inverse_frequencies, positions);
        let [cosines, sines] = [&table.cos, &table.sin].map(|x| Memory::of(&self.gpu, x));
        Ok(Rotations { cosines: cosines?, sines: sines?, half: inverse_frequencies.len() })
    }

    fn round(&self, x: &Memory<f32>, y: &mut Memory<bf16>, len: usize) {
        self.kernels.round(&self.gpu, x.view(0..len), y.view_mut(0..len), len);
    }

    fn widen(&self, x: &Memory<bf16>, y: &mut Memory<f32>, len: usize) {
        let (x, y) = (x.view(0..len), y.view_mut(0..len));
        self.kernels.elementwise.widen_to_f32(&self.gpu, Grid::elements(len), x, y, len as i64);
    }

    fn fill_zero(&self, buffer: &mut Memory<f32>) {
        buffer.fill_zero();
    }

    fn gather_rows(&self, x: &Memory<bf16>, rows: &[u32], width: usize, y: &mut Memory<bf16>) {
        let (gpu, len) = (&self.gpu, rows.len() * width);
        self.rows.with(gpu, rows.to_vec(), |rows| {
            self.kernels.gather_rows(gpu, x.all(), rows, width, y.view_mut(0..len), len);
        });
    }

    fn embedding_forward(&self, table: &Frozen, tokens: &[u32], d: usize, x: &mut Memory<f32>) {
        let (gpu, len, stored) = (&self.gpu, tokens.len() * d, stored_kind(table.dtype()));
        let (x, grid) = (x.view_mut(0..len), Grid::elements(len));
        let kernels = &self.kernels.elementwise;
        match table.gather(tokens, d) {
            Some(bytes) => self.gathered.with(gpu, bytes.len(), |rows| {
                rows.write(&bytes);
                kernels.embedding_forward(gpu, grid, rows.all(), stored, Ref::NULL, d as i32, x, len as i64);
            }),
            None => self.tokens.with(gpu, tokens.to_vec(), |tokens| {
                let table = table.on_device().all();
                kernels.embedding_forward(gpu, grid, table, stored, tokens, d as i32, x, len as i64);
            }),
        }
    }

    fn rmsnorm_forward(&self, x: &Memory<f32>, w: &Memory<f32>, eps: f32, rows: usize, d: usize, y: &mut Memory<bf16>) {
        let (x, y) = (x.view(0..rows * d), y.view_mut(0..rows * d));
        self.kernels.norm.rmsnorm_forward(&self.gpu, Kernels::rows(rows), x, w.view(0..d), eps, d as i32, y);
    }

    fn rmsnorm_backward(
        &self,
        x: &Memory<f32>,
        w: &Memory<f32>,
        eps: f32,
        rows: usize,
        d: usize,
        dy: &Memory<f32>,
        dx: &mut Memory<f32>,
    ) {
        let len = rows * d;
        let (x, dy, dx) = (x.view(0..len), dy.view(0..len), dx.view_mut(0..len));
        self.kernels.norm.rmsnorm_backward(&self.gpu, Kernels::rows(rows), x, w.view(0..d), eps, d as i32, dy, dx);
    }

    fn round_weight(&self, w: &Weight<Self>, to: &mut Memory<i8>) {
        weight::round_weight(&self.gpu, &self.weights, w, to);
    }

    fn linear_forward(&self, x: &Memory<bf16>, rows: usize, w: &Weight<Self>, y: Output<Self>) {
        let (n, k) = w.shape();
        self.multiply(x.view(0..rows * k), rows, w, Target::new(y, rows * n));
    }

    fn linears_forward<const N: usize>(
        &self,
        x: &Memory<bf16>,
        rows: usize,
        w: [Weight<Self>; N],
        y: [&mut Memory<bf16>; N],
    ) {
        for (w, y) in w.iter().zip(y) {
            self.linear_forward(x, rows, w, Output::Activation(y));
        }
    }

    fn linears_backward<const N: usize>(
        &self,
        x: &Memory<bf16>,
        rows: usize,
        branches: [Branch<Self>; N],
        dx: Output<Self>,
    ) {
        let k = branches.first().map_or(0, |branch| branch.weight.shape().1);
        self.backward(x.view(0..rows * k), rows, branches, Target::new(dx, rows * k));
    }

    fn swiglu_forward(
        &self,
        x: &Memory<bf16>,
        rows: usize,
        gate_up: [Weight<Self>; 2],
        kept: Option<[&mut Memory<bf16>; 2]>,
        out: &mut Memory<bf16>,
    ) {
        let (n, k) = gate_up[0].shape();
        let (len, x) = (rows * n, x.view(0..rows * k));
        let kernels = &self.kernels.elementwise;
        let [gate, up] = &gate_up;
        match kept {
            Some(kept) => {
                let [to_gate, to_up] = kept.map(|kept| kept.view_mut(0..len));
                let [mut to_gate, mut to_up] = [to_gate, to_up];
                self.multiply(x, rows, gate, Target::Bf16(to_gate.again()));
                self.multiply(x, rows, up, Target::Bf16(to_up.again()));
                let (gate, up) = (to_gate.read(), to_up.read());
                kernels.swiglu_forward(&self.gpu, Grid::elements(len), gate, up, out.view_mut(0..len), len as i64);
            }
            None => self.inner.with(&self.gpu, len, |inner| {
                // The result takes the gate's place.
                self.multiply(x, rows, gate, Target::Bf16(out.view_mut(0..len)));
                self.multiply(x, rows, up, Target::Bf16(inner.view_mut(0..len)));
                let to = out.view_mut(0..len);
                let gate = to.in_place();
                kernels.swiglu_forward(&self.gpu, Grid::elements(len), gate, inner.view(0..len), to, len as i64);
            }),
        }
    }

    fn swiglu(&self, gate: &Memory<bf16>, up: &Memory<bf16>, out: &mut Memory<bf16>, len: usize) {
        let (gate, up, out) = (gate.view(0..len), up.view(0..len), out.view_mut(0..len));
        self.kernels.elementwise.swiglu_forward(&self.gpu, Grid::elements(len), gate, up, out, len as i64);
    }

    fn swiglu_backward(
        &self,
        out: &Memory<bf16>,
        rows: usize,
        mut down: Branch<Self>,
        gate: &mut Memory<bf16>,
        up: &mut Memory<bf16>,
    ) {
        let (n, k) = down.weight.shape();
        let (len, dy) = (rows * k, down.dy.view(0..rows * n));
        self.inner.with(&self.gpu, len, |dout| {
            let weight = &down.weight;
            self.multiply_back(dy, rows, weight, Target::Bf16(dout.view_mut(0..len)));
            let factors = down.grads.as_mut().and_then(|grads| grads.factors.as_mut());
            self.adapter_backward(out.view(0..len), rows, weight, dy, factors, Target::Bf16(dout.view_mut(0..len)));
            let (gate, up, dout) = (gate.view_mut(0..len), up.view_mut(0..len), dout.view(0..len));
            self.kernels.elementwise.swiglu_backward(&self.gpu, Grid::elements(len), dout, gate, up, len as i64);
        });
        self.weight_gradients(out.view(0..len), rows, &down.weight, dy, down.grads);
    }

    fn rope_forward(&self, table: &Rotations, x: &mut Memory<bf16>, heads: usize, head_dim: usize, segments: &[usize]) {
        self.rotate(table, x, heads, head_dim, positions(segments), 1.0);
    }

    fn rope_backward(
        &self,
        table: &Rotations,
        dx: &mut Memory<bf16>,
        heads: usize,
        head_dim: usize,
        segments: &[usize],
    ) {
        self.rotate(table, dx, heads, head_dim, positions(segments), -1.0);
    }

    fn attention_forward(
        &self,
        q: &Memory<bf16>,
        k: &Memory<bf16>,
        v: &Memory<bf16>,
        heads: Heads,
        segments: &[usize],
        out: &mut Memory<bf16>,
        lse: &mut Memory<f32>,
    ) {
        let rows = rows(segments);
        let (len, stored) = (rows * heads.heads * heads.head_dim, rows * heads.kv_heads * heads.head_dim);
        let (q, k, v) = (q.view(0..len), k.view(0..stored), v.view(0..stored));
        let (out, lse) = (out.view_mut(0..len), lse.view_mut(0..rows * heads.heads));
        self.with_tiles(heads, segments, |tiles, count, shape| {
            let operands = Operands { q, k, v, tiles, count, shape };
            attention::forward(&self.gpu, &self.attention, operands, out, lse);
        });
    }

    fn attention_backward(
        &self,
        q: &Memory<bf16>,
        k: &Memory<bf16>,
        v: &Memory<bf16>,
        out: &Memory<bf16>,
        lse: &Memory<f32>,
        heads: Heads,
        segments: &[usize],
        dout: &Memory<bf16>,
        dq: &mut Memory<bf16>,
        dk: &mut Memory<bf16>,
        dv: &mut Memory<bf16>,
    ) {
        let rows = rows(segments);
        let (len, stored) = (rows * heads.heads * heads.head_dim, rows * heads.kv_heads * heads.head_dim);
        let (q, k, v) = (q.view(0..len), k.view(0..stored), v.view(0..stored));
        let lse = lse.view(0..rows * heads.heads);
        let given = Given { out: out.view(0..len), dout: dout.view(0..len), lse, rows };
        let grads = [dq.view_mut(0..len), dk.view_mut(0..stored), dv.view_mut(0..stored)];
        self.with_tiles(heads, segments, |tiles, count, shape| {
            let operands = Operands { q, k, v, tiles, count, shape };
            self.delta.with(&self.gpu, rows * heads.heads, |delta| {
                attention::backward(&self.gpu, &self.attention, operands, given, delta.all_mut(), grads);
            });
        });
    }

    fn attention_step(
        &self,
        table: &Rotations,
        [q, k, v]: [&mut Memory<bf16>; 3],
        heads: Heads,
        position: usize,
        [keys, values]: [&mut Memory<bf16>; 2],
        out: &mut Memory<bf16>,
    ) {
        let Heads { heads: of_q, kv_heads, head_dim, .. } = heads;
        let (width, kept) = (of_q * head_dim, kv_heads * head_dim);
        self.rotate(table, q, of_q, head_dim, vec![position as i32], 1.0);
        self.rotate(table, k, kv_heads, head_dim, vec![position as i32], 1.0);
        let row = position * kept..(position + 1) * kept;
        self.gpu.copy(k.view(0..kept), keys.view_mut(row.clone()), kept);
        self.gpu.copy(v.view(0..kept), values.view_mut(row.clone()), kept);
        // The last row of a sequence whose other queries nobody asks for.
        let shape = Shape::new(of_q, kv_heads, head_dim, heads.window);
        let (q, k, v) = (q.view(0..width).placed_at(position * width), keys.view(0..row.end), values.view(0..row.end));
        let out = out.view_mut(0..width).placed_at(position * width);
        self.delta.with(&self.gpu, of_q, |lse| {
            let lse = lse.view_mut(0..of_q).placed_at(position * of_q);
            self.tiles.with(&self.gpu, vec![Tile::of_row(position)], |tiles| {
                let operands = Operands { q, k, v, tiles, count: 1, shape };
                attention::forward(&self.gpu, &self.attention, operands, out, lse);
            });
        });
    }

    fn head_loss(
        &self,
        head: Head<Self>,
        targets: &[u32],
        loss: &Loss<Self>,
        grad_scale: f32,
        dhidden: Option<&mut Memory<f32>>,
        losses: &mut [RowLoss],
    ) -> Result<()> {
        self.loss(head, targets, loss, grad_scale, dhidden, losses)
    }

    fn head_logits(&self, head: Head<Self>, rows: Range<usize>, logits: &mut [f32]) -> Result<()> {
        self.logits(head, rows, logits)
    }

    fn head_scores(
        &self,
        head: Head<Self>,
        reference: Option<Head<Self>>,
        targets: &[u32],
        scores: &mut [TokenScore],
    ) -> Result<()> {
        self.scores(head, reference, targets, scores)
    }

    fn square_sums(&self, g: &[Memory<f32>]) -> Result<Vec<f64>> {
        let parts = optimizer::gradient_parts(g);
        let (gpu, len) = (&self.gpu, parts.len());
        let mut found = vec![0.0; len];
        self.parts.with(gpu, parts, |parts| {
            self.sums.with(gpu, len, |sums| {
                self.optimizer.square_sums(gpu, optimizer::grid(len), parts, sums.view_mut(0..len));
                gpu.read(sums.view(0..len), &mut found);
            });
        });
        gpu.wait()?;
        let mut found = found.into_iter();
        Ok(g.iter().map(|g| found.by_ref().take(optimizer::parts(g.len())).sum()).collect())
    }

    fn adamw(
        &self,
        step: AdamStep,
        rates: &[f32],
        p: &mut [Memory<f32>],
        g: &[Memory<f32>],
        moments: &mut Moments<Self>,
    ) {
        let (table, half) = match moments {
            Moments::F32 { m, v } => (optimizer::table(step, rates, p, g, m, v), 0),
            Moments::Bf16 { m, v } => (optimizer::table(step, rates, p, g, m, v), 1),
        };
        let (gpu, grid) = (&self.gpu, optimizer::grid(table.len()));
        let root2 = (1.0 - f64::from(step.beta2).powi(step.step as i32)).sqrt() as f32;
        self.parts.with(gpu, table, |parts| {
            let AdamStep { grad_factor, beta1, beta2, epsilon, .. } = step;
            self.optimizer.adamw(gpu, grid, parts, half, grad_factor, beta1, beta2, epsilon, root2);
        });
    }

    fn peak_memory(&self) -> Option<u64> {
        Some(self.gpu.peak())
    }

    fn max_rank(&self) -> Option<usize> {
        Some(weight::MAX_RANK)
    }

    fn room(&self) -> Result<Option<u64>> {
        let free = self.gpu.context.mem_get_info();
        let (free, _) = free.map_err(|error| self.gpu.error("asking for its free memory", error))?;
        Ok(Some(free as u64 + self.gpu.held() + CONTEXT))
    }
}

fn rows(segments: &[usize]) -> usize {
    segments.last().copied().unwrap_or(0)
}

/// The position of every row in its sequence.
fn positions(segments: &[usize]) -> Vec<i32> {
    segments.windows(2).flat_map(|s| 0..(s[1] - s[0]) as i32).collect()
}
