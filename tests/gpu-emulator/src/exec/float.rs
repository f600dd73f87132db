//! Floats of 32 and 64 bits and halves (PTX ISA 9.7.3, 9.7.4). Results are those of IEEE 754, a NaN that is computed is
//! the canonical one. The approximate functions are computed in f64 and rounded once: the device may be off by a few
//! units in the last place where this is not.

use super::op::*;
use super::registers::*;
use super::rounding::{self, flush32};

const NAN32: u32 = 0x7fff_ffff;

#[inline(always)]
pub fn f32s(r: &mut Registers, mask: u32, f: Float, mode: Mode, d: Row, [a, b, c]: [Row; 3]) {
    let x = input(r, a, mode.flush);
    let y = if b == NONE { x } else { input(r, b, mode.flush) };
    let z = if c == NONE { x } else { input(r, c, mode.flush) };
    if matches!(f, Float::Neg | Float::Abs | Float::CopySign) {
        return f32::set_row(r, d, mask, sign(f, &x, &y));
    }
    let mut out = match f {
        _ if mode.round != Round::Nearest => directed(f, mode.round, &x, &y, &z),
        Float::Add => map2(&x, &y, |x, y| x + y),
        Float::Sub => map2(&x, &y, |x, y| x - y),
        Float::Mul => map2(&x, &y, |x, y| x * y),
        Float::Fma => map3(&x, &y, &z, |x, y, z| x.mul_add(y, z)),
        Float::Div => map2(&x, &y, |x, y| x / y),
        Float::Sqrt => map(&x, f32::sqrt),
        Float::Rcp => map(&x, |x| 1.0 / x),
        Float::Min | Float::MinNan => map2(&x, &y, |x, y| least(x, y, f == Float::MinNan)),
        Float::Max | Float::MaxNan => map2(&x, &y, |x, y| -least(-x, -y, f == Float::MaxNan)),
        _ => function(f, mask, &x),
    };
    if mode.saturate {
        out = map(&out, |x| if x > 0.0 { x.min(1.0) } else { 0.0 });
    }
    if mode.flush {
        out = flush(&out);
    }
    let out = map(&out, |x| if x.is_nan() { NAN32 } else { x.to_bits() });
    u32::set_row(r, d, mask, out);
}

#[inline(always)]
fn input(r: &Registers, row: Row, flushed: bool) -> Lanes<f32> {
    let x = f32::row(r, row);
    if flushed { flush(&x) } else { x }
}

#[inline(always)]
fn flush(x: &Lanes<f32>) -> Lanes<f32> {
    map(x, |x| {
        let bits = x.to_bits();
        f32::from_bits(if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits })
    })
}

#[inline(always)]
fn sign(f: Float, x: &Lanes<f32>, y: &Lanes<f32>) -> Lanes<f32> {
    match f {
        Float::Neg => map(x, |x| -x),
        Float::Abs => map(x, f32::abs),
        _ => map2(x, y, |x, y| y.copysign(x)),
    }
}

/// The number if only one is NaN; -0 is less than +0.
#[inline(always)]
fn least(x: f32, y: f32, keep_nan: bool) -> f32 {
    if x.is_nan() || y.is_nan() {
        return if keep_nan || x.is_nan() && y.is_nan() {
            f32::NAN
        } else if x.is_nan() {
            y
        } else {
            x
        };
    }
    if x < y || (x == y && x.is_sign_negative()) { x } else { y }
}

#[inline(never)]
fn directed(f: Float, round: Round, x: &Lanes<f32>, y: &Lanes<f32>, z: &Lanes<f32>) -> Lanes<f32> {
    map3(x, y, z, |x, y, z| {
        let (x, y, z) = (x as f64, y as f64, z as f64);
        let exact = match f {
            Float::Add => rounding::sum(x, y),
            Float::Sub => rounding::sum(x, -y),
            Float::Mul => x * y,
            Float::Fma => rounding::fma(x, y, z),
            Float::Div => rounding::quotient(x, y),
            Float::Rcp => rounding::quotient(1.0, x),
            Float::Sqrt => rounding::root(x),
            _ => f64::NAN,
        };
        let rounded = rounding::to_f32(exact, round);
        // An exact zero of a sum of opposites is negative when rounding down.
        let cancelled = exact == 0.0 && matches!(f, Float::Add | Float::Sub | Float::Fma) && round == Round::Down;
        let (p, q) = match f {
            Float::Add => (x, y),
            Float::Sub => (x, -y),
            _ => (x * y, z),
        };
        if cancelled && p.is_sign_negative() != q.is_sign_negative() { -0.0 } else { rounded }
    })
}

#[inline(never)]
fn function(f: Float, mask: u32, x: &Lanes<f32>) -> Lanes<f32> {
    let mut out = [0.0; LANES];
    for lane in lanes(mask) {
        let x = x[lane] as f64;
        out[lane] = match f {
            Float::Rsqrt => 1.0 / x.sqrt(),
            Float::Exp2 => x.exp2(),
            Float::Log2 => x.log2(),
            Float::Sin => x.sin(),
            Float::Cos => x.cos(),
            _ => x.tanh(),
        } as f32;
    }
    out
}

pub fn f64s(r: &mut Registers, mask: u32, f: Float, d: Row, [a, b, c]: [Row; 3]) {
    let x = f64::row(r, a);
    let y = if b == NONE { x } else { f64::row(r, b) };
    let z = if c == NONE { x } else { f64::row(r, c) };
    let out = map3(&x, &y, &z, |x, y, z| match f {
        Float::Add => x + y,
        Float::Sub => x - y,
        Float::Mul => x * y,
        Float::Fma => x.mul_add(y, z),
        Float::Div => x / y,
        Float::Min => x.min(y),
        Float::Max => x.max(y),
        Float::Neg => -x,
        Float::Abs => x.abs(),
        Float::CopySign => y.copysign(x),
        Float::Sqrt => x.sqrt(),
        Float::Rcp => 1.0 / x,
        _ => 1.0 / x.sqrt(),
    });
    f64::set_row(r, d, mask, out);
}

/// Halves, one or a pair in a row.
pub fn halves(r: &mut Registers, mask: u32, op: HalfOp, d: Row, rows: [Row; 3]) {
    let HalfOp { f, of, packed, mode } = op;
    let [a, b, c] = rows;
    let x = u32::row(r, a);
    let y = if b == NONE { x } else { u32::row(r, b) };
    let z = if c == NONE { x } else { u32::row(r, c) };
    let one = |x: u32, y: u32, z: u32| half(f, of, mode, x as u16, y as u16, z as u16) as u32;
    let out = map3(&x, &y, &z, |x, y, z| match packed {
        true => one(x, y, z) | one(x >> 16, y >> 16, z >> 16) << 16,
        false => one(x, y, z),
    });
    u32::set_row(r, d, mask, out);
}

fn half(f: Float, of: Half, mode: Mode, a: u16, b: u16, c: u16) -> u16 {
    match f {
        Float::Neg => return a ^ 0x8000,
        Float::Abs => return a & 0x7fff,
        _ => {}
    }
    let [x, y, z] = [a, b, c].map(|bits| match mode.flush {
        true if of == Half::F16 && bits & 0x7c00 == 0 => 0f32.copysign(of.to_f32(bits)),
        true => flush32(of.to_f32(bits)),
        false => of.to_f32(bits),
    });
    let (p, q, s) = (x as f64, y as f64, z as f64);
    let exact = match f {
        Float::Add => rounding::sum(p, q),
        Float::Sub => rounding::sum(p, -q),
        Float::Mul => p * q,
        Float::Fma => rounding::fma(p, q, s),
        Float::Min | Float::MinNan => least(x, y, f == Float::MinNan) as f64,
        Float::Max | Float::MaxNan => -least(-x, -y, f == Float::MaxNan) as f64,
        Float::Exp2 => p.exp2(),
        _ => p.tanh(),
    };
    of.round(
        match exact {
            x if mode.saturate => {
                if x > 0.0 {
                    x.min(1.0)
                } else {
                    0.0
                }
            }
            x if mode.relu && x < 0.0 => 0.0,
            x => x,
        },
        Round::Nearest,
    )
}
