//! Training by a teacher: ce·CE(target) + kl·KL(teacher ‖ model) of logits [rows, v], with its gradient. The teacher's
//! distribution is given by its own logits, or by K weighted ids that stand for it ([`crate::compute::selection`]). Softmaxes
//! are summed in f64 as in [`super::loss`].

use rayon::prelude::*;

use super::element::Element;
use super::loss::NO_TARGET;
use super::reduce::{max, sum};
use super::rows_per_part;
use super::simd::{exp, exp_and_sum, simd};
use crate::compute::answers::{Answer, Layout};
use crate::compute::backend::RowLoss;

/// Elements that are handled at a time.
const TOGETHER: usize = 256;

/// Of the two terms, and of both in the gradient.
#[derive(Debug, Clone, Copy)]
pub struct Weights {
    pub ce: f32,
    pub kl: f32,
    pub scale: f32,
}

/// Rows of `v` logits, `stride` apart, against rows of the teacher's, which are overwritten. Each row becomes its
/// gradient, scale·(ce·(p − onehot(target)) + kl·(p − p_teacher)), as elements of type E from its beginning on.
///
/// Panics if a target is neither a column nor [`NO_TARGET`].
pub fn against_logits<E: Element>(
    logits: &mut [f32],
    teacher: &mut [f32],
    (v, stride): (usize, usize),
    targets: &[u32],
    by: Weights,
    losses: &mut [RowLoss],
) {
    assert!(v <= stride && logits.len() == stride * targets.len() && losses.len() == targets.len(), "loss: shapes");
    assert!(teacher.len() == logits.len(), "loss: shapes");
    let rows = rows_per_part(v);
    let parts = logits.par_chunks_mut(rows * stride).zip(teacher.par_chunks_mut(rows * stride));
    parts.zip(targets.par_chunks(rows)).zip(losses.par_chunks_mut(rows)).for_each(
        |(((logits, teacher), targets), losses)| {
            simd(
                #[inline(always)]
                || {
                    let rows = logits.chunks_exact_mut(stride).zip(teacher.chunks_exact_mut(stride));
                    for (((row, teacher), target), loss) in rows.zip(targets).zip(losses) {
                        *loss = row_against_logits::<E>(&mut row[..v], &mut teacher[..v], *target, by);
                    }
                },
            )
        },
    );
}

/// The same against stored answers, a record a row: of K weighted ids the divergence is Σ weight·(ln p_teacher − ln p), and
/// its gradient p − weight.
pub fn against_stored<E: Element>(
    logits: &mut [f32],
    (layout, records): (Layout, &[&[u8]]),
    stride: usize,
    targets: &[u32],
    by: Weights,
    losses: &mut [RowLoss],
) {
    let v = layout.vocab;
    assert!(v <= stride && logits.len() == stride * targets.len() && losses.len() == targets.len(), "loss: shapes");
    assert!(records.len() == targets.len() && !layout.whole(), "loss: shapes");
    let rows = rows_per_part(v);
    let parts = logits.par_chunks_mut(rows * stride).zip(records.par_chunks(rows));
    parts.zip(targets.par_chunks(rows)).zip(losses.par_chunks_mut(rows)).for_each_init(
        Answer::default,
        |answer, (((logits, records), targets), losses)| {
            simd(
                #[inline(always)]
                || {
                    let rows = logits.chunks_exact_mut(stride).zip(records);
                    for (((row, record), target), loss) in rows.zip(targets).zip(losses) {
                        layout.read(record, answer);
                        *loss = row_against_stored::<E>(&mut row[..v], answer, *target, by);
                    }
                },
            )
        },
    );
}

#[inline(always)]
fn row_against_logits<E: Element>(logits: &mut [f32], teacher: &mut [f32], target: u32, by: Weights) -> RowLoss {
    if target == NO_TARGET {
        logits.fill(0.0);
        return RowLoss::default();
    }
    let target = target as usize;
    let (logit, most, teachers_most) = (logits[target], max(logits), max(teacher));
    let (mut all, mut teachers, mut cross) = (0.0, 0.0, 0.0);
    for (logits, teacher) in logits.chunks_mut(TOGETHER).zip(teacher.chunks_mut(TOGETHER)) {
        let mut terms = [0.0; TOGETHER];
        for ((z, a), term) in logits.iter_mut().zip(teacher.iter_mut()).zip(&mut terms) {
            let (less, teachers_less) = (*z - most, *a - teachers_most);
            (*z, *a) = (exp(less), exp(teachers_less));
            // A probability of 0 counts 0, whatever the model says (0·ln 0 = 0).
            *term = if *a == 0.0 { 0.0 } else { *a * (teachers_less - less) };
        }
        all += f64::from(sum(logits));
        teachers += f64::from(sum(teacher));
        cross += f64::from(sum(&terms[..logits.len()]));
    }
    let (own, theirs) = (by.own(all), (f64::from(by.kl * by.scale) / teachers) as f32);
    for (x, a) in logits.iter_mut().zip(teacher) {
        *x = own * *x - theirs * *a;
    }
    logits[target] -= by.ce * by.scale;
    round::<E>(logits);
    RowLoss {
        ce: (all.ln() + (f64::from(most) - f64::from(logit))) as f32,
        kl: (cross / teachers + all.ln() - teachers.ln()) as f32,
    }
}

#[inline(always)]
fn row_against_stored<E: Element>(logits: &mut [f32], answer: &Answer, target: u32, by: Weights) -> RowLoss {
    if target == NO_TARGET {
        logits.fill(0.0);
        return RowLoss::default();
    }
    let target = target as usize;
    let (logit, most) = (logits[target], max(logits));
    let less: Vec<f32> = answer.ids.iter().map(|id| logits[*id as usize] - most).collect();
    let all = exp_and_sum(logits, most);
    let (own, theirs, ln_all) = (by.own(all), by.kl * by.scale, all.ln());
    for x in logits.iter_mut() {
        *x *= own;
    }
    let mut kl = 0.0;
    for (((id, weight), log_p), z) in answer.ids.iter().zip(&answer.weights).zip(&answer.log_p).zip(&less) {
        // As above, whatever the model says.
        kl += if *weight == 0.0 { 0.0 } else { f64::from(*weight) * (f64::from(*log_p) - f64::from(*z) + ln_all) };
        logits[*id as usize] -= theirs * weight;
    }
    logits[target] -= by.ce * by.scale;
    round::<E>(logits);
    RowLoss { ce: (ln_all + (f64::from(most) - f64::from(logit))) as f32, kl: kl as f32 }
}

impl Weights {
    /// What e^logit counts in the gradient, of a softmax with this denominator.
    fn own(self, all: f64) -> f32 {
        (f64::from((self.ce + self.kl) * self.scale) / all) as f32
    }
}

/// Each element becomes one of type E, from the row's beginning on.
#[inline(always)]
fn round<E: Element>(row: &mut [f32]) {
    // An element of E is no larger than one of f32: what is written was read before.
    let mut part = [0.0; TOGETHER];
    for from in (0..row.len()).step_by(TOGETHER) {
        let part = &mut part[..TOGETHER.min(row.len() - from)];
        part.copy_from_slice(&row[from..from + part.len()]);
        let out: &mut [E] = bytemuck::cast_slice_mut(row);
        for (out, x) in out[from..].iter_mut().zip(part) {
            *out = E::from_f32(*x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::{
        assert_close, check_gradient, fixture_of, narrow, on_every_isa, on_thread_pools, random,
    };
    use half::bf16;

    fn t(part: &str) -> Vec<f32> {
        fixture_of("distillation.safetensors", part)
    }

    /// Targets and weights of the fixture.
    fn given() -> (Vec<u32>, Weights) {
        let targets = t("targets").iter().map(|x| if *x < 0.0 { NO_TARGET } else { *x as u32 }).collect();
        let [ce, kl, scale] = t("weights").try_into().unwrap();
        (targets, Weights { ce, kl, scale })
    }

    fn compare(losses: &[RowLoss], gradient: &[f32], of: &str) {
        assert_close(&losses.iter().map(|l| l.ce).collect::<Vec<_>>(), &t("ce"), 1e-6);
        assert_close(&losses.iter().map(|l| l.kl).collect::<Vec<_>>(), &t(&format!("{of}.kl")), 1e-6);
        assert_close(gradient, &t(&format!("{of}.dlogits")), 1e-7);
    }

    #[test]
    fn as_pytorch() {
        let (targets, by) = given();
        let (mut logits, mut teacher) = (t("logits"), t("teacher"));
        let v = logits.len() / targets.len();
        let mut losses = vec![RowLoss::default(); targets.len()];
        against_logits::<f32>(&mut logits, &mut teacher, (v, v), &targets, by, &mut losses);
        compare(&losses, &logits, "whole");
        // Its log-probabilities say the same.
        let (mut logits, mut teacher) = (t("logits"), t("log_p"));
        against_logits::<f32>(&mut logits, &mut teacher, (v, v), &targets, by, &mut losses);
        compare(&losses, &logits, "whole");
    }

    /// The records are written here of the teacher's logits; PyTorch has chosen and rounded the same log-probabilities.
    #[test]
    fn stored_answers_as_pytorch() {
        let (targets, by) = given();
        let v = t("logits").len() / targets.len();
        let at: Vec<f64> = t("draws").iter().map(|x| f64::from(*x)).collect();
        for top in [1, 5, 30] {
            let layout = Layout { vocab: v, top };
            let mut records = vec![0; targets.len() * layout.bytes()];
            layout.write(&t("teacher"), &at, &mut records);
            let records: Vec<&[u8]> = records.chunks(layout.bytes()).collect();
            let mut logits = t("logits");
            let mut losses = vec![RowLoss::default(); targets.len()];
            against_stored::<f32>(&mut logits, (layout, &records), v, &targets, by, &mut losses);
            compare(&losses, &logits, &format!("top_{top}"));
        }
    }

    /// Over all places where the draws may begin, the loss and its gradient are on average those against the whole
    /// distribution, but for the rounding of log-probabilities to f16.
    #[test]
    fn stored_answers_on_average() {
        const GRID: usize = 1 << 14;
        let by = Weights { ce: 0.0, kl: 1.0, scale: 1.0 };
        // Most of the distribution is in what is not kept, and the model has it elsewhere.
        let (logits, teacher) = (random(1, 300), random(2, 300));
        let mut exact = logits.clone();
        let loss = row_against_logits::<f32>(&mut exact, &mut teacher.clone(), 7, by);
        for top in [1, 8, 40] {
            let layout = Layout { vocab: 300, top };
            let (mut kl, mut mean) = (0.0, vec![0.0; 300]);
            let (mut record, mut answer) = (vec![0; layout.bytes()], Answer::default());
            for i in 0..GRID {
                layout.write(&teacher, &[(i as f64 + 0.5) / GRID as f64], &mut record);
                layout.read(&record, &mut answer);
                let mut gradient = logits.clone();
                kl += row_against_stored::<f32>(&mut gradient, &answer, 7, by).kl / GRID as f32;
                mean.iter_mut().zip(&gradient).for_each(|(mean, x)| *mean += x / GRID as f32);
            }
            assert!((kl - loss.kl).abs() < 4e-3 * loss.kl, "{top}: {kl} {}", loss.kl);
            let (off, size) = mean.iter().zip(&exact).fold((0.0, 0.0), |(off, size), (mean, exact)| {
                (off + (mean - exact) * (mean - exact), size + exact * exact)
            });
            assert!(off < 1e-4 * size, "{top}: {off} of {size}");
        }
    }

    fn ln_all(x: &[f64]) -> f64 {
        x.iter().map(|x| x.exp()).sum::<f64>().ln()
    }

    #[test]
    fn gradients_by_finite_differences() {
        let (v, target, by) = (37, 5, Weights { ce: 0.3, kl: 0.7, scale: 0.5 });
        let (logits, teacher) = (random(1, v), random(2, v));
        let mut gradient = logits.clone();
        row_against_logits::<f32>(&mut gradient, &mut teacher.clone(), target, by);
        let a: Vec<f64> = teacher.iter().map(|a| f64::from(*a)).collect();
        let teachers = ln_all(&a);
        check_gradient(&logits, &gradient, 1e-6, |x| {
            let all = ln_all(x);
            let kl: f64 = x.iter().zip(&a).map(|(x, a)| (a - teachers).exp() * ((a - teachers) - (x - all))).sum();
            0.5 * (f64::from(by.ce) * (all - x[target as usize]) + f64::from(by.kl) * kl)
        });
        // A kept one, and two that are drawn.
        let log_p = vec![0.5f32.ln(), -3.0, -4.0];
        let answer = Answer { ids: vec![3, 5, 36], weights: vec![0.5, 0.25, 0.25], log_p };
        for target in [5, 6] {
            let mut gradient = logits.clone();
            row_against_stored::<f32>(&mut gradient, &answer, target, by);
            check_gradient(&logits, &gradient, 1e-6, |x| {
                let all = ln_all(x);
                let terms = answer.ids.iter().zip(&answer.weights).zip(&answer.log_p);
                let kl: f64 = terms.map(|((id, w), a)| f64::from(*w) * (f64::from(*a) - x[*id as usize] + all)).sum();
                0.5 * (f64::from(by.ce) * (all - x[target as usize]) + f64::from(by.kl) * kl)
            });
        }
    }

    /// A model that is its own teacher learns nothing, and one that puts all on one token is taught without NaN.
    #[test]
    fn at_the_ends() {
        let by = Weights { ce: 0.0, kl: 1.0, scale: 1.0 };
        let logits = random(3, 500);
        let mut own = logits.clone();
        let loss = row_against_logits::<f32>(&mut own, &mut logits.clone(), 7, by);
        assert!(loss.kl.abs() < 1e-6 && own.iter().all(|x| x.abs() < 1e-7), "{loss:?}");
        let mut sure = vec![0.0; 500];
        sure[9] = 200.0;
        let mut gradient = sure.clone();
        let loss = row_against_logits::<f32>(&mut gradient, &mut logits.clone(), 7, by);
        assert!(loss.kl.is_finite() && loss.kl > 100.0 && gradient.iter().all(|x| x.is_finite()));
        let mut gradient = sure;
        let answer = Answer { ids: vec![9, 3], weights: vec![0.25, 0.75], log_p: vec![0.25f32.ln(), -9.0] };
        let loss = row_against_stored::<f32>(&mut gradient, &answer, 9, by);
        assert!(loss.kl.is_finite() && loss.kl > 40.0 && gradient.iter().all(|x| x.is_finite()), "{loss:?}");
        let mut none = vec![1.0; 500];
        assert_eq!(row_against_stored::<f32>(&mut none, &answer, NO_TARGET, by), RowLoss::default());
        assert!(none.iter().all(|x| *x == 0.0));
    }

    #[test]
    fn in_bf16_as_in_f32_rounded_once() {
        let (v, stride, targets) = (1003, 1024, [5, NO_TARGET, 1002]);
        let by = Weights { ce: 0.3, kl: 0.7, scale: 0.5 };
        let (logits, teacher) = (random(1, 3 * stride), random(2, 3 * stride));
        let (mut exact, mut rounded) = (logits.clone(), logits);
        let mut losses = [[RowLoss::default(); 3]; 2];
        against_logits::<f32>(&mut exact, &mut teacher.clone(), (v, stride), &targets, by, &mut losses[0]);
        against_logits::<bf16>(&mut rounded, &mut teacher.clone(), (v, stride), &targets, by, &mut losses[1]);
        assert_eq!(losses[0], losses[1]);
        for (exact, rounded) in exact.chunks(stride).zip(rounded.chunks(stride)) {
            assert_eq!(bytemuck::cast_slice::<_, bf16>(rounded)[..v], narrow(&exact[..v]));
        }
    }

    #[test]
    fn same_bits_for_every_pool_and_instruction_set() {
        let (v, by) = (5003, Weights { ce: 0.3, kl: 0.7, scale: 0.5 });
        let (logits, teacher) = (random(1, 50 * v), random(2, 50 * v));
        let targets: Vec<u32> = (0..50).collect();
        let layout = Layout { vocab: v, top: 64 };
        let both = |losses: &[RowLoss]| losses.iter().flat_map(|l| [l.ce, l.kl]).collect::<Vec<_>>();
        on_thread_pools(|| {
            let mut losses = vec![RowLoss::default(); 50];
            let mut gradient = logits.clone();
            against_logits::<f32>(&mut gradient, &mut teacher.clone(), (v, v), &targets, by, &mut losses);
            gradient.extend(both(&losses));
            let mut records = vec![0; 50 * layout.bytes()];
            layout.write(&teacher, &[0.625; 50], &mut records);
            let records: Vec<&[u8]> = records.chunks(layout.bytes()).collect();
            let mut second = logits.clone();
            against_stored::<f32>(&mut second, (layout, &records), v, &targets, by, &mut losses);
            [gradient, second, both(&losses)].concat()
        });
        on_every_isa(|| {
            let (mut row, mut theirs) = (logits[..v].to_vec(), teacher[..v].to_vec());
            let loss = row_against_logits::<f32>(&mut row, &mut theirs, 9, by);
            let (weights, log_p) = (vec![0.5, 0.25, 0.25], vec![-0.5, -3.0, -4.0]);
            let answer = Answer { ids: vec![3, 9, 5000], weights, log_p };
            let mut second = logits[..v].to_vec();
            let other = row_against_stored::<f32>(&mut second, &answer, 9, by);
            [row, second, both(&[loss, other])].concat()
        });
    }
}
