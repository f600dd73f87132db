//! `cvt` (PTX ISA 9.7.9.20).

use super::op::*;
use super::registers::*;
use super::rounding::{self, flush32};
use crate::ptx::Scalar;

/// A value on its way: integers exactly, floats as f64, which holds all of them.
#[derive(Clone, Copy)]
enum Value {
    Integer(i128),
    Float(f64),
}

#[inline(always)]
pub fn convert(r: &mut Registers, mask: u32, how: &Conversion, d: Row, a: Row) {
    let plain = how.mode.round == Round::Nearest && !how.mode.saturate && !how.mode.flush && !how.mode.relu;
    match (how.from, how.to) {
        (Scalar::S32, Scalar::F32) if plain => {
            let out = map(&u32::row(r, a), |x| x as i32 as f32);
            f32::set_row(r, d, mask, out);
        }
        (Scalar::S32, Scalar::S64) => {
            let out = map(&u32::row(r, a), |x| x as i32 as i64 as u64);
            u64::set_row(r, d, mask, out);
        }
        (Scalar::F32, Scalar::Bf16) if plain => {
            let out = map(&f32::row(r, a), |x| Half::Bf16.nearest(x) as u32);
            u32::set_row(r, d, mask, out);
        }
        _ => general(r, mask, how, d, a),
    }
}

#[inline(never)]
fn general(r: &mut Registers, mask: u32, how: &Conversion, d: Row, a: Row) {
    let bits = if how.from.bits() == 64 { u64::row(r, a) } else { map(&u32::row(r, a), u64::from) };
    let mut out = [0u64; LANES];
    for lane in lanes(mask) {
        out[lane] = one(how, bits[lane]);
    }
    if how.register == Width::W64 {
        u64::set_row(r, d, mask, out);
    } else {
        u32::set_row(r, d, mask, map(&out, |x| x as u32));
    }
}

fn one(how: &Conversion, bits: u64) -> u64 {
    let value = match read(how.from, bits) {
        Value::Float(x) if how.mode.flush && how.from == Scalar::F32 => Value::Float(flush32(x as f32) as f64),
        value => value,
    };
    match how.to {
        Scalar::F32 | Scalar::F64 | Scalar::F16 | Scalar::Bf16 => to_float(how, value),
        _ => to_integer(how, value),
    }
}

fn read(of: Scalar, bits: u64) -> Value {
    match of {
        Scalar::F32 => Value::Float(f32::from_bits(bits as u32) as f64),
        Scalar::F64 => Value::Float(f64::from_bits(bits)),
        Scalar::F16 => Value::Float(Half::F16.to_f32(bits as u16) as f64),
        Scalar::Bf16 => Value::Float(Half::Bf16.to_f32(bits as u16) as f64),
        _ => {
            let above = 64 - of.bits();
            Value::Integer(match of.is_signed() {
                true => ((bits << above) as i64 >> above) as i128,
                false => (bits << above >> above) as i128,
            })
        }
    }
}

fn to_float(how: &Conversion, value: Value) -> u64 {
    let mut x = match value {
        Value::Integer(x) => rounding::from_integer(x),
        Value::Float(x) if how.to_integral => rounding::integral(x, how.mode.round),
        Value::Float(x) => x,
    };
    if how.mode.saturate {
        x = if x > 0.0 { x.min(1.0) } else { 0.0 };
    }
    if how.mode.relu && x < 0.0 {
        x = 0.0;
    }
    match how.to {
        Scalar::F64 => match value {
            Value::Integer(x) => (x as f64).to_bits(),
            Value::Float(_) => x.to_bits(),
        },
        Scalar::F32 => {
            let y = rounding::to_f32(x, how.mode.round);
            let y = if how.mode.flush { flush32(y) } else { y };
            if y.is_nan() { 0x7fff_ffff } else { y.to_bits() as u64 }
        }
        Scalar::F16 => Half::F16.round(x, how.mode.round) as u64,
        _ => Half::Bf16.round(x, how.mode.round) as u64,
    }
}

/// Floats are clamped to the range of the integer, integers only with `.sat`; else they are cut. The result is extended
/// to the width of the register by the sign of its type.
fn to_integer(how: &Conversion, value: Value) -> u64 {
    let (bits, signed) = (how.to.bits(), how.to.is_signed());
    let (lowest, highest) = match signed {
        true => (-1i128 << (bits - 1), (1i128 << (bits - 1)) - 1),
        false => (0, (1i128 << bits) - 1),
    };
    let x = match value {
        Value::Float(x) if x.is_nan() => {
            // Zero, but half the range where f64 or 64 bits take part.
            if how.from == Scalar::F64 || bits == 64 { 1i128 << (bits - 1) } else { 0 }
        }
        Value::Float(x) => (rounding::integral(x, how.mode.round) as i128).clamp(lowest, highest),
        Value::Integer(x) if how.mode.saturate => x.clamp(lowest, highest),
        Value::Integer(x) => x,
    };
    let cut = (x as u64) << (64 - bits);
    let extended = if signed { (cut as i64 >> (64 - bits)) as u64 } else { cut >> (64 - bits) };
    match how.register {
        Width::W64 => extended,
        Width::W32 => extended & 0xffff_ffff,
        Width::W16 => extended & 0xffff,
    }
}

/// `cvt.rn.bf16x2.f32 d, a, b`
pub fn pair(r: &mut Registers, mask: u32, to: Half, mode: Mode, d: Row, [a, b]: [Row; 2]) {
    let half = |x: f32| -> u32 {
        let x = if mode.relu && x < 0.0 { 0.0 } else { x };
        match mode.round {
            Round::Nearest => to.nearest(x) as u32,
            round => to.round(x as f64, round) as u32,
        }
    };
    let out = map2(&f32::row(r, a), &f32::row(r, b), |upper, lower| half(upper) << 16 | half(lower));
    u32::set_row(r, d, mask, out);
}
