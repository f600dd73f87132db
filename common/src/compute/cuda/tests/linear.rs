//! Linears of every stored form, with SwiGLU: products, gradients, and integers to the bit.

use gpu_emulator::Device;

use super::{Case, Cuda, compare, devices, narrow, random, wide};
use crate::compute::backend::{Backend, Branch, Codes, Gradients, LowRank, Output, Weight};
use crate::format::tensor::{Dtype, Tensor};
use crate::quant::{Factors, Phi, Rounding, Scheme, grid, pack};

/// A low-rank weight on the host.
struct Host {
    scheme: Scheme,
    stored: Phi,
    phi: Tensor,
    rank: usize,
    alpha: f32,
    scale: Vec<f32>,
    zero: Option<Vec<f32>>,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Host {
    fn factor(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// The integers as `fold` makes them, packed, and the scales of the forward pass.
    fn fold(&self, n: usize, k: usize) -> (Tensor, Vec<f32>) {
        let (scheme, phi, stored, rank, factor) =
            (self.scheme, self.phi.bytes(), self.stored, self.rank, self.factor());
        let rounding = Rounding::new(Factors { scheme, phi, stored, a: &self.a, b: &self.b, rank, factor, k });
        let mut codes = vec![0; n * k];
        rounding.rows(0, &mut codes);
        let words = pack::words(k, scheme.bits);
        let mut packed = vec![0u32; n * words];
        for (codes, packed) in codes.chunks(k).zip(packed.chunks_mut(words)) {
            pack::pack(codes, scheme.bits, packed);
        }
        let bytes = packed.iter().flat_map(|word| word.to_le_bytes()).collect();
        let scale = self.scale.iter().map(|scale| grid::forward_scale(*scale)).collect();
        (Tensor::owned(bytes, Dtype::I32, vec![n, words]), scale)
    }
}

/// Some of its Z lie beyond the grid.
fn host(word: &str, stored: Phi, [n, k, rank]: [usize; 3], seed: u64) -> Host {
    let scheme: Scheme = word.parse().unwrap();
    let (groups, row_bytes) = (scheme.groups(k), stored.row_bytes(scheme, k));
    let mut phi = vec![0; n * row_bytes];
    let real: Vec<f32> = random(seed, n * k).iter().map(|x| x / 2.0 * (scheme.qmax() + 1.0)).collect();
    for (x, phi) in real.chunks(k).zip(phi.chunks_mut(row_bytes)) {
        stored.pack_row(scheme, x, phi);
    }
    Host {
        scheme,
        stored,
        phi: Tensor::owned(phi, Dtype::U8, vec![n, row_bytes]),
        rank,
        alpha: 1.5,
        scale: random(seed + 1, n * groups).iter().map(|x| 0.02 + x.abs() / 50.0).collect(),
        zero: scheme.has_zero_points().then(|| (0..n * groups).map(|i| (i % 3) as f32 - 1.0).collect()),
        a: random(seed + 2, n * rank).iter().map(|x| x / 4.0).collect(),
        b: random(seed + 3, rank * k),
    }
}

/// A low-rank weight on a device.
struct OnDevice<'h, B: Backend> {
    of: &'h Host,
    phi: B::Frozen,
    scale: B::Buffer,
    zero: Option<B::Buffer>,
    a: B::Buffer,
    b: B::Buffer,
    integers: B::Integers,
    grads: [B::Buffer; 3],
    shape: (usize, usize),
}

impl<'h, B: Backend> OnDevice<'h, B> {
    fn new(b: &B, of: &'h Host, shape: (usize, usize)) -> Self {
        let up = |x: &[f32]| b.upload(x).unwrap();
        let ones = |len: usize| up(&vec![1.0; len]);
        let mut on = OnDevice {
            of,
            phi: b.freeze(&of.phi).unwrap(),
            scale: up(&of.scale),
            zero: of.zero.as_deref().map(up),
            a: up(&of.a),
            b: up(&of.b),
            integers: b.integers(shape.0 * shape.1).unwrap(),
            grads: [ones(of.scale.len()), ones(of.a.len()), ones(of.b.len())],
            shape,
        };
        let mut integers = b.integers(shape.0 * shape.1).unwrap();
        b.round_weight(&on.weight(false), &mut integers);
        on.integers = integers;
        on
    }

    fn weight(&self, kept: bool) -> Weight<'_, B> {
        let OnDevice { of, phi, scale, zero, a, b, integers, shape: (n, k), .. } = self;
        let kept = kept.then_some(integers);
        weight_of(of, phi, [scale, a, b], zero.as_ref(), kept, (*n, *k))
    }

    fn branch<'a>(&'a mut self, dy: &'a B::Activation, kept: bool) -> Branch<'a, B> {
        let OnDevice { of, phi, scale, zero, a, b, integers, shape, grads } = self;
        let weight = weight_of(of, phi, [scale, a, b], zero.as_ref(), kept.then_some(integers), *shape);
        let [scale, a, b] = grads;
        Branch { weight, dy, grads: Some(Gradients { scale: Some(scale), factors: Some([a, b]), latent: None }) }
    }
}

fn weight_of<'a, B: Backend>(
    of: &Host,
    phi: &'a B::Frozen,
    [scale, a, b]: [&'a B::Buffer; 3],
    zero: Option<&'a B::Buffer>,
    integers: Option<&'a B::Integers>,
    (n, k): (usize, usize),
) -> Weight<'a, B> {
    let factor = of.factor();
    let (scheme, stored, rank) = (of.scheme, of.stored, of.rank);
    Weight::LowRank(LowRank { phi, stored, scheme, scale, zero, integers, a, b, rank, factor, n, k })
}

struct Linears {
    word: &'static str,
    stored: Phi,
    /// n, k, rank
    shape: [usize; 3],
    rows: usize,
    kept: bool,
}

impl Case for Linears {
    fn run<B: Backend>(&self, b: &B) -> Vec<(&'static str, Vec<f32>)> {
        let ([n, k, _], rows) = (self.shape, self.rows);
        let hosts = [1, 11].map(|seed| host(self.word, self.stored, self.shape, seed));
        let [mut gate, mut up] = hosts.each_ref().map(|host| OnDevice::<B>::new(b, host, (n, k)));
        let x = narrow(b, &random(5, rows * k));
        let mut found = Vec::new();

        let mut y = b.upload(&random(6, rows * n)).unwrap();
        b.linear_forward(&x, rows, &gate.weight(self.kept), Output::add(&mut y));
        found.push(("y", b.download(&y).unwrap()));
        let (codes, scale) = gate.of.fold(n, k);
        let (packed, scale) = (b.freeze(&codes).unwrap(), b.upload(&scale).unwrap());
        let folded = Weight::Codes(Codes {
            codes: &packed,
            scheme: gate.of.scheme,
            scale: &scale,
            master: false,
            zero: gate.zero.as_ref(),
            integers: None,
            adapter: None,
            n,
            k,
        });
        let mut again = b.upload(&random(6, rows * n)).unwrap();
        b.linear_forward(&x, rows, &folded, Output::add(&mut again));
        let (y, again) = (b.download(&y).unwrap(), b.download(&again).unwrap());
        assert!(y.iter().zip(&again).all(|(y, again)| y.to_bits() == again.to_bits()), "folded integers differ");

        let mut kept = [0, 1].map(|_| b.activation(rows * n).unwrap());
        let mut out = [0, 1].map(|_| b.activation(rows * n).unwrap());
        let [first, second] = &mut out;
        b.swiglu_forward(&x, rows, [gate.weight(self.kept), up.weight(self.kept)], Some(kept.each_mut()), first);
        b.swiglu_forward(&x, rows, [gate.weight(self.kept), up.weight(self.kept)], None, second);
        assert_eq!(wide(b, first, rows * n), wide(b, second, rows * n));
        found.push(("gate", wide(b, &kept[0], rows * n)));
        found.push(("out", wide(b, first, rows * n)));

        let dy = [7, 8].map(|seed| narrow(b, &random(seed, rows * n)));
        let mut dx = b.zeros(rows * k).unwrap();
        let branches = [gate.branch(&dy[0], self.kept), up.branch(&dy[1], self.kept)];
        b.linears_backward(&x, rows, branches, Output::set(&mut dx));
        found.push(("dx", b.download(&dx).unwrap()));
        let mut alone = b.activation(rows * k).unwrap();
        b.linears_backward(&x, rows, [gate.branch(&dy[0], self.kept)], Output::Activation(&mut alone));
        found.push(("dx alone", wide(b, &alone, rows * k)));
        for (name, grad) in ["ds", "dA", "dB"].into_iter().zip(&gate.grads) {
            found.push((name, b.download(grad).unwrap()));
        }

        let (mut dgate, mut dup) = (narrow(b, &random(9, rows * k)), narrow(b, &random(10, rows * k)));
        b.swiglu_backward(&x, rows, up.branch(&dy[1], self.kept), &mut dgate, &mut dup);
        found.push(("dgate", wide(b, &dgate, rows * k)));
        found.push(("dup", wide(b, &dup, rows * k)));
        found
    }
}

/// Sums in f32 in another order, and roundings to bf16 (2^-9 of values up to five times the mean), of which the GPU has
/// one more where it rounds gate and up, and the gradient of SwiGLU's result, before it goes on.
fn limit(name: &str) -> f64 {
    match name {
        "y" | "dx" | "ds" => 1e-5,
        "out" | "dgate" | "dup" => 4.0 * 5.0 / 256.0,
        _ => 5.0 / 256.0,
    }
}

#[test]
fn low_rank() {
    for device in devices() {
        device.run(|| {
            for (word, stored, shape, rows, kept) in [
                ("w4pc", Phi::Q, [70, 96, 32], 50, true),
                ("w4pc", Phi::Int, [33, 64, 5], 7, false),
                ("w3g16z", Phi::Q, [40, 144, 32], 65, true),
                ("w2g48", Phi::Bf16, [31, 96, 40], 33, true),
                ("w8pc", Phi::F32, [64, 70, 8], 40, true),
                ("w5g64z", Phi::Q, [100, 128, 16], 20, true),
                ("w6pc", Phi::Int, [20, 33, 4], 9, true),
            ] {
                let case = Linears { word, stored, shape, rows, kept };
                compare(&format!("{word} φ {stored} {shape:?}"), &case, limit);
            }
        });
    }
}

/// A column of the widest blocks, and more rows than a block has.
#[test]
fn wide_and_tall() {
    Device::new().without_races().run(|| {
        for shape in [[3, 700, 2], [150, 32, 3]] {
            let case = Linears { word: "w4pc", stored: Phi::Q, shape, rows: 3, kept: true };
            compare(&format!("{shape:?}"), &case, limit);
        }
    });
}

struct Floats(Dtype);

impl Case for Floats {
    fn run<B: Backend>(&self, b: &B) -> Vec<(&'static str, Vec<f32>)> {
        let (n, k, rows) = (45, 70, 12);
        let w = b.freeze(&Tensor::from_f32(&random(1, n * k), self.0, vec![n, k])).unwrap();
        let weight = || Weight::Float { w: &w, n, k };
        let (x, dy) = (narrow(b, &random(2, rows * k)), narrow(b, &random(3, rows * n)));
        let (mut y, mut dx) = (b.zeros(rows * n).unwrap(), b.zeros(rows * k).unwrap());
        b.linear_forward(&x, rows, &weight(), Output::set(&mut y));
        b.linears_backward(&x, rows, [Branch { weight: weight(), dy: &dy, grads: None }], Output::set(&mut dx));
        vec![("y", b.download(&y).unwrap()), ("dx", b.download(&dx).unwrap())]
    }
}

#[test]
fn floats() {
    Device::new().run(|| {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            compare(&format!("{dtype:?}"), &Floats(dtype), |_| 1e-5);
        }
    });
}

/// round(Z) of the GPU and of `fold`, weight by weight; W_Z of packed codes.
#[test]
fn integers_are_those_of_folding() {
    for device in devices() {
        device.run(|| {
            let cuda = Cuda::open().unwrap();
            for (word, stored, shape) in [
                ("w4pc", Phi::Q, [70, 96, 32]),
                ("w3g16z", Phi::Int, [40, 144, 32]),
                ("w2g48", Phi::Bf16, [31, 96, 40]),
                ("w7pc", Phi::F32, [33, 700, 5]),
            ] {
                let [n, k, rank] = shape;
                let host = host(word, stored, shape, 21);
                let on = OnDevice::<Cuda>::new(&cuda, &host, (n, k));
                let factors = Factors {
                    scheme: host.scheme,
                    phi: host.phi.bytes(),
                    stored,
                    a: &host.a,
                    b: &host.b,
                    rank,
                    factor: host.factor(),
                    k,
                };
                let mut want = vec![0i8; n * k];
                Rounding::new(factors).kept(0, &mut want);
                assert!(on.integers.read(n * k).unwrap() == want, "{word} φ {stored}");

                let mut codes = vec![0u8; n * k];
                Rounding::new(factors).rows(0, &mut codes);
                let (packed, scale) = host.fold(n, k);
                let (packed, scale) = (cuda.freeze(&packed).unwrap(), cuda.upload(&scale).unwrap());
                let fixed = Weight::Codes(Codes {
                    codes: &packed,
                    scheme: host.scheme,
                    scale: &scale,
                    master: false,
                    zero: None,
                    integers: None,
                    adapter: None,
                    n,
                    k,
                });
                let mut unpacked = cuda.integers(n * k).unwrap();
                cuda.round_weight(&fixed, &mut unpacked);
                let least = host.scheme.qmin() as i16;
                let want: Vec<i8> = codes.iter().map(|code| (i16::from(*code) + least) as i8).collect();
                assert!(unpacked.read(n * k).unwrap() == want, "{word}: codes");
            }
        });
    }
}
