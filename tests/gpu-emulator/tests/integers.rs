//! Integers and bits against the host's own, and against the pseudo-code of the ISA.

use gpu_emulator::Device;

use crate::device::load;
use crate::numbers::Random;

fn words(count: usize, seed: u32) -> Vec<u32> {
    let mut random = Random(seed);
    let special = [0, 1, u32::MAX, i32::MAX as u32, i32::MIN as u32, 31, 32, 33];
    let any =
        |i: usize, random: &mut Random| (random.bits() >> (i % 25)) ^ if i.is_multiple_of(3) { u32::MAX } else { 0 };
    (0..count).map(|i| special.get(i).copied().unwrap_or_else(|| any(i, &mut random))).collect()
}

/// Compares every row of `width` results with what `wanted` makes of three neighbouring inputs.
fn compare<T: PartialEq + std::fmt::Debug>(
    input: &[u32],
    found: &[T],
    width: usize,
    wanted: impl Fn(u32, u32, u32) -> Vec<T>,
) {
    for (i, row) in found.chunks_exact(width).enumerate() {
        let [a, b, c] = [0, 1, 2].map(|k| input[(i + k) % input.len()]);
        let wanted = wanted(a, b, c);
        for (k, (found, wanted)) in row.iter().zip(&wanted).enumerate() {
            assert_eq!(found, wanted, "result {k} of {a:#x}, {b:#x}, {c:#x}");
        }
        assert_eq!(wanted.len(), width);
    }
}

fn arithmetic(ua: u32, ub: u32) -> Vec<i64> {
    let ub = ub | 1;
    let (a, b) = (ua as i32, ub as i32);
    let (la, lb) = ((a as i64).wrapping_mul(2654435761), b as i64);
    let mut z = la as u64;
    z ^= z >> 30;
    z = z.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^= z >> 27;
    let pick = match a & 15 {
        0 => 3,
        1 => a,
        2 => b.wrapping_neg(),
        3 => a ^ b,
        4 => 77,
        5 => a.wrapping_add(b),
        6 => a.wrapping_sub(b),
        7 => a.wrapping_mul(b),
        8 => a | b,
        9 => !a,
        10 => a & b,
        11 => a.min(b),
        12 => a.max(b),
        13 => a.wrapping_abs(),
        14 => a >> 3,
        _ => 9,
    };
    let both = (ub as u64) << 32 | ua as u64;
    vec![
        a.wrapping_div(b) as i64,
        a.wrapping_rem(b) as i64,
        (ua / ub) as i64,
        (ua % ub) as i64,
        la.wrapping_div(lb),
        la.wrapping_rem(lb),
        ((ua as u64 * ub as u64) >> 32) as i64,
        (a as i64 * b as i64) >> 32,
        a.count_ones() as i64,
        a.leading_zeros() as i64,
        ua.reverse_bits() as i64,
        la >> 7,
        (la as u64 >> 9) as i64,
        if a == 0 { 0 } else { a.trailing_zeros() as i64 + 1 },
        z as i64,
        pick as i64,
        permuted(ua, ub, (0x3a50 ^ (ua & 0x7777)) & 0x7777) as i64,
        (both << (ua & 31) >> 32) as u32 as i64,
        (both >> (ub & 31)) as u32 as i64,
        ((la as u64 as u128 * z as u128) >> 64) as i64,
        ((la as i128 * lb as i128) >> 64) as i64,
        a as i16 as i64 * b as i16 as i64 + a as u16 as i64,
        a as i8 as i64 + b as u8 as i64,
        la.leading_zeros() as i64 * 100 + la.count_ones() as i64,
    ]
}

/// `prmt` in its general form.
fn permuted(a: u32, b: u32, control: u32) -> u32 {
    let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
    u32::from_le_bytes([0, 1, 2, 3].map(|i| {
        let byte = bytes[(control >> (4 * i) & 7) as usize];
        if control >> (4 * i) & 8 == 0 {
            byte
        } else if byte >= 128 {
            255
        } else {
            0
        }
    }))
}

fn bit(x: u32, at: u32) -> u32 {
    x >> at & 1
}

/// The pseudo-code of `bfe`.
fn extracted(a: u32, at: u32, len: u32, signed: bool) -> u32 {
    let sign = if !signed || len == 0 { 0 } else { bit(a, (at + len - 1).min(31)) };
    (0..32).map(|i| (if i < len && at + i <= 31 { bit(a, at + i) } else { sign }) << i).sum()
}

/// The pseudo-code of `bfi`.
fn inserted(a: u32, b: u32, at: u32, len: u32) -> u32 {
    (0..32).map(|i| (if i >= at && i < at + len { bit(a, i - at) } else { bit(b, i) }) << i).sum()
}

/// The pseudo-code of `bfind`.
fn found(a: u32, signed: bool, shift: bool) -> u32 {
    let a = if signed && a >> 31 == 1 { !a } else { a };
    match (0..32).rev().find(|i| bit(a, *i) == 1) {
        None => u32::MAX,
        Some(i) => {
            if shift {
                31 - i
            } else {
                i
            }
        }
    }
}

fn bits(a: u32, b: u32, c: u32) -> Vec<u32> {
    let table = |table: u32| (0..32).map(|i| bit(table, bit(a, i) << 2 | bit(b, i) << 1 | bit(c, i)) << i).sum();
    let n = c & 3;
    let both = (b as u64 & 63) << 32 | a as u64;
    let less = (a as i32) < b as i32;
    let second = ((a as i32) < c as i32) ^ (a > b);
    vec![
        extracted(a, b & 63, c & 63, false),
        extracted(a, b & 63, c & 63, true),
        inserted(a, b, c & 63, c >> 6 & 63),
        table(0xca),
        table(0x96),
        permuted(a, b, c),
        permuted(a, b, [0x3210, 0x4321, 0x5432, 0x6543][n as usize]),
        permuted(a, b, [0x1010, 0x3232, 0x1010, 0x3232][n as usize]),
        if c & 63 >= 32 { a } else { (both << (c & 63) >> 32) as u32 },
        (both >> (c & 31)) as u32,
        if b & 63 > 31 { 0 } else { a << (b & 63) },
        (a as i32 >> (b & 63).min(31)) as u32,
        if b & 63 > 31 { 0 } else { a >> (b & 63) },
        found(a, false, false),
        found(a, true, false),
        found(a, true, true),
        if less { 1 } else { 2 },
        if a <= b { u32::MAX } else { 0 },
        if second { b } else { c },
        c.wrapping_add((a as i32).abs_diff(b as i32)),
        5 << 16 | 0xfffd,
    ]
}

fn carried(a: u32, b: u32, c: u32) -> Vec<u32> {
    let wide = |low: u32, mid: u32, top: u32| low as u128 | (mid as u128) << 32 | (top as u128) << 64;
    let parts = |x: u128| [x as u32, (x >> 32) as u32, (x >> 64) as u32];
    let sum = parts(wide(a, b, c).wrapping_add(wide(b, c, a)));
    let difference = parts(wide(a, b, c).wrapping_sub(wide(b, c, a)));
    let product = parts(a as u128 * (b as u128 | (c as u128) << 32));
    let (x, y) = ((a as u64) << 32 | b as u64, (b as u64) << 32 | c as u64);
    let t = x.wrapping_mul(y).wrapping_add(x);
    let z = ((t as u128 * y as u128) >> 64) as u64;
    let high = ((a as i32 as i64 * b as i32 as i64) >> 32) as u32;
    [&sum[..], &difference, &product, &[z as u32, (z >> 32) as u32, high.wrapping_add(c)]].concat()
}

#[test]
fn arithmetic_of_32_and_64_bits() {
    Device::new().run(|| {
        let input = words(2048, 2);
        let found: Vec<i64> = load("torture_integer").map("integer", &input, 24);
        compare(&input, &found, 24, |a, b, _| arithmetic(a, b));
    });
}

#[test]
fn single_instructions_of_bits() {
    Device::new().run(|| {
        let input = words(2048, 3);
        let found: Vec<u32> = load("torture_isa").map("bits", &input, 21);
        compare(&input, &found, 21, bits);
    });
}

#[test]
fn carries() {
    Device::new().run(|| {
        let input = words(2048, 4);
        let found: Vec<u32> = load("torture_isa").map("carry", &input, 12);
        compare(&input, &found, 12, carried);
    });
}
