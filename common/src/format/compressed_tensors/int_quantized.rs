//! Format `int-quantized`: 8-bit weights, and activations quantized to 8 bits per token as the model runs. For a linear
//! P of shape [N, K] with G groups:
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `P.weight` | i8 | [N, K] | W_Z |
//! | `P.weight_scale` | the model's | [N, G] | |
//!
//! w = W_Z·scale. Source: `compressors/naive_quantized/base.py` of the package, and vLLM's
//! `compressed_tensors_w8a8_int8.py`. Both engines want the `input_activations`, dynamic per token as written here:
//! without them vLLM ends with an AttributeError (`_is_static_tensor_w8a8`), and transformers takes the tensors for
//! pack-quantized unless it is told to dequantize. vLLM also wants one scale per channel; transformers takes groups.

use std::path::Path;

use serde_json::{Value, json};

use super::config;
use crate::error::{Error, Result};
use crate::format::quantized::{self, Lookup, Stored};
use crate::format::safetensors::Spec;
use crate::format::tensor::Dtype;
use crate::quant::lanes::simd;
use crate::quant::{LinearGrid, Scheme};

/// Suffix of the tensor that holds the codes.
pub const CODES: &str = "weight";

const FORMAT: &str = "int-quantized";

/// `quantization_config` for config.json.
pub fn quantization_config(scheme: Scheme) -> Value {
    let per_token = json!({
        "num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "group_size": null,
        "block_structure": null, "dynamic": true, "actorder": null, "observer": null, "observer_kwargs": {}
    });
    config::describe(FORMAT, scheme, per_token)
}

/// The scheme that a `quantization_config` describes; `path` is for messages.
pub fn parse_config(path: &Path, q: &Value) -> Result<Scheme> {
    let scheme = config::parse(path, q, FORMAT)?;
    if scheme.bits != 8 || scheme.has_zero_points() {
        return Err(Error::input(
            path,
            format!("{FORMAT} of scheme {scheme}"),
            "8-bit symmetric weights",
            "choose a model quantized as W8A8",
        ));
    }
    Ok(scheme)
}

/// Why this linear cannot be written.
pub fn unfit(n: usize, k: usize, scheme: Scheme) -> Option<String> {
    if scheme.bits != 8 || scheme.has_zero_points() {
        return Some(format!("{FORMAT} holds 8-bit symmetric weights"));
    }
    quantized::unfit(n, k, scheme)
}

/// The tensors of one linear.
pub fn specs(linear: &str, n: usize, k: usize, scheme: Scheme, scale: Dtype) -> Vec<Spec> {
    vec![
        Spec::new(format!("{linear}.{CODES}"), Dtype::I8, [n, k]),
        Spec::new(format!("{linear}.weight_scale"), scale, [n, scheme.groups(k)]),
    ]
}

/// `weight` of some rows of codes: the signed byte is the code with its highest bit turned over.
pub fn encode_codes(codes: &[u8], out: &mut [u8]) {
    assert_eq!(codes.len(), out.len());
    simd(
        #[inline(always)]
        || {
            for (out, code) in out.iter_mut().zip(codes) {
                *out = code ^ 0x80;
            }
        },
    );
}

/// Every other tensor of a linear, by its suffix; `scale` is the type of the scales.
pub fn encode_rest(
    suffix: &str,
    n: usize,
    _k: usize,
    scheme: Scheme,
    grid: &LinearGrid,
    scale: Dtype,
) -> Result<Vec<u8>, String> {
    match suffix {
        "weight_scale" => quantized::encode_scales(grid, n, scheme, scale, false),
        _ => Err(format!("{FORMAT} has no tensor {suffix}")),
    }
}

/// One linear.
pub fn read(at: &Lookup, linear: &str, n: usize, k: usize, scheme: Scheme) -> Result<Stored> {
    if let Some(why) = unfit(n, k, scheme) {
        return Err(at.bad(format!("{linear}: {why}"), "a linear of this format"));
    }
    let weight = at.expect(&format!("{linear}.{CODES}"), Dtype::I8, &[n, k])?;
    let scale = at.scales(&format!("{linear}.weight_scale"), &[n, scheme.groups(k)])?;
    at.no_bias(linear)?;
    let rows = move |weight: &[u8], first: usize, codes: &mut [u8]| {
        simd(
            #[inline(always)]
            || {
                for (code, byte) in codes.iter_mut().zip(&weight[first * k..]) {
                    *code = (i16::from(*byte as i8) + 128) as u8;
                }
            },
        );
        Ok(None)
    };
    let grid = Some(LinearGrid { scale, zero: None });
    Ok(Stored { n, k, packed: weight, grid, together: 16, read: Box::new(rows) })
}
