//! The head: logits and loss in chunks of rows, never whole.

use super::element::Element;
use super::linear::Workspace;
use super::loss;
use super::made::FloatRows;
use super::product::{Lines, Made};
use crate::compute::backend::{NO_TARGET, TokenScore};
use crate::format::tensor::Tensor;

/// Bytes of the logits that exist at a time.
pub const LOGITS_BYTES: usize = 128 << 20;

/// Rows whose logits exist at a time.
pub fn chunk_rows(vocab: usize) -> usize {
    (LOGITS_BYTES / (4 * vocab)).clamp(1, 1024)
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
    /// Logits of rows from..from+rows.
    fn chunk(&self, ws: &Workspace, from: usize, rows: usize, out: &mut [f32]) {
        let hidden = Lines::rows(&self.hidden[from * self.d..(from + rows) * self.d], rows, self.d);
        let w = FloatRows::<E>::new(self.weight, self.vocab, self.d);
        ws.multiply_f32::<E, _, _>(&hidden, &Made::Transposed(&w), out, false);
    }

    /// dhidden of the same rows.
    fn backward(&self, ws: &Workspace, dlogits: &[f32], rows: usize, dhidden: &mut [f32]) {
        let w = FloatRows::<E>::new(self.weight, self.vocab, self.d);
        ws.multiply_f32::<E, _, _>(&Lines::rows(dlogits, rows, self.vocab), &Made::AsIs(&w), dhidden, false);
    }
}

/// Losses of the rows, and dhidden = grad_scale·d(Σ losses)/d(hidden) if wanted.
pub fn loss<E: Element>(
    ws: &Workspace,
    l: Logits<E>,
    targets: &[u32],
    grad_scale: f32,
    mut dhidden: Option<&mut [f32]>,
    losses: &mut [f32],
) {
    let (v, d) = (l.vocab, l.d);
    let step = chunk_rows(v).min(targets.len());
    let mut held = ws.logits();
    let logits = held[0].take::<f32>(step * v);
    for from in (0..targets.len()).step_by(step) {
        let rows = step.min(targets.len() - from);
        let logits = &mut logits[..rows * v];
        l.chunk(ws, from, rows, logits);
        loss::cross_entropy(logits, &targets[from..from + rows], &mut losses[from..from + rows], grad_scale);
        if let Some(dhidden) = dhidden.as_deref_mut() {
            l.backward(ws, logits, rows, &mut dhidden[from * d..(from + rows) * d]);
        }
    }
}

/// What evaluation wants of each row that has a target; with a reference, its divergence too.
pub fn scores<E: Element>(
    ws: &Workspace,
    l: Logits<E>,
    reference: Option<Logits<E>>,
    targets: &[u32],
    out: &mut [TokenScore],
) {
    let rows: Vec<usize> = (0..targets.len()).filter(|row| targets[*row] != NO_TARGET).collect();
    let wanted: Vec<u32> = rows.iter().map(|row| targets[*row]).collect();
    let hidden = gather(l.hidden, l.d, &rows);
    let other = reference.map(|r| gather(r.hidden, r.d, &rows));
    let mut scores = vec![TokenScore::default(); rows.len()];
    let reference = reference.zip(other.as_deref()).map(|(r, hidden)| Logits { hidden, ..r });
    scores_of_all(ws, Logits { hidden: &hidden, ..l }, reference, &wanted, &mut scores);
    out.fill(TokenScore::default());
    for (row, score) in rows.into_iter().zip(scores) {
        out[row] = score;
    }
}

/// The given rows of [_, d], one after another.
fn gather<E: Element>(hidden: &[E], d: usize, rows: &[usize]) -> Vec<E> {
    rows.iter().flat_map(|row| &hidden[row * d..(row + 1) * d]).copied().collect()
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
    let step = chunk_rows(v).min(targets.len());
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
        l.chunk(ws, from, rows, logits);
        loss::log_probs(logits, targets, own);
        for (out, own) in out.iter_mut().zip(&*own) {
            out.log_prob = own.log_prob;
            out.top = own.argmax;
        }
        if let Some(reference) = &reference {
            let other = &mut other[..rows * v];
            reference.chunk(ws, from, rows, other);
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
    use crate::compute::cpu::testing::random;
    use crate::format::tensor::Dtype;

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

    /// Two models with heads of their own, over more rows than a chunk holds.
    #[test]
    fn scores_and_divergence_by_their_definition() {
        let rows = 2 * chunk_rows(V);
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
