//! What is computed of logits [rows, v]: cross entropy with its gradient for training, log probabilities and
//! divergence for evaluation. All over a softmax whose denominator is summed in f64.

use rayon::prelude::*;

use super::element::Element;
use super::reduce::max;
use super::rows_per_part;
use super::simd::{exp, exp_and_sum, simd};

/// The target of a row that has none: its loss and gradient are 0.
pub const NO_TARGET: u32 = u32::MAX;

/// What evaluation wants of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowScore {
    /// ln Σ e^logit
    pub lse: f64,
    /// ln p(target); 0 without a target
    pub log_prob: f64,
    /// The first of the largest logits.
    pub argmax: u32,
}

/// losses = -ln p(target) of rows of `v` logits, `stride` apart. Each row becomes its gradient, `grad_scale`·(p -
/// onehot(target)), as elements of type E from the row's beginning on.
///
/// Panics if a target is neither a column nor [`NO_TARGET`].
pub fn cross_entropy<E: Element>(
    logits: &mut [f32],
    (v, stride): (usize, usize),
    targets: &[u32],
    losses: &mut [f32],
    grad_scale: f32,
) {
    assert!(v <= stride && logits.len() == stride * targets.len() && losses.len() == targets.len(), "loss: shapes");
    let rows = rows_per_part(v);
    logits.par_chunks_mut(rows * stride).zip(targets.par_chunks(rows)).zip(losses.par_chunks_mut(rows)).for_each(
        |((logits, targets), losses)| {
            simd(
                #[inline(always)]
                || {
                    for ((row, target), loss) in logits.chunks_exact_mut(stride).zip(targets).zip(losses) {
                        *loss = cross_entropy_row::<E>(&mut row[..v], *target, grad_scale);
                    }
                },
            )
        },
    );
}

/// Scores each row against its target.
///
/// Panics if a target is neither a column nor [`NO_TARGET`].
pub fn log_probs(logits: &[f32], targets: &[u32], scores: &mut [RowScore]) {
    let v = columns(logits.len(), targets.len());
    assert!(scores.len() == targets.len(), "log_probs: shapes");
    let rows = rows_per_part(v);
    logits.par_chunks(rows * v).zip(targets.par_chunks(rows)).zip(scores.par_chunks_mut(rows)).for_each(
        |((logits, targets), scores)| {
            simd(
                #[inline(always)]
                || {
                    for ((logits, target), score) in logits.chunks_exact(v).zip(targets).zip(scores) {
                        *score = score_row(logits, *target);
                    }
                },
            )
        },
    );
}

/// divergences = Σ p_ref·(ln p_ref - ln p), row by row, within 1e-7
pub fn kl(reference_logits: &[f32], logits: &[f32], divergences: &mut [f64]) {
    let v = columns(logits.len(), divergences.len());
    assert!(reference_logits.len() == logits.len(), "kl: shapes");
    let rows = rows_per_part(v);
    logits
        .par_chunks(rows * v)
        .zip(reference_logits.par_chunks(rows * v))
        .zip(divergences.par_chunks_mut(rows))
        .for_each(|((logits, reference), divergences)| {
            simd(
                #[inline(always)]
                || {
                    let pairs = logits.chunks_exact(v).zip(reference.chunks_exact(v));
                    for ((logits, reference), divergence) in pairs.zip(divergences) {
                        *divergence = kl_row(reference, logits);
                    }
                },
            )
        });
}

fn columns(elements: usize, rows: usize) -> usize {
    assert!(elements.is_multiple_of(rows.max(1)) && (rows > 0 || elements == 0), "logits: {elements} in {rows} rows");
    (elements / rows.max(1)).max(1)
}

#[inline(always)]
fn cross_entropy_row<E: Element>(logits: &mut [f32], target: u32, grad_scale: f32) -> f32 {
    if target == NO_TARGET {
        logits.fill(0.0);
        return 0.0;
    }
    let target = target as usize;
    let (logit, max) = (logits[target], max(logits));
    let sum = exp_and_sum(logits, max);
    let factor = (f64::from(grad_scale) / sum) as f32;
    // An element of E is no larger than one of f32: what is written was read before.
    const TOGETHER: usize = 256;
    let mut part = [0.0; TOGETHER];
    for from in (0..logits.len()).step_by(TOGETHER) {
        let part = &mut part[..TOGETHER.min(logits.len() - from)];
        for (part, x) in part.iter_mut().zip(&logits[from..]) {
            *part = factor * x;
        }
        if let Some(x) = target.checked_sub(from).and_then(|at| part.get_mut(at)) {
            *x -= grad_scale;
        }
        let gradient: &mut [E] = bytemuck::cast_slice_mut(logits);
        for (gradient, x) in gradient[from..].iter_mut().zip(part) {
            *gradient = E::from_f32(*x);
        }
    }
    (sum.ln() + (f64::from(max) - f64::from(logit))) as f32
}

#[inline(always)]
fn score_row(logits: &[f32], target: u32) -> RowScore {
    let max = max(logits);
    let lse = log_sum_exp(logits, max);
    let log_prob = if target == NO_TARGET { 0.0 } else { f64::from(logits[target as usize]) - lse };
    // Whole parts are compared at once, then the one that holds the largest is searched.
    let part = logits.chunks(64).position(|part| part.iter().fold(false, |found, x| found | (*x == max))).unwrap_or(0);
    let within = logits.iter().skip(part * 64).position(|x| *x == max).unwrap_or(0);
    RowScore { lse, log_prob, argmax: (part * 64 + within) as u32 }
}

#[inline(always)]
fn log_sum_exp(logits: &[f32], max: f32) -> f64 {
    let mut part_of_row = [0.0; 1024];
    let mut sum = 0.0;
    for logits in logits.chunks(part_of_row.len()) {
        let part = &mut part_of_row[..logits.len()];
        part.copy_from_slice(logits);
        sum += exp_and_sum(part, max);
    }
    f64::from(max) + sum.ln()
}

#[inline(always)]
fn kl_row(reference: &[f32], logits: &[f32]) -> f64 {
    let (reference_max, max) = (max(reference), max(logits));
    let (reference_lse, lse) = (log_sum_exp(reference, reference_max), log_sum_exp(logits, max));
    let offset = lse - reference_lse;
    // A probability of 0 counts 0, whatever the other distribution says (0·ln 0 = 0).
    let mut terms = [0.0f64; 64];
    for (a, b) in reference.chunks(64).zip(logits.chunks(64)) {
        for ((term, a), b) in terms.iter_mut().zip(a).zip(b) {
            let p = f64::from(exp(a - reference_max));
            *term += if p == 0.0 { 0.0 } else { p * (f64::from(*a) - f64::from(*b) + offset) };
        }
    }
    let total: f64 = terms.iter().sum();
    // The terms hold e^(logit - max); the denominator of the softmax is left.
    total * (f64::from(reference_max) - reference_lse).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::{
        assert_close, check_gradient, fixture, narrow, on_every_isa, on_thread_pools, random,
    };
    use half::bf16;

    fn exact_lse(logits: impl Iterator<Item = f64> + Clone) -> f64 {
        let max = logits.clone().fold(f64::MIN, f64::max);
        max + logits.map(|x| (x - max).exp()).sum::<f64>().ln()
    }

    #[test]
    fn as_pytorch() {
        let t = |part: &str| fixture(&format!("cross_entropy.{part}"));
        let mut logits = t("logits");
        let targets: Vec<u32> = t("targets").iter().map(|x| if *x < 0.0 { NO_TARGET } else { *x as u32 }).collect();
        let mut scores = vec![RowScore::default(); targets.len()];
        log_probs(&logits, &targets, &mut scores);
        let mut losses = vec![7.0; targets.len()];
        let v = logits.len() / targets.len();
        cross_entropy::<f32>(&mut logits, (v, v), &targets, &mut losses, 0.125);
        assert_close(&losses, &t("losses"), 1e-6);
        assert_close(&logits, &t("dlogits"), 1e-7);
        let negated: Vec<f32> = scores.iter().map(|s| -s.log_prob as f32).collect();
        assert_close(&negated, &t("losses"), 1e-6);
        let argmax: Vec<f32> = scores.iter().map(|s| s.argmax as f32).collect();
        assert_eq!(argmax, t("argmax"));
        let (a, b) = (t("logits"), t("other"));
        let mut divergences = vec![0.0; targets.len()];
        kl(&a, &b, &mut divergences);
        let divergences: Vec<f32> = divergences.iter().map(|x| *x as f32).collect();
        assert_close(&divergences, &t("kl"), 1e-6);
    }

    #[test]
    fn gradient_by_finite_differences() {
        let (v, targets) = (37, [5, 0, 36]);
        let logits = random(1, 3 * v);
        let mut gradient = logits.clone();
        let mut losses = [0.0; 3];
        cross_entropy::<f32>(&mut gradient, (v, v), &targets, &mut losses, 0.5);
        check_gradient(&logits, &gradient, 1e-6, |x| {
            let rows = x.chunks(v).zip(targets);
            rows.map(|(x, t)| 0.5 * (exact_lse(x.iter().copied()) - x[t as usize])).sum()
        });
    }

    /// The gradient in bf16 is that in f32 rounded, at the beginning of rows that lie apart.
    #[test]
    fn in_bf16_as_in_f32_rounded_once() {
        let (v, stride, targets) = (1003, 1024, [5, NO_TARGET, 1002]);
        let logits = random(1, 3 * stride);
        let (mut exact, mut rounded) = (logits.clone(), logits);
        let mut losses = [[7.0; 3]; 2];
        cross_entropy::<f32>(&mut exact, (v, stride), &targets, &mut losses[0], 0.5);
        cross_entropy::<bf16>(&mut rounded, (v, stride), &targets, &mut losses[1], 0.5);
        assert_eq!(losses[0], losses[1]);
        for (exact, rounded) in exact.chunks(stride).zip(rounded.chunks(stride)) {
            let rounded: &[bf16] = bytemuck::cast_slice(rounded);
            assert_eq!(rounded[..v], narrow(&exact[..v]));
        }
    }

    #[test]
    fn a_large_vocabulary_is_accurate() {
        let v = 128_256;
        for (scale, shift) in [(1.0, 0.0), (8.0, 0.0), (1e-3, 3e4)] {
            let mut logits: Vec<f32> = random(4, v).iter().map(|x| x * scale + shift).collect();
            let lse = exact_lse(logits.iter().map(|x| f64::from(*x)));
            let mut score = [RowScore::default()];
            log_probs(&logits, &[77], &mut score);
            assert!((score[0].lse - lse).abs() < 1e-7, "{} {lse}", score[0].lse);
            let exact = lse - f64::from(logits[77]);
            let mut loss = [0.0];
            cross_entropy::<f32>(&mut logits, (v, v), &[77], &mut loss, 1.0);
            assert!((f64::from(loss[0]) - exact).abs() < 1e-6 * (1.0 + exact), "{} {exact}", loss[0]);
        }
    }

    #[test]
    fn rows_without_target_and_ties() {
        let mut logits = vec![1.0; 200];
        logits[150..].fill(3.0);
        let mut scores = [RowScore::default(); 2];
        log_probs(&logits, &[NO_TARGET, 99], &mut scores);
        assert_eq!((scores[0].argmax, scores[1].argmax), (0, 50));
        assert_eq!(scores[0].log_prob, 0.0);
        let mut losses = [7.0; 2];
        cross_entropy::<f32>(&mut logits, (100, 100), &[NO_TARGET, 99], &mut losses, 1.0);
        assert_eq!(losses[0], 0.0);
        assert!(logits[..100].iter().all(|x| *x == 0.0));
    }

    #[test]
    fn divergence_against_f64() {
        let v = 1003;
        let a = random(5, v);
        for distance in [1.0, 1e-2, 1e-4] {
            let b: Vec<f32> = a.iter().zip(random(6, v)).map(|(a, b)| a + distance * b).collect();
            let (lse_a, lse_b) =
                (exact_lse(a.iter().map(|x| f64::from(*x))), exact_lse(b.iter().map(|x| f64::from(*x))));
            let log_p = |x: f32, lse: f64| f64::from(x) - lse;
            let terms = a.iter().zip(&b).map(|(a, b)| log_p(*a, lse_a).exp() * (log_p(*a, lse_a) - log_p(*b, lse_b)));
            let exact: f64 = terms.sum();
            let mut divergence = [0.0];
            kl(&a, &b, &mut divergence);
            assert!((divergence[0] - exact).abs() < 1e-6 * exact + 5e-8, "{} {exact}", divergence[0]);
        }
        let mut none = [0.0, 1.0];
        let masked = [0.0, f32::NEG_INFINITY, 1.0, 0.0, 0.0, 0.0];
        kl(&masked, &[0.0; 6], &mut none);
        assert!(none[0].is_finite(), "{none:?}");
        kl(&[0.0; 6], &masked, &mut none);
        assert_eq!(none[0], f64::INFINITY);
    }

    #[test]
    fn same_bits_for_every_pool_and_instruction_set() {
        let v = 5003;
        let (logits, other) = (random(1, 50 * v), random(2, 50 * v));
        let targets: Vec<u32> = (0..50).collect();
        on_thread_pools(|| {
            let mut gradient = logits.clone();
            let (mut losses, mut divergences) = (vec![0.0; 50], vec![0.0; 50]);
            cross_entropy::<f32>(&mut gradient, (v, v), &targets, &mut losses, 0.1);
            kl(&logits, &other, &mut divergences);
            gradient.extend(losses);
            gradient.extend(divergences.iter().map(|x| *x as f32));
            gradient
        });
        on_every_isa(|| {
            let mut row = logits[..v].to_vec();
            let score = score_row(&row, 9);
            let loss = cross_entropy_row::<f32>(&mut row, 9, 0.1);
            row.extend([loss, score.lse as f32, score.argmax as f32, kl_row(&logits[..v], &other[..v]) as f32]);
            row
        });
    }
}
