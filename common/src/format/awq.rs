//! AWQ, version `gemm`, as AutoAWQ writes it (`modules/linear/gemm.py`, `utils/packing_utils.py`): codes of 4 bits. For
//! a linear P of shape [N, K] with G groups:
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `P.qweight` | i32 | [K, N/8] | word c holds u = W_Z + 8 of the rows 8c .. 8c+7 in the order of [`ORDER`] |
//! | `P.qzeros` | i32 | [G, N/8] | u of the zero points, in the same order |
//! | `P.scales` | f16 | [G, N] | |
//!
//! w = (u − zero)·scale. The format has no word for a symmetric model: engines always take the zero points, and vLLM
//! wants `zero_point` true for its fast kernels. So a symmetric model is one whose zero points are all 8.
//!
//! `group_size` −1, one scale per row: AutoAWQ, GPTQModel (and so transformers) and vLLM all take it for the whole width,
//! the latter in `auto_awq.py` and in its kernels of mixed precision; compressed-tensors' converter does not.

use std::path::Path;

use serde_json::{Value, json};

use super::quantized::{self, Lookup, Stored};
use super::safetensors::Spec;
use super::tensor::Dtype;
use crate::error::{Error, Result};
use crate::quant::lanes::simd;
use crate::quant::{LinearGrid, Scheme, Symmetry};

/// Nibble j of a word holds the row ORDER[j] of its eight.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Suffix of the tensor that holds the codes.
pub const CODES: &str = "qweight";

/// `quantization_config` for config.json.
pub fn quantization_config(scheme: Scheme) -> Value {
    json!({
        "quant_method": "awq",
        "version": "gemm",
        "bits": scheme.bits,
        "group_size": scheme.group.map_or(-1, |g| g as i64),
        "zero_point": true,
        "modules_to_not_convert": null
    })
}

/// The scheme that a `quantization_config` describes; `path` is for messages. With `zero_point` true it is asymmetric,
/// as far as this object can tell: [`is_symmetric`] looks at the tensors.
pub fn parse_config(path: &Path, q: &Value) -> Result<Scheme> {
    let bad = |key: &str, expected: &str| {
        Error::input(path, format!("{key} {}", q[key]), expected, "choose a model quantized as 4-bit AWQ gemm")
    };
    // AutoAWQ's own file has other names for some keys, GPTQModel's another for one.
    let named = |keys: [&'static str; 2]| if q[keys[0]].is_null() { keys[1] } else { keys[0] };
    if q["quant_method"] != "awq" {
        return Err(bad("quant_method", "\"awq\""));
    }
    let version = named(["version", "format"]);
    if !q[version].is_null() && !q[version].as_str().is_some_and(|v| v.eq_ignore_ascii_case("gemm")) {
        return Err(bad(version, "\"gemm\""));
    }
    let bits = named(["bits", "w_bit"]);
    if q[bits] != 4 {
        return Err(bad(bits, "4"));
    }
    let size = named(["group_size", "q_group_size"]);
    let group = match q[size].as_i64() {
        Some(-1) => None,
        Some(g) if g > 0 => Some(g as usize),
        _ => return Err(bad(size, "-1 or a positive number")),
    };
    let symmetry = match q["zero_point"].as_bool() {
        Some(true) => Symmetry::Asymmetric,
        Some(false) => Symmetry::Symmetric,
        None => return Err(bad("zero_point", "true or false")),
    };
    Ok(Scheme { bits: 4, group, symmetry })
}

/// Why this linear cannot be packed.
pub fn unfit(n: usize, k: usize, scheme: Scheme) -> Option<String> {
    if scheme.bits != 4 {
        return Some("AWQ holds 4 bits".to_string());
    }
    if !n.is_multiple_of(8) {
        return Some(format!("AWQ packs 8 rows at a time, not [{n}, {k}]"));
    }
    quantized::unfit(n, k, scheme)
}

/// The tensors of one linear.
pub fn specs(linear: &str, n: usize, k: usize, scheme: Scheme) -> Vec<Spec> {
    let groups = scheme.groups(k);
    vec![
        Spec::new(format!("{linear}.{CODES}"), Dtype::I32, [k, n / 8]),
        Spec::new(format!("{linear}.qzeros"), Dtype::I32, [groups, n / 8]),
        Spec::new(format!("{linear}.scales"), Dtype::F16, [groups, n]),
    ]
}

/// Columns of W that are packed at a time, and words of each: a cache line, of eight rows a word.
const COLUMNS: usize = 64;
const WORDS: usize = 16;
pub const ROWS: usize = 8 * WORDS;

/// `qweight` of some rows of `k` codes, as if the linear, for which [`unfit`] has nothing to say, had no others.
pub fn encode_codes(codes: &[u8], k: usize, out: &mut [u8]) {
    let n = codes.len() / k;
    assert_eq!((out.len(), n % 8), (k * n / 2, 0));
    simd(
        #[inline(always)]
        || {
            let mut block = [[0; COLUMNS]; ROWS];
            for (i, out) in out.chunks_mut(COLUMNS * n / 2).enumerate() {
                pack_columns(codes, i * COLUMNS, k, &mut block, out);
            }
        },
    );
}

/// The words of up to [`COLUMNS`] columns from `first` on: `out` [columns, N/8].
#[inline(always)]
fn pack_columns(codes: &[u8], first: usize, k: usize, block: &mut [[u8; COLUMNS]; ROWS], out: &mut [u8]) {
    let (columns, n) = (COLUMNS.min(k - first), codes.len() / k);
    for (tile, codes) in codes.chunks(ROWS * k).enumerate() {
        // Gathered before they are packed, so that the cache misses of many rows overlap.
        for (block, codes) in block.iter_mut().zip(codes.chunks_exact(k)) {
            block[..columns].copy_from_slice(&codes[first..first + columns]);
        }
        let words = codes.len() / (8 * k);
        for (at, rows) in block.chunks_exact(8).take(words).enumerate() {
            let mut packed = [0; COLUMNS];
            for (j, row) in ORDER.into_iter().enumerate() {
                for (word, code) in packed.iter_mut().zip(rows[row]) {
                    *word |= u32::from(code) << (4 * j);
                }
            }
            for (word, out) in packed.iter().zip(out.chunks_exact_mut(n / 2)) {
                out[4 * (WORDS * tile + at)..][..4].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
}

/// Every other tensor of a linear, by its suffix.
pub fn encode_rest(suffix: &str, n: usize, k: usize, scheme: Scheme, grid: &LinearGrid) -> Result<Vec<u8>, String> {
    match suffix {
        "scales" => quantized::encode_scales(grid, n, scheme, Dtype::F16, true),
        "qzeros" => {
            let zero = quantized::zero_codes(grid, n, k, scheme)?;
            let word = |z: &[u8]| ORDER.iter().rev().fold(0u32, |word, row| word << 4 | u32::from(z[*row]));
            Ok(zero.chunks_exact(8).flat_map(|z| word(z).to_le_bytes()).collect())
        }
        _ => Err(format!("AWQ has no tensor {suffix}")),
    }
}

/// Whether the zero points of a linear are all 8. If those of the first linear are, the model is taken for symmetric,
/// and [`read`] holds every other linear to it.
pub fn is_symmetric(at: &Lookup, linear: &str, n: usize, k: usize, scheme: Scheme) -> Result<bool> {
    let zero = read_zeros(at, linear, n, k, scheme)?;
    Ok(zero.iter().all(|z| *z == 8))
}

/// One linear.
pub fn read(at: &Lookup, linear: &str, n: usize, k: usize, scheme: Scheme) -> Result<Stored> {
    let zero = read_zeros(at, linear, n, k, scheme)?;
    let groups = scheme.groups(k);
    if !scheme.stores_zero_points()
        && let Some(i) = zero.iter().position(|z| *z != 8)
    {
        let found = format!("{linear}.qzeros says {} for row {}, group {}", zero[i], i % n, i / n);
        return Err(at.bad(found, "8 everywhere, as in the first linear or as zero_point false says"));
    }
    let qweight = at.expect(&format!("{linear}.{CODES}"), Dtype::I32, &[k, n / 8])?;
    let transposed = at.signed_scales(&format!("{linear}.scales"), &[groups, n], scheme)?;
    at.no_bias(linear)?;
    let scale = quantized::by_row(&transposed, groups);
    let signed = || zero.iter().map(|z| f32::from(*z) - 8.0).collect::<Vec<f32>>();
    let zero = scheme.stores_zero_points().then(|| quantized::by_row(&signed(), groups));
    let rows = move |qweight: &[u8], first: usize, codes: &mut [u8]| {
        read_rows(&qweight[first / 2..], n, k, codes);
        Ok(None)
    };
    let grid = Some(LinearGrid { scale, zero });
    Ok(Stored { n, k, packed: qweight, grid, together: ROWS, read: Box::new(rows) }.upright(scheme))
}

/// Unsigned zero points [G, N].
fn read_zeros(at: &Lookup, linear: &str, n: usize, k: usize, scheme: Scheme) -> Result<Vec<u8>> {
    if let Some(why) = unfit(n, k, scheme) {
        return Err(at.bad(format!("{linear}: {why}"), "a linear that AWQ can hold"));
    }
    let t = at.expect(&format!("{linear}.qzeros"), Dtype::I32, &[scheme.groups(k), n / 8])?;
    let mut zero = vec![0; scheme.groups(k) * n];
    for (zero, word) in zero.as_chunks_mut::<8>().0.iter_mut().zip(t.bytes().as_chunks().0) {
        let word = u32::from_le_bytes(*word);
        for (r, zero) in zero.iter_mut().enumerate() {
            *zero = (word >> (4 * place(r)) & 15) as u8;
        }
    }
    Ok(zero)
}

/// Columns that are read at a time: a row of codes then has more than one cache line to be written.
const READ_COLUMNS: usize = 256;

/// Nibble of a word that holds row r of its eight: AutoAWQ's reverse order 0, 4, 1, 5, 2, 6, 3, 7, which is the low bit of
/// r times four, and its high bits.
#[inline(always)]
fn place(r: usize) -> usize {
    r % 2 * 4 + r / 2
}

/// Up to [`ROWS`] rows: `qweight` begins with the first word of them.
fn read_rows(qweight: &[u8], n: usize, k: usize, codes: &mut [u8]) {
    simd(
        #[inline(always)]
        || {
            let words = codes.len() / (8 * k);
            let mut lines = [[[0; 4]; WORDS]; READ_COLUMNS];
            for first in (0..k).step_by(READ_COLUMNS) {
                let lines = &mut lines[..READ_COLUMNS.min(k - first)];
                // Gathered before they are read, so that the cache misses of many lines overlap.
                for (line, bytes) in lines.iter_mut().zip(qweight[first * n / 2..].chunks(n / 2)) {
                    line[..words].as_flattened_mut().copy_from_slice(&bytes[..4 * words]);
                }
                unpack_columns(lines, k, first, codes);
            }
        },
    )
}

/// The columns from `first` on whose words are `lines`.
#[inline(always)]
fn unpack_columns(lines: &[[[u8; 4]; WORDS]], k: usize, first: usize, codes: &mut [u8]) {
    let mut eight = [0; READ_COLUMNS];
    for (at, rows) in codes.chunks_exact_mut(8 * k).enumerate() {
        // What belongs to the same eight rows side by side, so that a row of W is one shift of all of it.
        for (word, line) in eight.iter_mut().zip(lines) {
            *word = u32::from_le_bytes(line[at]);
        }
        for (r, row) in rows.chunks_exact_mut(k).enumerate() {
            for (code, word) in row[first..first + lines.len()].iter_mut().zip(&eight) {
                *code = (word >> (4 * place(r)) & 15) as u8;
            }
        }
    }
}
