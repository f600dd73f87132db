//! compressed-tensors, format `pack-quantized` (vllm-project/compressed-tensors ≥ 0.17): what transformers and vLLM
//! load. For a linear P of shape [N, K] with b bits and G groups:
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `P.weight_packed` | i32 | [N, ⌈K·b/32⌉] | W_Z + 2^(b−1) along K, least significant bit first, dense |
//! | `P.weight_scale` | the model's | [N, G] | |
//! | `P.weight_shape` | i64 | [2] | N, K |
//! | `P.weight_zero_point` | i32 | [⌈N·b/32⌉, G] | asymmetric only: z + 2^(b−1), packed the same way along N |
//!
//! w = (W_Z − z)·scale.

use std::path::Path;

use serde_json::{Value, json};

use super::safetensors::{Spec, TensorFile};
use super::tensor::{Dtype, Tensor, is_float};
use crate::error::{Error, Result};
use crate::quant::{Scheme, pack};

/// The oldest release whose dense packing this is; written into the configuration.
const VERSION: &str = "0.17.0";

/// `quantization_config` for config.json.
pub fn quantization_config(scheme: Scheme) -> Value {
    let strategy = if scheme.group.is_some() { "group" } else { "channel" };
    json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "version": VERSION,
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "kv_cache_scheme": null,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": scheme.bits, "type": "int", "symmetric": !scheme.asymmetric, "strategy": strategy,
                "group_size": scheme.group, "block_structure": null, "dynamic": false, "actorder": null,
                "observer": "minmax", "observer_kwargs": {}
            },
            "input_activations": null,
            "output_activations": null
        }}
    })
}

/// The scheme that a `quantization_config` describes; `path` is for messages.
pub fn parse_config(path: &Path, q: &Value) -> Result<Scheme> {
    let bad = |found: String, expected: &str| {
        Error::input(path, found, expected, "choose a model quantized as compressed-tensors pack-quantized")
    };
    let method = q["quant_method"].as_str().unwrap_or("none");
    if method != "compressed-tensors" {
        return Err(bad(format!("quant_method {method:?}"), "\"compressed-tensors\""));
    }
    if q["format"] != "pack-quantized" {
        return Err(bad(format!("format {}", q["format"]), "\"pack-quantized\""));
    }
    let w = &q["config_groups"]["group_0"]["weights"];
    let bits = w["num_bits"].as_u64().filter(|b| (2..=8).contains(b));
    let bits = bits.ok_or_else(|| bad(format!("num_bits {}", w["num_bits"]), "2 to 8"))? as u32;
    let group = match w["strategy"].as_str() {
        Some("channel") => None,
        Some("group") => match w["group_size"].as_u64() {
            Some(g) if g > 0 => Some(g as usize),
            _ => return Err(bad(format!("group_size {}", w["group_size"]), "a positive number")),
        },
        _ => return Err(bad(format!("strategy {}", w["strategy"]), "\"channel\" or \"group\"")),
    };
    Ok(Scheme { bits, group, asymmetric: w["symmetric"] == false })
}

/// The tensors of one linear.
pub fn specs(linear: &str, n: usize, k: usize, scheme: Scheme, scale: Dtype) -> Vec<Spec> {
    let groups = scheme.groups(k);
    let mut specs = vec![
        Spec::new(format!("{linear}.weight_packed"), Dtype::I32, [n, pack::words(k, scheme.bits)]),
        Spec::new(format!("{linear}.weight_scale"), scale, [n, groups]),
        Spec::new(format!("{linear}.weight_shape"), Dtype::I64, [2]),
    ];
    if scheme.asymmetric {
        specs.push(Spec::new(format!("{linear}.weight_zero_point"), Dtype::I32, [pack::words(n, scheme.bits), groups]));
    }
    specs
}

pub fn shape_bytes(n: usize, k: usize) -> Vec<u8> {
    [n as i64, k as i64].iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Zero points [N, G] on the signed grid, packed along N.
pub fn pack_zero_points(zero: &[f32], n: usize, scheme: Scheme) -> Vec<u8> {
    let groups = zero.len() / n;
    let words = pack::words(n, scheme.bits);
    let mut out = vec![0u8; words * groups * 4];
    for g in 0..groups {
        let column: Vec<u8> = (0..n).map(|row| (zero[row * groups + g] - scheme.qmin()) as u8).collect();
        let mut packed = vec![0u32; words];
        pack::pack(&column, scheme.bits, &mut packed);
        for (word, value) in packed.iter().enumerate() {
            let at = (word * groups + g) * 4;
            out[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    out
}

/// One linear read back: packed codes [N, words], scale [N, G], zero points [N, G].
pub struct Packed {
    pub codes: Tensor,
    pub scale: Vec<f32>,
    pub zero: Option<Vec<f32>>,
}

pub fn read(file: &TensorFile, linear: &str, n: usize, k: usize, scheme: Scheme) -> Result<Packed> {
    let (bits, groups) = (scheme.bits, scheme.groups(k));
    let codes = file.expect(&format!("{linear}.weight_packed"), Dtype::I32, &[n, pack::words(k, bits)])?;
    let shape = file.expect(&format!("{linear}.weight_shape"), Dtype::I64, &[2])?;
    if shape.bytes() != shape_bytes(n, k) {
        return Err(Error::input(
            file.path(),
            format!("{linear}.weight_shape says another shape"),
            format!("[{n}, {k}] from config.json"),
            "fold the checkpoint again",
        ));
    }
    let scale = file.expect_float(&format!("{linear}.weight_scale"), &[n, groups])?;
    debug_assert!(is_float(scale.dtype));
    let scale = scale.to_f32();
    if let Some(bad) = scale.iter().find(|s| !s.is_finite() || **s <= 0.0) {
        return Err(Error::input(
            file.path(),
            format!("{linear}.weight_scale holds {bad}"),
            "finite positive scales",
            "fold the checkpoint again",
        ));
    }
    let zero = if scheme.asymmetric {
        let words = pack::words(n, bits);
        let t = file.expect(&format!("{linear}.weight_zero_point"), Dtype::I32, &[words, groups])?;
        let mut zero = vec![0.0; n * groups];
        for g in 0..groups {
            let column: Vec<u8> = (0..words).flat_map(|w| t.bytes()[(w * groups + g) * 4..][..4].to_vec()).collect();
            pack::unpack(&column, bits, n, |row, code| zero[row * groups + g] = code as f32 + scheme.qmin());
        }
        Some(zero)
    } else {
        None
    };
    Ok(Packed { codes, scale, zero })
}
