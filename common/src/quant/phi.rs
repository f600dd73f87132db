//! The downcast operator φ of LR-QAT (equations 6 and 7): how the frozen Φ0 = φ(W0/s0 + z) is stored.

use std::fmt;
use std::str::FromStr;

use half::bf16;

use super::Scheme;
use super::grid;
use crate::error::{Error, Result};

/// Storage of Φ0. Rows are packed one by one, each in whole bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phi {
    /// Fixed point Qb.(8−b) in one byte: round(2^(8−b)·clip(x)).
    Q,
    /// The b-bit integer: two in a byte (first element in the low nibble) for b ≤ 4, else one.
    Int,
    Bf16,
    F32,
}

impl Phi {
    pub const NAMES: &str = "q, int, bf16, f32";

    fn double_packed(self, scheme: Scheme) -> bool {
        self == Phi::Int && scheme.bits <= 4
    }

    /// Bytes of a packed row of `k` weights.
    pub fn row_bytes(self, scheme: Scheme, k: usize) -> usize {
        match self {
            Phi::Int if self.double_packed(scheme) => k.div_ceil(2),
            Phi::Q | Phi::Int => k,
            Phi::Bf16 => 2 * k,
            Phi::F32 => 4 * k,
        }
    }

    /// Packs one row of W0/s0 + z.
    #[inline(always)]
    pub fn pack_row(self, scheme: Scheme, x: &[f32], out: &mut [u8]) {
        assert_eq!(out.len(), self.row_bytes(scheme, x.len()));
        let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
        match self {
            Phi::Q => {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = signed_byte(steps(*x, scheme));
                }
            }
            Phi::Int if self.double_packed(scheme) => {
                let nibble = |x: f32| signed_byte(grid::code(x, qmin, qmax)) & 15;
                let (pairs, rest) = x.as_chunks::<2>();
                for (out, x) in out.iter_mut().zip(pairs) {
                    *out = nibble(x[0]) | nibble(x[1]) << 4;
                }
                if let ([x], Some(out)) = (rest, out.last_mut()) {
                    *out = nibble(*x);
                }
            }
            Phi::Int => {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = signed_byte(grid::code(*x, qmin, qmax));
                }
            }
            Phi::Bf16 => {
                for (out, x) in out.chunks_exact_mut(2).zip(x) {
                    out.copy_from_slice(&bf16::from_f32(*x).to_le_bytes());
                }
            }
            Phi::F32 => {
                for (out, x) in out.chunks_exact_mut(4).zip(x) {
                    out.copy_from_slice(&x.to_le_bytes());
                }
            }
        }
    }

    /// φ in place: what is read back of what is packed.
    #[inline(always)]
    pub fn keep(self, scheme: Scheme, x: &mut [f32]) {
        let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
        match self {
            Phi::Q => x.iter_mut().for_each(|x| *x = steps(*x, scheme) * Phi::unit(scheme)),
            Phi::Int => x.iter_mut().for_each(|x| *x = grid::code(*x, qmin, qmax)),
            Phi::Bf16 => x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
            Phi::F32 => {}
        }
    }

    /// Z moves so far into the range that its integer has, that φ of it has the same.
    #[inline(always)]
    pub fn settle(scheme: Scheme, z: &mut [f32]) {
        let (qmin, qmax, most) = (scheme.qmin(), scheme.qmax(), (0.5 - Phi::unit(scheme)).max(0.0));
        for z in z {
            let code = grid::code(*z, qmin, qmax);
            *z = clip(*z, code - most, code + most);
        }
    }

    /// The step of [`Phi::Q`].
    #[inline(always)]
    pub fn unit(scheme: Scheme) -> f32 {
        1.0 / (1u32 << (8 - scheme.bits)) as f32
    }

    /// Φ0 of one packed row, as real numbers.
    #[inline(always)]
    pub fn unpack_row(self, scheme: Scheme, packed: &[u8], out: &mut [f32]) {
        match self {
            Phi::Q => {
                let unit = Phi::unit(scheme);
                for (out, p) in out.iter_mut().zip(packed) {
                    *out = (*p as i8) as f32 * unit;
                }
            }
            Phi::Int if self.double_packed(scheme) => {
                let (pairs, rest) = out.as_chunks_mut::<2>();
                let low = |p: u8| (((p << 4) as i8) >> 4) as f32;
                for (out, p) in pairs.iter_mut().zip(packed) {
                    *out = [low(*p), ((*p as i8) >> 4) as f32];
                }
                if let ([out], Some(p)) = (rest, packed.last()) {
                    *out = low(*p);
                }
            }
            Phi::Int => {
                for (out, p) in out.iter_mut().zip(packed) {
                    *out = (*p as i8) as f32;
                }
            }
            Phi::Bf16 => {
                for (out, p) in out.iter_mut().zip(packed.chunks_exact(2)) {
                    *out = f32::from_bits((u16::from_le_bytes([p[0], p[1]]) as u32) << 16);
                }
            }
            Phi::F32 => {
                for (out, p) in out.iter_mut().zip(packed.chunks_exact(4)) {
                    *out = f32::from_le_bytes([p[0], p[1], p[2], p[3]]);
                }
            }
        }
    }
}

/// [`Phi::Q`] in its steps.
#[inline(always)]
fn steps(x: f32, scheme: Scheme) -> f32 {
    let one = (1u32 << (8 - scheme.bits)) as f32;
    grid::round(clip(x, scheme.qmin(), scheme.qmax()) * one)
}

/// f32::clamp checks its bounds for every element, and a loop over it is not vectorized.
#[inline(always)]
#[allow(clippy::manual_clamp)]
fn clip(x: f32, qmin: f32, qmax: f32) -> f32 {
    let x = if x < qmin { qmin } else { x };
    if x > qmax { qmax } else { x }
}

/// A whole number from −128 to 127 in two's complement; as [`grid::unsigned_code`] without a conversion that saturates.
#[inline(always)]
fn signed_byte(x: f32) -> u8 {
    const WHOLE: f32 = 12_582_912.0; // 1.5·2^23
    (x + WHOLE).to_bits() as u8
}

impl fmt::Display for Phi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phi::Q => "q",
            Phi::Int => "int",
            Phi::Bf16 => "bf16",
            Phi::F32 => "f32",
        })
    }
}

impl FromStr for Phi {
    type Err = Error;

    fn from_str(word: &str) -> Result<Phi> {
        match word {
            "q" => Ok(Phi::Q),
            "int" => Ok(Phi::Int),
            "bf16" => Ok(Phi::Bf16),
            "f32" => Ok(Phi::F32),
            _ => Err(Error::usage(format!("φ {word:?} is not known"), format!("choose one of {}", Phi::NAMES))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Equation 7 and its kin, element by element.
    #[test]
    fn packing_is_the_downcast() {
        let x: Vec<f32> = (-300..=300).map(|i| i as f32 / 30.0).collect();
        for word in ["w2pc", "w3pc", "w4pc", "w5pc", "w8pc"] {
            let scheme: Scheme = word.parse().unwrap();
            let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
            for phi in [Phi::Q, Phi::Int, Phi::Bf16, Phi::F32] {
                let mut packed = vec![0; phi.row_bytes(scheme, x.len())];
                let mut y = vec![0.0; x.len()];
                phi.pack_row(scheme, &x, &mut packed);
                phi.unpack_row(scheme, &packed, &mut y);
                let mut kept = x.clone();
                phi.keep(scheme, &mut kept);
                assert!(kept == y, "{word} {phi}");
                for (x, y) in x.iter().zip(y) {
                    let unit = 2f32.powi(8 - scheme.bits as i32);
                    let expected = match phi {
                        Phi::Q => (x.clamp(qmin, qmax) * unit).round_ties_even() / unit,
                        Phi::Int => x.round_ties_even().clamp(qmin, qmax),
                        Phi::Bf16 => bf16::from_f32(*x).to_f32(),
                        Phi::F32 => *x,
                    };
                    assert_eq!(y, expected, "{word} {phi} {x}");
                }
            }
        }
    }

    /// Whatever Φ0 is stored as, what was settled has the integer that it had, and has moved by no more than a step of
    /// [`Phi::Q`] from where it was within the grid.
    #[test]
    fn what_settled_keeps_its_integer() {
        for bits in 2..=8u32 {
            let scheme: Scheme = format!("w{bits}pc").parse().unwrap();
            let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
            let ends = (qmax - qmin + 3.0) * 64.0;
            let z: Vec<f32> = (0..ends as usize)
                .flat_map(|i| {
                    let z = qmin - 1.5 + i as f32 / 64.0;
                    [z.next_down(), z, z.next_up()]
                })
                .collect();
            let mut settled = z.clone();
            Phi::settle(scheme, &mut settled);
            for phi in [Phi::Q, Phi::Int, Phi::Bf16, Phi::F32] {
                let mut kept = settled.clone();
                phi.keep(scheme, &mut kept);
                for ((z, settled), kept) in z.iter().zip(&settled).zip(&kept) {
                    let code = grid::code(*z, qmin, qmax);
                    assert_eq!(grid::code(*kept, qmin, qmax), code, "w{bits}pc {phi} {z}");
                    let inside = (*z - code).abs() <= 0.5;
                    assert!(!inside || (settled - z).abs() <= Phi::unit(scheme), "w{bits}pc {z} {settled}");
                }
            }
        }
    }

    #[test]
    fn two_int4_share_a_byte() {
        let scheme: Scheme = "w4pc".parse().unwrap();
        let mut packed = [0; 2];
        Phi::Int.pack_row(scheme, &[-8.0, 7.0, 3.0], &mut packed);
        assert_eq!(packed, [0x78, 0x03]);
    }
}
