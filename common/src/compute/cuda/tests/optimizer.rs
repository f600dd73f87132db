//! AdamW and Σ g² over a table of tensors.

use gpu_emulator::Device;

use super::{Case, compare, random};
use crate::compute::backend::{AdamStep, Backend, Moments};

/// Lengths of the tensors; moments in bf16.
struct Steps(Vec<usize>, bool);

impl Case for Steps {
    fn run<B: Backend>(&self, b: &B) -> Vec<(&'static str, Vec<f32>)> {
        let tensors = |seed, scale: f32| -> Vec<B::Buffer> {
            let values = |len: &usize| random(seed + *len as u64, *len).iter().map(|x| x * scale).collect::<Vec<f32>>();
            self.0.iter().map(|len| b.upload(&values(len)).unwrap()).collect()
        };
        let zeros = || self.0.iter().map(|len| b.zeros(*len).unwrap()).collect::<Vec<_>>();
        let halves = || self.0.iter().map(|len| b.half(*len).unwrap()).collect::<Vec<_>>();
        let mut p = tensors(1, 1.0);
        let mut moments = match self.1 {
            false => Moments::F32 { m: zeros(), v: zeros() },
            true => Moments::Bf16 { m: halves(), v: halves() },
        };
        let rates: Vec<f32> = (0..self.0.len()).map(|i| 1e-3 / (i + 1) as f32).collect();
        let mut sums = Vec::new();
        for step in 1..=3 {
            let g = tensors(step * 100, 0.1);
            sums.extend(b.square_sums(&g).unwrap().iter().map(|sum| *sum as f32));
            let adam = AdamStep { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, step, grad_factor: 0.5 };
            b.adamw(adam, &rates, &mut p, &g, &mut moments);
        }
        let all = |of: &[B::Buffer]| of.iter().flat_map(|x| b.download(x).unwrap()).collect();
        let half = |of: &[B::Half]| of.iter().flat_map(|x| b.download_half(x).unwrap()).collect();
        let (m, v) = match &moments {
            Moments::F32 { m, v } => (all(m), all(v)),
            Moments::Bf16 { m, v } => (half(m), half(v)),
        };
        vec![("sums", sums), ("p", all(&p)), ("m", m), ("v", v)]
    }
}

/// A tensor of one element, and one of more than a part.
const LENGTHS: [usize; 4] = [1, 300, 70_000, 4096];

#[test]
fn adamw() {
    for device in [Device::new(), Device::new().reversed_blocks().reversed_threads()] {
        device.run(|| compare("adamw", &Steps(LENGTHS.to_vec(), false), |_| 1e-6));
        // The kernel fuses products into sums: of a value near the middle of two bf16 it takes the other one.
        let limit = |name: &str| match name {
            "m" | "v" => 8.0 / 256.0,
            "p" => 1e-5,
            _ => 1e-6,
        };
        device.run(|| compare("adamw, moments in bf16", &Steps(LENGTHS.to_vec(), true), limit));
    }
}
