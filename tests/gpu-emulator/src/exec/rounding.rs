//! Exact rounding of sums, products and quotients to f32, f16 and bf16 in all four directions. A result is first made an
//! f64 that was "rounded to odd": if it is inexact its last bit is one, so that it cannot be taken for a tie or for an
//! exact value by the rounding that follows (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums").

use super::op::{Half, Round};

/// `value + error`, where |error| is at most half a unit in the last place of `value`.
#[inline(always)]
pub fn to_odd(value: f64, error: f64) -> f64 {
    if error == 0.0 || !value.is_finite() || value.to_bits() & 1 == 1 {
        value
    } else if value == 0.0 || (error > 0.0) == (value > 0.0) {
        f64::from_bits(value.to_bits() + 1)
    } else {
        f64::from_bits(value.to_bits() - 1)
    }
}

/// Knuth's two-sum, to odd.
#[inline(always)]
pub fn sum(a: f64, b: f64) -> f64 {
    let s = a + b;
    let t = s - a;
    let error = (a - (s - t)) + (b - t);
    to_odd(s, error)
}

/// The product of two floats of at most 24 bits is exact.
#[inline(always)]
pub fn fma(a: f64, b: f64, c: f64) -> f64 {
    sum(a * b, c)
}

pub fn quotient(a: f64, b: f64) -> f64 {
    let q = a / b;
    if !q.is_finite() || b.is_infinite() {
        return q;
    }
    let rest = (-q).mul_add(b, a);
    to_odd(q, if b < 0.0 { -rest } else { rest })
}

pub fn root(a: f64) -> f64 {
    let s = a.sqrt();
    if s.is_finite() && s > 0.0 { to_odd(s, (-s).mul_add(s, a)) } else { s }
}

/// An integer of up to 65 bits.
pub fn from_integer(a: i128) -> f64 {
    let value = a as f64;
    to_odd(value, (a - value as i128) as f64)
}

pub fn to_f32(x: f64, round: Round) -> f32 {
    let y = x as f32;
    if round == Round::Nearest || y as f64 == x || x.is_nan() || x.is_infinite() {
        return y;
    }
    let larger = y as f64 > x;
    match round {
        Round::Zero if (larger && x > 0.0) || (!larger && x < 0.0) => toward_zero(y),
        Round::Down if larger => y.next_down(),
        Round::Up if !larger => y.next_up(),
        _ => y,
    }
}

fn toward_zero(y: f32) -> f32 {
    if y > 0.0 { y.next_down() } else { y.next_up() }
}

pub fn integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

pub fn flush32(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

impl Half {
    /// Digits of the significand, the exponent of the smallest normal number, and the largest number.
    fn format(self) -> (i32, i32, f64) {
        match self {
            Half::F16 => (11, -14, 65504.0),
            Half::Bf16 => (8, -126, f32::from_bits(0x7f7f_0000) as f64),
        }
    }

    #[inline(always)]
    pub fn to_f32(self, bits: u16) -> f32 {
        match self {
            Half::Bf16 => f32::from_bits((bits as u32) << 16),
            Half::F16 => f16_to_f32(bits),
        }
    }

    /// NaN becomes 0x7fff, as the hardware's.
    pub fn round(self, x: f64, round: Round) -> u16 {
        if x.is_nan() {
            return 0x7fff;
        }
        let (digits, least, largest) = self.format();
        let exponent = ((x.abs().to_bits() >> 52) as i32 - 1023).max(least);
        let unit = f64::from_bits(((exponent - digits + 1 + 1023) as u64) << 52);
        let rounded = integral(x / unit, round) * unit;
        let finite = if rounded.abs() <= largest {
            rounded
        } else {
            let grows = x.is_infinite()
                || match round {
                    Round::Nearest => true,
                    Round::Zero => false,
                    Round::Down => x < 0.0,
                    Round::Up => x > 0.0,
                };
            if grows { f64::INFINITY.copysign(x) } else { largest.copysign(x) }
        };
        self.encode(finite.copysign(x))
    }

    /// The bits of a value that the format has.
    fn encode(self, x: f64) -> u16 {
        let bits = (x as f32).to_bits();
        if self == Half::Bf16 {
            return (bits >> 16) as u16;
        }
        let sign = (bits >> 16) as u16 & 0x8000;
        let size = x.abs();
        if size.is_infinite() {
            sign | 0x7c00
        } else if size < 2f64.powi(-14) {
            sign | (size * 2f64.powi(24)) as u16
        } else {
            sign | (((bits & 0x7fff_ffff) - (112 << 23)) >> 13) as u16
        }
    }

    /// The common case: to nearest.
    #[inline(always)]
    pub fn nearest(self, x: f32) -> u16 {
        match self {
            Half::F16 => self.round(x as f64, Round::Nearest),
            Half::Bf16 => {
                let bits = x.to_bits();
                let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
                if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { rounded }
            }
        }
    }
}

#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    let sign = (bits as u32 & 0x8000) << 16;
    let (exponent, fraction) = (bits as u32 >> 10 & 31, bits as u32 & 1023);
    match exponent {
        0 => f32::from_bits(sign | (fraction as f32 * 2f32.powi(-24)).to_bits()),
        31 if fraction != 0 => f32::from_bits(0x7fff_ffff),
        31 => f32::from_bits(sign | 0x7f80_0000),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}
