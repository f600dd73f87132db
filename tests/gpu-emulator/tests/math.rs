//! The functions of f32 as NVRTC lowers them, in full and in fast mathematics, against the host's f64.

use gpu_emulator::Device;

use crate::device::load;
use crate::numbers::{error, floats};

const COLUMNS: usize = 26;
type Function = fn(f64) -> f64;

fn single(x: f64) -> f64 {
    x as f32 as f64
}

/// The integral of exp(-t^2) by Simpson's rule.
fn erf(x: f64) -> f64 {
    let steps = 2000;
    let h = x / steps as f64;
    let weight = |i: usize| if i == 0 || i == steps { 1.0 } else { 2.0 + 2.0 * (i % 2) as f64 };
    let sum: f64 = (0..=steps).map(|i| weight(i) * (-(i as f64 * h).powi(2)).exp()).sum();
    sum * h / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
}

/// Name, function, and the largest relative error in full and in fast mathematics (CUDA C++ Programming Guide, appendix
/// on mathematical functions: units in the last place, of which one is at most 1.2e-7).
fn columns() -> [(&'static str, Function, f64, f64); COLUMNS] {
    const EXACT: f64 = 0.0;
    const NEAR: f64 = 1.2e-7;
    [
        ("sin", f64::sin, 2.0 * NEAR, 2e-5),
        ("cos of 1000 x", |x| single(x * 1000.0).cos(), 2.0 * NEAR, 1e-3),
        ("pow 1.7", |x| x.abs().powf(1.7f32 as f64), 2.0 * NEAR, 2e-6),
        ("tanh", f64::tanh, 2.0 * NEAR, 1e-5),
        ("erf", erf, 2.0 * NEAR, 1e-5),
        ("log1p", |x| x.abs().ln_1p(), 2.0 * NEAR, 2e-6),
        ("expm1", f64::exp_m1, 2.0 * NEAR, 2e-5),
        ("fmod 0.7", |x| single(x) % 0.7f32 as f64, EXACT, 1e-3),
        ("rint", f64::round_ties_even, EXACT, EXACT),
        ("to int", f64::trunc, EXACT, EXACT),
        ("to int, nearest", f64::round_ties_even, EXACT, EXACT),
        ("lrint of 100 x", |x| single(x * 100.0).round_ties_even(), EXACT, EXACT),
        ("floor", f64::floor, EXACT, EXACT),
        ("ceil", f64::ceil, EXACT, EXACT),
        ("trunc", f64::trunc, EXACT, EXACT),
        ("round", f64::round, EXACT, EXACT),
        ("cbrt", f64::cbrt, 2.0 * NEAR, 2.0 * NEAR),
        ("log", |x| x.abs().ln(), 2.0 * NEAR, 2e-6),
        ("exp2", f64::exp2, 2.0 * NEAR, 2.0 * NEAR),
        ("exp", f64::exp, 2.0 * NEAR, 2e-6),
        ("rsqrt", |x| 1.0 / x.abs().sqrt(), NEAR, NEAR),
        ("reciprocal", |x| 1.0 / x, NEAR, NEAR),
        ("sqrt", |x| x.abs().sqrt(), NEAR, NEAR),
        ("sqrt in f64", |x| single(x.abs().sqrt() * 1e3 / 3.0), EXACT, EXACT),
        ("divided by 3", |x| x / 3.0, NEAR, 2.0 * NEAR),
        ("silu", |x| x / (1.0 + (-x).exp()), 4.0 * NEAR, 2e-6),
    ]
}

fn compare(kernels: &str, fast: bool) {
    let mut input = floats(2048, 1, 10.0);
    input[..8].copy_from_slice(&[0.5, -0.5, 1.5, 2.5, -1.5, 1e-3, 9.25, -7.75]);
    let found: Vec<f32> = load(kernels).map("math", &input, COLUMNS);
    for (column, (name, function, full, in_fast)) in columns().into_iter().enumerate() {
        let limit = if fast { in_fast } else { full };
        for (x, row) in input.iter().zip(found.chunks_exact(COLUMNS)) {
            let wanted = function(*x as f64);
            let error = error(row[column] as f64, wanted, 1e-2);
            assert!(error <= limit, "{name} of {x}: {}, expected {wanted}, error {error:.1e}", row[column]);
        }
    }
}

#[test]
fn full_mathematics() {
    Device::new().run(|| compare("torture_math", false));
}

#[test]
fn fast_mathematics() {
    Device::new().run(|| compare("torture_math_fast", true));
}
