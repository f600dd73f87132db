//! Norms, rotation, SwiGLU, changes of type, embedding.

use gpu_emulator::Device;

use super::{Case, compare, devices, narrow, random, wide};
use crate::compute::backend::{Backend, Heads};
use crate::compute::cuda::Cuda;
use crate::format::tensor::{Dtype, Tensor};

/// Rounding to bf16 of values up to five times the root mean square: half a unit is 2^-9 of the value.
const ROUNDED: f64 = 5.0 / 256.0;

struct Norm {
    rows: usize,
    d: usize,
}

impl Case for Norm {
    fn run<B: Backend>(&self, b: &B) -> Vec<(&'static str, Vec<f32>)> {
        let (rows, d) = (self.rows, self.d);
        let up = |seed, len| b.upload(&random(seed, len)).unwrap();
        let (x, w, dy, mut dx) = (up(1, rows * d), up(2, d), up(3, rows * d), up(4, rows * d));
        let mut y = b.activation(rows * d).unwrap();
        b.rmsnorm_forward(&x, &w, 1e-5, rows, d, &mut y);
        b.rmsnorm_backward(&x, &w, 1e-5, rows, d, &dy, &mut dx);
        vec![("y", wide(b, &y, rows * d)), ("dx", b.download(&dx).unwrap())]
    }
}

#[test]
fn norm() {
    for device in devices() {
        device.run(|| {
            for (rows, d) in [(1, 8), (3, 45), (5, 256), (2, 1000), (7, 576)] {
                let limit = |name: &str| if name == "y" { ROUNDED } else { 2e-6 };
                compare(&format!("norm of {rows} × {d}"), &Norm { rows, d }, limit);
            }
        });
    }
}

struct Rope {
    heads: usize,
    head_dim: usize,
    segments: Vec<usize>,
}

impl Case for Rope {
    fn run<B: Backend>(&self, b: &B) -> Vec<(&'static str, Vec<f32>)> {
        let Rope { heads, head_dim, segments } = self;
        let len = segments.last().unwrap() * heads * head_dim;
        let frequencies: Vec<f32> = (0..head_dim / 2).map(|i| 0.7f32.powi(i as i32)).collect();
        let table = b.rope_table(&frequencies, 40).unwrap();
        let mut x = narrow(b, &random(1, len));
        b.rope_forward(&table, &mut x, *heads, *head_dim, segments);
        let y = wide(b, &x, len);
        b.rope_backward(&table, &mut x, *heads, *head_dim, segments);
        vec![("y", y), ("back", wide(b, &x, len))]
    }
}

/// Both round product by product: no bit differs.
#[test]
fn rope() {
    for device in devices() {
        device.run(|| {
            for (heads, head_dim, segments) in
                [(1, 2, vec![0, 1]), (3, 8, vec![0, 5, 5, 6, 40]), (2, 64, vec![0, 33]), (5, 80, vec![0, 40])]
            {
                compare(&format!("rope {heads} × {head_dim}"), &Rope { heads, head_dim, segments }, |_| 0.0);
            }
        });
    }
}

struct Gather {
    width: usize,
}

impl Case for Gather {
    fn run<B: Backend>(&self, b: &B) -> Vec<(&'static str, Vec<f32>)> {
        let x = narrow(b, &random(1, 9 * self.width));
        let mut y = b.activation(14 * self.width).unwrap();
        let mut found = Vec::new();
        for rows in [vec![8], (0..9).chain([0, 1, 2, 8, 8]).collect(), vec![7, 0, 3]] {
            b.gather_rows(&x, &rows, self.width, &mut y);
            found.push(("y", wide(b, &y, rows.len() * self.width)));
            let kept = wide(b, &x, 9 * self.width);
            let kept = rows.iter().flat_map(|row| &kept[*row as usize * self.width..][..self.width]);
            assert!(kept.eq(&found.last().unwrap().1), "rows {rows:?} of {}", self.width);
        }
        found
    }
}

#[test]
fn gather() {
    for device in devices() {
        device.run(|| {
            for width in [1, 45, 256] {
                compare(&format!("rows of {width}"), &Gather { width }, |_| 0.0);
            }
        });
    }
}

struct Embedding {
    dtype: Dtype,
    d: usize,
    on_host: bool,
}

impl Case for Embedding {
    fn run<B: Backend>(&self, b: &B) -> Vec<(&'static str, Vec<f32>)> {
        let table = Tensor::from_f32(&random(1, 50 * self.d), self.dtype, vec![50, self.d]);
        let table = if self.on_host { b.freeze_table(&table) } else { b.freeze(&table) }.unwrap();
        let mut found = Vec::new();
        for tokens in [vec![3], vec![49, 0, 7, 7, 1], vec![5, 4, 3]] {
            let mut x = b.zeros(5 * self.d).unwrap();
            b.embedding_forward(&table, &tokens, self.d, &mut x);
            found.push(("x", b.download(&x).unwrap()));
        }
        found
    }
}

#[test]
fn embedding() {
    Device::new().run(|| {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            for d in [8, 77] {
                for on_host in [false, true] {
                    compare(&format!("embedding {dtype:?} {d}"), &Embedding { dtype, d, on_host }, |_| 0.0);
                }
            }
        }
    });
}

struct Types(usize);

impl Case for Types {
    fn run<B: Backend>(&self, b: &B) -> Vec<(&'static str, Vec<f32>)> {
        // Ties of both kinds, and numbers whose exponent the rounding raises.
        let mut x = random(1, self.0);
        for (i, x) in x.iter_mut().enumerate().take(64) {
            *x = f32::from_bits(0x3f80_8000 + 0x8000 * i as u32);
        }
        vec![("x", wide(b, &narrow(b, &x), self.0))]
    }
}

#[test]
fn changes_of_type() {
    Device::new().run(|| {
        for len in [1, 255, 256, 1000] {
            compare(&format!("{len}"), &Types(len), |_| 0.0);
        }
    });
}

struct Step {
    heads: Heads,
    tokens: usize,
}

impl Case for Step {
    fn run<B: Backend>(&self, b: &B) -> Vec<(&'static str, Vec<f32>)> {
        let Step { heads, tokens } = *self;
        let (width, kept) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        let frequencies: Vec<f32> = (0..heads.head_dim / 2).map(|i| 0.7f32.powi(i as i32)).collect();
        let table = b.rope_table(&frequencies, tokens).unwrap();
        let [mut keys, mut values] = [0, 1].map(|_| b.activation(tokens * kept).unwrap());
        let mut all = Vec::new();
        for at in 0..tokens {
            let [mut q, mut k, mut v] =
                [(1, width), (2, kept), (3, kept)].map(|(seed, len)| narrow(b, &random(seed + 10 * at as u64, len)));
            let mut out = b.activation(width).unwrap();
            b.attention_step(&table, [&mut q, &mut k, &mut v], heads, at, [&mut keys, &mut values], &mut out);
            all.extend(wide(b, &out, width));
        }
        vec![("out", all), ("keys", wide(b, &keys, tokens * kept)), ("values", wide(b, &values, tokens * kept))]
    }
}

/// Probabilities are rounded to bf16 on the GPU alone.
#[test]
fn attention_step() {
    Device::new().run(|| {
        for (heads, kv_heads, head_dim, window) in [(4, 2, 16, None), (3, 3, 20, Some(9)), (2, 1, 64, Some(65))] {
            let heads = Heads { heads, kv_heads, head_dim, window };
            let limit = |name: &str| if name == "out" { 2.0 * ROUNDED } else { 0.0 };
            compare(&format!("{heads:?}"), &Step { heads, tokens: 70 }, limit);
        }
    });
}

/// Each kernel by its name; nothing of what was done before or after.
#[test]
fn kernels_are_timed() {
    Device::new().run(|| {
        let cuda = Cuda::open().unwrap();
        let x = cuda.upload(&random(1, 64)).unwrap();
        let (mut y, mut z) = (cuda.activation(64).unwrap(), cuda.zeros(64).unwrap());
        cuda.round(&x, &mut y, 64);
        let times = cuda.times(|| {
            cuda.round(&x, &mut y, 64);
            cuda.widen(&y, &mut z, 64);
            cuda.round(&x, &mut y, 64);
        });
        cuda.widen(&y, &mut z, 64);
        let times = times.unwrap();
        let named: Vec<_> = times.iter().map(|time| (time.name.as_str(), time.calls)).collect();
        assert_eq!(named, [("round_to_bf16", 2), ("widen_to_f32", 1)]);
        assert!(times.iter().all(|time| time.ms > 0.0), "{times:?}");
        assert!(cuda.times(|| ()).unwrap().is_empty());
    });
}
