//! What the tests of the kernels share: seeded values, PyTorch's values, comparisons.

use half::bf16;
use half::slice::HalfFloatSliceExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::ThreadPoolBuilder;

use crate::compute::backend::{Adapter, Backend, Codes, Dropout, Weight};
use crate::format::tensor::{Dtype, Tensor};
use crate::quant::{Scheme, pack};

/// n values in [-2, 2)
pub fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| (rng.next_u32() >> 8) as f32 / (1 << 22) as f32 - 2.0).collect()
}

/// The values in bf16, as `half` rounds them.
pub fn narrow(x: &[f32]) -> Vec<bf16> {
    let mut narrow = vec![bf16::ZERO; x.len()];
    narrow.convert_from_f32_slice(x);
    narrow
}

/// The values that bf16 holds, in both types.
pub fn in_both(x: &[f32]) -> (Vec<bf16>, Vec<f32>) {
    let narrow = narrow(x);
    let wide = narrow.to_f32_vec();
    (narrow, wide)
}

/// A tensor of tests/data/ops.safetensors, which tests/data/make_ops.py computes with PyTorch.
pub fn fixture(name: &str) -> Vec<f32> {
    fixture_of("ops.safetensors", name)
}

/// A tensor in f32 of a file in tests/data, each made by the script beside it.
pub fn fixture_of(file: &str, name: &str) -> Vec<f32> {
    let path = format!("{}/../tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// |got - expected| ≤ tolerance · (1 + |expected|) everywhere
pub fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (got - expected).abs() <= tolerance * (1.0 + expected.abs()),
            "element {i}: {got}, expected {expected}"
        );
    }
}

/// `gradient` against central differences of `f`, computed in f64.
pub fn check_gradient(x: &[f32], gradient: &[f32], tolerance: f32, f: impl Fn(&[f64]) -> f64) {
    let mut x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let h = 1e-5;
    let mut expected = Vec::new();
    for i in 0..x.len() {
        let at = x[i];
        x[i] = at + h;
        let above = f(&x);
        x[i] = at - h;
        let below = f(&x);
        x[i] = at;
        expected.push(((above - below) / (2.0 * h)) as f32);
    }
    assert_close(gradient, &expected, tolerance);
}

/// Runs `f` with one, two and three threads; the bits must agree.
pub fn on_thread_pools(f: impl Fn() -> Vec<f32> + Sync) {
    let run = |threads| ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&f);
    let one = bits(&run(1));
    assert!(bits(&run(2)) == one, "two threads differ from one");
    assert!(bits(&run(3)) == one, "three threads differ from one");
}

/// Runs `f` compiled for the baseline and for what else this machine has; the bits must agree.
#[inline(always)]
pub fn on_every_isa(f: impl Fn() -> Vec<f32>) {
    let baseline = bits(&f());
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(avx2) = pulp::x86::V3::try_new() {
            assert!(bits(&avx2.vectorize(&f)) == baseline, "AVX2 differs from the baseline");
        }
        if let Some(avx512) = pulp::x86::V4::try_new() {
            assert!(bits(&avx512.vectorize(&f)) == baseline, "AVX-512 differs from the baseline");
        }
    }
    assert!(bits(&super::simd::simd(&f)) == baseline, "the chosen instruction set differs from the baseline");
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Fixed integers with an adapter, on a device.
pub struct Adapted<B: Backend> {
    scheme: Scheme,
    codes: B::Frozen,
    scale: B::Buffer,
    zero: Option<B::Buffer>,
    a: B::Buffer,
    b: B::Buffer,
    integers: B::Integers,
    rank: usize,
    factor: f32,
    n: usize,
    k: usize,
}

impl<B: Backend> Adapted<B> {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        backend: &B,
        scheme: Scheme,
        [n, k, rank]: [usize; 3],
        integers: &[f32],
        [scale, a, b]: [&[f32]; 3],
        zero: Option<&[f32]>,
        factor: f32,
    ) -> Adapted<B> {
        let words = pack::words(k, scheme.bits);
        let mut packed = vec![0u32; n * words];
        for (row, packed) in integers.chunks(k).zip(packed.chunks_mut(words)) {
            let codes: Vec<u8> = row.iter().map(|w| (w - scheme.qmin()) as u8).collect();
            pack::pack(&codes, scheme.bits, packed);
        }
        let bytes = packed.iter().flat_map(|word| word.to_le_bytes()).collect();
        let up = |values: &[f32]| backend.upload(values).unwrap();
        let mut linear = Adapted {
            scheme,
            codes: backend.freeze(&Tensor::owned(bytes, Dtype::I32, vec![n, words])).unwrap(),
            scale: up(scale),
            zero: zero.map(up),
            a: up(a),
            b: up(b),
            integers: backend.integers(n * k).unwrap(),
            rank,
            factor,
            n,
            k,
        };
        let mut kept = backend.integers(n * k).unwrap();
        backend.round_weight(&linear.weight(None, false), &mut kept);
        linear.integers = kept;
        linear
    }

    /// Of random values, with the scheme of `word`; shape is n, k, rank.
    pub fn random(backend: &B, word: &str, shape: [usize; 3], seed: u64) -> Adapted<B> {
        let (scheme, [n, k, rank]) = (word.parse::<Scheme>().unwrap(), shape);
        let integers: Vec<f32> = random(seed, n * k)
            .iter()
            .map(|x| (x * scheme.qmax()).round().clamp(scheme.qmin(), scheme.qmax()))
            .collect();
        let scale: Vec<f32> = random(seed + 1, n * scheme.groups(k)).iter().map(|x| 0.02 + x.abs() / 50.0).collect();
        let (a, b) = (random(seed + 2, n * rank), random(seed + 3, rank * k));
        Adapted::new(backend, scheme, shape, &integers, [&scale, &a, &b], None, 0.5)
    }

    pub fn weight(&self, dropout: Option<Dropout>, kept: bool) -> Weight<'_, B> {
        let adapter = Adapter { a: &self.a, b: &self.b, rank: self.rank, factor: self.factor, dropout };
        Weight::Codes(Codes {
            codes: &self.codes,
            scheme: self.scheme,
            scale: &self.scale,
            master: true,
            zero: self.zero.as_ref(),
            integers: kept.then_some(&self.integers),
            adapter: Some(adapter),
            n: self.n,
            k: self.k,
        })
    }
}
