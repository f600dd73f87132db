//! Attention against PyTorch, against plain loops in f64, and against itself on other numbers of threads.

use super::{Attention, AttentionSaved, attention_backward, attention_forward};
use crate::compute::cpu::testing::{assert_close, check_gradient, fixture, on_thread_pools, random};

/// dq, dk, dv and, before them, out and lse.
fn run(shape: &Attention, q: &[f32], k: &[f32], v: &[f32], dout: &[f32]) -> [Vec<f32>; 5] {
    // What the ops set is poisoned, so that what they forget to set shows.
    let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; q.len() / shape.head_dim]);
    attention_forward(shape, q, k, v, &mut out, &mut lse);
    let (mut dq, mut dk, mut dv) = (vec![f32::NAN; q.len()], vec![f32::NAN; k.len()], vec![f32::NAN; v.len()]);
    let saved = AttentionSaved { q, k, v, out: &out, lse: &lse };
    attention_backward(shape, saved, dout, &mut dq, &mut dk, &mut dv);
    [out, lse, dq, dk, dv]
}

/// The definition, one query at a time.
fn reference(shape: &Attention, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (h, hd, group) = (shape.heads, shape.head_dim, shape.heads / shape.kv_heads);
    let kv = |x: &[f64], row: usize, head: usize, i: usize| x[(row * shape.kv_heads + head / group) * hd + i];
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; q.len() / hd]);
    for segment in shape.segments.windows(2) {
        for (row, head) in (segment[0]..segment[1]).flat_map(|row| (0..h).map(move |head| (row, head))) {
            let from = segment[0].max((row + 1).saturating_sub(shape.window.unwrap_or(row + 1)));
            let query = &q[(row * h + head) * hd..][..hd];
            let score = |key| (0..hd).map(|i| query[i] * kv(k, key, head, i)).sum::<f64>() / (hd as f64).sqrt();
            let scores: Vec<f64> = (from..=row).map(score).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            lse[row * h + head] = max + sum.ln();
            for (key, score) in (from..=row).zip(scores) {
                for i in 0..hd {
                    out[(row * h + head) * hd + i] += (score - max).exp() / sum * kv(v, key, head, i);
                }
            }
        }
    }
    (out, lse)
}

fn inputs(shape: &Attention) -> [Vec<f32>; 4] {
    let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let rows = *shape.segments.last().unwrap();
    [random(1, rows * q), random(2, rows * kv), random(3, rows * kv), random(4, rows * q)]
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

type Case<'a> = (&'a [usize], usize, usize, usize, Option<usize>);

#[test]
fn as_pytorch() {
    #[allow(clippy::type_complexity)]
    let cases: [(&str, &[usize], usize, usize, usize, Option<usize>); 5] = [
        ("attention_8", &[0, 4, 5, 16], 4, 2, 8, None),
        ("attention_8_window", &[0, 4, 5, 16], 4, 2, 8, Some(4)),
        ("attention_64", &[0, 2, 7], 2, 1, 64, None),
        ("attention_64_window", &[0, 5], 2, 1, 64, Some(3)),
        ("attention_80", &[0, 1, 4], 2, 1, 80, Some(5)),
    ];
    for (name, segments, heads, kv_heads, head_dim, window) in cases {
        let t = |part: &str| fixture(&format!("{name}.{part}"));
        let shape = Attention { segments, heads, kv_heads, head_dim, window };
        let [out, lse, dq, dk, dv] = run(&shape, &t("q"), &t("k"), &t("v"), &t("dout"));
        assert_close(&out, &t("out"), 1e-6);
        assert_close(&lse, &t("lse"), 1e-6);
        assert_close(&dq, &t("dq"), 2e-6);
        assert_close(&dk, &t("dk"), 2e-6);
        assert_close(&dv, &t("dv"), 2e-6);
    }
}

#[test]
fn gradient_by_finite_differences() {
    let shape = Attention { segments: &[0, 1, 8], heads: 4, kv_heads: 2, head_dim: 6, window: Some(5) };
    let [q, k, v, dout] = inputs(&shape);
    let [_, _, dq, dk, dv] = run(&shape, &q, &k, &v, &dout);
    let (wq, wk, wv, wdout) = (wide(&q), wide(&k), wide(&v), wide(&dout));
    check_gradient(&q, &dq, 2e-5, |q| inner(&reference(&shape, q, &wk, &wv).0, &wdout));
    check_gradient(&k, &dk, 2e-5, |k| inner(&reference(&shape, &wq, k, &wv).0, &wdout));
    check_gradient(&v, &dv, 2e-5, |v| inner(&reference(&shape, &wq, &wk, v).0, &wdout));
}

/// Sequences that cross blocks of queries and of keys, at odd lengths, with windows around the block sizes.
#[test]
fn long_sequences_against_f64() {
    let cases: [Case; 8] = [
        (&[0, 401, 402, 402, 467], 3, 1, 8, None),
        (&[0, 401, 402, 402, 467], 3, 1, 8, Some(1)),
        (&[0, 590], 2, 2, 20, Some(257)),
        (&[0, 333], 4, 2, 64, Some(64)),
        (&[0, 300], 9, 3, 16, Some(1000)),
        (&[0, 70], 200, 1, 4, None),
        // Several parts.
        (&[0, 1301], 3, 1, 4, None),
        (&[0, 20, 2600], 4, 1, 4, Some(200)),
    ];
    for (segments, heads, kv_heads, head_dim, window) in cases {
        let shape = Attention { segments, heads, kv_heads, head_dim, window };
        let [q, k, v, dout] = inputs(&shape);
        let [out, lse, dq, dk, dv] = run(&shape, &q, &k, &v, &dout);
        let x = [wide(&q), wide(&k), wide(&v)];
        let (exact_out, exact_lse) = reference(&shape, &x[0], &x[1], &x[2]);
        assert_close(&out, &narrow(&exact_out), 3e-6);
        assert_close(&lse, &narrow(&exact_lse), 1e-6);

        // The derivative along a random direction of each input.
        for (which, gradient) in [dq, dk, dv].iter().enumerate() {
            let direction = wide(&random(5, gradient.len()));
            let shifted = |h: f64| {
                let mut x = x.clone();
                for (x, direction) in x[which].iter_mut().zip(&direction) {
                    *x += h * direction;
                }
                inner(&reference(&shape, &x[0], &x[1], &x[2]).0, &wide(&dout))
            };
            let expected = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            let got = inner(&wide(gradient), &direction);
            assert!((got - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{shape:?} {which}: {got} {expected}");
        }
    }
}

/// Scores far apart, as attention sinks make them, neither overflow nor lose the largest.
#[test]
fn extreme_scores_stay_finite() {
    let shape = Attention { segments: &[0, 300], heads: 1, kv_heads: 1, head_dim: 4, window: None };
    let [q, k, v, dout] = inputs(&shape);
    let q: Vec<f32> = q.iter().map(|x| x * 300.0).collect();
    let [out, lse, dq, dk, dv] = run(&shape, &q, &k, &v, &dout);
    let (exact_out, exact_lse) = reference(&shape, &wide(&q), &wide(&k), &wide(&v));
    assert_close(&out, &narrow(&exact_out), 1e-3);
    assert_close(&lse, &narrow(&exact_lse), 1e-6);
    assert!([dq, dk, dv].concat().iter().all(|x| x.is_finite()));
}

#[test]
fn same_bits_for_every_pool_and_place_in_the_batch() {
    let alone = Attention { segments: &[0, 300], heads: 4, kv_heads: 2, head_dim: 16, window: None };
    let [q, k, v, dout] = inputs(&alone);
    let batch = Attention { segments: &[0, 300, 600], ..alone };
    let twice = [&q, &k, &v, &dout].map(|x| [&x[..], &x[..]].concat());
    on_thread_pools(|| run(&batch, &twice[0], &twice[1], &twice[2], &twice[3]).concat());
    for (one, two) in run(&alone, &q, &k, &v, &dout).iter().zip(run(&batch, &twice[0], &twice[1], &twice[2], &twice[3]))
    {
        assert!(two[..one.len()] == one[..] && two[one.len()..] == one[..]);
    }
}

/// What a thread is said to hold is what it holds, but for vectors of a number a row.
#[test]
fn bytes_of_a_thread() {
    let shape = Attention { segments: &[0, 1301], heads: 6, kv_heads: 2, head_dim: 64, window: None };
    let [q, k, v, dout] = inputs(&shape);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let held = pool.install(|| {
        run(&shape, &q, &k, &v, &dout);
        super::forward::held_bytes() + super::backward::held_bytes()
    });
    let parts = shape.parts(192, 1 << 20).concat().len() / 2;
    let sums = 2 * 72 * 4 * 32 * 41;
    let said = super::thread_bytes::<f32>(&shape, 1301);
    assert!(parts > 1 && held < said && said <= held + parts * sums, "held {held}, said {said}, sums {sums}");
}
