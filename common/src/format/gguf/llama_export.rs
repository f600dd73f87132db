//! A model of Hugging Face's LLaMA or Mistral as a GGUF of architecture `llama`: names, the order of the rows of q and
//! k, metadata and rotary factors, as `convert_hf_to_gguf.py` of llama.cpp (its `conversion/`, class `LlamaModel`)
//! writes them. The tokenizer is not among them.

use std::f64::consts::TAU;
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Value, json};

use super::blocks::GgmlType;
use super::entry::Entry;
use super::llama::{EMBEDDING, HEAD, LAYER, NORM, SCHEME_KEY};
use super::rope::SCALING_KEY;
use crate::error::{Error, Result};
use crate::format::rope_config::{Rope, Scaling};
use crate::quant::{Integers, LinearGrid, Scheme};

pub use super::llama::ROPE_FACTORS;

/// What messages name.
const CONFIG: &str = "config.json";
/// Version of ggml's block layouts.
const QUANTIZATION_VERSION: u32 = 2;

/// The name in a GGUF of a tensor by its Hugging Face name.
pub fn gguf_name(hf: &str) -> Option<String> {
    if let Some((_, stored)) = [EMBEDDING, NORM, HEAD].iter().find(|(name, _)| *name == hf) {
        return Some(stored.to_string());
    }
    let (layer, rest) = hf.strip_prefix("model.layers.")?.split_once('.')?;
    let rest = rest.strip_suffix(".weight")?;
    let (_, stored) = LAYER.iter().find(|(name, _)| *name == rest)?;
    layer.parse::<usize>().ok().map(|layer| format!("blk.{layer}.{stored}.weight"))
}

/// The rows of q (`heads` of them) or k (the key-value heads) in the order of a GGUF. llama.cpp rotates neighbouring
/// rows, Hugging Face row j of a head with row j + half: the two become rows 2j and 2j + 1.
pub fn permute_rows(integers: &Integers, heads: usize, n: usize) -> Integers {
    let Integers { codes, grid } = integers;
    let zero = grid.zero.as_ref().map(|zero| permuted(zero, heads, n));
    Integers { codes: permuted(codes, heads, n), grid: LinearGrid { scale: permuted(&grid.scale, heads, n), zero } }
}

fn permuted<T: Copy + Default + Send + Sync>(rows: &[T], heads: usize, n: usize) -> Vec<T> {
    let (width, head_dim) = (rows.len() / n, n / heads);
    let mut out = vec![T::default(); rows.len()];
    out.par_chunks_mut(width * head_dim).zip(rows.par_chunks(width * head_dim)).for_each(|(out, rows)| {
        let (first, second) = rows.split_at(width * (head_dim / 2));
        let pairs = first.chunks_exact(width).zip(second.chunks_exact(width));
        for (out, (a, b)) in out.chunks_exact_mut(2 * width).zip(pairs) {
            out[..width].copy_from_slice(a);
            out[width..].copy_from_slice(b);
        }
    });
    out
}

/// `general.file_type`: what most linears are.
fn file_type(linears: GgmlType) -> u32 {
    const GUESSED: u32 = 1024;
    match linears {
        GgmlType::Q4_0 => 2,
        GgmlType::Q4_1 => 3,
        GgmlType::Q8_0 => 7,
        GgmlType::Q2K => 10,
        GgmlType::Q3K => 11,
        _ => GUESSED,
    }
}

/// All metadata but the tokenizer's, from config.json; `linears` is the type of most linears. A sliding window
/// (Mistral) has no place in the architecture `llama`: engines will attend to everything before a position.
pub fn metadata(config: &Value, name: &str, scheme: Scheme, linears: GgmlType) -> Result<Vec<(String, Entry)>> {
    let text = |key: &str, value: &str| (key.to_string(), Entry::Text(value.to_string()));
    let uint = |key: &str, value: u32| (key.to_string(), Entry::U32(value));
    let float = |key: &str, value: f64| (key.to_string(), Entry::F32(value as f32));
    let (hidden, heads) = (size(config, "hidden_size")?, size(config, "num_attention_heads")?);
    let (rope, head_dim) = (Rope::parse(Path::new(CONFIG), config)?, head_dim(config)?);
    let mut all = vec![
        text("general.architecture", "llama"),
        text("general.type", "model"),
        text("general.name", name),
        uint("general.file_type", file_type(linears)),
        uint("general.quantization_version", QUANTIZATION_VERSION),
        text(SCHEME_KEY, &scheme.to_string()),
        uint("llama.block_count", size(config, "num_hidden_layers")?),
        uint("llama.context_length", size_or(config, "max_position_embeddings", 2048)?),
        uint("llama.embedding_length", hidden),
        uint("llama.feed_forward_length", size(config, "intermediate_size")?),
        uint("llama.attention.head_count", heads),
        uint("llama.attention.head_count_kv", size_or(config, "num_key_value_heads", heads)?),
        float("llama.attention.layer_norm_rms_epsilon", config["rms_norm_eps"].as_f64().unwrap_or(1e-6)),
        uint("llama.vocab_size", size(config, "vocab_size")?),
        uint("llama.rope.dimension_count", head_dim),
        float("llama.rope.freq_base", rope.theta),
        // The converter leaves these out where config.json has no head_dim; they are what engines assume then.
        uint("llama.attention.key_length", head_dim),
        uint("llama.attention.value_length", head_dim),
    ];
    match rope.scaling {
        Scaling::None => {}
        Scaling::Linear { factor } => {
            all.push(text("llama.rope.scaling.type", "linear"));
            all.push(float("llama.rope.scaling.factor", factor));
        }
        // Engines read it from rope_freqs.weight, out of which the parameters cannot always be found again.
        Scaling::Llama3 { factor, low, high, original } => {
            let stated = json!({"factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                                "original_max_position_embeddings": original});
            all.push(text(SCALING_KEY, &stated.to_string()));
        }
    }
    Ok(all)
}

/// The values of the tensor [`ROPE_FACTORS`] [head_dim/2], F32, for a model with Llama 3's scaling: what each
/// frequency is divided by.
pub fn rope_factors(config: &Value) -> Result<Option<Vec<f32>>> {
    let Rope { theta, scaling } = Rope::parse(Path::new(CONFIG), config)?;
    let head_dim = head_dim(config)?;
    let Scaling::Llama3 { factor, low, high, original } = scaling else { return Ok(None) };
    let divisor = |i: u32| {
        let wavelength = TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Ok(Some((0..head_dim / 2).map(|i| divisor(i) as f32).collect()))
}

fn bad(found: String, expected: &str) -> Error {
    Error::input(Path::new(CONFIG), found, expected, "fetch the model's config.json again")
}

fn head_dim(config: &Value) -> Result<u32> {
    size_or(config, "head_dim", size(config, "hidden_size")? / size(config, "num_attention_heads")?)
}

fn size(config: &Value, key: &str) -> Result<u32> {
    match config[key].as_u64() {
        Some(n @ 1..=0xffff_ffff) => Ok(n as u32),
        _ => Err(bad(format!("{key} is {}", config[key]), "a number from 1, below 2^32")),
    }
}

fn size_or(config: &Value, key: &str, default: u32) -> Result<u32> {
    if config[key].is_null() { Ok(default) } else { size(config, key) }
}

#[cfg(test)]
#[path = "llama_export_tests.rs"]
mod tests;
