//! Adapters against PyTorch's autograd (tests/data/make_adapter.py), and the ops that are fused against those that are not.

use std::path::Path;

use half::bf16;

use super::Cpu;
use super::element::Element;
use super::testing::{Adapted, on_thread_pools, random};
use crate::compute::backend::{Backend, Branch, Dropout, Gradients, Output};
use crate::format::safetensors::TensorFile;

struct Golden(TensorFile);

impl Golden {
    fn open() -> Golden {
        let path = format!("{}/../tests/data/adapter.safetensors", env!("CARGO_MANIFEST_DIR"));
        Golden(TensorFile::open(Path::new(&path)).unwrap())
    }

    fn get(&self, name: &str) -> Vec<f32> {
        self.0.get(name).unwrap_or_else(|| panic!("no {name}")).to_f32()
    }

    fn number(&self, key: &str) -> f32 {
        self.0.metadata(key).unwrap().parse().unwrap()
    }

    fn dropout(&self) -> Dropout {
        let key: Vec<u32> = self.0.metadata("key").unwrap().split(' ').map(|word| word.parse().unwrap()).collect();
        let p = self.number("p");
        Dropout { key: [key[0], key[1]], threshold: (p * 2f32.powi(32)) as u32, scale: 1.0 / (1.0 - p) }
    }
}

/// The largest error beside the root mean square of what is expected.
fn error(got: &[f32], want: &[f32], added: f32) -> f64 {
    assert_eq!(got.len(), want.len());
    let size = (want.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / want.len() as f64).sqrt();
    got.iter().zip(want).map(|(got, want)| f64::from((got - added - want).abs())).fold(0.0, f64::max) / size
}

/// y, dx, ds, dA and dB; all but the gradient dx are added to ones.
fn computed<E: Element>(golden: &Golden, dropout: Option<Dropout>, kept: bool, scales: bool) -> [Vec<f32>; 5] {
    let cpu = Cpu::<E>::new();
    let up = |values: &[f32]| cpu.upload(values).unwrap();
    let narrow = |name: &str| {
        let values = golden.get(name);
        let mut to = cpu.activation(values.len()).unwrap();
        cpu.round(&up(&values), &mut to, values.len());
        to
    };
    let (x, dy, zero) = (narrow("x"), narrow("dy"), golden.get("zero"));
    let (scale, a, b) = (golden.get("scale"), golden.get("a"), golden.get("b"));
    let (n, k, rank) = (40, 96, 5);
    let rows = x.len() / k;
    let linear = Adapted::new(
        &cpu,
        "w3g32z".parse().unwrap(),
        [n, k, rank],
        &golden.get("integers"),
        [&scale, &a, &b],
        Some(&zero),
        golden.number("factor"),
    );
    let ones = |len: usize| up(&vec![1.0; len]);
    let mut y = ones(rows * n);
    cpu.linear_forward(&x, rows, &linear.weight(dropout, kept), Output::add(&mut y));
    let mut dx = ones(rows * k);
    let (mut ds, mut da, mut db) = (ones(0), ones(0), ones(0));
    // Twice, on a workspace as it was left.
    for _ in 0..2 {
        (ds, da, db) = (ones(scale.len()), ones(a.len()), ones(b.len()));
        let grads = Gradients { scale: scales.then_some(&mut ds), factors: Some([&mut da, &mut db]), latent: None };
        let branch = Branch { weight: linear.weight(dropout, kept), dy: &dy, grads: Some(grads) };
        cpu.linears_backward(&x, rows, [branch], Output::set(&mut dx));
    }
    [y, dx, ds, da, db].map(|of| of.to_vec())
}

fn against_autograd<E: Element>(limit: f64) {
    let golden = Golden::open();
    for (case, dropout) in [("plain", None), ("dropped", Some(golden.dropout()))] {
        let got = computed::<E>(&golden, dropout, false, true);
        for (i, name) in ["y", "dx", "dscale", "da", "db"].into_iter().enumerate() {
            let off = error(&got[i], &golden.get(&format!("{case}.{name}")), if i == 1 { 0.0 } else { 1.0 });
            assert!(off <= limit, "{case} {name} is off by {off:.1e}");
        }
        assert!(got == computed::<E>(&golden, dropout, true, true), "{case}: kept integers change the result");
        let frozen = computed::<E>(&golden, dropout, false, false);
        assert!(frozen[2].iter().all(|ds| *ds == 1.0) && frozen[3..] == got[3..] && frozen[..2] == got[..2]);
        on_thread_pools(|| computed::<E>(&golden, dropout, false, true).concat());
    }
}

/// Sums of some hundred products in f32.
#[test]
fn f32_is_autograds() {
    against_autograd::<f32>(1e-5);
}

/// h, dh and what is dropped from are rounded to bf16, and so is Ŵ: 2^-9 each of values up to five times the mean.
#[test]
fn bf16_is_autograds_of_rounded_operands() {
    against_autograd::<bf16>(2e-2);
}

/// Several linears of one input at once, and SwiGLU at the end of a product, against one linear at a time.
fn fused<E: Element + PartialEq>(n: usize, k: usize, rank: usize, rows: usize, dropout: Option<Dropout>) {
    let cpu = Cpu::<E>::new();
    let narrow = |seed: u64, len: usize| {
        let mut to = cpu.activation(len).unwrap();
        cpu.round(&cpu.upload(&random(seed, len)).unwrap(), &mut to, len);
        to
    };
    let (one, two) = (Adapted::random(&cpu, "w4pc", [n, k, rank], 1), Adapted::random(&cpu, "w2pc", [n, k, rank], 11));
    let weights = || [one.weight(dropout, true), two.weight(dropout, true)];
    let x = narrow(5, rows * k);
    let single = weights().map(|w| {
        let mut y = cpu.activation(rows * n).unwrap();
        cpu.linear_forward(&x, rows, &w, Output::Activation(&mut y));
        y
    });
    let mut both = [0, 1].map(|_| cpu.activation(rows * n).unwrap());
    cpu.linears_forward(&x, rows, weights(), both.each_mut());
    let mut kept = [0, 1].map(|_| cpu.activation(rows * n).unwrap());
    let mut out = cpu.activation(rows * n).unwrap();
    cpu.swiglu_forward(&x, rows, weights(), Some(kept.each_mut()), &mut out);
    for i in 0..2 {
        assert!(single[i][..] == both[i][..] && single[i][..] == kept[i][..]);
    }

    // Backwards: the sum of two branches; and through SwiGLU, whose formula the tests of the linear hold, with dout as a
    // linear alone gives it.
    let dy = [narrow(6, rows * n), narrow(7, rows * n)];
    let mut sum = cpu.zeros(rows * k).unwrap();
    for (weight, dy) in weights().into_iter().zip(&dy) {
        cpu.linears_backward(&x, rows, [Branch { weight, dy, grads: None }], Output::add(&mut sum));
    }
    let mut dx = cpu.upload(&vec![7.0; rows * k]).unwrap();
    let [w0, w1] = weights();
    let branches = [Branch { weight: w0, dy: &dy[0], grads: None }, Branch { weight: w1, dy: &dy[1], grads: None }];
    cpu.linears_backward(&x, rows, branches, Output::set(&mut dx));
    assert!(dx[..] == sum[..]);

    let mut dout = cpu.zeros(rows * k).unwrap();
    let branch = |grads| Branch { weight: one.weight(dropout, true), dy: &dy[0], grads };
    let gradients = || [cpu.zeros(n * rank).unwrap(), cpu.zeros(rank * k).unwrap()];
    let ([mut a0, mut b0], [mut a1, mut b1]) = (gradients(), gradients());
    let grads = Gradients { scale: None, factors: Some([&mut a0, &mut b0]), latent: None };
    cpu.linears_backward(&x, rows, [branch(Some(grads))], Output::set(&mut dout));
    let (mut gate, mut up) = (narrow(8, rows * k), narrow(9, rows * k));
    let g: Vec<f64> = gate.iter().map(|g| f64::from(g.to_f32())).collect();
    let grads = Gradients { scale: None, factors: Some([&mut a1, &mut b1]), latent: None };
    cpu.swiglu_backward(&x, rows, branch(Some(grads)), &mut gate, &mut up);
    assert!(a0[..] == a1[..] && b0[..] == b1[..]);
    for ((up, g), dout) in up.iter().zip(g).zip(&dout[..]) {
        let want = f64::from(*dout) * g / (1.0 + (-g).exp());
        assert!((f64::from(up.to_f32()) - want).abs() <= 1e-6 + want.abs() / 128.0, "{} {want}", up.to_f32());
    }
}

#[test]
fn fused_ops_add_the_adapter_too() {
    for dropout in [None, Some(Golden::open().dropout())] {
        for (n, k, rank, rows) in [(70, 100, 5, 50), (64, 96, 32, 33), (40, 2100, 40, 9)] {
            fused::<f32>(n, k, rank, rows, dropout);
            fused::<bf16>(n, k, rank, rows, dropout);
        }
    }
}
