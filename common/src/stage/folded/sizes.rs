//! `size.json`: what of a folded model takes how many bytes.

use serde::Serialize;

use super::write::Target;
use super::{Format, adapter, gguf};
use crate::error::Result;
use crate::format::safetensors::Spec;
use crate::model::names;

pub const FILE: &str = "size.json";

/// Bytes of tensors.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sizes {
    /// Packed integers.
    pub integers: u64,
    /// Scales, zero points and what else the format stores of a quantized linear.
    pub scales: u64,
    pub adapters: u64,
    /// Embedding, norms, head.
    pub floats: u64,
    pub total: u64,
    /// total beside total without adapters.
    pub ratio: f64,
    pub quantized_weights: u64,
    /// Of a quantized weight: integers, scales and adapters.
    pub effective_bits: f64,
}

impl Sizes {
    pub fn of(target: &Target) -> Result<Sizes> {
        let quantized_weights: u64 = target.linears().iter().map(|l| (l.n * l.k) as u64).sum();
        let (integers, scales, floats) = match target.format {
            Format::Gguf => {
                let (blocks, all) = (gguf::linear_bytes(target)?, gguf::bytes(target)?);
                // A block holds its integers in the scheme's bits; the rest of it is scales.
                let integers = quantized_weights * u64::from(target.scheme.bits) / 8;
                (integers, blocks - integers, all - blocks)
            }
            _ => {
                let floats: Vec<String> = names::floats(target.source.config()).into_iter().map(|(n, _)| n).collect();
                let (mut integers, mut scales, mut rest) = (0, 0, 0);
                for spec in target.specs()? {
                    let suffix = spec.name.rsplit('.').next();
                    let to = match () {
                        () if floats.contains(&spec.name) => &mut rest,
                        () if suffix == target.format.codes_suffix() => &mut integers,
                        () => &mut scales,
                    };
                    *to += Spec::bytes(&spec) as u64;
                }
                (integers, scales, rest)
            }
        };
        let adapters = target.lora.as_ref().map_or(0, |lora| adapter::bytes(target, lora));
        let total = integers + scales + adapters + floats;
        let bits = 8.0 * (integers + scales + adapters) as f64;
        Ok(Sizes {
            integers,
            scales,
            adapters,
            floats,
            total,
            ratio: total as f64 / (total - adapters) as f64,
            quantized_weights,
            effective_bits: bits / quantized_weights as f64,
        })
    }
}
