//! The integers of a linear as blocks of ggml: the same numbers in another place, never quantized again.
//!
//! | blocks | of | fields |
//! |---|---|---|
//! | Q2_K | 2 bits, groups of whole 256 | sc = 1, m = z + 2, d = dmin = s, q = W_Z + 2 |
//! | Q3_K | 3 bits symmetric, groups of whole 256 | sc = 33 (less 32 is 1), d = s, q = W_Z + 4 |
//! | Q4_0 | up to 4 bits symmetric, groups of whole 32 | d = s, q = W_Z + 8 |
//! | Q4_1 | up to 4 bits asymmetric, groups of whole 32 | d = s, m = f16(−(z + 2^(b−1))·s), q = W_Z + 2^(b−1) |
//! | Q8_0 | symmetric, groups of whole 32 | d = s, q = W_Z |
//!
//! Symmetric are also those with scales of both signs: d is negative where z = −1, and the codes mirrored; Q2_K says z.
//!
//! Every scale is exact in f16 (they have 8 significant bits), so every product is; only the m of Q4_1 is rounded.
//! Layouts: `ggml-common.h` of ggml.

use std::borrow::Cow;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::blocks::GgmlType::{self, *};
use crate::quant::lanes::simd;
use crate::quant::{Integers, Scheme, Symmetry};

/// The smallest type that holds the integers of a linear of `k` inputs, if one does.
pub fn exact_type(scheme: Scheme, k: usize) -> Option<GgmlType> {
    [Q2K, Q3K, Q4_0, Q4_1, Q8_0].into_iter().find(|ty| holds(*ty, scheme, k))
}

/// Whether every group is a whole number of blocks of this type, and every integer of the scheme one of its codes.
fn holds(ty: GgmlType, scheme: Scheme, k: usize) -> bool {
    let group = scheme.group_size(k);
    let (bits, asymmetric) = (scheme.bits, scheme.stores_zero_points());
    let fits = match ty {
        Q2K => bits == 2,
        Q3K => bits == 3 && !asymmetric,
        Q4_0 => bits <= 4 && !asymmetric,
        Q4_1 => bits <= 4 && asymmetric,
        Q8_0 => !asymmetric,
        _ => false,
    };
    fits && k.is_multiple_of(group) && group.is_multiple_of(ty.block_len())
}

/// The blocks of some rows of `k` integers to `out`. `ty` is [`exact_type`]'s or another of the table that holds them.
pub fn encode(ty: GgmlType, scheme: Scheme, k: usize, integers: &Integers, out: &mut [u8]) {
    assert!(holds(ty, scheme, k), "{} cannot hold {scheme} in rows of {k}", ty.name());
    let (group, groups) = (scheme.group_size(k), scheme.groups(k));
    let grid = &integers.grid;
    let (mut codes, mut scales) = (Cow::Borrowed(&integers.codes[..]), Cow::Borrowed(&grid.scale[..]));
    // Q2_K says any zero point, the others a scale of either sign.
    if ty != Q2K && scheme.symmetry == Symmetry::Signed {
        grid.mirror(codes.to_mut(), 0, k, scheme);
        scales = grid.stored_scale(scheme);
    }
    let (n, half) = (codes.len() / k, 1u8 << (scheme.bits - 1));
    assert!(codes.len() == n * k && grid.scale.len() == n * groups, "integers of [{n}, {k}]");
    let group_bytes = group / ty.block_len() * ty.block_bytes();
    assert_eq!(out.len(), n * groups * group_bytes);
    simd(
        #[inline(always)]
        || {
            let parts = out.chunks_exact_mut(group_bytes).zip(codes.chunks_exact(group));
            for (at, (out, codes)) in parts.enumerate() {
                let s = scales[at];
                let d = scale(s);
                // z + 2^(b−1): the zero point as the codes count.
                let z = grid.zero.as_ref().map_or(0.0, |zero| zero[at]) + half as f32;
                match ty {
                    Q2K => q2_k(d, z as u8, codes, out),
                    Q3K => q3_k(d, codes, out),
                    Q4_0 => q4_0(d, 8 - half, codes, out),
                    Q4_1 => q4_1(d, f16::from_f32(0.0 - z * s).to_le_bytes(), codes, out),
                    _ => q8_0(d, half, codes, out),
                }
            }
        },
    );
}

#[inline(always)]
fn scale(s: f32) -> [u8; 2] {
    let d = f16::from_f32(s);
    debug_assert!(d.to_f32() == s && s != 0.0, "scale {s} is exact in f16");
    d.to_le_bytes()
}

/// Bit pairs, 32 codes a run, four runs in 32 bytes. (Here and below bytes are made beside the block, so that the compiler
/// sees that nothing read is written.)
#[inline(always)]
fn pairs(q: &[u8; 256], b: &mut [u8]) {
    for (q, b) in q.as_chunks::<128>().0.iter().zip(b.as_chunks_mut::<32>().0) {
        let mut bytes = [0; 32];
        for l in 0..32 {
            bytes[l] = q[l] & 3 | (q[l + 32] & 3) << 2 | (q[l + 64] & 3) << 4 | q[l + 96] << 6;
        }
        *b = bytes;
    }
}

/// Byte j holds code j, and code j + 16 above it.
#[inline(always)]
fn nibbles(q: &[u8; 32], shift: u8) -> [u8; 16] {
    let mut bytes = [0; 16];
    for j in 0..16 {
        bytes[j] = (q[j] + shift) | (q[j + 16] + shift) << 4;
    }
    bytes
}

#[inline(always)]
fn q2_k(d: [u8; 2], m: u8, codes: &[u8], out: &mut [u8]) {
    debug_assert!(m < 4, "a zero point on the grid");
    for (q, b) in codes.as_chunks().0.iter().zip(out.as_chunks_mut::<84>().0) {
        b[..16].fill(m << 4 | 1);
        pairs(q, &mut b[16..80]);
        b[80..82].copy_from_slice(&d);
        b[82..84].copy_from_slice(&d);
    }
}

/// The low two bits as Q2_K, the third of run r of 32 at bit r of 32 bytes. 33 in each of 16 fields of 6 bits is 1 in
/// all low halves (bytes 0 to 7) and 2 in all pairs above them (bytes 8 to 11).
#[inline(always)]
fn q3_k(d: [u8; 2], codes: &[u8], out: &mut [u8]) {
    for (q, b) in codes.as_chunks::<256>().0.iter().zip(out.as_chunks_mut::<110>().0) {
        let mut high = [0; 32];
        for (run, q) in q.as_chunks::<32>().0.iter().enumerate() {
            for l in 0..32 {
                high[l] |= q[l] >> 2 << run;
            }
        }
        b[..32].copy_from_slice(&high);
        pairs(q, &mut b[32..96]);
        b[96..104].fill(0x11);
        b[104..108].fill(0xaa);
        b[108..].copy_from_slice(&d);
    }
}

#[inline(always)]
fn q4_0(d: [u8; 2], shift: u8, codes: &[u8], out: &mut [u8]) {
    for (q, b) in codes.as_chunks().0.iter().zip(out.as_chunks_mut::<18>().0) {
        b[..2].copy_from_slice(&d);
        b[2..].copy_from_slice(&nibbles(q, shift));
    }
}

#[inline(always)]
fn q4_1(d: [u8; 2], m: [u8; 2], codes: &[u8], out: &mut [u8]) {
    for (q, b) in codes.as_chunks().0.iter().zip(out.as_chunks_mut::<20>().0) {
        b[..2].copy_from_slice(&d);
        b[2..4].copy_from_slice(&m);
        b[4..].copy_from_slice(&nibbles(q, 0));
    }
}

#[inline(always)]
fn q8_0(d: [u8; 2], half: u8, codes: &[u8], out: &mut [u8]) {
    for (q, b) in codes.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<34>().0) {
        let mut bytes = [0; 32];
        for j in 0..32 {
            bytes[j] = q[j].wrapping_sub(half);
        }
        b[..2].copy_from_slice(&d);
        b[2..].copy_from_slice(&bytes);
    }
}

/// What stays floating point: F32; F16 or BF16, rounded to nearest even; Q8_0 for embedding and head, quantized as
/// `quantize_row_q8_0_ref` of ggml does. Rows are whole blocks.
pub fn encode_float(ty: GgmlType, values: &[f32]) -> Vec<u8> {
    assert!(matches!(ty, F32 | F16 | Bf16 | Q8_0), "{} is not for floating-point tensors", ty.name());
    assert!(values.len().is_multiple_of(ty.block_len()), "whole blocks of {}", ty.name());
    const STEP: usize = 4096;
    let mut out = vec![0; values.len() / ty.block_len() * ty.block_bytes()];
    let step_bytes = STEP / ty.block_len() * ty.block_bytes();
    out.par_chunks_mut(step_bytes).zip(values.par_chunks(STEP)).for_each(|(out, values)| match ty {
        F32 => out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, v)| *b = v.to_le_bytes()),
        F16 => {
            let mut halves = [f16::ZERO; STEP];
            let halves = &mut halves[..values.len()];
            halves.convert_from_f32_slice(values);
            out.as_chunks_mut().0.iter_mut().zip(halves).for_each(|(b, v)| *b = v.to_le_bytes());
        }
        Bf16 => out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, v)| *b = bf16::from_f32(*v).to_le_bytes()),
        _ => {
            for (x, b) in values.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<34>().0) {
                quantize_q8_0(x, b);
            }
        }
    });
    out
}

/// d = max |x| / 127 in f32, q = x·(1/d) rounded half away from zero; only then is d rounded to f16.
fn quantize_q8_0(x: &[f32; 32], b: &mut [u8; 34]) {
    let mut lanes = [0f32; 8];
    for x in x.as_chunks::<8>().0 {
        for (max, x) in lanes.iter_mut().zip(x) {
            *max = if x.abs() > *max { x.abs() } else { *max };
        }
    }
    let d = lanes.iter().fold(0f32, |a, b| a.max(*b)) / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    b[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (b, x) in b[2..].iter_mut().zip(x) {
        let x = x * inverse;
        // As f32::round, which is a call for each element where the target has no instruction for it.
        let whole = x as i32;
        let rest = x - whole as f32;
        *b = (whole + (rest >= 0.5) as i32 - (rest <= -0.5) as i32) as u8;
    }
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
