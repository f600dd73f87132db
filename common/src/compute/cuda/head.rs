//! The head: logits and loss in chunks of rows, never whole.

use half::bf16;

use super::device::Cuda;
use super::gpu::Grid;
use super::launch::kernels;
use super::linear::Target;
use super::memory::{Carve, Memory, Mut, Ref};
use crate::compute::backend::{Head, NO_TARGET, TokenScore};
use crate::error::Result;

kernels! {
    /// `head.cu`
    Kernels in "head";
    fn cross_entropy(
        logits: Ref<f32>, v: i32, targets: Ref<u32>, grad_scale: f32, dlogits: Mut<bf16>, losses: Mut<f32>,
    );
    fn log_probs(
        logits: Ref<f32>, v: i32, targets: Ref<u32>, lse: Mut<f64>, log_prob: Mut<f64>, top: Mut<u32>,
    );
    fn divergence(
        reference: Ref<f32>, logits: Ref<f32>, v: i32, reference_lse: Ref<f64>, lse: Ref<f64>, kl: Mut<f64>,
    );
    fn gather_rows(x: Ref<bf16>, rows: Ref<u32>, d: i32, y: Mut<bf16>, len: i64);
}

/// Bytes of the logits that exist at a time, with their gradients or those of a reference.
const LOGITS_BYTES: usize = 192 << 20;
/// Threads of a block, which has a row.
const THREADS: u32 = 512;

/// Rows of a chunk, if all are shared out evenly.
pub fn chunk_of(rows: usize, vocab: usize) -> usize {
    let most = (LOGITS_BYTES / (vocab * 2 * size_of::<f32>())).clamp(1, 1024);
    let even = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
    even.next_multiple_of(16).min(most).min(rows.max(1))
}

/// Bytes for a chunk: two of logits, or one and its gradient; hidden states; what a row says.
pub fn bytes(rows: usize, vocab: usize, d: usize) -> usize {
    let chunk = chunk_of(rows, vocab);
    let row = 2 * size_of::<f32>() * vocab + 2 * size_of::<bf16>() * d + 7 * size_of::<f64>();
    chunk * row + 11 * Carve::ALIGNED
}

/// What the kernels say of the rows of a chunk.
struct Rows<'a> {
    logits: Mut<'a, f32>,
    lse: Mut<'a, f64>,
    log_prob: Mut<'a, f64>,
    top: Mut<'a, u32>,
}

impl Cuda {
    pub(super) fn loss(
        &self,
        head: Head<Cuda>,
        targets: &[u32],
        grad_scale: f32,
        mut dhidden: Option<&mut Memory<f32>>,
        losses: &mut [f32],
    ) -> Result<()> {
        let ((v, d), gpu) = (head.weight.shape(), &self.gpu);
        let step = chunk_of(targets.len(), v);
        self.targets.with(gpu, targets.to_vec(), |targets| {
            self.head_scratch.with(gpu, bytes(losses.len(), v, d), |memory| {
                for (i, losses) in losses.chunks_mut(step).enumerate() {
                    let (from, rows) = (i * step, losses.len());
                    let at = from * d..(from + rows) * d;
                    let mut carve = memory.carve();
                    let (mut logits, mut dlogits) = (carve.take::<f32>(rows * v), carve.take::<bf16>(rows * v));
                    let mut found = carve.take::<f32>(rows);
                    self.multiply(head.hidden.view(at.clone()), rows, head.weight, Target::F32(logits.again(), false));
                    let grid = Grid::blocks(rows, THREADS);
                    let gradient = if dhidden.is_some() { dlogits.again() } else { Mut::NULL };
                    let (logits, targets) = (logits.read(), targets.offset(from));
                    self.head.cross_entropy(gpu, grid, logits, v as i32, targets, grad_scale, gradient, found.again());
                    if let Some(dhidden) = dhidden.as_deref_mut() {
                        self.multiply_back(dlogits.read(), rows, head.weight, Target::F32(dhidden.view_mut(at), false));
                    }
                    gpu.read(found.read(), losses);
                }
            });
        });
        gpu.wait()
    }

    pub(super) fn scores(
        &self,
        head: Head<Cuda>,
        reference: Option<Head<Cuda>>,
        targets: &[u32],
        scores: &mut [TokenScore],
    ) -> Result<()> {
        let rows: Vec<u32> = (0..targets.len() as u32).filter(|row| targets[*row as usize] != NO_TARGET).collect();
        let wanted: Vec<u32> = rows.iter().map(|row| targets[*row as usize]).collect();
        let step = chunk_of(rows.len(), head.weight.shape().0);
        scores.fill(TokenScore::default());
        for (rows, targets) in rows.chunks(step).zip(wanted.chunks(step)) {
            let found = self.scores_of_rows(&head, reference.as_ref(), rows, targets)?;
            for (row, score) in rows.iter().zip(found) {
                scores[*row as usize] = score;
            }
        }
        Ok(())
    }

    fn scores_of_rows(
        &self,
        head: &Head<Cuda>,
        reference: Option<&Head<Cuda>>,
        rows: &[u32],
        targets: &[u32],
    ) -> Result<Vec<TokenScore>> {
        let (gpu, len, (v, d)) = (&self.gpu, rows.len(), head.weight.shape());
        let widest = reference.map_or(d, |reference| d.max(reference.weight.shape().1));
        let (mut log_prob, mut kl) = (vec![0.0; len], vec![0.0; len]);
        let (mut top, mut reference_top) = (vec![0; len], vec![0; len]);
        self.rows.with(gpu, rows.to_vec(), |rows| {
            self.targets.with(gpu, targets.to_vec(), |targets| {
                self.head_scratch.with(gpu, bytes(len, v, widest), |memory| {
                    let mut carve = memory.carve();
                    let own = self.log_probs(head, rows, targets, len, &mut carve);
                    gpu.read(own.log_prob.read(), &mut log_prob);
                    gpu.read(own.top.read(), &mut top);
                    let Some(reference) = reference else { return };
                    let other = self.log_probs(reference, rows, targets, len, &mut carve);
                    let mut found = carve.take::<f64>(len);
                    let (grid, logits) = (Grid::blocks(len, THREADS), [other.logits.read(), own.logits.read()]);
                    let lse = [other.lse.read(), own.lse.read()];
                    self.head.divergence(gpu, grid, logits[0], logits[1], v as i32, lse[0], lse[1], found.again());
                    gpu.read(found.read(), &mut kl);
                    gpu.read(other.top.read(), &mut reference_top);
                });
            });
        });
        gpu.wait()?;
        let score =
            |i: usize| TokenScore { log_prob: log_prob[i], top: top[i], kl: kl[i], reference_top: reference_top[i] };
        Ok((0..len).map(score).collect())
    }

    /// Logits of the given rows, and what they say.
    fn log_probs<'a>(
        &self,
        head: &Head<Cuda>,
        rows: Ref<u32>,
        targets: Ref<u32>,
        len: usize,
        carve: &mut Carve<'a>,
    ) -> Rows<'a> {
        let ((v, d), gpu) = (head.weight.shape(), &self.gpu);
        let mut hidden = carve.take::<bf16>(len * d);
        let mut found =
            Rows { logits: carve.take(len * v), lse: carve.take(len), log_prob: carve.take(len), top: carve.take(len) };
        let all = head.hidden.all();
        self.head.gather_rows(gpu, Grid::elements(len * d), all, rows, d as i32, hidden.again(), (len * d) as i64);
        self.multiply(hidden.read(), len, head.weight, Target::F32(found.logits.again(), false));
        let (grid, to) = (Grid::blocks(len, THREADS), &mut found);
        let logits = to.logits.read();
        self.head.log_probs(gpu, grid, logits, v as i32, targets, to.lse.again(), to.log_prob.again(), to.top.again());
        found
    }
}
