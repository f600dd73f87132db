//! The head: logits and loss in chunks of rows, never whole.

use super::element::Element;
use super::linear::Workspace;
use super::loss;
use super::made::FloatRows;
use super::product::{Lines, Made, ToF32};
use crate::compute::backend::{NO_TARGET, TokenScore};
use crate::format::tensor::Tensor;

/// Bytes of the logits that exist at a time: the weight is packed again for each chunk of rows.
pub const LOGITS_BYTES: usize = 100 << 20;

/// Most rows whose logits exist at a time, whole panels where there are so many.
fn chunk_rows(vocab: usize) -> usize {
    let rows = (LOGITS_BYTES / (4 * row_stride(vocab))).clamp(1, 1024);
    if rows < PANEL { rows } else { rows / PANEL * PANEL }
}

/// Rows of a chunk, if all `rows` are shared out evenly.
pub fn chunk_of(rows: usize, vocab: usize) -> usize {
    let most = chunk_rows(vocab);
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
    let (step, stride) = (chunk_of(targets.len(), v), row_stride(v));
    let mut held = ws.logits();
    let logits = held[0].take::<f32>(step * stride);
    for from in (0..targets.len()).step_by(step.max(1)) {
        let rows = step.min(targets.len() - from);
        let logits = &mut logits[..rows * stride];
        l.chunk(ws, from, rows, stride, logits);
        let (targets, losses) = (&targets[from..from + rows], &mut losses[from..from + rows]);
        loss::cross_entropy::<E>(logits, (v, stride), targets, losses, grad_scale);
        if let Some(dhidden) = dhidden.as_deref_mut() {
            let (dlogits, stride) = (bytemuck::cast_slice(logits), stride * size_of::<f32>() / size_of::<E>());
            l.backward(ws, dlogits, rows, stride, &mut dhidden[from * d..(from + rows) * d]);
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
    let step = chunk_of(targets.len(), v);
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

    /// Loss and dhidden by their definition in f64, for a vocabulary that fills no line. A stored value is rounded by `unit`
    /// at most.
    fn loss_by_definition<E: Element>(dtype: Dtype, unit: f64) {
        let (rows, vocab, grad_scale) = (40, 70, 0.5);
        let narrow = |x: Vec<f32>| x.into_iter().map(E::from_f32).collect::<Vec<E>>();
        let wide = |x: &[E]| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        let (hidden, w) = (narrow(random(5, rows * D)), narrow(random(6, vocab * D)));
        let (exact_hidden, exact_w) = (wide(&hidden), wide(&w));
        let weight = Tensor::from_f32(&exact_w, dtype, vec![vocab, D]);
        let targets: Vec<u32> = (0..rows).map(|i| if i % 5 == 0 { NO_TARGET } else { i as u32 }).collect();
        let l = Logits { hidden: &hidden, weight: &weight, vocab, d: D };
        let (mut losses, mut dhidden) = (vec![7.0; rows], vec![7.0; rows * D]);
        loss(&Workspace::default(), l, &targets, grad_scale, Some(&mut dhidden), &mut losses);
        for (row, target) in targets.iter().enumerate() {
            let log_p = log_softmax(&exact_hidden[row * D..(row + 1) * D], &exact_w);
            let target = (*target != NO_TARGET).then_some(*target as usize);
            let exact = target.map_or(0.0, |target| -log_p[target]);
            assert!((f64::from(losses[row]) - exact).abs() < 1e-5, "row {row}");
            for at in 0..D {
                let terms = (0..vocab).map(|v| {
                    let p = log_p[v].exp() - if target == Some(v) { 1.0 } else { 0.0 };
                    let scale = if target.is_some() { f64::from(grad_scale) } else { 0.0 };
                    scale * p * f64::from(exact_w[v * D + at])
                });
                let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                let error = (f64::from(dhidden[row * D + at]) - exact).abs();
                assert!(error <= (1e-5 + unit) * size, "row {row}: {error}");
            }
        }
    }

    #[test]
    fn loss_and_gradient_by_their_definition() {
        loss_by_definition::<f32>(Dtype::F32, 0.0);
        loss_by_definition::<bf16>(Dtype::BF16, 1.0 / 256.0);
        loss_by_definition::<bf16>(Dtype::F32, 1.0 / 256.0);
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
