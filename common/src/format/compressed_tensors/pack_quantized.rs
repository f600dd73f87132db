//! Format `pack-quantized`. For a linear P of shape [N, K] with b bits and G groups:
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `P.weight_packed` | i32 | [N, ⌈K·b/32⌉] | W_Z + 2^(b−1) along K, least significant bit first, dense |
//! | `P.weight_scale` | the model's | [N, G] | |
//! | `P.weight_shape` | i64 | [2] | N, K |
//! | `P.weight_zero_point` | i32 | [⌈N·b/32⌉, G] | asymmetric only: z + 2^(b−1), packed the same way along N |
//!
//! w = (W_Z − z)·scale. Source: `compressors/pack_quantized/{base,helpers}.py` of the package. Before 0.17 it packed 3,
//! 5, 6 and 7 bits with padding at the end of each word; such files have other shapes and are refused.

use std::path::Path;

use serde_json::Value;

use super::config;
use crate::error::Result;
use crate::format::quantized::{self, Lookup, Stored};
use crate::format::safetensors::Spec;
use crate::format::tensor::{Dtype, Tensor};
use crate::quant::lanes::simd;
use crate::quant::{LinearGrid, Scheme, pack};

/// Suffix of the tensor that holds the codes.
pub const CODES: &str = "weight_packed";

const FORMAT: &str = "pack-quantized";

/// `quantization_config` for config.json.
pub fn quantization_config(scheme: Scheme) -> Value {
    config::describe(FORMAT, scheme, Value::Null)
}

/// The scheme that a `quantization_config` describes; `path` is for messages.
pub fn parse_config(path: &Path, q: &Value) -> Result<Scheme> {
    config::parse(path, q, FORMAT)
}

/// Why this linear cannot be packed.
pub fn unfit(n: usize, k: usize, scheme: Scheme) -> Option<String> {
    quantized::unfit(n, k, scheme)
}

/// The tensors of one linear.
pub fn specs(linear: &str, n: usize, k: usize, scheme: Scheme, scale: Dtype) -> Vec<Spec> {
    let groups = scheme.groups(k);
    let mut specs = vec![
        Spec::new(format!("{linear}.{CODES}"), Dtype::I32, [n, pack::words(k, scheme.bits)]),
        Spec::new(format!("{linear}.weight_scale"), scale, [n, groups]),
        Spec::new(format!("{linear}.weight_shape"), Dtype::I64, [2]),
    ];
    if scheme.stores_zero_points() {
        specs.push(Spec::new(format!("{linear}.weight_zero_point"), Dtype::I32, [pack::words(n, scheme.bits), groups]));
    }
    specs
}

/// `weight_packed` of some rows of `k` codes.
pub fn encode_codes(codes: &[u8], k: usize, scheme: Scheme, out: &mut [u8]) {
    let row = 4 * pack::words(k, scheme.bits);
    assert_eq!(codes.len() / k * row, out.len());
    simd(
        #[inline(always)]
        || {
            for (out, codes) in out.chunks_exact_mut(row).zip(codes.chunks_exact(k)) {
                pack::pack_bytes(codes, scheme.bits, out);
            }
        },
    );
}

/// Every other tensor of a linear, by its suffix; `scale` is the type of the scales.
pub fn encode_rest(
    suffix: &str,
    n: usize,
    k: usize,
    scheme: Scheme,
    grid: &LinearGrid,
    scale: Dtype,
) -> Result<Vec<u8>, String> {
    match suffix {
        "weight_scale" => quantized::encode_scales(grid, n, scheme, scale, false),
        "weight_shape" => Ok(shape_bytes(n, k)),
        "weight_zero_point" => {
            let zero = quantized::zero_codes(grid, n, k, scheme)?;
            Ok(pack_columns(&zero, n, scheme))
        }
        _ => Err(format!("{FORMAT} has no tensor {suffix}")),
    }
}

pub fn shape_bytes(n: usize, k: usize) -> Vec<u8> {
    [n as i64, k as i64].iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Codes [G, N] to words [⌈N·b/32⌉, G].
fn pack_columns(codes: &[u8], n: usize, scheme: Scheme) -> Vec<u8> {
    let groups = codes.len() / n;
    let mut packed = vec![0; pack::words(n, scheme.bits)];
    let mut out = vec![0; 4 * packed.len() * groups];
    for (g, codes) in codes.chunks_exact(n).enumerate() {
        pack::pack(codes, scheme.bits, &mut packed);
        for (out, word) in out.chunks_exact_mut(4 * groups).zip(&packed) {
            out[4 * g..4 * g + 4].copy_from_slice(&word.to_le_bytes());
        }
    }
    out
}

/// One linear read back, its codes as they lie in the file: [N, words], as evaluation takes them but for those of negative
/// scales.
pub struct Packed {
    pub codes: Tensor,
    pub grid: LinearGrid,
}

/// All but the codes decoded.
pub fn read_packed(at: &Lookup, linear: &str, n: usize, k: usize, scheme: Scheme) -> Result<Packed> {
    if let Some(why) = unfit(n, k, scheme) {
        return Err(at.bad(format!("{linear}: {why}"), "a linear that can be packed"));
    }
    let (bits, groups) = (scheme.bits as usize, scheme.groups(k));
    let words = |codes: usize| (codes * bits).div_ceil(32);
    let name = format!("{linear}.{CODES}");
    let padded = k.div_ceil(32 / bits);
    if padded != words(k) && at.get(&name).is_some_and(|t| t.shape == [n, padded]) {
        let found = format!("{name} has padding in each word, as compressed-tensors wrote it before 0.17");
        return Err(at.bad(found, "dense packing"));
    }
    let codes = at.expect(&name, Dtype::I32, &[n, words(k)])?;
    let name = format!("{linear}.weight_shape");
    let shape = at.expect(&name, Dtype::I64, &[2])?;
    if shape.bytes() != [(n as u64).to_le_bytes(), (k as u64).to_le_bytes()].concat() {
        return Err(at.bad(format!("{name} says another shape"), format!("[{n}, {k}] from config.json")));
    }
    let scale = at.signed_scales(&format!("{linear}.weight_scale"), &[n, groups], scheme)?;
    let zero = scheme.stores_zero_points().then(|| {
        let t = at.expect(&format!("{linear}.weight_zero_point"), Dtype::I32, &[words(n), groups])?;
        let word = |row: usize, g: usize| word_at(t.bytes(), row * groups + g);
        let zero = |at: usize| element(at / groups, bits, |row| word(row, at % groups)) as f32 + scheme.qmin();
        Ok((0..n * groups).map(zero).collect())
    });
    at.no_bias(linear)?;
    Ok(Packed { codes, grid: LinearGrid { scale, zero: zero.transpose()? } })
}

/// One linear, its integers read element by element where the format says that they lie.
pub fn read(at: &Lookup, linear: &str, n: usize, k: usize, scheme: Scheme) -> Result<Stored> {
    let packed = read_packed(at, linear, n, k, scheme)?;
    let unpack = match scheme.bits {
        2 => unpack_row::<2>,
        3 => unpack_row::<3>,
        4 => unpack_row::<4>,
        5 => unpack_row::<5>,
        6 => unpack_row::<6>,
        7 => unpack_row::<7>,
        _ => unpack_row::<8>,
    };
    let row = 4 * packed.codes.shape[1];
    let rows = move |bytes: &[u8], first: usize, codes: &mut [u8]| {
        for (codes, row) in codes.chunks_exact_mut(k).zip(bytes[first * row..].chunks_exact(row)) {
            unpack(row, codes);
        }
        Ok(None)
    };
    let grid = Some(packed.grid);
    Ok(Stored { n, k, packed: packed.codes, grid, together: 16, read: Box::new(rows) }.upright(scheme))
}

fn unpack_row<const BITS: usize>(row: &[u8], codes: &mut [u8]) {
    simd(
        #[inline(always)]
        || {
            // 32 elements are BITS whole words.
            for (codes, row) in codes.chunks_mut(32).zip(row.chunks(4 * BITS)) {
                let mut words = [0; BITS];
                for (i, word) in words.iter_mut().take(row.len() / 4).enumerate() {
                    *word = word_at(row, i);
                }
                let mut all = [0; 32];
                for (e, code) in all.iter_mut().enumerate() {
                    *code = element(e, BITS, |word| words[word]);
                }
                codes.copy_from_slice(&all[..codes.len()]);
            }
        },
    );
}

/// Element e of a run begins at bit e·b of it: its low bits are in one word, what is left of them in the next.
#[inline(always)]
fn element(e: usize, bits: usize, word: impl Fn(usize) -> u32) -> u8 {
    let (at, shift) = (e * bits / 32, e * bits % 32);
    let low = word(at) >> shift;
    let high = if shift + bits > 32 { word(at + 1) << (32 - shift) } else { 0 };
    ((low | high) & ((1 << bits) - 1)) as u8
}

#[inline(always)]
fn word_at(bytes: &[u8], at: usize) -> u32 {
    let b = &bytes[4 * at..4 * at + 4];
    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
}
