//! The block formats of ggml that a LLaMA-type GGUF carries, turned into f32.
//!
//! Layouts and formulas follow `ggml-common.h` and `ggml-quants.c` of ggml. Every product is rounded to f32 on its
//! own, in ggml's order, so that the values agree with other readers to the bit.

use half::{bf16, f16};
use rayon::prelude::*;

/// Element types of GGUF tensors that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgmlType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

use GgmlType::*;

/// Code in the file, type, name, elements in a block, bytes of a block.
const TYPES: [(u32, GgmlType, &str, usize, usize); 13] = [
    (0, F32, "F32", 1, 4),
    (1, F16, "F16", 1, 2),
    (30, Bf16, "BF16", 1, 2),
    (2, Q4_0, "Q4_0", 32, 18),
    (3, Q4_1, "Q4_1", 32, 20),
    (6, Q5_0, "Q5_0", 32, 22),
    (7, Q5_1, "Q5_1", 32, 24),
    (8, Q8_0, "Q8_0", 32, 34),
    (10, Q2K, "Q2_K", 256, 84),
    (11, Q3K, "Q3_K", 256, 110),
    (12, Q4K, "Q4_K", 256, 144),
    (13, Q5K, "Q5_K", 256, 176),
    (14, Q6K, "Q6_K", 256, 210),
];

/// Types that exist but are not read, so that a refusal can name them.
const OTHER_NAMES: [(u32, &str); 21] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (42, "Q2_0"),
];

impl GgmlType {
    /// The type of a code in a file, or the name of what cannot be read.
    pub fn from_code(code: u32) -> Result<GgmlType, String> {
        if let Some(row) = TYPES.iter().find(|row| row.0 == code) {
            return Ok(row.1);
        }
        Err(match OTHER_NAMES.iter().find(|row| row.0 == code) {
            Some(row) => row.1.to_string(),
            None => format!("number {code}"),
        })
    }

    /// The type's code in a file.
    pub fn code(self) -> u32 {
        self.row().0
    }

    /// All names, for messages.
    pub fn supported() -> String {
        TYPES.map(|row| row.2).join(", ")
    }

    fn row(self) -> &'static (u32, GgmlType, &'static str, usize, usize) {
        // Every variant has its row: the enum and the table are stated side by side.
        TYPES.iter().find(|row| row.1 == self).unwrap_or(&TYPES[0])
    }

    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements in a block.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }
}

/// Elements from which a tensor is worth the other cores.
const PARALLEL_FROM: usize = 1 << 16;

/// `src` in whole blocks, `out` as many elements as they hold.
pub fn dequantize(ty: GgmlType, src: &[u8], out: &mut [f32]) {
    let (len, bytes) = (ty.block_len(), ty.block_bytes());
    assert_eq!(src.len() / bytes * len, out.len(), "blocks and elements disagree");
    assert_eq!(src.len() % bytes, 0, "not whole blocks");
    if out.len() < PARALLEL_FROM {
        return blocks(ty, src, out);
    }
    let step = 4096 / len;
    out.par_chunks_mut(step * len).zip(src.par_chunks(step * bytes)).for_each(|(out, src)| blocks(ty, src, out));
}

fn blocks(ty: GgmlType, src: &[u8], out: &mut [f32]) {
    let block = match ty {
        F32 => |b: &[u8], o: &mut [f32]| o[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        F16 => |b: &[u8], o: &mut [f32]| o[0] = half_at(b, 0),
        Bf16 => |b: &[u8], o: &mut [f32]| o[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        Q4_0 => q4_0,
        Q4_1 => q4_1,
        Q5_0 => q5_0,
        Q5_1 => q5_1,
        Q8_0 => q8_0,
        Q2K => q2_k,
        Q3K => q3_k,
        Q4K => q4_k,
        Q5K => q5_k,
        Q6K => q6_k,
    };
    for (b, o) in src.chunks_exact(ty.block_bytes()).zip(out.chunks_exact_mut(ty.block_len())) {
        block(b, o);
    }
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// f16 d; 16 bytes, byte j holding q[j] low and q[j + 16] high. w = d (q − 8)
fn q4_0(b: &[u8], o: &mut [f32]) {
    let d = half_at(b, 0);
    for (j, q) in b[2..18].iter().enumerate() {
        o[j] = d * ((q & 15) as i32 - 8) as f32;
        o[j + 16] = d * ((q >> 4) as i32 - 8) as f32;
    }
}

/// f16 d, f16 m; nibbles as Q4_0. w = d q + m
fn q4_1(b: &[u8], o: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (j, q) in b[4..20].iter().enumerate() {
        o[j] = d * (q & 15) as f32 + m;
        o[j + 16] = d * (q >> 4) as f32 + m;
    }
}

/// The fifth bits, bit j for element j, of the 5-bit types.
fn fifth_bits(b: &[u8]) -> u32 {
    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

/// f16 d; u32 fifth bits; nibbles as Q4_0. w = d (q − 16)
fn q5_0(b: &[u8], o: &mut [f32]) {
    let (d, high) = (half_at(b, 0), fifth_bits(&b[2..6]));
    for (j, q) in b[6..22].iter().enumerate() {
        let low = (q & 15) as u32 | (high >> j & 1) << 4;
        let upper = (q >> 4) as u32 | (high >> (j + 16) & 1) << 4;
        o[j] = d * (low as i32 - 16) as f32;
        o[j + 16] = d * (upper as i32 - 16) as f32;
    }
}

/// f16 d, f16 m; u32 fifth bits; nibbles as Q4_0. w = d q + m
fn q5_1(b: &[u8], o: &mut [f32]) {
    let (d, m, high) = (half_at(b, 0), half_at(b, 2), fifth_bits(&b[4..8]));
    for (j, q) in b[8..24].iter().enumerate() {
        let low = (q & 15) as u32 | (high >> j & 1) << 4;
        let upper = (q >> 4) as u32 | (high >> (j + 16) & 1) << 4;
        o[j] = d * low as f32 + m;
        o[j + 16] = d * upper as f32 + m;
    }
}

/// f16 d; i8 q[32]. w = d q
fn q8_0(b: &[u8], o: &mut [f32]) {
    let d = half_at(b, 0);
    for (o, q) in o.iter_mut().zip(&b[2..34]) {
        *o = *q as i8 as f32 * d;
    }
}

/// scales[16], low nibble sc, high nibble m; qs[64], two halves of four bit pairs; f16 d, f16 dmin. w = d sc q − dmin m
fn q2_k(b: &[u8], o: &mut [f32]) {
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    for (i, o) in o.iter_mut().enumerate() {
        let (part, run, l) = (i / 128, i % 128 / 32, i % 32);
        let q = b[16 + 32 * part + l] >> (2 * run) & 3;
        let scales = b[i / 16];
        *o = d * (scales & 15) as f32 * q as f32 - dmin * (scales >> 4) as f32;
    }
}

/// Scale of sub-block j (of 16), 6 bits: its low four in a nibble of bytes 0 to 7, its upper two in bytes 8 to 11.
fn scale_q3(j: usize, s: &[u8]) -> f32 {
    let low = s[j % 8] >> (4 * (j / 8)) & 15;
    let high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
    ((low | high << 4) as i32 - 32) as f32
}

/// hmask[32], bit i of byte l set where element l of run i (of 8) is not negative; qs[64] as Q2_K; scales[12]; f16 d.
/// w = d (sc − 32) (q − 4)
fn q3_k(b: &[u8], o: &mut [f32]) {
    let d = half_at(b, 108);
    for (i, o) in o.iter_mut().enumerate() {
        let (part, run, l) = (i / 128, i % 128 / 32, i % 32);
        let low = b[32 + 32 * part + l] >> (2 * run) & 3;
        let high = b[l] >> (i / 32) & 1;
        *o = d * scale_q3(i / 16, &b[96..108]) * ((low | high << 2) as i32 - 4) as f32;
    }
}

/// Scale and minimum of sub-block j (of 8), 6 bits each, from the 12 bytes that Q4_K and Q5_K share.
fn scale_min(j: usize, s: &[u8]) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
    };
    (scale as f32, min as f32)
}

/// f16 d, f16 dmin; 12 bytes of scales; 4 × 32 bytes, each holding two sub-blocks. w = d sc q − dmin m
fn q4_k(b: &[u8], o: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    for (pair, (qs, o)) in b[16..144].chunks_exact(32).zip(o.chunks_exact_mut(64)).enumerate() {
        for half in 0..2 {
            let (scale, min) = scale_min(2 * pair + half, &b[4..16]);
            let (d, m) = (d * scale, dmin * min);
            for (o, q) in o[32 * half..].iter_mut().zip(qs) {
                *o = d * (q >> (4 * half) & 15) as f32 - m;
            }
        }
    }
}

/// As Q4_K, with 32 bytes before the nibbles: bit i of byte l is the fifth bit of element l of sub-block i.
fn q5_k(b: &[u8], o: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let high = &b[16..48];
    for (pair, (qs, o)) in b[48..176].chunks_exact(32).zip(o.chunks_exact_mut(64)).enumerate() {
        for half in 0..2 {
            let sub = 2 * pair + half;
            let (scale, min) = scale_min(sub, &b[4..16]);
            let (d, m) = (d * scale, dmin * min);
            for (o, (q, h)) in o[32 * half..].iter_mut().zip(qs.iter().zip(high)) {
                *o = d * (q >> (4 * half) & 15 | (h >> sub & 1) << 4) as f32 - m;
            }
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of upper bit pairs, i8 scales[16], f16 d. w = d sc (q − 32)
fn q6_k(b: &[u8], o: &mut [f32]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
    for (i, o) in o.iter_mut().enumerate() {
        // Two halves of 128 elements; in each, four runs of 32 share the same 32 bytes of `high`.
        let (part, run, l) = (i / 128, i % 128 / 32, i % 32);
        let nibble = low[64 * part + 32 * (run & 1) + l] >> (4 * (run >> 1)) & 15;
        let pair = high[32 * part + l] >> (2 * run) & 3;
        let q = (nibble | pair << 4) as i32 - 32;
        *o = d * scales[i / 16] as i8 as f32 * q as f32;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::format::gguf::Gguf;

    /// Blocks and their values as the PyPI package `gguf` reads them (tests/data/make_ggml_blocks.py).
    #[test]
    fn every_type_equals_the_gguf_package_to_the_bit() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/ggml_blocks.gguf"));
        let file = Gguf::open(path).unwrap();
        for (_, ty, name, len, _) in TYPES {
            let (mut got, mut want) = (Vec::new(), Vec::new());
            assert_eq!(file.info(name).unwrap().ty, ty);
            file.read(name, &mut got).unwrap();
            file.read(&format!("{name}.values"), &mut want).unwrap();
            assert!(got.len() >= 2 * len, "{name}");
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&want), "{name}");
        }
    }

    #[test]
    fn large_tensors_are_read_in_parallel_with_the_same_values() {
        for (_, ty, name, len, bytes) in TYPES {
            let count = 3 * PARALLEL_FROM / len + 7;
            let src: Vec<u8> = (0..count * bytes).map(|i| ((i * 2654435761) >> 7) as u8 & 0x3b).collect();
            let (mut all, mut one) = (vec![0f32; count * len], vec![0f32; count * len]);
            dequantize(ty, &src, &mut all);
            blocks(ty, &src, &mut one);
            assert!(all.iter().zip(&one).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
        }
    }
}
