//! The ops that take one element at a time: SwiGLU (Shazeer, 2020), and changes of type.

use rayon::prelude::*;

use super::PART;
use super::element::Element;
use super::simd::{exp, simd};

/// out = silu(gate)∘up, silu(x) = x·σ(x)
pub fn swiglu_forward<E: Element>(gate: &[E], up: &[E], out: &mut [E]) {
    assert!(gate.len() == up.len() && gate.len() == out.len(), "swiglu: shapes");
    out.par_chunks_mut(PART).zip(gate.par_chunks(PART)).zip(up.par_chunks(PART)).for_each(|((out, gate), up)| {
        simd(
            #[inline(always)]
            || {
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = E::from_f32(swiglu(gate.to_f32(), up.to_f32()));
                }
            },
        )
    });
}

/// In place: `gate` becomes dgate = dout∘up∘silu'(gate), `up` becomes dup = dout∘silu(gate).
pub fn swiglu_backward<E: Element>(gate: &mut [E], up: &mut [E], dout: &[E]) {
    assert!(gate.len() == up.len() && gate.len() == dout.len(), "swiglu: shapes");
    gate.par_chunks_mut(PART).zip(up.par_chunks_mut(PART)).zip(dout.par_chunks(PART)).for_each(|((gate, up), dout)| {
        simd(
            #[inline(always)]
            || {
                for ((gate, up), dout) in gate.iter_mut().zip(up).zip(dout) {
                    let (dgate, dup) = swiglu_gradient(gate.to_f32(), up.to_f32(), dout.to_f32());
                    (*gate, *up) = (E::from_f32(dgate), E::from_f32(dup));
                }
            },
        )
    });
}

#[inline(always)]
fn swiglu(gate: f32, up: f32) -> f32 {
    gate * sigmoid(gate) * up
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// y = x, rounded to the type of activations
pub fn round<E: Element>(x: &[f32], y: &mut [E]) {
    each(x, y, E::from_f32);
}

/// y = x in f32
pub fn widen<E: Element>(x: &[E], y: &mut [f32]) {
    each(x, y, E::to_f32);
}

pub fn fill_zero(x: &mut [f32]) {
    x.par_chunks_mut(PART).for_each(|x| x.fill(0.0));
}

#[inline(always)]
fn each<A: Element, B: Element>(x: &[A], y: &mut [B], f: impl Fn(A) -> B + Sync) {
    assert!(x.len() == y.len(), "conversion: shapes");
    y.par_chunks_mut(PART).zip(x.par_chunks(PART)).for_each(|(y, x)| {
        simd(
            #[inline(always)]
            || {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = f(*x);
                }
            },
        )
    });
}

/// silu'(x) = σ(x)·(1 + x·(1 - σ(x)))
#[inline(always)]
fn swiglu_gradient(gate: f32, up: f32, dout: f32) -> (f32, f32) {
    let s = sigmoid(gate);
    let slope = s * gate.mul_add(1.0 - s, 1.0);
    (dout * up * slope, dout * (gate * s))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::{
        assert_close, check_gradient, fixture, in_both, narrow, on_every_isa, on_thread_pools, random,
    };
    use half::bf16;

    #[test]
    fn as_pytorch() {
        let t = |part: &str| fixture(&format!("swiglu.{part}"));
        let (gate, up, dout) = (t("gate"), t("up"), t("dout"));
        let mut out = vec![0.0; gate.len()];
        swiglu_forward(&gate, &up, &mut out);
        assert_close(&out, &t("out"), 1e-6);
        let (mut dgate, mut dup) = (gate, up);
        swiglu_backward(&mut dgate, &mut dup, &dout);
        assert_close(&dgate, &t("dgate"), 1e-6);
        assert_close(&dup, &t("dup"), 1e-6);
    }

    #[test]
    fn gradient_by_finite_differences() {
        let n = 50;
        let (gate, up, dout) = (random(1, n), random(2, n), random(3, n));
        let (mut dgate, mut dup) = (gate.clone(), up.clone());
        swiglu_backward(&mut dgate, &mut dup, &dout);
        let silu = |x: f64| x / (1.0 + (-x).exp());
        check_gradient(&gate, &dgate, 1e-5, |gate| {
            (0..n).map(|i| silu(gate[i]) * f64::from(up[i]) * f64::from(dout[i])).sum()
        });
        check_gradient(&up, &dup, 1e-5, |up| {
            (0..n).map(|i| silu(f64::from(gate[i])) * up[i] * f64::from(dout[i])).sum()
        });
    }

    #[test]
    fn in_bf16_as_in_f32_rounded_once() {
        let n = 3 * PART + 5;
        let [gate, up, dout] = [1, 2, 3].map(|seed| in_both(&random(seed, n)));
        let (mut out, mut exact) = (vec![bf16::NAN; n], vec![f32::NAN; n]);
        swiglu_forward(&gate.0, &up.0, &mut out);
        swiglu_forward(&gate.1, &up.1, &mut exact);
        assert_eq!(out, narrow(&exact));
        let (mut dgate, mut dup, mut exact_dgate, mut exact_dup) = (gate.0, up.0, gate.1, up.1);
        swiglu_backward(&mut dgate, &mut dup, &dout.0);
        swiglu_backward(&mut exact_dgate, &mut exact_dup, &dout.1);
        assert_eq!((dgate, dup), (narrow(&exact_dgate), narrow(&exact_dup)));
    }

    #[test]
    fn changes_of_type() {
        let x = random(4, 2 * PART + 77);
        let (rounded, wide) = in_both(&x);
        let (mut y, mut back) = (vec![bf16::NAN; x.len()], vec![f32::NAN; x.len()]);
        round(&x, &mut y);
        widen(&y, &mut back);
        assert_eq!((y, back), (rounded, wide));
        let mut same = vec![f32::NAN; x.len()];
        round(&x, &mut same);
        assert_eq!(same, x);
        fill_zero(&mut same);
        assert!(same.iter().all(|x| *x == 0.0));
    }

    #[test]
    fn saturated_gates_stay_finite() {
        let gate = [-1e30, -200.0, -90.0, 90.0, 200.0, 1e30];
        let mut out = [0.0; 6];
        swiglu_forward(&gate, &[1.0; 6], &mut out);
        assert_eq!(out[0], 0.0);
        assert_eq!(out[1], 0.0);
        assert_eq!(out[3..], [90.0, 200.0, 1e30]);
        let mut dgate = gate;
        swiglu_backward(&mut dgate, &mut [1.0; 6], &[1.0; 6]);
        assert_eq!(dgate[3..], [1.0; 3]);
        assert!(dgate[..3].iter().all(|x| x.abs() < 1e-30), "{dgate:?}");
    }

    #[test]
    fn same_bits_for_every_pool_and_instruction_set() {
        let n = 100_001;
        let (gate, up, dout) = (random(1, n), random(2, n), random(3, n));
        on_thread_pools(|| {
            let (mut out, mut dgate, mut dup) = (vec![0.0; n], gate.clone(), up.clone());
            swiglu_forward(&gate, &up, &mut out);
            swiglu_backward(&mut dgate, &mut dup, &dout);
            [out, dgate, dup].concat()
        });
        on_every_isa(|| (0..999).map(|i| swiglu_gradient(gate[i], up[i], dout[i]).0).collect());
    }
}
