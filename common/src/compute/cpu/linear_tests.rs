//! The linear against its definition in f64, for every stored form, both types, shapes that divide nothing.

use half::bf16;

use super::Cpu;
use super::aligned::Aligned;
use super::element::Element;
use super::testing::{on_thread_pools, random};
use crate::compute::backend::{Backend, Branch, Codes, Gradients, LowRank, Output, Weight};
use crate::format::tensor::{Dtype, Tensor};
use crate::quant::{Phi, Scheme, grid};

struct Case {
    scheme: Scheme,
    stored: Phi,
    n: usize,
    k: usize,
    rank: usize,
    rows: usize,
    phi: Tensor,
    scale: Vec<f32>,
    zero: Option<Vec<f32>>,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Case {
    fn new(word: &str, stored: Phi, [n, k, rank, rows]: [usize; 4]) -> Case {
        let scheme: Scheme = word.parse().unwrap();
        let groups = scheme.groups(k);
        let row_bytes = stored.row_bytes(scheme, k);
        let mut phi = vec![0; n * row_bytes];
        let reach = scheme.qmax() + 1.0; // past the grid, so that some are clipped
        let real: Vec<f32> = random(1, n * k).iter().map(|x| x / 2.0 * reach).collect();
        for (x, phi) in real.chunks(k).zip(phi.chunks_mut(row_bytes)) {
            stored.pack_row(scheme, x, phi);
        }
        let a = random(2, n * rank).iter().map(|x| x / 4.0).collect();
        Case {
            scheme,
            stored,
            n,
            k,
            rank,
            rows,
            phi: Tensor::owned(phi, Dtype::U8, vec![n, row_bytes]),
            scale: random(3, n * groups).iter().map(|x| 0.02 + x.abs() / 50.0).collect(),
            zero: scheme.has_zero_points().then(|| (0..n * groups).map(|i| (i % 3) as f32 - 1.0).collect()),
            a,
            b: random(4, rank * k),
        }
    }

    fn weight<'a, E: Element>(
        &'a self,
        scale: &'a Aligned<f32>,
        zero: Option<&'a Aligned<f32>>,
        a: &'a Aligned<f32>,
        b: &'a Aligned<f32>,
        integers: Option<&'a Aligned<i8>>,
    ) -> Weight<'a, Cpu<E>> {
        Weight::LowRank(LowRank {
            phi: &self.phi,
            stored: self.stored,
            scheme: self.scheme,
            scale,
            zero,
            integers,
            a,
            b,
            rank: self.rank,
            factor: self.factor(),
            n: self.n,
            k: self.k,
        })
    }

    fn factor(&self) -> f32 {
        1.0 / self.rank as f32
    }

    /// Z by the definition of the design: one chain of fused multiply-adds.
    fn z(&self, n: usize, k: usize) -> f32 {
        let mut row = vec![0.0; self.k];
        let row_bytes = self.stored.row_bytes(self.scheme, self.k);
        self.stored.unpack_row(self.scheme, &self.phi.bytes()[n * row_bytes..(n + 1) * row_bytes], &mut row);
        let c = (0..self.rank).fold(0f32, |c, i| self.a[n * self.rank + i].mul_add(self.b[i * self.k + k], c));
        self.factor().mul_add(c, row[k])
    }

    fn group(&self, n: usize, k: usize) -> usize {
        let groups = self.scheme.groups(self.k);
        n * groups + k * groups / self.k
    }

    fn zero_at(&self, at: usize) -> f32 {
        self.zero.as_ref().map_or(0.0, |zero| zero[at])
    }
}

/// What the definition gives, and what the backend gives.
struct Values<T> {
    y: Vec<T>,
    dx: Vec<T>,
    ds: Vec<T>,
    da: Vec<T>,
    db: Vec<T>,
    /// Of Z itself.
    dz: Vec<T>,
}

fn definition<E: Element>(c: &Case, x: &[E], dy: &[E]) -> Values<f64> {
    let (n, k, r, rows) = (c.n, c.k, c.rank, c.rows);
    let (qmin, qmax) = (c.scheme.qmin(), c.scheme.qmax());
    let factor = f64::from(c.factor());
    let mut v = Values {
        y: vec![0.0; rows * n],
        dx: vec![0.0; rows * k],
        ds: vec![0.0; c.scale.len()],
        da: vec![0.0; n * r],
        db: vec![0.0; r * k],
        dz: vec![0.0; n * k],
    };
    for i in 0..n {
        for j in 0..k {
            let (z, at) = (c.z(i, j), c.group(i, j));
            let (s, zero) = (grid::forward_scale(c.scale[at]), c.zero_at(at));
            let code = z.round_ties_even().clamp(qmin, qmax);
            let w = f64::from(E::from_f32(s * (code - zero)).to_f32());
            let mut dw = 0.0;
            for row in 0..rows {
                let (x, dy) = (f64::from(x[row * k + j].to_f32()), f64::from(dy[row * n + i].to_f32()));
                v.y[row * n + i] += x * w;
                v.dx[row * k + j] += dy * w;
                dw += x * dy;
            }
            v.ds[at] += dw * f64::from(code - zero);
            let dz = if z.round_ties_even() == code { dw * f64::from(s) } else { 0.0 };
            v.dz[i * k + j] = dz;
            for rank in 0..r {
                v.da[i * r + rank] += factor * dz * f64::from(c.b[rank * k + j]);
                v.db[rank * k + j] += factor * f64::from(c.a[i * r + rank]) * dz;
            }
        }
    }
    v
}

/// y is added to ones, dx set; gradients are added to ones.
fn computed<E: Element>(c: &Case, x: &[E], dy: &[E], keep: bool) -> Values<f32> {
    let cpu = Cpu::<E>::new();
    let up = |values: &[f32]| cpu.upload(values).unwrap();
    let (scale, zero, a, b) = (up(&c.scale), c.zero.as_deref().map(up), up(&c.a), up(&c.b));
    let low = |integers| c.weight(&scale, zero.as_ref(), &a, &b, integers);
    let mut integers = cpu.integers(c.n * c.k).unwrap();
    cpu.round_weight(&low(None), &mut integers);
    let w = low(keep.then_some(&integers));
    let (x, dy) = (Aligned::of(x).unwrap(), Aligned::of(dy).unwrap());
    let ones = |len: usize| up(&vec![1.0; len]);
    let mut y = ones(c.rows * c.n);
    cpu.linear_forward(&x, c.rows, &w, Output::add(&mut y));
    let mut dx = cpu.activation(c.rows * c.k).unwrap();
    // Twice, on a workspace as it was left: nothing of the first pass may show in the second.
    let (mut ds, mut da, mut db) = (ones(0), ones(0), ones(0));
    for _ in 0..2 {
        (ds, da, db) = (ones(c.scale.len()), ones(c.a.len()), ones(c.b.len()));
        let grads = Some(Gradients { scale: Some(&mut ds), factors: Some([&mut da, &mut db]), latent: None });
        let branch = Branch { weight: low(keep.then_some(&integers)), dy: &dy, grads };
        cpu.linears_backward(&x, c.rows, [branch], Output::Activation(&mut dx));
    }
    // The same Z, learned weight by weight: beside its integers the backward pass reads nothing.
    let (mut spare, mut dz) = (ones(c.scale.len()), ones(c.n * c.k));
    if keep && c.scheme.bits < 8 {
        let weight = Weight::Codes(Codes {
            codes: &Tensor::owned(Vec::new(), Dtype::I32, vec![0]),
            scheme: c.scheme,
            scale: &scale,
            master: true,
            zero: zero.as_ref(),
            integers: Some(&integers),
            adapter: None,
            n: c.n,
            k: c.k,
        });
        let grads = Some(Gradients { scale: Some(&mut spare), factors: None, latent: Some(&mut dz) });
        let mut again = cpu.activation(c.rows * c.k).unwrap();
        let branch = Branch { weight, dy: &dy, grads };
        cpu.linears_backward(&x, c.rows, [branch], Output::Activation(&mut again));
        let bits = |values: &[E]| values.iter().map(|x| x.to_f32().to_bits()).collect::<Vec<u32>>();
        assert!(bits(&again) == bits(&dx) && spare[..] == ds[..]);
    }
    Values {
        y: y.to_vec(),
        dx: dx.iter().map(|x| x.to_f32()).collect(),
        ds: ds.to_vec(),
        da: da.to_vec(),
        db: db.to_vec(),
        dz: dz.to_vec(),
    }
}

/// The largest error beside the root mean square of what is expected.
fn error(got: &[f32], want: &[f64], added: f64) -> f64 {
    let size = (want.iter().map(|x| x * x).sum::<f64>() / want.len() as f64).sqrt();
    let worst = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want - added).abs()).fold(0.0, f64::max);
    worst / size
}

fn check<E: Element>(limits: [f64; 3]) {
    let cases = [
        ("w4pc", Phi::Q, [70, 100, 32, 50]),
        ("w4pc", Phi::Int, [33, 64, 5, 7]),
        ("w3g16z", Phi::Q, [40, 144, 32, 65]),
        ("w2g48", Phi::Bf16, [31, 96, 40, 33]),
        ("w8pc", Phi::F32, [64, 70, 8, 40]),
        ("w5g64z", Phi::Q, [100, 128, 64, 20]),
    ];
    for (word, stored, shape) in cases {
        let c = Case::new(word, stored, shape);
        let narrow = |seed, len| random(seed, len).into_iter().map(E::from_f32).collect::<Vec<E>>();
        let (x, dy) = (narrow(5, c.rows * c.k), narrow(6, c.rows * c.n));
        let want = definition(&c, &x, &dy);
        let got = computed(&c, &x, &dy, false);
        let [product, rounded, gradient] = limits;
        let errors = [
            ("y", error(&got.y, &want.y, 1.0), product),
            ("dx", error(&got.dx, &want.dx, 0.0), rounded),
            ("ds", error(&got.ds, &want.ds, 1.0), product),
            ("dA", error(&got.da, &want.da, 1.0), gradient),
            ("dB", error(&got.db, &want.db, 1.0), gradient),
        ];
        for (what, error, limit) in errors {
            assert!(error <= limit, "{word} φ {stored} {shape:?}: {what} is off by {error:.1e}");
        }
        let kept = computed(&c, &x, &dy, true);
        if c.scheme.bits < 8 {
            let off = error(&kept.dz, &want.dz, 1.0);
            assert!(off <= product, "{word} φ {stored} {shape:?}: dZ is off by {off:.1e}");
        }
        let bits = |v: &Values<f32>| {
            let all = [&v.y, &v.dx, &v.ds, &v.da, &v.db];
            all.into_iter().flatten().map(|x| x.to_bits()).collect::<Vec<u32>>()
        };
        assert!(bits(&kept) == bits(&got), "{word} φ {stored}: kept integers change the result");
        on_thread_pools(|| {
            let v = computed(&c, &x, &dy, true);
            [v.y, v.dx, v.ds, v.da, v.db, v.dz].concat()
        });
    }
}

/// Sums of some hundred products in f32: 2^-24 of each partial sum, which are larger than what remains of them.
#[test]
fn f32_is_the_definition() {
    check::<f32>([1e-5, 1e-5, 4e-5]);
}

/// The definition has the same bf16 operands; on top of f32 sums, dx is rounded to bf16 (2^-9 of an element of up to
/// five times the mean), and dA and dB are products of dZ, A and B rounded to bf16 (2^-9 each, of rows as large).
#[test]
fn bf16_is_the_definition_of_rounded_operands() {
    check::<bf16>([2e-5, 1.5e-2, 2e-2]);
}

/// Two linears of one input, once together and once one by one; SwiGLU on top, against its formula in f64. A stored value
/// is rounded by `unit` at most.
fn together<E: Element>(n: [usize; 2], k: usize, rows: usize, unit: f64) {
    let cpu = Cpu::<E>::new();
    let up = |values: &[f32]| cpu.upload(values).unwrap();
    let narrow = |values: &[f32]| Aligned::of(&values.iter().map(|x| E::from_f32(*x)).collect::<Vec<E>>()).unwrap();
    let cases = n.map(|n| Case::new("w4pc", Phi::Q, [n, k, 5, rows]));
    let tensors = cases.each_ref().map(|c| [up(&c.scale), up(&c.a), up(&c.b)]);
    let weight = |i: usize| cases[i].weight(&tensors[i][0], None, &tensors[i][1], &tensors[i][2], None);
    let x = narrow(&random(5, rows * k));
    let zeros = |len: usize| cpu.zeros(len).unwrap();

    let mut apart = n.map(|n| zeros(rows * n));
    for (i, y) in apart.iter_mut().enumerate() {
        cpu.linear_forward(&x, rows, &weight(i), Output::set(y));
    }
    let mut both = n.map(|n| cpu.activation(rows * n).unwrap());
    cpu.linears_forward(&x, rows, [weight(0), weight(1)], both.each_mut());
    for (both, apart) in both.iter().zip(&apart) {
        assert!(both.iter().zip(&apart[..]).all(|(x, y)| x.to_f32() == E::from_f32(*y).to_f32()));
    }

    let dy = n.map(|n| narrow(&random(6, rows * n)));
    let mut sum = zeros(rows * k);
    for (i, dy) in dy.iter().enumerate() {
        let branch = Branch { weight: weight(i), dy, grads: None };
        cpu.linears_backward(&x, rows, [branch], Output::add(&mut sum));
    }
    let mut grads = tensors.each_ref().map(|of| of.each_ref().map(|of| zeros(of.len())));
    let [first, second] = &mut grads;
    let mut branches = Vec::new();
    for (i, [scale, a, b]) in [first, second].into_iter().enumerate() {
        branches.push(Branch {
            weight: weight(i),
            dy: &dy[i],
            grads: Some(Gradients { scale: Some(scale), factors: Some([a, b]), latent: None }),
        });
    }
    let branches: [Branch<Cpu<E>>; 2] = branches.try_into().ok().unwrap();
    let mut dx = up(&vec![7.0; rows * k]);
    cpu.linears_backward(&x, rows, branches, Output::set(&mut dx));
    assert_eq!(dx[..], sum[..]);
    for (i, together) in grads.iter().enumerate() {
        let mut alone = tensors[i].each_ref().map(|of| zeros(of.len()));
        let [scale, a, b] = &mut alone;
        let branch = Branch {
            weight: weight(i),
            dy: &dy[i],
            grads: Some(Gradients { scale: Some(scale), factors: Some([a, b]), latent: None }),
        };
        cpu.linears_backward(&x, rows, [branch], Output::set(&mut dx));
        for (together, alone) in together.iter().zip(&alone) {
            assert_eq!(together[..], alone[..]);
        }
    }

    if n[0] == n[1] {
        let mut kept = [0, 1].map(|_| cpu.activation(rows * n[0]).unwrap());
        let mut out = [0, 1].map(|_| cpu.activation(rows * n[0]).unwrap());
        cpu.swiglu_forward(&x, rows, [weight(0), weight(1)], Some(kept.each_mut()), &mut out[0]);
        cpu.swiglu_forward(&x, rows, [weight(0), weight(1)], None, &mut out[1]);
        let mut again = cpu.activation(rows * n[0]).unwrap();
        cpu.swiglu(&kept[0], &kept[1], &mut again, rows * n[0]);
        for (at, (gate, up)) in kept[0].iter().zip(&kept[1][..]).enumerate() {
            let (gate, up) = (gate.to_f32(), up.to_f32());
            let exact = f64::from(gate) / (1.0 + (-f64::from(gate)).exp()) * f64::from(up);
            let error = (f64::from(out[0][at].to_f32()) - exact).abs();
            assert!(error <= (5e-7 + unit) * exact.abs(), "{at}: {gate} {up}");
            assert_eq!(out[0][at].to_f32(), out[1][at].to_f32());
            assert_eq!(out[0][at].to_f32(), again[at].to_f32());
        }
        for (kept, apart) in kept.iter().zip(&apart) {
            assert!(kept.iter().zip(&apart[..]).all(|(x, y)| x.to_f32() == E::from_f32(*y).to_f32()));
        }
    }
}

/// Backward through a down projection and SwiGLU: dout by the linear, then the formula in f64.
fn through_swiglu<E: Element>(n: usize, k: usize, rows: usize, unit: f64) {
    let cpu = Cpu::<E>::new();
    let up = |values: &[f32]| cpu.upload(values).unwrap();
    let narrow = |values: &[f32]| Aligned::of(&values.iter().map(|x| E::from_f32(*x)).collect::<Vec<E>>()).unwrap();
    let c = Case::new("w3pc", Phi::Q, [n, k, 4, rows]);
    let (scale, a, b) = (up(&c.scale), up(&c.a), up(&c.b));
    let weight = || c.weight(&scale, None, &a, &b, None);
    let (inner, dy) = (narrow(&random(7, rows * k)), narrow(&random(8, rows * n)));
    let (mut gate, mut up_) = (narrow(&random(9, rows * k)), narrow(&random(10, rows * k)));
    let (mut alone, mut together) = ([0; 2].map(|_| up(&vec![0.0; n * 4])), [0; 2].map(|_| up(&vec![0.0; 4 * k])));
    let mut ds = [0; 2].map(|_| up(&vec![0.0; n]));
    let (mut dout, before) = (up(&vec![0.0; rows * k]), (gate.to_vec(), up_.to_vec()));
    let grads =
        Some(Gradients { scale: Some(&mut ds[0]), factors: Some([&mut alone[0], &mut together[0]]), latent: None });
    cpu.linears_backward(&inner, rows, [Branch { weight: weight(), dy: &dy, grads }], Output::set(&mut dout));
    let grads =
        Some(Gradients { scale: Some(&mut ds[1]), factors: Some([&mut alone[1], &mut together[1]]), latent: None });
    cpu.swiglu_backward(&inner, rows, Branch { weight: weight(), dy: &dy, grads }, &mut gate, &mut up_);
    assert_eq!((&ds[0][..], &alone[0][..], &together[0][..]), (&ds[1][..], &alone[1][..], &together[1][..]));
    for at in 0..rows * k {
        let (g, u, dout) = (f64::from(before.0[at].to_f32()), f64::from(before.1[at].to_f32()), f64::from(dout[at]));
        let s = 1.0 / (1.0 + (-g).exp());
        for (got, exact) in [(gate[at], dout * u * s * (1.0 + g * (1.0 - s))), (up_[at], dout * g * s)] {
            // The slope cancels near its root.
            let limit = 1e-6 * (dout * (u.abs() + g.abs())).abs() + unit * exact.abs();
            assert!((f64::from(got.to_f32()) - exact).abs() <= limit, "{at}: {g} {u} {dout}");
        }
    }
}

#[test]
fn linears_of_one_input() {
    // Of the last ones k, or n as the k of the backward pass, is more than a block of B.
    let shapes = [([64, 32], 96, 40), ([7, 70], 33, 5), ([70, 70], 64, 33), ([96, 96], 608, 64)];
    for (n, k, rows) in shapes.into_iter().chain([([40, 40], 2100, 40), ([2100, 64], 40, 33)]) {
        together::<f32>(n, k, rows, 0.0);
        together::<bf16>(n, k, rows, 1.0 / 256.0);
        through_swiglu::<f32>(n[0], k, rows, 0.0);
        through_swiglu::<bf16>(n[0], k, rows, 1.0 / 256.0);
    }
}
