//! The head: logits and loss in chunks of rows, never whole.

use std::ops::Range;

use half::bf16;

use super::gpu::Grid;
use super::launch::{Argument, Element, kernels};
use super::linear::Target;
use super::memory::{Carve, Memory, Mut, Ref};
use super::state::Cuda;
use super::weight::stored_kind;
use crate::compute::answers::{Answer, Answers, Layout};
use crate::compute::backend::{Head, Loss, NO_TARGET, RowLoss, Teaching, TokenScore};
use crate::error::Result;
use crate::format::tensor::Dtype;

kernels! {
    /// `head.cu`
    Kernels in "head";
    fn cross_entropy(
        logits: Ref<f32>, v: i32, targets: Ref<u32>, by: Weights, dlogits: Mut<bf16>, losses: Mut<RowLoss>,
    );
    fn against_logits(
        logits: Ref<f32>, teacher: Ref<f32>, v: i32, targets: Ref<u32>, by: Weights, dlogits: Mut<bf16>,
        losses: Mut<RowLoss>,
    );
    fn against_stored(
        logits: Ref<f32>, ids: Ref<u32>, weights: Ref<f32>, log_p: Ref<f32>, top: i32, v: i32, targets: Ref<u32>,
        by: Weights, dlogits: Mut<bf16>, losses: Mut<RowLoss>,
    );
    fn log_probs(
        logits: Ref<f32>, v: i32, targets: Ref<u32>, lse: Mut<f64>, log_prob: Mut<f64>, top: Mut<u32>,
    );
    fn divergence(
        reference: Ref<f32>, logits: Ref<f32>, v: i32, reference_lse: Ref<f64>, lse: Ref<f64>, kl: Mut<f64>,
    );
}

/// Bytes of the logits that exist at a time, with their gradients or those of a reference.
const LOGITS_BYTES: usize = 192 << 20;
/// Threads of a block, which has a row.
const THREADS: u32 = 512;

/// The weights of the terms of the loss, as the kernels read them.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Weights {
    ce: f32,
    kl: f32,
    scale: f32,
}

// SAFETY: three numbers of four bytes, in the order of head.cu.
unsafe impl Argument for Weights {
    const SIZE: usize = size_of::<Weights>();
}

impl Element for RowLoss {}

/// What decides the memory of a chunk of rows.
#[derive(Debug, Clone, Copy)]
pub struct Chunk {
    pub vocab: usize,
    pub d: usize,
    /// Models whose logits exist side by side.
    pub models: usize,
    /// Bytes of a stored answer to a row.
    pub answer: usize,
}

impl Chunk {
    /// Rows of a chunk, if all are shared out evenly.
    pub fn rows(&self, rows: usize) -> usize {
        let logits = self.vocab * (self.models * size_of::<f32>() + size_of::<bf16>());
        let most = (LOGITS_BYTES / logits).clamp(1, 1024);
        let even = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
        even.next_multiple_of(16).min(most).min(rows.max(1))
    }

    /// Bytes for a chunk of so many rows: logits and their gradient, hidden states, a stored answer, what a row says.
    pub fn bytes(&self, rows: usize) -> usize {
        let logits = self.vocab * (self.models * size_of::<f32>() + size_of::<bf16>());
        let row = logits + self.models * size_of::<bf16>() * self.d + self.answer + 8 * size_of::<f64>();
        self.rows(rows) * row + 16 * Carve::ALIGNED
    }
}

/// Rows in training: what the kernels are given, and where they write.
struct Row<'a> {
    v: usize,
    targets: Ref<'a, u32>,
    by: Weights,
    gradient: Mut<'a, bf16>,
    losses: Mut<'a, RowLoss>,
}

/// Stored answers of less than the whole vocabulary, row by row.
struct Stored {
    ids: Vec<u32>,
    weights: Vec<f32>,
    log_p: Vec<f32>,
}

impl Stored {
    fn of(answers: &Answers, rows: Range<usize>) -> Stored {
        let top = answers.layout.top;
        let mut all = Stored { ids: Vec::new(), weights: Vec::new(), log_p: Vec::new() };
        let mut answer = Answer::default();
        for (i, record) in answers.rows[rows].iter().enumerate() {
            answers.layout.read(record, &mut answer);
            all.ids.extend(&answer.ids);
            all.weights.extend(&answer.weights);
            all.log_p.extend(&answer.log_p);
            // Fewer than the layout has: the others are no ids.
            all.ids.resize((i + 1) * top, u32::MAX);
            all.weights.resize((i + 1) * top, 0.0);
            all.log_p.resize((i + 1) * top, 0.0);
        }
        all
    }
}

/// Models and answers that a loss needs the memory of.
fn chunk_of(vocab: usize, d: usize, loss: &Loss<Cuda>) -> Chunk {
    let (models, answer, widest) = match &loss.teacher {
        None => (1, 0, d),
        Some(Teaching::Live(teacher)) => (2, 0, d.max(teacher.weight.shape().1)),
        Some(Teaching::Stored(answers)) => (1 + usize::from(answers.layout.whole()), answer_bytes(answers.layout), d),
    };
    Chunk { vocab, d: widest, models, answer }
}

/// Bytes of a stored answer on the device: halves, or ids, weights and log-probabilities.
pub fn answer_bytes(layout: Layout) -> usize {
    if layout.whole() { 2 * layout.vocab } else { 12 * layout.top }
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
        loss: &Loss<Cuda>,
        scale: f32,
        mut dhidden: Option<&mut Memory<f32>>,
        losses: &mut [RowLoss],
    ) -> Result<()> {
        let ((v, d), gpu) = (head.weight.shape(), &self.gpu);
        let by = Weights { ce: loss.ce, kl: if loss.teacher.is_some() { loss.kl } else { 0.0 }, scale };
        let chunk = chunk_of(v, d, loss);
        let step = chunk.rows(targets.len());
        self.targets.with(gpu, targets.to_vec(), |targets| {
            self.head_scratch.with(gpu, chunk.bytes(losses.len()), |memory| {
                for (i, losses) in losses.chunks_mut(step).enumerate() {
                    let rows = i * step..i * step + losses.len();
                    let at = rows.start * d..rows.end * d;
                    let mut carve = memory.carve();
                    let mut logits = carve.take::<f32>(rows.len() * v);
                    let hidden = head.hidden.view(at.clone());
                    self.multiply(hidden, rows.len(), head.weight, Target::F32(logits.again(), false));
                    let mut dlogits = carve.take::<bf16>(rows.len() * v);
                    let gradient = if dhidden.is_some() { dlogits.again() } else { Mut::NULL };
                    let mut found = carve.take::<RowLoss>(rows.len());
                    let to = Row { v, targets: targets.offset(rows.start), by, gradient, losses: found.again() };
                    self.losses(loss.teacher.as_ref(), rows.clone(), logits, to, &mut carve);
                    if let Some(dhidden) = dhidden.as_deref_mut() {
                        let to = Target::F32(dhidden.view_mut(at), false);
                        self.multiply_back(dlogits.read(), rows.len(), head.weight, to);
                    }
                    gpu.read(found.read(), losses);
                }
            });
        });
        gpu.wait()
    }

    /// The terms of the loss of these rows, and their gradient.
    fn losses(
        &self,
        teacher: Option<&Teaching<Cuda>>,
        rows: Range<usize>,
        logits: Mut<f32>,
        to: Row,
        carve: &mut Carve,
    ) {
        let (gpu, grid, v, len) = (&self.gpu, Grid::blocks(rows.len(), THREADS), to.v as i32, rows.len());
        let Row { targets, by, gradient, losses, .. } = to;
        match teacher {
            None => self.head.cross_entropy(gpu, grid, logits.read(), v, targets, by, gradient, losses),
            Some(Teaching::Live(teacher)) => {
                let mut theirs = carve.take::<f32>(len * to.v);
                let d = teacher.weight.shape().1;
                let hidden = teacher.hidden.view(rows.start * d..rows.end * d);
                self.multiply(hidden, len, teacher.weight, Target::F32(theirs.again(), false));
                self.head.against_logits(gpu, grid, logits.read(), theirs.read(), v, targets, by, gradient, losses);
            }
            Some(Teaching::Stored(answers)) if answers.layout.whole() => {
                // Halves, which become f32 as the rows of an embedding do. The gradient's place is as large.
                let (mut theirs, mut halves) = (carve.take::<f32>(len * to.v), carve.take::<u8>(2 * len * to.v));
                gpu.write(halves.again(), &answers.rows[rows].concat());
                let (elements, half) = (len * to.v, stored_kind(Dtype::F16));
                let grid_of_all = Grid::elements(elements);
                let kernels = &self.kernels.elementwise;
                let halves = halves.read();
                kernels.embedding_forward(
                    gpu,
                    grid_of_all,
                    halves,
                    half,
                    Ref::NULL,
                    v,
                    theirs.again(),
                    elements as i64,
                );
                self.head.against_logits(gpu, grid, logits.read(), theirs.read(), v, targets, by, gradient, losses);
            }
            Some(Teaching::Stored(answers)) => {
                let top = answers.layout.top;
                let Stored { ids, weights, log_p } = Stored::of(answers, rows);
                let mut on_ids = carve.take::<u32>(ids.len());
                let (mut on_weights, mut on_log_p) = (carve.take::<f32>(ids.len()), carve.take::<f32>(ids.len()));
                gpu.write(on_ids.again(), &ids);
                gpu.write(on_weights.again(), &weights);
                gpu.write(on_log_p.again(), &log_p);
                let (ids, weights, log_p) = (on_ids.read(), on_weights.read(), on_log_p.read());
                let (logits, top) = (logits.read(), top as i32);
                self.head.against_stored(gpu, grid, logits, ids, weights, log_p, top, v, targets, by, gradient, losses);
            }
        }
    }

    pub(super) fn logits(&self, head: Head<Cuda>, rows: Range<usize>, to: &mut [f32]) -> Result<()> {
        let ((v, d), gpu) = (head.weight.shape(), &self.gpu);
        let chunk = Chunk { vocab: v, d, models: 1, answer: 0 };
        let step = chunk.rows(rows.len());
        self.head_scratch.with(gpu, chunk.bytes(rows.len()), |memory| {
            for (i, to) in to.chunks_mut(step * v).enumerate() {
                let (from, len) = (rows.start + i * step, to.len() / v);
                let mut logits = memory.carve().take::<f32>(len * v);
                let hidden = head.hidden.view(from * d..(from + len) * d);
                self.multiply(hidden, len, head.weight, Target::F32(logits.again(), false));
                gpu.read(logits.read(), to);
            }
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
        let (vocab, d) = head.weight.shape();
        let models = 1 + usize::from(reference.is_some());
        let step = Chunk { vocab, d, models, answer: 0 }.rows(rows.len());
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
        let chunk = Chunk { vocab: v, d: widest, models: 1 + usize::from(reference.is_some()), answer: 0 };
        let (mut log_prob, mut kl) = (vec![0.0; len], vec![0.0; len]);
        let (mut top, mut reference_top) = (vec![0; len], vec![0; len]);
        self.rows.with(gpu, rows.to_vec(), |rows| {
            self.targets.with(gpu, targets.to_vec(), |targets| {
                self.head_scratch.with(gpu, chunk.bytes(len), |memory| {
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
        self.kernels.gather_rows(gpu, all, rows, d, hidden.again(), len * d);
        self.multiply(hidden.read(), len, head.weight, Target::F32(found.logits.again(), false));
        let (grid, to) = (Grid::blocks(len, THREADS), &mut found);
        let logits = to.logits.read();
        self.head.log_probs(gpu, grid, logits, v as i32, targets, to.lse.again(), to.log_prob.again(), to.top.again());
        found
    }
}
