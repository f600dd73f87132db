//! GPTQ, as AutoGPTQ and GPTQModel write it (`qlinear/__init__.py`, `utils/model.py` of GPTQModel): checkpoint formats
//! `gptq` (v1) and `gptq_v2`, with codes of 2, 3, 4 or 8 bits. For a linear P of shape [N, K] with b bits and G groups:
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `P.qweight` | i32 | [K·b/32, N] | u = W_Z + 2^(b−1) along K, least significant bit first, dense |
//! | `P.qzeros` | i32 | [G, N·b/32] | u of the zero point along N, packed the same way; v1 stores it minus one |
//! | `P.scales` | f16 | [G, N] | |
//! | `P.g_idx` | i32 | [K] | the group of a column: k / g |
//!
//! w = (u − zero)·scale. v1 cannot say a zero of 0, and engines disagree about what a stored 2^b−1 means (0 where they
//! mask, 2^b where they do not), so it is neither written nor read.

use std::fmt;
use std::path::Path;

use serde_json::{Value, json};

use super::quantized::{self, Lookup, Stored};
use super::safetensors::Spec;
use super::tensor::Dtype;
use crate::error::{Error, Result};
use crate::quant::lanes::simd;
use crate::quant::{LinearGrid, Scheme, Symmetry, pack};

/// What `qzeros` holds, by the name that `checkpoint_format` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Version::V1 => "gptq",
            Version::V2 => "gptq_v2",
        })
    }
}

/// Suffix of the tensor that holds the codes.
pub const CODES: &str = "qweight";

const BITS: [u32; 4] = [2, 3, 4, 8];

/// `quantization_config` for config.json; `quantize_config.json` holds the same object.
pub fn quantization_config(scheme: Scheme, version: Version) -> Value {
    json!({
        "quant_method": "gptq",
        "checkpoint_format": version.to_string(),
        "bits": scheme.bits,
        "group_size": scheme.group.map_or(-1, |g| g as i64),
        "sym": !scheme.stores_zero_points(),
        "desc_act": false,
        "static_groups": false,
        "true_sequential": true,
        "damp_percent": 0.01,
        "lm_head": false,
        "pack_dtype": "int32",
        "meta": {"quantizer": [concat!("lrqat:", env!("CARGO_PKG_VERSION"))]}
    })
}

/// The version and scheme that a `quantization_config` describes; `path` is for messages.
pub fn parse_config(path: &Path, q: &Value) -> Result<(Version, Scheme)> {
    let bad = |key: &str, expected: &str| {
        Error::input(path, format!("{key} {}", q[key]), expected, "choose a model quantized as plain GPTQ")
    };
    let absent = |key: &str| match &q[key] {
        Value::Null | Value::Bool(false) => true,
        Value::Object(rules) => rules.is_empty(),
        _ => false,
    };
    if q["quant_method"] != "gptq" {
        return Err(bad("quant_method", "\"gptq\""));
    }
    // GPTQModel writes both names; older files have one of them, the oldest none.
    let named = if q["checkpoint_format"].is_null() { "format" } else { "checkpoint_format" };
    let version = match &q[named] {
        Value::Null => Version::V1,
        v if *v == "gptq" => Version::V1,
        v if *v == "gptq_v2" => Version::V2,
        _ => return Err(bad(named, "\"gptq\" or \"gptq_v2\"")),
    };
    let bits = q["bits"].as_u64().and_then(|b| BITS.into_iter().find(|bits| u64::from(*bits) == b));
    let bits = bits.ok_or_else(|| bad("bits", "2, 3, 4 or 8"))?;
    let group = match q["group_size"].as_i64() {
        Some(-1) => None,
        Some(g) if g > 0 => Some(g as usize),
        _ => return Err(bad("group_size", "-1 or a positive number")),
    };
    // With one group a row the order of the columns leaves no trace.
    if !absent("desc_act") && group.is_some() {
        return Err(Error::input(
            path,
            format!("desc_act {}", q["desc_act"]),
            "false: groups that follow the activations are not contiguous, and engines have dropped them",
            "quantize with desc_act false, or with group_size -1",
        ));
    }
    if !(q["pack_dtype"].is_null() || q["pack_dtype"] == "int32") {
        return Err(bad("pack_dtype", "\"int32\""));
    }
    for key in ["lm_head", "is_marlin_format", "dynamic"] {
        if !absent(key) {
            return Err(bad(key, "false or none: all linears of the blocks have one scheme, and the head has none"));
        }
    }
    let symmetry = match &q["sym"] {
        Value::Null | Value::Bool(true) => Symmetry::Symmetric,
        Value::Bool(false) => Symmetry::Asymmetric,
        _ => return Err(bad("sym", "true or false")),
    };
    Ok((version, Scheme { bits, group, symmetry }))
}

/// Why this linear cannot be packed.
pub fn unfit(n: usize, k: usize, scheme: Scheme) -> Option<String> {
    let bits = scheme.bits;
    if !BITS.contains(&bits) {
        return Some("GPTQ holds 2, 3, 4 or 8 bits".to_string());
    }
    let unit = if bits == 3 { 32 } else { 32 / bits as usize };
    if !n.is_multiple_of(unit) || !k.is_multiple_of(unit) {
        return Some(format!("GPTQ packs {unit} codes of {bits} bits at a time, not [{n}, {k}]"));
    }
    quantized::unfit(n, k, scheme)
}

/// The tensors of one linear.
pub fn specs(linear: &str, n: usize, k: usize, scheme: Scheme) -> Vec<Spec> {
    let groups = scheme.groups(k);
    let words = |codes| pack::words(codes, scheme.bits);
    vec![
        Spec::new(format!("{linear}.{CODES}"), Dtype::I32, [words(k), n]),
        Spec::new(format!("{linear}.qzeros"), Dtype::I32, [groups, words(n)]),
        Spec::new(format!("{linear}.scales"), Dtype::F16, [groups, n]),
        Spec::new(format!("{linear}.g_idx"), Dtype::I32, [k]),
    ]
}

/// Columns and rows of W that are packed at a time: the words of the rows fill a cache line.
const COLUMNS: usize = 128;
const ROWS: usize = 16;
/// Rows whose words are read or written before those of other columns: each row of words lies in other pages.
pub const TOGETHER: usize = 128;

/// `qweight` of some rows of `k` codes, as if the linear, for which [`unfit`] has nothing to say, had no others.
pub fn encode_codes(codes: &[u8], k: usize, scheme: Scheme, out: &mut [u8]) {
    let n = codes.len() / k;
    assert_eq!(out.len(), 4 * pack::words(k, scheme.bits) * n);
    simd(
        #[inline(always)]
        || {
            let mut block = [0; ROWS * COLUMNS];
            let mut packed = [[0; 4]; ROWS * COLUMNS / 4];
            for (i, out) in out.chunks_mut(4 * pack::words(COLUMNS, scheme.bits) * n).enumerate() {
                let first = i * COLUMNS;
                let columns = COLUMNS.min(k - first);
                let words = pack::words(columns, scheme.bits);
                for (tile, codes) in codes.chunks(ROWS * k).enumerate() {
                    // Gathered before they are packed, so that the cache misses of many rows overlap.
                    let rows = codes.len() / k;
                    for (block, codes) in block.chunks_exact_mut(columns).zip(codes.chunks_exact(k)) {
                        block.copy_from_slice(&codes[first..first + columns]);
                    }
                    // The columns are whole words, so that rows do not run into each other.
                    let packed = &mut packed[..rows * words];
                    pack::pack_bytes(&block[..rows * columns], scheme.bits, packed.as_flattened_mut());
                    for (word, out) in out.chunks_exact_mut(4 * n).enumerate() {
                        let out = &mut out[4 * ROWS * tile..][..4 * rows];
                        for (row, out) in out.chunks_exact_mut(4).enumerate() {
                            out.copy_from_slice(&packed[row * words + word]);
                        }
                    }
                }
            }
        },
    );
}

/// Every other tensor of a linear, by its suffix.
pub fn encode_rest(
    suffix: &str,
    n: usize,
    k: usize,
    scheme: Scheme,
    grid: &LinearGrid,
    version: Version,
) -> Result<Vec<u8>, String> {
    match suffix {
        "scales" => quantized::encode_scales(grid, n, scheme, Dtype::F16, true),
        "g_idx" => Ok((0..k).flat_map(|column| ((column / scheme.group_size(k)) as i32).to_le_bytes()).collect()),
        "qzeros" => {
            let mut zero = quantized::zero_codes(grid, n, k, scheme)?;
            if version == Version::V1 {
                if let Some(at) = zero.iter().position(|z| *z == 0) {
                    let place = format!("row {}, group {}", at % n, at / n);
                    return Err(format!("the unsigned zero point of {place} is 0, which GPTQ v1 cannot say"));
                }
                zero.iter_mut().for_each(|z| *z -= 1);
            }
            let row = 4 * pack::words(n, scheme.bits);
            let mut out = vec![0; scheme.groups(k) * row];
            for (out, zero) in out.chunks_exact_mut(row).zip(zero.chunks_exact(n)) {
                pack::pack_bytes(zero, scheme.bits, out);
            }
            Ok(out)
        }
        _ => Err(format!("GPTQ has no tensor {suffix}")),
    }
}

/// One linear.
pub fn read(at: &Lookup, linear: &str, n: usize, k: usize, scheme: Scheme, version: Version) -> Result<Stored> {
    if let Some(why) = unfit(n, k, scheme) {
        return Err(at.bad(format!("{linear}: {why}"), "a linear that GPTQ can hold"));
    }
    let (bits, groups) = (scheme.bits as usize, scheme.groups(k));
    let qweight = at.expect(&format!("{linear}.{CODES}"), Dtype::I32, &[k * bits / 32, n])?;
    check_g_idx(at, linear, k, scheme)?;
    let zero = read_zeros(at, linear, n, k, scheme, version)?;
    let transposed = at.signed_scales(&format!("{linear}.scales"), &[groups, n], scheme)?;
    at.no_bias(linear)?;
    let scale = quantized::by_row(&transposed, groups);
    let read = match bits {
        2 => read_rows::<2>,
        3 => read_rows::<3>,
        4 => read_rows::<4>,
        _ => read_rows::<8>,
    };
    let rows = move |qweight: &[u8], first: usize, codes: &mut [u8]| {
        read(&qweight[4 * first..], n, k, codes);
        Ok(None)
    };
    let grid = Some(LinearGrid { scale, zero });
    Ok(Stored { n, k, packed: qweight, grid, together: TOGETHER, read: Box::new(rows) }.upright(scheme))
}

fn check_g_idx(at: &Lookup, linear: &str, k: usize, scheme: Scheme) -> Result<()> {
    let name = format!("{linear}.g_idx");
    if at.get(&name).is_none() {
        return Ok(());
    }
    let t = at.expect(&name, Dtype::I32, &[k])?;
    let group = |column: usize| word_at(t.bytes(), column) as usize;
    match (0..k).find(|c| group(*c) != c / scheme.group_size(k)) {
        None => Ok(()),
        Some(c) => Err(Error::input(
            at.path,
            format!("{name} puts column {c} into group {}", group(c) as u32 as i32),
            format!("group {}, which is k / group_size", c / scheme.group_size(k)),
            "quantize with desc_act false",
        )),
    }
}

/// Zero points [N, G] on the signed grid; of a symmetric model none, but they must be the middle of the range.
fn read_zeros(
    at: &Lookup,
    linear: &str,
    n: usize,
    k: usize,
    scheme: Scheme,
    version: Version,
) -> Result<Option<Vec<f32>>> {
    let (bits, groups) = (scheme.bits as usize, scheme.groups(k));
    let name = format!("{linear}.qzeros");
    let words = n * bits / 32;
    let t = at.expect(&name, Dtype::I32, &[groups, words])?;
    let (middle, offset) = (1u32 << (bits - 1), if version == Version::V1 { 1 } else { 0 });
    let mut zero = Vec::new();
    let mut stored = vec![0; n];
    for (g, packed) in t.bytes().chunks_exact(4 * words).enumerate() {
        unpack(bits, words, |word| word_at(packed, word), &mut stored);
        let unsigned = |stored: u8| u32::from(stored) + offset;
        // A look at all of them is vectorized, a search is not.
        let none = |z: u32| (!scheme.stores_zero_points() && z != middle) || z >> bits != 0;
        if stored.iter().fold(false, |any, stored| any | none(unsigned(*stored))) {
            let row = stored.iter().position(|stored| none(unsigned(*stored))).unwrap_or(0);
            let (stored, z) = (stored[row], unsigned(stored[row]));
            if !scheme.stores_zero_points() && z != middle {
                let found = format!("{name} says {z} for row {row}, group {g} of a model with sym true");
                return Err(at.bad(found, format!("{middle} everywhere")));
            }
            let found = format!("{name} stores {stored} for row {row}, group {g}, which engines read as 0 or as {z}");
            return Err(at.bad(found, "a zero point that GPTQ v1 can say"));
        }
        if scheme.stores_zero_points() {
            zero.extend(stored.iter().map(|stored| unsigned(*stored) as f32 - middle as f32));
        }
    }
    Ok(scheme.stores_zero_points().then(|| quantized::by_row(&zero, groups)))
}

/// Up to [`TOGETHER`] rows: `qweight` begins with the first word of them.
fn read_rows<const BITS: usize>(qweight: &[u8], n: usize, k: usize, codes: &mut [u8]) {
    simd(
        #[inline(always)]
        || {
            let mut words = [[[0; 4]; TOGETHER]; COLUMNS / 4];
            for first in (0..k).step_by(COLUMNS) {
                let columns = COLUMNS.min(k - first);
                let words = &mut words[..columns * BITS / 32];
                let rows = codes.len() / k;
                // Gathered before they are read, so that the cache misses of many lines overlap.
                for (words, line) in words.iter_mut().zip(qweight[4 * (first * BITS / 32) * n..].chunks(4 * n)) {
                    words[..rows].as_flattened_mut().copy_from_slice(&line[..4 * rows]);
                }
                for (row, codes) in codes.chunks_exact_mut(k).enumerate() {
                    let word = |i: usize| u32::from_le_bytes(words[i][row]);
                    unpack(BITS, words.len(), word, &mut codes[first..first + columns]);
                }
            }
        },
    )
}

/// The codes of whole words, by the shifts of GPTQModel's `dequantize_weight`: three words are 32 codes of 3 bits, two
/// of which lie across a border.
#[inline(always)]
fn unpack(bits: usize, words: usize, word: impl Fn(usize) -> u32, codes: &mut [u8]) {
    if bits != 3 {
        let mask = (1u32 << bits) - 1;
        for (i, codes) in codes.chunks_exact_mut(32 / bits).take(words).enumerate() {
            let word = word(i);
            for (j, code) in codes.iter_mut().enumerate() {
                *code = (word >> (bits * j) & mask) as u8;
            }
        }
        return;
    }
    for (i, codes) in codes.chunks_exact_mut(32).take(words / 3).enumerate() {
        let (a, b, c) = (word(3 * i), word(3 * i + 1), word(3 * i + 2));
        for j in 0..10 {
            codes[j] = (a >> (3 * j) & 7) as u8;
            codes[11 + j] = (b >> (3 * j + 1) & 7) as u8;
            codes[22 + j] = (c >> (3 * j + 2) & 7) as u8;
        }
        codes[10] = (a >> 30 | (b & 1) << 2) as u8;
        codes[21] = (b >> 31 | (c & 3) << 1) as u8;
    }
}

#[inline(always)]
fn word_at(bytes: &[u8], at: usize) -> u32 {
    let b = &bytes[4 * at..4 * at + 4];
    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
}
