//! Blocks of ggml read back as the integers and the grid of a linear, or told why they are none. It is what `fold`
//! verifies its output by, so it is written from the layouts (`ggml-common.h`, `ggml-quants.c` of ggml) alone and
//! shares nothing with the writer.

use half::f16;

use super::blocks::GgmlType;
use crate::quant::lanes::simd;
use crate::quant::{LinearGrid, Scheme, Symmetry};

/// What a block says besides its codes, as it stands there.
#[derive(Clone, Copy, PartialEq)]
struct Head {
    d: [u8; 2],
    /// m of Q4_1; the sub-block minimum of Q2_K; nothing for the other types.
    m: [u8; 2],
}

/// A linear in blocks.
pub struct Linear {
    ty: GgmlType,
    scheme: Scheme,
    k: usize,
    /// The code of the scheme is the code in the block less this.
    above: u8,
}

impl Linear {
    /// A linear [n, k] of so many bytes. The error says what was found wrong, for a message that names the tensor.
    pub fn new(ty: GgmlType, scheme: Scheme, n: usize, k: usize, bytes: usize) -> Result<Linear, String> {
        let (bits, half) = (scheme.bits, 1u8 << (scheme.bits - 1));
        let above = match (ty, scheme.stores_zero_points()) {
            (GgmlType::Q2K, _) if bits == 2 => 0,
            (GgmlType::Q3K, false) if bits == 3 => 0,
            (GgmlType::Q4_0, false) if bits <= 4 => 8 - half,
            (GgmlType::Q4_1, true) if bits <= 4 => 0,
            (GgmlType::Q8_0, false) => 128 - half,
            _ => return Err(format!("type {}, which {scheme} is not written as", ty.name())),
        };
        let (group, len) = (scheme.group_size(k), ty.block_len());
        if k == 0 || !k.is_multiple_of(group) || !group.is_multiple_of(len) {
            return Err(format!("rows of {k} in groups of {group} and blocks of {len}"));
        }
        let expected = n.checked_mul(k).and_then(|elements| (elements / len).checked_mul(ty.block_bytes()));
        if expected != Some(bytes) {
            return Err(format!("{bytes} bytes of {} for [{n}, {k}]", ty.name()));
        }
        Ok(Linear { ty, scheme, k, above })
    }

    /// These `rows` of it, in this order, to `codes`; their grid.
    pub fn read(
        &self,
        bytes: &[u8],
        rows: impl Iterator<Item = usize>,
        codes: &mut [u8],
    ) -> Result<LinearGrid, String> {
        let count = codes.len() / self.k * self.scheme.groups(self.k);
        let mut grid = LinearGrid { scale: Vec::with_capacity(count), zero: None };
        if self.scheme.has_zero_points() {
            grid.zero = Some(Vec::with_capacity(count));
        }
        simd(
            #[inline(always)]
            || match self.ty {
                GgmlType::Q2K => self.rows(bytes, rows, codes, &mut grid, q2_k),
                GgmlType::Q3K => self.rows(bytes, rows, codes, &mut grid, q3_k),
                GgmlType::Q4_0 => self.rows(bytes, rows, codes, &mut grid, q4_0),
                GgmlType::Q4_1 => self.rows(bytes, rows, codes, &mut grid, q4_1),
                _ => self.rows(bytes, rows, codes, &mut grid, q8_0),
            },
        )?;
        Ok(grid)
    }

    #[inline(always)]
    fn rows<const LEN: usize, const BYTES: usize>(
        &self,
        bytes: &[u8],
        rows: impl Iterator<Item = usize>,
        codes: &mut [u8],
        grid: &mut LinearGrid,
        block: impl Fn(&[u8; BYTES], &mut [u8; LEN]) -> Result<Head, String>,
    ) -> Result<(), String> {
        let (group, row_bytes) = (self.scheme.group_size(self.k), self.k / LEN * BYTES);
        for (row, codes) in rows.zip(codes.chunks_exact_mut(self.k)) {
            let bytes = &bytes[row * row_bytes..(row + 1) * row_bytes];
            let parts = codes.chunks_exact_mut(group).zip(bytes.chunks_exact(group / LEN * BYTES));
            for (i, (codes, bytes)) in parts.enumerate() {
                let read = self.group(codes, bytes, &block);
                let (scale, zero) = read.map_err(|found| format!("{found} in row {row}, group {i}"))?;
                grid.scale.push(scale);
                if let Some(zeros) = &mut grid.zero {
                    zeros.push(zero);
                }
            }
        }
        Ok(())
    }

    /// Fills the codes of one group; its scale and zero point.
    #[inline(always)]
    fn group<const LEN: usize, const BYTES: usize>(
        &self,
        codes: &mut [u8],
        bytes: &[u8],
        block: impl Fn(&[u8; BYTES], &mut [u8; LEN]) -> Result<Head, String>,
    ) -> Result<(f32, f32), String> {
        let mut first = None;
        for (codes, bytes) in codes.as_chunks_mut::<LEN>().0.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
            let head = block(bytes, codes)?;
            let first: &Head = first.get_or_insert(head);
            if *first != head {
                let [a, b] = [first, &head].map(|h| f16::from_le_bytes(h.d));
                return Err(match a == b {
                    true => "two minima".to_string(),
                    false => format!("two scales, {a} and {b},"),
                });
            }
        }
        self.shift(codes)?;
        let Some(head) = first else { return Err("no block".to_string()) };
        let (scale, zero) = self.grid(head)?;
        if self.signed() && zero != 0.0 {
            let mask = ((1u16 << self.scheme.bits) - 1) as u8;
            codes.iter_mut().for_each(|q| *q = !*q & mask);
        }
        Ok((scale, zero))
    }

    /// From the codes of the type to those of the scheme.
    #[inline(always)]
    fn shift(&self, codes: &mut [u8]) -> Result<(), String> {
        let beyond = !((1u16 << self.scheme.bits) - 1) as u8;
        let mut bad = 0;
        for q in codes.iter_mut() {
            *q = q.wrapping_sub(self.above);
            bad |= *q & beyond;
        }
        if bad == 0 {
            return Ok(());
        }
        let (low, high) = (self.scheme.qmin(), self.scheme.qmax());
        let at = codes.iter().position(|q| q & beyond != 0).unwrap_or(0);
        let integer = codes[at].wrapping_add(self.above) as i32 - self.above as i32 + low as i32;
        Err(format!("the integer {integer}, not in {low} to {high}, at {at}"))
    }

    /// Does a negative d say a zero point of −1, with the codes mirrored?
    fn signed(&self) -> bool {
        self.scheme.symmetry == Symmetry::Signed && self.ty != GgmlType::Q2K
    }

    /// Scale and zero point of the signed grid.
    fn grid(&self, head: Head) -> Result<(f32, f32), String> {
        let d = f16::from_le_bytes(head.d).to_f32();
        let (s, below) = if self.signed() && d < 0.0 { (-d, -1.0) } else { (d, 0.0) };
        if !(s.is_finite() && s > 0.0) {
            return Err(format!("scale {s}"));
        }
        let offset = match self.ty {
            GgmlType::Q2K => head.m[0] as f32,
            GgmlType::Q4_1 => {
                let m = f16::from_le_bytes(head.m).to_f32();
                let steps = (-m / s).round();
                if f16::from_f32(-(steps * s)).to_f32() != m {
                    return Err(format!("minimum {m}, no multiple of the scale {s},"));
                }
                steps
            }
            _ => return Ok((s, below)),
        };
        let z = offset + self.scheme.qmin();
        let allowed = match self.scheme.symmetry {
            Symmetry::Symmetric => 0.0..=0.0,
            Symmetry::Signed => -1.0..=0.0,
            Symmetry::Asymmetric => self.scheme.qmin()..=self.scheme.qmax(),
        };
        if !allowed.contains(&z) {
            return Err(format!("zero point {z}, not in {} to {},", allowed.start(), allowed.end()));
        }
        Ok((s, z))
    }
}

/// f16 d; byte j holds elements j (low nibble) and j + 16.
#[inline(always)]
fn q4_0(b: &[u8; 18], codes: &mut [u8; 32]) -> Result<Head, String> {
    nibbles(b.last_chunk(), codes);
    Ok(Head { d: [b[0], b[1]], m: [0; 2] })
}

/// f16 d, f16 m; then as Q4_0.
#[inline(always)]
fn q4_1(b: &[u8; 20], codes: &mut [u8; 32]) -> Result<Head, String> {
    nibbles(b.last_chunk(), codes);
    Ok(Head { d: [b[0], b[1]], m: [b[2], b[3]] })
}

#[inline(always)]
fn nibbles(b: Option<&[u8; 16]>, codes: &mut [u8; 32]) {
    let Some(b) = b else { unreachable!("blocks are longer than their nibbles") };
    // Beside the block, so that the compiler sees that nothing read is written.
    let (mut low, mut high) = ([0; 16], [0; 16]);
    for j in 0..16 {
        (low[j], high[j]) = (b[j] & 15, b[j] >> 4);
    }
    codes[..16].copy_from_slice(&low);
    codes[16..].copy_from_slice(&high);
}

/// f16 d; i8 per element, here from 0 on.
#[inline(always)]
fn q8_0(b: &[u8; 34], codes: &mut [u8; 32]) -> Result<Head, String> {
    for (b, q) in b[2..].iter().zip(codes) {
        *q = (*b as i8 as i16 + 128) as u8;
    }
    Ok(Head { d: [b[0], b[1]], m: [0; 2] })
}

/// 16 scales (low nibble) and minima (high nibble); 64 bytes of bit pairs; f16 d, f16 dmin.
#[inline(always)]
fn q2_k(b: &[u8; 84], codes: &mut [u8; 256]) -> Result<Head, String> {
    if let Some(scale) = b[..16].iter().find(|s| *s & 15 != 1) {
        return Err(format!("a sub-block scale of {} for 1", scale & 15));
    }
    if b[..16] != [b[0]; 16] {
        return Err("two minima".to_string());
    }
    if b[80..82] != b[82..84] {
        return Err("a d and a dmin that differ".to_string());
    }
    pairs(&b[16..80], codes);
    Ok(Head { d: [b[80], b[81]], m: [b[0] >> 4, 0] })
}

/// 32 bytes of third bits, 64 bytes of bit pairs, 16 scales of 6 bits in 12 bytes, f16 d.
#[inline(always)]
fn q3_k(b: &[u8; 110], codes: &mut [u8; 256]) -> Result<Head, String> {
    let scales = &b[96..108];
    for j in 0..16 {
        let nibble = if j < 8 { scales[j] & 0x0f } else { scales[j - 8] >> 4 };
        let upper = scales[8 + j % 4] >> (j / 4 * 2) & 0x03;
        let scale = (nibble + 16 * upper) as i32 - 32;
        if scale != 1 {
            return Err(format!("a sub-block scale of {scale} for 1"));
        }
    }
    pairs(&b[32..96], codes);
    let thirds: [u8; 32] = *b.first_chunk().unwrap_or(&[0; 32]);
    for (i, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for l in 0..32 {
            codes[l] += (thirds[l] >> i & 1) * 4;
        }
    }
    Ok(Head { d: [b[108], b[109]], m: [0; 2] })
}

/// Each 32 bytes hold 128 elements: bits 2r and 2r + 1 of byte l are element 32r + l.
#[inline(always)]
fn pairs(b: &[u8], codes: &mut [u8; 256]) {
    for (b, codes) in b.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<128>().0) {
        let b = *b;
        for (r, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for l in 0..32 {
                codes[l] = b[l] >> (2 * r) & 3;
            }
        }
    }
}

#[cfg(test)]
#[path = "integers_tests.rs"]
mod tests;
