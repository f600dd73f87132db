//! Matrix products, by the library and by our own kernel, against f64.

use std::sync::Arc;

use gpu_emulator::Device;
use half::bf16;

use super::random;
use crate::compute::cuda::gpu::Gpu;
use crate::compute::cuda::memory::Memory;
use crate::compute::cuda::open;
use crate::compute::cuda::product::{Product, Products, To, Transposed};

fn halves(seed: u64, len: usize) -> Vec<bf16> {
    random(seed, len).into_iter().map(bf16::from_f32).collect()
}

/// op(X)[i, j] of a row-major matrix.
fn at(x: &[bf16], leading: usize, transposed: bool, i: usize, j: usize) -> f64 {
    f64::from(if transposed { x[j * leading + i] } else { x[i * leading + j] }.to_f32())
}

/// Rows of the stored matrices are `pad` longer than they need be, and X begins `shift` elements into its memory.
fn check(gpu: &Arc<Gpu>, products: &Products, p: Product, [pad, shift]: [usize; 2]) {
    let (xt, yt) = (p.transposed == Transposed::X, p.transposed == Transposed::Y);
    let p = Product { x_leading: p.x_leading + pad, y_leading: p.y_leading + pad, c_leading: p.c_leading + pad, ..p };
    let x = halves(1, shift + p.x_leading * if xt { p.k } else { p.m });
    let y = halves(2, p.y_leading * if yt { p.n } else { p.k });
    let before = random(3, p.m * p.c_leading);
    let (on_x, on_y) = (Memory::of(gpu, &x).unwrap(), Memory::of(gpu, &y).unwrap());
    let mut wide = Memory::of(gpu, &before).unwrap();
    let mut narrow = Memory::of(gpu, &halves(3, before.len())).unwrap();
    products.run(gpu, p, on_x.view(shift..x.len()), on_y.all(), To::F32(wide.all_mut()));
    let set = Product { accumulate: false, ..p };
    products.run(gpu, set, on_x.view(shift..x.len()), on_y.all(), To::Bf16(narrow.all_mut()));
    let (wide, narrow) = (wide.read(before.len()).unwrap(), narrow.read(before.len()).unwrap());
    let x = &x[shift..];
    for i in 0..p.m {
        for j in 0..p.c_leading {
            let place = i * p.c_leading + j;
            if j >= p.n {
                assert_eq!(wide[place], before[place], "between the rows");
                continue;
            }
            let terms = (0..p.k).map(|l| at(x, p.x_leading, xt, i, l) * at(&y, p.y_leading, yt, l, j));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            let (sum, size) = (f64::from(p.alpha) * sum, f64::from(p.alpha) * size + 1e-30);
            let added = if p.accumulate { f64::from(before[place]) } else { 0.0 };
            // A sum of k terms in f32.
            let error = (f64::from(wide[place]) - sum - added).abs();
            assert!(error <= 1e-6 * (size + added.abs()), "{p:?} ({i}, {j}): {error:.1e}");
            let error = (f64::from(narrow[place].to_f32()) - sum).abs();
            assert!(error <= sum.abs() / 256.0 + 1e-6 * size, "{p:?} ({i}, {j}) in bf16: {error:.1e}");
        }
    }
}

#[test]
fn every_layout() {
    for device in [Device::new(), Device::new().without_cublas(), Device::new().without_cublas().reversed_threads()] {
        device.run(|| {
            let gpu = Arc::new(open::gpu().unwrap());
            let products = Products::new(&gpu).unwrap();
            for (m, n, k) in [(1, 1, 1), (3, 70, 33), (65, 64, 96), (130, 8, 40), (64, 129, 31)] {
                for transposed in [Transposed::Neither, Transposed::X, Transposed::Y] {
                    for (accumulate, alpha) in [(false, 1.0), (true, 0.25)] {
                        let p = Product { alpha, accumulate, ..Product::new(transposed, m, n, k) };
                        for padded in [[0, 0], [8, 8], [3, 1]] {
                            check(&gpu, &products, p, padded);
                        }
                    }
                }
            }
            gpu.check().unwrap();
        });
    }
}
