//! bf16 and f16, against the crate `half`.

use gpu_emulator::Device;
use half::{bf16, f16};

use crate::device::load;
use crate::numbers::{Random, all_floats};

/// NaN as the device gives it.
fn bits_bf16(x: bf16) -> u32 {
    if x.is_nan() { 0x7fff } else { x.to_bits() as u32 }
}

fn bits_f16(x: f16) -> u32 {
    if x.is_nan() { 0x7fff } else { x.to_bits() as u32 }
}

/// The f16 next to the nearest one, if that is on the wrong side of `x`. The order of the bits is that of the sizes.
fn f16_directed(x: f32, wrong: impl Fn(f64, f64) -> bool) -> u32 {
    let nearest = f16::from_f32(x);
    if x.is_nan() || x.is_infinite() || !wrong(nearest.to_f64(), x as f64) {
        return bits_f16(nearest);
    }
    let smaller = nearest.to_f64().abs() > (x as f64).abs();
    let bits = nearest.to_bits();
    (if smaller { bits - 1 } else { bits + 1 }) as u32
}

fn bf16_toward_zero(x: f32) -> u32 {
    if x.is_nan() { 0x7fff } else { x.to_bits() >> 16 }
}

#[test]
fn narrowing() {
    Device::new().run(|| {
        let input = all_floats(6000, 8);
        let values: Vec<f32> = input.iter().map(|bits| f32::from_bits(*bits)).collect();
        let found: Vec<u32> = load("torture_half").map("narrow", &values, 12);
        for (i, row) in found.chunks_exact(12).enumerate() {
            let (v, w) = (values[i], values[(i + 1) % values.len()]);
            let positive = |x: f32| if x < 0.0 { 0.0 } else { x };
            let pair = |half: &dyn Fn(f32) -> u32| half(w) << 16 | half(v);
            let nearest_bf16 = |x| bits_bf16(bf16::from_f32(x));
            let wanted = [
                nearest_bf16(v),
                bf16_toward_zero(v),
                nearest_bf16(positive(v)),
                bits_f16(f16::from_f32(v)),
                f16_directed(v, |half, x| half.abs() > x.abs()),
                f16_directed(v, |half, x| half > x),
                f16_directed(v, |half, x| half < x),
                bits_f16(f16::from_f32(if v > 0.0 { v.min(1.0) } else { 0.0 })),
                pair(&nearest_bf16),
                pair(&bf16_toward_zero),
                pair(&|x| bits_f16(f16::from_f32(x))),
                pair(&|x| nearest_bf16(positive(x))),
            ];
            for (k, (found, wanted)) in row.iter().zip(wanted).enumerate() {
                assert_eq!(*found, wanted, "conversion {k} of {v:e} (and {w:e}): {found:#x}, expected {wanted:#x}");
            }
        }
    });
}

#[test]
fn widening() {
    Device::new().run(|| {
        let input: Vec<u16> = (0..=u16::MAX).collect();
        let found: Vec<f32> = load("torture_half").map("widen", &input, 2);
        for (bits, row) in input.iter().zip(found.chunks_exact(2)) {
            assert_eq!(row[0].to_bits(), (*bits as u32) << 16);
            let wanted = f16::from_bits(*bits).to_f32();
            assert!(row[1] == wanted || row[1].is_nan() && wanted.is_nan(), "{bits:#x}: {}, expected {wanted}", row[1]);
        }
    });
}

/// Pairs of values between 2^-8 and 2^8, so that a product and a sum are exact in f64.
fn pairs(count: usize) -> Vec<u32> {
    let mut random = Random(9);
    let mut half = || {
        let exponent = -8 + (random.bits() % 16) as i32;
        random.float() as f64 * 2f64.powi(exponent)
    };
    (0..count)
        .map(|i| match i % 2 {
            // Patterns that are of use in both formats.
            0 => bf16::from_f64(half()).to_bits() as u32 | (bf16::from_f64(half()).to_bits() as u32) << 16,
            _ => f16::from_f64(half()).to_bits() as u32 | (f16::from_f64(half()).to_bits() as u32) << 16,
        })
        .collect()
}

fn halves(x: u32) -> [u16; 2] {
    [x as u16, (x >> 16) as u16]
}

#[test]
fn packed_arithmetic() {
    Device::new().run(|| {
        let input = pairs(3000);
        let found: Vec<u32> = load("torture_half").map("packed", &input, 14);
        let mut compared = 0;
        for (i, row) in found.chunks_exact(14).enumerate() {
            for side in 0..2 {
                let [a, b, c] = [0, 1, 2].map(|k| halves(input[(i + k) % input.len()])[side]);
                let (x, y, z) = (bf16::from_bits(a).to_f64(), bf16::from_bits(b).to_f64(), bf16::from_bits(c).to_f64());
                let found = |k: usize| halves(row[k])[side] as u32;
                let moderate = |list: [f64; 3]| list.iter().all(|x| x.abs() < 300.0 && (x.abs() > 1e-3 || *x == 0.0));
                if moderate([x, y, z]) {
                    compared += 1;
                    let fma = bits_bf16(bf16::from_f64(x * y + z));
                    assert_eq!(found(0), fma, "bf16 {x} * {y} + {z}");
                    assert_eq!(found(1), if x * y + z < 0.0 { 0 } else { fma });
                    assert_eq!(
                        (found(2), found(3)),
                        (bits_bf16(bf16::from_f64(x.min(y))), bits_bf16(bf16::from_f64(x.max(y))))
                    );
                    assert_eq!((found(4), found(5), found(12)), (a as u32 ^ 0x8000, a as u32 & 0x7fff, found(3)));
                    assert!(side == 1 || row[13] == fma);
                }
                let (x, y, z) = (f16::from_bits(a).to_f64(), f16::from_bits(b).to_f64(), f16::from_bits(c).to_f64());
                if moderate([x, y, z]) {
                    compared += 1;
                    let of = |value: f64| bits_f16(f16::from_f64(value));
                    assert_eq!(found(6), of(x * y + z), "f16 {x} * {y} + {z}");
                    assert_eq!((found(7), found(8), found(9)), (of(x + y), of(x - y), of(x * y)), "f16 {x}, {y}");
                    assert_eq!((found(10), found(11)), (of(x.max(y)), of((x * y + z).clamp(0.0, 1.0))));
                }
            }
        }
        assert!(compared > 2000, "only {compared} values were fit to be compared");
    });
}

#[test]
fn a_product_and_a_sum_are_rounded_once() {
    // 1.5 (1 + 2^-7) lies between two bf16, of which the upper is even: what is added, however small, decides.
    let [a, b, tiny] = [1.5, 1.0 + 2f32.powi(-7), 2f32.powi(-100)].map(|x| bf16::from_f32(x).to_bits() as u32);
    let cases = [(0, 194), (tiny, 194), (tiny | 0x8000, 193)];
    Device::new().run(|| {
        let half = load("torture_half");
        for (c, wanted) in cases {
            let found: Vec<u32> = half.map("packed", &[a, b, c], 14);
            assert_eq!(bf16::from_bits(found[13] as u16).to_f32() * 128.0, wanted as f32);
        }
    });
}
