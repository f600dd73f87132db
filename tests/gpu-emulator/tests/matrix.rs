//! Matrix instructions against products in f64.

use cudarc::driver::{LaunchConfig, PushKernelArg};
use gpu_emulator::Device;
use half::{bf16, f16};

use crate::device::{load, shape};
use crate::numbers::floats;

/// |found - wanted| may be this times the sum of |a b|: f32 rounds once for every product, at most 2^-24 of the sum so far.
const PER_PRODUCT: f64 = 6e-8;

#[test]
fn a_product_by_tiles() {
    let (m, n, k) = (48, 40, 112);
    for device in [Device::new(), Device::new().reversed_threads().reversed_blocks(), Device::new().without_races()] {
        device.run(|| {
            let matrix = load("torture_matrix");
            let halves =
                |count, seed| -> Vec<bf16> { floats(count, seed, 2.0).into_iter().map(bf16::from_f32).collect() };
            let (a, b) = (halves(m * k, 12), halves(n * k, 13));
            let (on_a, on_b) = (matrix.stream.clone_htod(&a).unwrap(), matrix.stream.clone_htod(&b).unwrap());
            let mut c = unsafe { matrix.stream.alloc::<f32>(m * n) }.unwrap();
            let kernel = matrix.kernel("product");
            let (columns, depth) = (n as i32, k as i32);
            let mut launch = matrix.stream.launch_builder(&kernel);
            launch.arg(&mut c).arg(&on_a).arg(&on_b).arg(&columns).arg(&depth);
            let grid_dim = (n as u32 / 8, m as u32 / 16, 1);
            unsafe { launch.launch(LaunchConfig { grid_dim, ..shape(1, 32) }) }.unwrap();
            let found = matrix.stream.clone_dtoh(&c).unwrap();
            for i in 0..m {
                for j in 0..n {
                    let products = (0..k).map(|l| a[i * k + l].to_f64() * b[j * k + l].to_f64());
                    let (wanted, size) = (products.clone().sum::<f64>(), products.map(f64::abs).sum::<f64>());
                    let error = (found[i * n + j] as f64 - wanted).abs();
                    assert!(error <= PER_PRODUCT * k as f64 * size, "({i}, {j}): error {error:e}");
                }
            }
        });
    }
}

#[test]
fn a_transposed_operand_of_f16() {
    Device::new().run(|| {
        let matrix = load("torture_matrix");
        let halves = |count, seed| -> Vec<f16> { floats(count, seed, 2.0).into_iter().map(f16::from_f32).collect() };
        let (a, b) = (halves(256, 14), halves(128, 15));
        let (on_a, on_b) = (matrix.stream.clone_htod(&a).unwrap(), matrix.stream.clone_htod(&b).unwrap());
        let mut c = unsafe { matrix.stream.alloc::<f32>(128) }.unwrap();
        let kernel = matrix.kernel("transposed");
        let mut launch = matrix.stream.launch_builder(&kernel);
        launch.arg(&mut c).arg(&on_a).arg(&on_b);
        unsafe { launch.launch(shape(1, 32)) }.unwrap();
        let found = matrix.stream.clone_dtoh(&c).unwrap();
        for (index, found) in found.iter().enumerate() {
            let (i, j) = (index / 8, index % 8);
            // What the accumulator began with: 1 to 4 by the register.
            let start = (1 + j % 2 + i / 8 * 2) as f64;
            let wanted = start + (0..16).map(|l| a[i * 16 + l].to_f64() * b[l * 8 + j].to_f64()).sum::<f64>();
            assert!((*found as f64 - wanted).abs() < 1e-5, "({i}, {j}): {found}, expected {wanted}");
        }
    });
}
