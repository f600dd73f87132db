//! Attention in bf16, with both kernels, against the definition in f64 of the same inputs.
//!
//! Limits: u = 2^-8 is the most that rounding to bf16 changes a number by, relatively. P is rounded where it meets V, dS
//! where it meets K and Q, out, dq, dk and dv are rounded as they are stored, and D is of the rounded out; all else is f32.
//! Each product is therefore off by at most u times the same product of absolute values, and so on: the reference
//! sums these up element by element.

use half::bf16;

use super::backward::Backward;
use super::forward::Forward;
use super::{Attention, AttentionSaved};
use crate::compute::cpu::element::Element;
use crate::compute::cpu::product::{Fma, Kernel, Work};
#[cfg(target_arch = "x86_64")]
use crate::compute::cpu::product::{amx, dot};
use crate::compute::cpu::testing::{on_thread_pools, random};

/// The most that rounding to bf16 changes a number by, relatively.
const UNIT: f64 = 1.0 / 256.0;
/// What f32 sums and second-order terms add to it.
const SLACK: f64 = 1.02;
const F32: f64 = 1e-5;

/// Runs a test with every kernel of this machine.
macro_rules! with_each_kernel {
    ($f:ident) => {
        $f(Fma);
        #[cfg(target_arch = "x86_64")]
        {
            if amx::available() {
                $f(amx::Amx);
            } else {
                eprintln!("SKIPPED bf16 attention in tiles: this machine has no AMX");
            }
            if dot::available() {
                $f(dot::Dot);
            } else {
                eprintln!("SKIPPED bf16 attention by dot products: this machine has no AVX-512 BF16");
            }
        }
    };
}

struct Case {
    segments: Vec<usize>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
}

fn cases() -> Vec<Case> {
    let case = |segments: &[usize], heads, kv_heads, head_dim, window| Case {
        segments: segments.to_vec(),
        heads,
        kv_heads,
        head_dim,
        window,
    };
    vec![
        case(&[0, 131, 132, 132, 197], 4, 2, 64, None),
        case(&[0, 33, 230], 3, 1, 64, Some(40)),
        case(&[0, 65], 2, 2, 128, None),
        case(&[0, 97], 2, 1, 80, Some(1)),
        case(&[0, 201, 300], 3, 1, 20, Some(64)),
        case(&[0, 1], 1, 1, 1, None),
    ]
}

struct Results<E> {
    out: Vec<E>,
    lse: Vec<f32>,
    dq: Vec<E>,
    dk: Vec<E>,
    dv: Vec<E>,
}

fn inputs<E: Element>(shape: &Attention) -> [Vec<E>; 4] {
    let rows = *shape.segments.last().unwrap();
    let of = |seed, heads| random(seed, rows * heads * shape.head_dim).into_iter().map(E::from_f32).collect();
    [of(1, shape.heads), of(2, shape.kv_heads), of(3, shape.kv_heads), of(4, shape.heads)]
}

fn run<K: Kernel, E: Element>(kernel: K, shape: &Attention, [q, k, v, dout]: &[Vec<E>; 4]) -> Results<E> {
    let nan = |n| vec![E::from_f32(f32::NAN); n];
    let mut all = Results {
        out: nan(q.len()),
        lse: vec![f32::NAN; q.len() / shape.head_dim],
        dq: nan(q.len()),
        dk: nan(k.len()),
        dv: nan(k.len()),
    };
    Forward { shape, q, k, v, out: &mut all.out, lse: &mut all.lse }.run(kernel);
    let saved = AttentionSaved { q, k, v, out: &all.out, lse: &all.lse };
    Backward { shape, saved, dout, dq: &mut all.dq, dk: &mut all.dk, dv: &mut all.dv }.run(kernel);
    all
}

fn wide<E: Element>(x: &[E]) -> Vec<f64> {
    x.iter().map(|x| f64::from(x.to_f32())).collect()
}

/// A result in f64, and the most that one in bf16 is off by.
#[derive(Clone)]
struct Exact {
    value: Vec<f64>,
    limit: Vec<f64>,
}

impl Exact {
    fn zeros(n: usize) -> Exact {
        Exact { value: vec![0.0; n], limit: vec![0.0; n] }
    }

    fn add(&mut self, at: usize, value: f64, limit: f64) {
        self.value[at] += value;
        self.limit[at] += limit;
    }

    fn check<E: Element>(&self, got: &[E], what: &str) {
        for (i, (got, (value, limit))) in wide(got).iter().zip(self.value.iter().zip(&self.limit)).enumerate() {
            let limit = SLACK * (limit + UNIT * value.abs()) + F32;
            assert!((got - value).abs() <= limit, "{what} {i}: {got}, expected {value} within {limit}");
        }
    }
}

/// out, lse, dq, dk, dv by their definition; of the limits, what rounding the results adds is left to the check.
fn reference(shape: &Attention, inputs: &[Vec<bf16>; 4]) -> ([Exact; 4], Vec<f64>) {
    let [q, k, v, dout] = inputs.each_ref().map(|x| wide(x));
    let Attention { heads, head_dim: hd, .. } = *shape;
    let scale = 1.0 / (hd as f64).sqrt();
    let (mut out, mut dq) = (Exact::zeros(q.len()), Exact::zeros(q.len()));
    let (mut dk, mut dv) = (Exact::zeros(k.len()), Exact::zeros(k.len()));
    let mut lse = vec![0.0; q.len() / hd];
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    for segment in shape.segments.windows(2) {
        for (row, head) in (segment[0]..segment[1]).flat_map(|row| (0..heads).map(move |head| (row, head))) {
            let from = segment[0].max((row + 1).saturating_sub(shape.window.unwrap_or(row + 1)));
            let at = (row * heads + head) * hd;
            let kv = |key: usize| (key * shape.kv_heads + head / shape.group()) * hd;
            let scores: Vec<f64> = (from..=row).map(|key| scale * dot(&q[at..at + hd], &k[kv(key)..][..hd])).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            lse[row * heads + head] = max + total.ln();
            let p: Vec<f64> = scores.iter().map(|s| (s - max).exp() / total).collect();
            for (key, p) in (from..=row).zip(&p) {
                for i in 0..hd {
                    let (v, dout) = (v[kv(key) + i], dout[at + i]);
                    out.add(at + i, p * v, UNIT * (p * v).abs());
                    dv.add(kv(key) + i, p * dout, UNIT * (p * dout).abs());
                }
            }
            let d = dot(&dout[at..at + hd], &out.value[at..at + hd]);
            let off = |i: usize| out.limit[at + i] + UNIT * out.value[at + i].abs();
            let d_limit: f64 = (0..hd).map(|i| dout[at + i].abs() * off(i)).sum();
            for (key, p) in (from..=row).zip(&p) {
                let ds = p * (dot(&dout[at..at + hd], &v[kv(key)..][..hd]) - d);
                let ds_limit = UNIT * ds.abs() + p * d_limit;
                for i in 0..hd {
                    let (q, k) = (scale * q[at + i], scale * k[kv(key) + i]);
                    dq.add(at + i, ds * k, ds_limit * k.abs());
                    dk.add(kv(key) + i, ds * q, ds_limit * q.abs());
                }
            }
        }
    }
    ([out, dq, dk, dv], lse)
}

fn within_its_rounding<K: Kernel>(kernel: K) {
    for case in cases() {
        let Case { ref segments, heads, kv_heads, head_dim, window } = case;
        let shape = Attention { segments, heads, kv_heads, head_dim, window };
        let inputs = inputs::<bf16>(&shape);
        let got = run(kernel, &shape, &inputs);
        let ([out, dq, dk, dv], lse) = reference(&shape, &inputs);
        for (got, exact) in got.lse.iter().zip(lse) {
            assert!((f64::from(*got) - exact).abs() <= 2e-6 * (1.0 + exact.abs()), "lse {got}, expected {exact}");
        }
        let what = |name: &str| format!("{shape:?} {} {name}", K::NAME);
        out.check(&got.out, &what("out"));
        dq.check(&got.dq, &what("dq"));
        dk.check(&got.dk, &what("dk"));
        dv.check(&got.dv, &what("dv"));
    }
}

#[test]
fn in_bf16_within_its_rounding() {
    with_each_kernel!(within_its_rounding);
}

/// Long enough for several parts in the backward pass, and one in the forward pass that is not whole.
fn same_bits<K: Kernel>(kernel: K) {
    for (heads, head_dim, window) in [(6, 16, None), (6, 8, Some(700))] {
        let segments = [0, 1301, 1302, 1333];
        let shape = Attention { segments: &segments, heads, kv_heads: 2, head_dim, window };
        let inputs = inputs::<bf16>(&shape);
        on_thread_pools(|| {
            let all = run(kernel, &shape, &inputs);
            let results = [all.out, all.dq, all.dk, all.dv].concat().into_iter().map(Element::to_f32);
            results.chain(all.lse).collect()
        });
    }
}

#[test]
fn same_bits_for_every_pool() {
    with_each_kernel!(same_bits);
}
