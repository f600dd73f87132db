//! The head: logits and loss in chunks of rows, never whole.

use std::ops::Range;

use super::divergence::{self, Weights};
use super::element::Element;
use super::gather::gather_rows;
use super::linear::Workspace;
use super::loss;
use super::made::FloatRows;
use super::product::{Lines, Made, ToF32};
use crate::compute::answers::Answers;
use crate::compute::backend::{NO_TARGET, RowLoss, TokenScore};
use crate::format::tensor::Tensor;
use rayon::prelude::*;

/// Bytes of the logits that exist at a time: the weight is packed again for each chunk of rows.
pub const LOGITS_BYTES: usize = 100 << 20;

/// Most rows whose logits exist at a time, of so many models, whole panels where there are so many.
fn chunk_rows(vocab: usize, models: usize) -> usize {
    let rows = (LOGITS_BYTES / models / (4 * row_stride(vocab))).clamp(1, 1024);
    if rows < PANEL { rows } else { rows / PANEL * PANEL }
}

/// Rows of a chunk, if all `rows` are shared out evenly.
pub fn chunk_of(rows: usize, vocab: usize, models: usize) -> usize {
    let most = chunk_rows(vocab, models);
    rows.div_ceil(rows.div_ceil(most).max(1)).next_multiple_of(PANEL).min(most).min(rows)
}

/// Rows that products take together.
const PANEL: usize = 32;

/// Elements from a row of logits to the next: on cache lines, and not all in a few sets of the cache.
pub fn row_stride(vocab: usize) -> usize {
    let stride = vocab.next_multiple_of(16);
    if (4 * stride).is_multiple_of(2048) { stride + 16 } else { stride }
}

/// Hidden states [rows, d] and the head's weight [v, d].
#[derive(Clone, Copy)]
pub struct Logits<'a, E> {
    pub hidden: &'a [E],
    pub weight: &'a Tensor,
    pub vocab: usize,
    pub d: usize,
}

impl<E: Element> Logits<'_, E> {
    /// Logits of rows from..from+rows, `stride` apart.
    fn chunk(&self, ws: &Workspace, from: usize, rows: usize, stride: usize, out: &mut [f32]) {
        let hidden = Lines::rows(&self.hidden[from * self.d..(from + rows) * self.d], rows, self.d);
        let out = ToF32::new(out, rows, self.vocab, stride, false);
        match self.as_it_lies() {
            Some(w) => ws.multiply_f32(&hidden, &Lines::rows(w, self.vocab, self.d), out),
            None => ws.multiply_f32(&hidden, &Made::Transposed(&self.made()), out),
        }
    }

    /// dhidden of the same rows, of gradients that lie `stride` apart.
    fn backward(&self, ws: &Workspace, dlogits: &[E], rows: usize, stride: usize, dhidden: &mut [f32]) {
        let dlogits = Lines::new(dlogits, rows, self.vocab, (stride, 1));
        let out = ToF32::new(dhidden, rows, self.d, self.d, false);
        match self.as_it_lies() {
            Some(w) => ws.multiply_f32(&dlogits, &Lines::columns(w, self.vocab, self.d), out),
            None => ws.multiply_f32(&dlogits, &Made::AsIs(&self.made()), out),
        }
    }

    fn made(&self) -> FloatRows<'_, E> {
        FloatRows::new(self.weight, self.vocab, self.d)
    }

    /// The weight, if it is stored in the type that is computed in.
    fn as_it_lies(&self) -> Option<&[E]> {
        let stored = self.weight.dtype == E::DTYPE;
        stored.then(|| bytemuck::try_cast_slice(self.weight.bytes()).ok()).flatten()
    }
}

/// Where the distribution comes from that a model is taught.
pub enum Teacher<'a, E> {
    Live(Logits<'a, E>),
    Stored(&'a Answers<'a>),
}

impl<E: Element> Teacher<'_, E> {
    /// A distribution over the whole vocabulary takes the place of another model's logits.
    fn whole(&self) -> bool {
        match self {
            Teacher::Live(_) => true,
            Teacher::Stored(answers) => answers.layout.whole(),
        }
    }

    /// Logits, or log-probabilities, of rows from..from+rows.
    fn chunk(&self, ws: &Workspace, from: usize, rows: usize, stride: usize, out: &mut [f32]) {
        match self {
            Teacher::Live(of) => of.chunk(ws, from, rows, stride, out),
            Teacher::Stored(answers) => {
                let records = answers.rows[from..from + rows].par_iter().zip(out.par_chunks_exact_mut(stride));
                records.for_each(|(record, out)| answers.layout.read_whole(record, &mut out[..answers.layout.vocab]));
            }
        }
    }
}

/// Losses of the rows, and dhidden = scale·d(Σ ce·CE + kl·KL)/d(hidden) if wanted.
pub fn loss<E: Element>(
    ws: &Workspace,
    l: Logits<E>,
    teacher: Option<Teacher<E>>,
    targets: &[u32],
    by: Weights,
    mut dhidden: Option<&mut [f32]>,
    losses: &mut [RowLoss],
) {
    let (v, d) = (l.vocab, l.d);
    let whole = teacher.as_ref().is_some_and(Teacher::whole);
    let (step, stride) = (chunk_of(targets.len(), v, 1 + usize::from(whole)), row_stride(v));
    let mut held = ws.logits();
    let [logits, other] = &mut *held;
    let logits = logits.take::<f32>(step * stride);
    let other = other.take::<f32>(if whole { step * stride } else { 0 });
    for from in (0..targets.len()).step_by(step.max(1)) {
        let rows = step.min(targets.len() - from);
        let logits = &mut logits[..rows * stride];
        l.chunk(ws, from, rows, stride, logits);
        let (targets, losses) = (&targets[from..from + rows], &mut losses[from..from + rows]);
        match &teacher {
            None => cross_entropy::<E>(logits, (v, stride), targets, by, losses),
            Some(Teacher::Stored(answers)) if !whole => {
                let records = (answers.layout, &answers.rows[from..from + rows]);
                divergence::against_stored::<E>(logits, records, stride, targets, by, losses);
            }
            Some(teacher) => {
                let other = &mut other[..rows * stride];
                teacher.chunk(ws, from, rows, stride, other);
                divergence::against_logits::<E>(logits, other, (v, stride), targets, by, losses);
            }
        }
        if let Some(dhidden) = dhidden.as_deref_mut() {
            let (dlogits, stride) = (bytemuck::cast_slice(logits), stride * size_of::<f32>() / size_of::<E>());
            l.backward(ws, dlogits, rows, stride, &mut dhidden[from * d..(from + rows) * d]);
        }
    }
}

fn cross_entropy<E: Element>(
    logits: &mut [f32],
    shape: (usize, usize),
    targets: &[u32],
    by: Weights,
    losses: &mut [RowLoss],
) {
    let mut ce = vec![0.0; targets.len()];
    loss::cross_entropy::<E>(logits, shape, targets, &mut ce, by.ce * by.scale);
    for (loss, ce) in losses.iter_mut().zip(ce) {
        *loss = RowLoss { ce, kl: 0.0 };
    }
}

/// Logits of some rows, [_, v].
pub fn logits<E: Element>(ws: &Workspace, l: Logits<E>, rows: Range<usize>, out: &mut [f32]) {
    l.chunk(ws, rows.start, rows.len(), l.vocab, out);
}

/// What evaluation wants of each row that has a target; with a reference, its divergence too.
pub fn scores<E: Element>(
    ws: &Workspace,
    l: Logits<E>,
    reference: Option<Logits<E>>,
    targets: &[u32],
    out: &mut [TokenScore],
) {
    let rows: Vec<u32> = (0..targets.len() as u32).filter(|row| targets[*row as usize] != NO_TARGET).collect();
    let wanted: Vec<u32> = rows.iter().map(|row| targets[*row as usize]).collect();
    let gather = |hidden: &[E], d: usize| {
        let mut y = vec![E::zeroed(); rows.len() * d];
        gather_rows(hidden, &rows, d, &mut y);
        y
    };
    let hidden = gather(l.hidden, l.d);
    let other = reference.map(|r| gather(r.hidden, r.d));
    let mut scores = vec![TokenScore::default(); rows.len()];
    let reference = reference.zip(other.as_deref()).map(|(r, hidden)| Logits { hidden, ..r });
    scores_of_all(ws, Logits { hidden: &hidden, ..l }, reference, &wanted, &mut scores);
    out.fill(TokenScore::default());
    for (row, score) in rows.into_iter().zip(scores) {
        out[row as usize] = score;
    }
}

fn scores_of_all<E: Element>(
    ws: &Workspace,
    l: Logits<E>,
    reference: Option<Logits<E>>,
    targets: &[u32],
    out: &mut [TokenScore],
) {
    if targets.is_empty() {
        return;
    }
    let v = l.vocab;
    let step = chunk_of(targets.len(), v, 1);
    let mut held = ws.logits();
    let [logits, other] = &mut *held;
    let logits = logits.take::<f32>(step * v);
    let other = other.take::<f32>(if reference.is_some() { step * v } else { 0 });
    let mut own = vec![loss::RowScore::default(); step];
    let mut kl = vec![0.0; step];
    for from in (0..targets.len()).step_by(step) {
        let rows = step.min(targets.len() - from);
        let (targets, out) = (&targets[from..from + rows], &mut out[from..from + rows]);
        let (logits, own, kl) = (&mut logits[..rows * v], &mut own[..rows], &mut kl[..rows]);
        l.chunk(ws, from, rows, v, logits);
        loss::log_probs(logits, targets, own);
        for (out, own) in out.iter_mut().zip(&*own) {
            out.log_prob = own.log_prob;
            out.top = own.argmax;
        }
        if let Some(reference) = &reference {
            let other = &mut other[..rows * v];
            reference.chunk(ws, from, rows, v, other);
            loss::kl(other, logits, kl);
            loss::log_probs(other, targets, own);
            for ((out, kl), top) in out.iter_mut().zip(&*kl).zip(&*own) {
                out.kl = *kl;
                out.reference_top = top.argmax;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::answers::{Answer, Layout};
    use crate::compute::cpu::testing::random;
    use crate::format::tensor::Dtype;
    use half::bf16;

    const D: usize = 3;
    const V: usize = 7;

    /// ln softmax of one row's logits, in f64 from the definition.
    fn log_softmax(hidden: &[f32], weight: &[f32]) -> Vec<f64> {
        let logit = |w: &[f32]| hidden.iter().zip(w).map(|(h, w)| f64::from(*h) * f64::from(*w)).sum::<f64>();
        let logits: Vec<f64> = weight.chunks_exact(D).map(logit).collect();
        let lse = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        logits.iter().map(|l| l - lse).collect()
    }

    fn top(log_p: &[f64]) -> u32 {
        (0..V).max_by(|a, b| log_p[*a].total_cmp(&log_p[*b])).unwrap() as u32
    }

    /// Where the test's teacher comes from.
    #[derive(Clone, Copy, PartialEq)]
    enum Taught {
        Not,
        Live,
        Stored(usize),
    }

    /// Loss and dhidden by their definition in f64, for a vocabulary that fills no line and more rows than a chunk. A stored
    /// value is rounded by `unit` at most; the ids that stand for a teacher are those of its records.
    fn loss_by_definition<E: Element>(dtype: Dtype, unit: f64, by: Taught) {
        let (rows, vocab) = (2 * chunk_rows(70, 2) + 40, 70);
        let weights = Weights { ce: 0.25, kl: 0.75, scale: 0.5 };
        let narrow = |x: Vec<f32>| x.into_iter().map(E::from_f32).collect::<Vec<E>>();
        let wide = |x: &[E]| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        let (hidden, w) = (narrow(random(5, rows * D)), narrow(random(6, vocab * D)));
        let (other, w_other) = (narrow(random(7, rows * D)), narrow(random(8, vocab * D)));
        let tensor = |w: &[E]| Tensor::from_f32(&wide(w), dtype, vec![vocab, D]);
        let (weight, weight_other) = (tensor(&w), tensor(&w_other));
        let targets: Vec<u32> = (0..rows).map(|i| if i % 5 == 0 { NO_TARGET } else { (i % vocab) as u32 }).collect();
        let own = Logits { hidden: &hidden, weight: &weight, vocab, d: D };
        let theirs = Logits { hidden: &other, weight: &weight_other, vocab, d: D };
        let layout = Layout { vocab, top: if let Taught::Stored(top) = by { top } else { 1 } };
        let (mut all, mut records) = (vec![0.0; rows * vocab], vec![0; rows * layout.bytes()]);
        logits(&Workspace::default(), theirs, 0..rows, &mut all);
        layout.write(&all, &vec![0.375; rows], &mut records);
        let answers = Answers { layout, rows: records.chunks(layout.bytes()).collect() };
        let teacher = match by {
            Taught::Not => None,
            Taught::Live => Some(Teacher::Live(theirs)),
            Taught::Stored(_) => Some(Teacher::Stored(&answers)),
        };
        let (mut losses, mut dhidden) = (vec![RowLoss { ce: 7.0, kl: 7.0 }; rows], vec![7.0; rows * D]);
        loss(&Workspace::default(), own, teacher, &targets, weights, Some(&mut dhidden), &mut losses);
        let (ce, kl) = (f64::from(weights.ce), if by == Taught::Not { 0.0 } else { f64::from(weights.kl) });
        // All log-probabilities of a file have 11 bits.
        let stored = if by == Taught::Stored(vocab) { 4e-3 } else { 0.0 };
        for (row, target) in targets.iter().enumerate() {
            let place = row * D..(row + 1) * D;
            let log_p = log_softmax(&wide(&hidden[place.clone()]), &wide(&w));
            let theirs = log_softmax(&wide(&other[place.clone()]), &wide(&w_other));
            let (mut t, mut answer) = (vec![0.0; vocab], Answer::default());
            let mut divergence = 0.0;
            match by {
                Taught::Stored(top) if top < vocab => {
                    layout.read(answers.rows[row], &mut answer);
                    for ((id, weight), a) in answer.ids.iter().zip(&answer.weights).zip(&answer.log_p) {
                        t[*id as usize] = f64::from(*weight);
                        divergence += f64::from(*weight) * (f64::from(*a) - log_p[*id as usize]);
                    }
                }
                _ => {
                    t.iter_mut().zip(&theirs).for_each(|(t, a)| *t = a.exp());
                    divergence = theirs.iter().zip(&log_p).map(|(a, own)| a.exp() * (a - own)).sum();
                }
            }
            let (has, target) = (*target != NO_TARGET, *target as usize);
            let exact_ce = if has { -log_p[target] } else { 0.0 };
            let exact_kl = if has && by != Taught::Not { divergence } else { 0.0 };
            assert!((f64::from(losses[row].ce) - exact_ce).abs() < 1e-5, "row {row}");
            let off = (f64::from(losses[row].kl) - exact_kl).abs();
            assert!(off < 1e-5 + stored * (1.0 + exact_kl), "row {row}: {:?} {exact_kl}", losses[row]);
            for at in 0..D {
                let terms = (0..vocab).map(|v| {
                    let hit = if target == v { ce } else { 0.0 };
                    let scale = if has { f64::from(weights.scale) } else { 0.0 };
                    scale * ((ce + kl) * log_p[v].exp() - kl * t[v] - hit) * f64::from(w[v * D + at].to_f32())
                });
                let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                let error = (f64::from(dhidden[place.start + at]) - exact).abs();
                assert!(error <= (1e-5 + unit + stored) * size, "row {row}: {error} of {size}");
            }
        }
    }

    #[test]
    fn loss_and_gradient_by_their_definition() {
        for by in [Taught::Not, Taught::Live, Taught::Stored(9), Taught::Stored(70)] {
            loss_by_definition::<f32>(Dtype::F32, 0.0, by);
            loss_by_definition::<bf16>(Dtype::BF16, 1.0 / 256.0, by);
            loss_by_definition::<bf16>(Dtype::F32, 1.0 / 256.0, by);
        }
    }

    /// Two models with heads of their own, over more rows than a chunk holds.
    #[test]
    fn scores_and_divergence_by_their_definition() {
        let rows = 2 * chunk_rows(V, 1);
        let (hidden, other) = (random(1, rows * D), random(2, rows * D));
        let (w, w_other) = (random(3, V * D), random(4, V * D));
        let (weight, reference) =
            (Tensor::from_f32(&w, Dtype::F32, vec![V, D]), Tensor::from_f32(&w_other, Dtype::F32, vec![V, D]));
        let targets: Vec<u32> = (0..rows).map(|i| if i % 5 == 0 { NO_TARGET } else { (i % V) as u32 }).collect();
        let own = Logits { hidden: &hidden, weight: &weight, vocab: V, d: D };
        let theirs = Logits { hidden: &other, weight: &reference, vocab: V, d: D };
        let mut found = vec![TokenScore::default(); rows];
        scores(&Workspace::default(), own, Some(theirs), &targets, &mut found);
        for (row, (found, target)) in found.iter().zip(&targets).enumerate() {
            if *target == NO_TARGET {
                assert_eq!(*found, TokenScore::default());
                continue;
            }
            let p = log_softmax(&hidden[row * D..(row + 1) * D], &w);
            let q = log_softmax(&other[row * D..(row + 1) * D], &w_other);
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| q.exp() * (q - p)).sum();
            assert!((found.log_prob - p[*target as usize]).abs() < 1e-5, "row {row}");
            assert!((found.kl - kl).abs() < 1e-5, "row {row}: {} against {kl}", found.kl);
            assert_eq!((found.top, found.reference_top), (top(&p), top(&q)), "row {row}");
        }
    }
}
