//! Rounding. A result is right by the definition of its rounding: the largest float that is not above the exact value,
//! and so on; exact values are compared as integers of 128 bits.

use gpu_emulator::Device;

use crate::device::load;
use crate::numbers::{Random, all_floats, error};

/// Floats between 2^-12 and 2^12, whose products and sums of products are integers of 128 bits in units of 2^-96.
fn moderate(count: usize) -> Vec<u32> {
    let mut random = Random(5);
    let special: [f32; 6] = [1.0, -1.0, 0.0, -0.0, 3.0, 1.0 + f32::EPSILON];
    let any = |random: &mut Random| (random.bits() & 0x807f_ffff) | (115 + random.bits() % 24) << 23;
    (0..count).map(|i| special.get(i).map_or_else(|| any(&mut random), |x| x.to_bits())).collect()
}

/// In units of 2^-48, in which quotients are integers too.
fn scaled(x: f32) -> i128 {
    (x as f64 * 2f64.powi(48)) as i128
}

fn exact(x: f32) -> i128 {
    scaled(x) << 48
}

fn product(x: f32, y: f32) -> i128 {
    scaled(x) * scaled(y)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Direction {
    Nearest,
    Zero,
    Down,
    Up,
}
use Direction::*;
const ALL: [Direction; 4] = [Nearest, Zero, Down, Up];

/// Whether `found` is the value rounded, where `compare(y)` is how a float compares with the exact value.
fn is_rounded(found: f32, direction: Direction, compare: impl Fn(f32) -> std::cmp::Ordering) -> bool {
    use std::cmp::Ordering::*;
    if found.is_nan() {
        return false;
    }
    let side = compare(found);
    let tight = match side {
        Equal => return true,
        Less => compare(found.next_up()) == Greater,
        Greater => compare(found.next_down()) == Less,
    };
    let allowed = match direction {
        Nearest => true,
        Down => side == Less,
        Up => side == Greater,
        Zero => (found >= 0.0) == (side == Less) || found == 0.0,
    };
    tight && allowed
}

#[test]
fn every_direction() {
    Device::new().run(|| {
        let input = moderate(3000);
        let found: Vec<u32> = load("torture_isa").map("rounding", &input, 24);
        for (i, row) in found.chunks_exact(24).enumerate() {
            let [x, y, z] = [0, 1, 2].map(|k| f32::from_bits(input[(i + k) % input.len()]));
            let result = |k: usize| f32::from_bits(row[k]);
            let check = |k: usize, direction, wanted: i128, name| {
                let right = is_rounded(result(k), direction, |found| exact(found).cmp(&wanted));
                assert!(right, "{name} {direction:?} of {x:e}, {y:e}, {z:e}: {:e}", result(k));
            };
            for (k, direction) in ALL.into_iter().enumerate() {
                check(k, direction, exact(x) + exact(y), "sum");
                check(4 + k, direction, product(x, y), "product");
                check(12 + k, direction, product(x, y) + exact(z), "fma");
                // found <= x / y where found * y <= x, for a positive y
                if y != 0.0 {
                    let order = |found: f32| {
                        let order = product(found, y.abs()).cmp(&exact(x));
                        if y < 0.0 { product(found, y.abs()).cmp(&exact(-x)) } else { order }
                    };
                    let quotient = result(8 + k);
                    assert!(is_rounded(quotient, direction, order), "{x:e} / {y:e} {direction:?}: {quotient:e}");
                }
            }
            assert_eq!(result(0), x + y);
            assert_eq!(result(4), x * y);
            assert!(result(8) == x / y || (x / y).is_nan() && row[8] == 0x7fff_ffff);
            assert_eq!(result(12), x.mul_add(y, z));
            assert_eq!(result(16), x + y);
            assert_eq!(result(18), x.mul_add(y, z).clamp(0.0, 1.0));
            check(19, Down, exact(x) - exact(y), "difference");
            assert_eq!((result(20), result(21)), (x.min(y), x.max(y)));
            if x > 0.0 {
                let right = is_rounded(result(23), Up, |found| product(found, found).cmp(&exact(x)));
                assert!(right, "sqrt of {x:e}: {:e}", result(23));
            }
        }
    });
}

#[test]
fn special_values() {
    const NAN: u32 = 0x7fff_ffff;
    let bits = f32::to_bits;
    let tiny = f32::from_bits(1);
    // x, y, result of column k
    let cases: [(f32, f32, usize, u32); 19] = [
        (f32::INFINITY, f32::NEG_INFINITY, 0, NAN),
        (f32::NAN, 1.0, 4, NAN),
        (f32::MAX, f32::MAX, 4, bits(f32::INFINITY)),
        (f32::MAX, f32::MAX, 5, bits(f32::MAX)),
        (f32::MAX, f32::MAX, 6, bits(f32::MAX)),
        (f32::MAX, -2.0, 6, bits(f32::NEG_INFINITY)),
        (1.0, -1.0, 0, bits(0.0)),
        (1.0, -1.0, 2, bits(-0.0)),
        (1.0, -1.0, 3, bits(0.0)),
        (tiny, tiny, 0, bits(tiny + tiny)),
        (tiny, tiny, 16, bits(0.0)),
        (tiny, f32::MIN_POSITIVE, 16, bits(f32::MIN_POSITIVE)),
        (-tiny, 0.5, 17, bits(-0.0)),
        (tiny, 0.5, 7, bits(tiny)),
        (f32::NAN, 2.0, 20, bits(2.0)),
        (-0.0, 0.0, 21, bits(0.0)),
        (0.0, -0.0, 20, bits(-0.0)),
        (0.0, -0.0, 21, bits(0.0)),
        (f32::NAN, 2.0, 22, NAN),
    ];
    Device::new().run(|| {
        let isa = load("torture_isa");
        for (x, y, column, wanted) in cases {
            let input = [bits(x), bits(y), bits(1.0)];
            let found: Vec<u32> = isa.map("rounding", &input, 24);
            assert_eq!(found[column], wanted, "column {column} of {x:e}, {y:e}: {:e}", f32::from_bits(found[column]));
        }
    });
}

#[test]
fn conversions() {
    Device::new().run(|| {
        let input = all_floats(4000, 6);
        let found: Vec<u32> = load("torture_isa").map("convert", &input, 20);
        for (i, row) in found.chunks_exact(20).enumerate() {
            let (x, b) = (f32::from_bits(input[i]), input[(i + 1) % input.len()]);
            let wanted = [
                // A cast of Rust saturates, and takes NaN to zero, as PTX does for 32 bits.
                x.round_ties_even() as i32 as u32,
                x as i32 as u32,
                x.floor() as i32 as u32,
                x.ceil() as i32 as u32,
                x as u32,
                x.round_ties_even() as u32,
            ];
            assert_eq!(row[..6], wanted, "{x:e} to an integer");
            let (signed, unsigned) = (b as i32 as f64, b as f64);
            for (k, value, direction) in
                [(6, signed, Nearest), (7, signed, Zero), (8, unsigned, Down), (9, unsigned, Up)]
            {
                let found = f32::from_bits(row[k]);
                let right = is_rounded(found, direction, |found| (found as f64).total_cmp(&value));
                assert!(right, "{value} to f32 {direction:?}: {found}");
            }
            assert_eq!(
                (row[6], row[10], row[11] as i32),
                ((b as i32 as f32).to_bits(), x as u8 as u32, x.round_ties_even() as i8 as i32)
            );
            let long = |k: usize| row[k] as u64 | (row[k + 1] as u64) << 32;
            let nan = 1 << 63;
            assert_eq!(long(12), if x.is_nan() { nan } else { x as i64 as u64 }, "{x:e} to s64");
            assert_eq!(long(14), if x.is_nan() { nan } else { x.round_ties_even() as u64 }, "{x:e} to u64");
            assert_eq!(row[16], b.min(i32::MAX as u32), "u32 {b} to s32, saturated");
            assert_eq!(row[17] as i32, (b as i32).clamp(-32768, 32767), "s32 {b} to s16, saturated");
            assert_eq!(row[18], if x.is_nan() { 0x7fff_ffff } else { x.floor().to_bits() }, "{x:e} down to an integer");
            assert_eq!(f32::from_bits(row[19]), if x > 0.0 { x.min(1.0) } else { 0.0 }, "{x:e} saturated");
        }
    });
}

#[test]
fn approximate_functions() {
    Device::new().run(|| {
        let input: Vec<f32> = all_floats(3000, 7).into_iter().map(f32::from_bits).map(|x| x % 100.0).collect();
        let found: Vec<f32> = load("torture_isa").map("approximate", &input, 10);
        let functions: [fn(f64) -> f64; 10] = [
            f64::exp2,
            f64::log2,
            f64::recip,
            |x| 1.0 / x.sqrt(),
            f64::sqrt,
            f64::sin,
            f64::cos,
            f64::tanh,
            f64::recip,
            f64::sqrt,
        ];
        for (x, row) in input.iter().zip(found.chunks_exact(10)) {
            for (k, function) in functions.iter().enumerate() {
                let wanted = function(*x as f64) as f32;
                let error = error(row[k] as f64, wanted as f64, 1e-37);
                assert!(error < 2e-7, "function {k} of {x:e}: {:e}, expected {wanted:e}", row[k]);
            }
        }
    });
}

/// Of NaN too, where the ordered comparisons are false and the unordered ones true.
#[test]
fn comparisons() {
    Device::new().run(|| {
        let input = all_floats(2000, 17);
        let found: Vec<u32> = load("torture_isa").map("compare", &input, 16);
        for (i, row) in found.chunks_exact(16).enumerate() {
            let pairs = [(i, (i + 1) % input.len()), (i, i)];
            for (k, (x, y)) in
                pairs.map(|(i, j)| (f32::from_bits(input[i]), f32::from_bits(input[j]))).into_iter().enumerate()
            {
                let nan = x.is_nan() || y.is_nan();
                let wanted = [x == y, x != y && !nan, x < y, x <= y, x > y, x >= y, !nan].map(|holds| holds as u32);
                let unordered = [x == y, x != y, x < y, x <= y, x > y, x >= y, true].map(|holds| (holds || nan) as u32);
                let bits = |list: [u32; 7]| list.iter().enumerate().map(|(bit, holds)| holds << bit).sum::<u32>();
                assert_eq!(row[8 * k], bits(wanted), "ordered, {x:e} and {y:e}");
                assert_eq!(row[8 * k + 1], bits(unordered) & 0x3f | (nan as u32) << 6, "unordered, {x:e} and {y:e}");
            }
        }
    });
}
