//! The kernels of `attention.cu` against the definition of attention in f64 of the same inputs.
//!
//! Limits: u = 2^-8 is the most that rounding to bf16 changes a number by, relatively. P is rounded where it meets v and
//! dout, dS where it meets k and q, out, dq, dk and dv as they are stored, and delta is of the rounded out; all else is
//! f32. Each product is therefore off by at most u times the same product of absolute values, and so on: the reference
//! sums these up element by element, and [`RELATIVE`] of the sum of absolute values for what f32 and the approximate
//! functions of a GPU add.

use std::sync::Arc;

use gpu_emulator::Device;
use half::bf16;

use super::same_bits_as_before;
use crate::compute::cuda::attention::{Given, Kernels, Operands, Shape, Tile, backward, forward, tiles};
use crate::compute::cuda::memory::Memory;
use crate::compute::cuda::open;

/// The most that rounding to bf16 changes a number by, relatively, and what second-order terms add to it.
const UNIT: f64 = 1.02 / 256.0;
/// Of the sum of absolute values: scores are up to 30 here, so that one rounding of them is 2e-6 of a probability.
const RELATIVE: f64 = 2e-5;
/// ex2.approx flushes what is less than 2^-126.
const ABSOLUTE: f64 = 1e-30;

struct Case {
    segments: &'static [usize],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    /// Elements before the first of each tensor, so that rows are not on boundaries of 16 bytes.
    offset: usize,
}

const RAGGED: &[usize] = &[0, 1, 64, 128, 193, 323];

fn cases() -> Vec<Case> {
    let case = |segments, heads, kv_heads, head_dim, window| {
        let offset = 0;
        Case { segments, heads, kv_heads, head_dim, window, offset }
    };
    vec![
        case(&[0, 1], 1, 1, 16, None),
        case(&[0, 1], 4, 1, 128, Some(7)),
        case(RAGGED, 3, 1, 32, Some(7)),
        case(RAGGED, 2, 2, 48, Some(70)),
        case(RAGGED, 4, 1, 64, None),
        case(RAGGED, 3, 1, 80, None),
        case(RAGGED, 2, 2, 128, Some(70)),
        case(&[0, 65, 65, 195], 4, 1, 128, None),
        case(&[0, 230], 2, 2, 16, None),
        case(&[0, 200], 8, 2, 64, Some(64)),
        case(&[0, 3, 140], 2, 1, 128, Some(7)),
        case(&[0, 131], 3, 3, 32, Some(1)),
        // A step begins or ends with the last key or query that is seen, or is the first that is seen whole.
        case(&[0, 150], 1, 1, 32, Some(66)),
        case(&[0, 150], 1, 1, 64, Some(79)),
        // Elements are loaded one by one.
        case(&[0, 2, 99], 3, 1, 20, None),
        case(&[0, 99], 4, 2, 50, Some(33)),
        case(&[0, 130], 2, 1, 90, Some(65)),
        Case { offset: 2, ..case(&[0, 70, 101], 2, 1, 64, None) },
    ]
}

/// Numbers in [-2, 2) (Numerical Recipes' linear congruence; its low bits are poor).
fn random(seed: u32, n: usize) -> Vec<bf16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bf16::from_f32((state >> 8) as f32 / (1 << 22) as f32 - 2.0)
    };
    (0..n).map(|_| next()).collect()
}

/// q, k, v, dout
fn inputs(case: &Case) -> [Vec<bf16>; 4] {
    let rows = *case.segments.last().unwrap();
    let of = |seed, heads| random(seed, rows * heads * case.head_dim);
    [of(1, case.heads), of(2, case.kv_heads), of(3, case.kv_heads), of(4, case.heads)]
}

struct Results {
    out: Vec<bf16>,
    lse: Vec<f32>,
    delta: Vec<f32>,
    dq: Vec<bf16>,
    dk: Vec<bf16>,
    dv: Vec<bf16>,
}

impl Results {
    fn bits(&self) -> Vec<u8> {
        let halves = [&self.out, &self.dq, &self.dk, &self.dv].into_iter().flatten().flat_map(|x| x.to_le_bytes());
        halves.chain([&self.lse, &self.delta].into_iter().flatten().flat_map(|x| x.to_le_bytes())).collect()
    }
}

/// Both passes on the device.
fn run(case: &Case, inputs: &[Vec<bf16>; 4], tiles: &[Tile]) -> Results {
    let gpu = Arc::new(open::gpu().unwrap());
    let kernels = Kernels::load(&gpu).unwrap();
    let (rows, offset) = (*case.segments.last().unwrap(), case.offset);
    let up = |x: &[bf16]| Memory::of(&gpu, &[&vec![bf16::NAN; offset], x].concat()).unwrap();
    let on_device = inputs.each_ref().map(|x| up(x));
    let [q, k, v, dout] = on_device.each_ref().map(|x| x.view(offset..x.len()));
    // The emulator reports what is read before it is written.
    let mut results = [0, 0, 1, 2].map(|i| Memory::<bf16>::new(&gpu, offset + inputs[i].len()).unwrap());
    let [out, dq, dk, dv] = &mut results;
    let [mut lse, mut delta] = [(); 2].map(|()| Memory::<f32>::new(&gpu, rows * case.heads).unwrap());
    let shape = Shape::new(case.heads, case.kv_heads, case.head_dim, case.window);
    let on_tiles = Memory::of(&gpu, tiles).unwrap();
    let operands = Operands { q, k, v, tiles: on_tiles.all(), count: tiles.len(), shape };
    let range = offset..out.len();
    forward(&gpu, &kernels, operands, out.view_mut(range.clone()), lse.all_mut());
    let given = Given { out: out.view(range), dout, lse: lse.all(), rows };
    let grads = [dq, dk, dv].map(|x| {
        let range = offset..x.len();
        x.view_mut(range)
    });
    backward(&gpu, &kernels, operands, given, delta.all_mut(), grads);
    let [out, dq, dk, dv] = results.each_ref().map(|x| {
        let mut values = vec![bf16::ZERO; x.len() - offset];
        gpu.read(x.view(offset..x.len()), &mut values);
        values
    });
    let [lse, delta] = [&lse, &delta].map(|x| x.read(x.len()).unwrap());
    Results { out, lse, delta, dq, dk, dv }
}

/// A result in f64, the most that rounding to bf16 before it changes it by, and the sum of absolute values.
struct Exact {
    value: Vec<f64>,
    limit: Vec<f64>,
    size: Vec<f64>,
}

impl Exact {
    fn zeros(n: usize) -> Exact {
        let [value, limit, size] = [0; 3].map(|_| vec![0.0; n]);
        Exact { value, limit, size }
    }

    fn add(&mut self, at: usize, value: f64, limit: f64, size: f64) {
        self.value[at] += value;
        self.limit[at] += limit;
        self.size[at] += size;
    }

    /// `unit`: of the last rounding.
    fn check(&self, found: impl IntoIterator<Item = f64>, unit: f64, what: &str) {
        let mut count = 0;
        for (i, found) in found.into_iter().enumerate() {
            let wanted = self.value[i];
            let limit = self.limit[i] + unit * wanted.abs() + RELATIVE * self.size[i] + ABSOLUTE;
            assert!((found - wanted).abs() <= limit, "{what} {i}: {found}, expected {wanted} within {limit:e}");
            count += 1;
        }
        assert_eq!(count, self.value.len(), "{what}");
    }
}

struct Reference {
    out: Exact,
    lse: Exact,
    delta: Exact,
    dq: Exact,
    dk: Exact,
    dv: Exact,
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// Everything by its definition, one query at a time.
fn reference(case: &Case, inputs: &[Vec<bf16>; 4]) -> Reference {
    let [q, k, v, dout] = inputs.each_ref().map(|x| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>());
    let Case { heads, kv_heads, head_dim: hd, .. } = *case;
    let scale = 1.0 / (hd as f64).sqrt();
    let [out, dq, dk, dv] = [q.len(), q.len(), k.len(), v.len()].map(Exact::zeros);
    let [lse, delta] = [(); 2].map(|()| Exact::zeros(q.len() / hd));
    let mut all = Reference { out, lse, delta, dq, dk, dv };
    for segment in case.segments.windows(2) {
        for (row, head) in (segment[0]..segment[1]).flat_map(|row| (0..heads).map(move |head| (row, head))) {
            let from = segment[0].max((row + 1).saturating_sub(case.window.unwrap_or(row + 1)));
            let (index, at) = (row * heads + head, (row * heads + head) * hd);
            let keys: Vec<usize> = (from..=row).map(|key| (key * kv_heads + head / (heads / kv_heads)) * hd).collect();
            let scores: Vec<f64> = keys.iter().map(|key| scale * dot(&q[at..at + hd], &k[*key..key + hd])).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            let p: Vec<f64> = scores.iter().map(|s| (s - max).exp() / total).collect();
            all.lse.add(index, max + total.ln(), 0.0, 1.0 + max.abs());
            for (key, p) in keys.iter().zip(&p) {
                for i in 0..hd {
                    let (pv, pd) = (p * v[key + i], p * dout[at + i]);
                    all.out.add(at + i, pv, UNIT * pv.abs(), pv.abs());
                    all.dv.add(key + i, pd, UNIT * pd.abs(), pd.abs());
                }
            }
            let (mut d, mut d_limit, mut d_size) = (0.0, 0.0, 0.0);
            for (i, dout) in (at..).zip(&dout[at..at + hd]) {
                let out = all.out.value[i];
                d += dout * out;
                d_limit += dout.abs() * (all.out.limit[i] + UNIT * out.abs());
                d_size += dout.abs() * all.out.size[i];
            }
            all.delta.add(index, d, d_limit, d_size);
            for (key, p) in keys.iter().zip(&p) {
                let value = &v[*key..key + hd];
                let ds = p * (dot(&dout[at..at + hd], value) - d);
                let size = p * ((0..hd).map(|i| (dout[at + i] * value[i]).abs()).sum::<f64>() + d_size);
                let limit = UNIT * ds.abs() + p * d_limit;
                for i in 0..hd {
                    let (x, y) = (scale * k[key + i], scale * q[at + i]);
                    all.dq.add(at + i, ds * x, limit * x.abs(), size * x.abs());
                    all.dk.add(key + i, ds * y, limit * y.abs(), size * y.abs());
                }
            }
        }
    }
    all
}

fn check(case: &Case, inputs: &[Vec<bf16>; 4], found: &Results) {
    let exact = reference(case, inputs);
    let what = |name: &str| {
        let Case { segments, heads, kv_heads, head_dim, window, .. } = case;
        format!("{segments:?} heads {heads}:{kv_heads} of {head_dim}, window {window:?}: {name}")
    };
    let wide = |x: &[bf16]| -> Vec<f64> { x.iter().map(|x| x.to_f64()).collect() };
    exact.out.check(wide(&found.out), UNIT, &what("out"));
    exact.lse.check(found.lse.iter().map(|x| f64::from(*x)), 0.0, &what("lse"));
    exact.delta.check(found.delta.iter().map(|x| f64::from(*x)), 0.0, &what("delta"));
    exact.dq.check(wide(&found.dq), UNIT, &what("dq"));
    exact.dk.check(wide(&found.dk), UNIT, &what("dk"));
    exact.dv.check(wide(&found.dv), UNIT, &what("dv"));
}

fn orders() -> [Device; 3] {
    [Device::new(), Device::new().reversed_threads(), Device::new().reversed_blocks()]
}

#[test]
fn attention_by_its_definition() {
    for (turn, device) in orders().into_iter().enumerate() {
        let report = device.run(|| {
            let mut bits = Vec::new();
            for case in cases() {
                let inputs = inputs(&case);
                let found = run(&case, &inputs, &tiles(case.segments));
                // What has the bits of the first run is as right as that.
                if turn == 0 {
                    check(&case, &inputs, &found);
                }
                bits.extend(found.bits());
            }
            same_bits_as_before("attention", &bits);
        });
        assert!(report.messages.is_empty(), "{:?}", report.messages);
    }
}

/// A sequence has the same bits alone, elsewhere in the batch, and with its tiles in another order.
#[test]
fn same_bits_anywhere_in_the_batch() {
    for (kv_heads, window) in [(1, None), (2, Some(70))] {
        Device::new().run(|| {
            let alone = Case { segments: &[0, 150], heads: 2, kv_heads, head_dim: 64, window, offset: 0 };
            let batch = Case { segments: &[0, 37, 187], ..alone };
            let of_batch = inputs(&batch);
            let lines = of_batch.each_ref().map(|x| x.len() / 187);
            let of_alone: [Vec<bf16>; 4] = std::array::from_fn(|i| of_batch[i][37 * lines[i]..].to_vec());
            let mut order = tiles(batch.segments);
            order.rotate_left(1);
            let (one, two) = (run(&alone, &of_alone, &tiles(alone.segments)), run(&batch, &of_batch, &order));
            for (name, (one, two)) in ["out", "dq", "dk", "dv"].iter().zip([
                (&one.out, &two.out),
                (&one.dq, &two.dq),
                (&one.dk, &two.dk),
                (&one.dv, &two.dv),
            ]) {
                let bits = |x: &[bf16]| x.iter().map(|x| x.to_bits()).collect::<Vec<u16>>();
                assert!(bits(one) == bits(&two[two.len() - one.len()..]), "{name}");
            }
            assert!(one.lse == two.lse[37 * 2..] && one.delta == two.delta[37 * 2..]);
        });
    }
}

/// Scores far apart, as attention sinks make them, neither overflow nor lose the largest.
#[test]
fn extreme_scores_stay_finite() {
    Device::new().run(|| {
        for window in [None, Some(40)] {
            let case = Case { segments: &[0, 140], heads: 1, kv_heads: 1, head_dim: 32, window, offset: 0 };
            let mut inputs = inputs(&case);
            inputs[0].iter_mut().for_each(|x| *x = bf16::from_f32(x.to_f32() * 300.0));
            let found = run(&case, &inputs, &tiles(case.segments));
            let exact = reference(&case, &inputs);
            for (found, wanted) in found.lse.iter().zip(&exact.lse.value) {
                assert!((f64::from(*found) - wanted).abs() <= 1e-6 * (1.0 + wanted.abs()), "{found}, {wanted}");
            }
            for (i, found) in found.out.iter().enumerate() {
                let limit = exact.out.limit[i] + UNIT * exact.out.value[i].abs() + 1e-3 * exact.out.size[i];
                assert!((found.to_f64() - exact.out.value[i]).abs() <= limit, "out {i}");
            }
            assert!([&found.dq, &found.dk, &found.dv].into_iter().flatten().all(|x| x.is_finite()));
        }
    });
}
