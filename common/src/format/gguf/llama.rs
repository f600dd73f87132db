//! A GGUF of architecture `llama` seen as a Hugging Face model: its config.json, its tensors by their Hugging Face
//! names, shapes and row order. (Names and the permutation of q and k: llama.cpp's `convert_hf_to_gguf.py`.)

use std::path::Path;

use half::bf16;
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::blocks::GgmlType;
use super::integers::Linear;
use super::rope;
use super::{Gguf, TensorInfo};
use crate::error::{Error, Result};
use crate::format::quantized::Stored;
use crate::format::tensor::Tensor;
use crate::quant::Scheme;

/// Hugging Face and GGUF names of what a layer has.
pub(super) const LAYER: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

pub(super) const EMBEDDING: (&str, &str) = ("model.embed_tokens.weight", "token_embd.weight");
pub(super) const NORM: (&str, &str) = ("model.norm.weight", "output_norm.weight");
pub(super) const HEAD: (&str, &str) = ("lm_head.weight", "output.weight");
/// What each rotary frequency is divided by (Llama 3's scaling).
pub const ROPE_FACTORS: &str = "rope_freqs.weight";
/// The scheme of the linears, in a file that this project wrote.
pub(super) const SCHEME_KEY: &str = "lrqat.scheme";

const CONVERT_AGAIN: &str = "convert the model again, or give its Hugging Face directory";

/// A tensor by its Hugging Face name.
#[derive(Debug, Clone, PartialEq)]
pub struct HfTensor {
    pub name: String,
    /// Rows first: [N, K] of a linear.
    pub shape: Vec<usize>,
    /// Holds every value exactly. What was quantized is bf16, since it is rounded to bf16 when read.
    pub dtype: Dtype,
}

/// The widths that names, shapes and the row order depend on.
#[derive(Debug, Clone, Copy)]
struct Widths {
    hidden: usize,
    ffn: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

#[derive(Debug)]
pub struct GgufLlama {
    gguf: Gguf,
    widths: Widths,
    /// Hugging Face tensor and its GGUF name, in model order.
    tensors: Vec<(HfTensor, String)>,
    config: Value,
}

impl GgufLlama {
    pub fn open(path: &Path) -> Result<GgufLlama> {
        GgufLlama::new(Gguf::open(path)?)
    }

    pub fn new(gguf: Gguf) -> Result<GgufLlama> {
        let widths = widths(&gguf)?;
        let tensors = tensors(&gguf, widths)?;
        let config = config(&gguf, widths, &tensors[0].0.shape)?;
        Ok(GgufLlama { gguf, widths, tensors, config })
    }

    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// What config.json says.
    pub fn hf_config(&self) -> &Value {
        &self.config
    }

    /// In model order: embedding, layers, final norm, head (unless tied).
    pub fn hf_tensors(&self) -> impl Iterator<Item = &HfTensor> {
        self.tensors.iter().map(|(tensor, _)| tensor)
    }

    /// A tensor as it lies in the file, if that is in floating point and in Hugging Face order.
    pub fn mapped_hf(&self, name: &str) -> Result<Option<Tensor>> {
        if rotated(name) { Ok(None) } else { self.gguf.mapped(self.find(name)?.1) }
    }

    /// The values of a tensor in Hugging Face order, in place of what `out` held. Quantized types come rounded to bf16.
    pub fn read_hf(&self, name: &str, out: &mut Vec<f32>) -> Result<()> {
        let (tensor, stored) = self.find(name)?;
        self.gguf.read(stored, out)?;
        if self.gguf.info(stored)?.ty.is_quantized() {
            out.par_iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
        }
        if rotated(name) {
            *out = rows_to_hf(out, self.widths.head_dim, tensor.shape[1]);
        }
        Ok(())
    }

    /// The scheme of the linears, if this project wrote the file.
    pub fn scheme(&self) -> Result<Option<Scheme>> {
        let Some(word) = self.gguf.text(SCHEME_KEY)? else { return Ok(None) };
        match word.parse() {
            Ok(scheme) => Ok(Some(scheme)),
            Err(_) => Err(wrong(&self.gguf, format!("{SCHEME_KEY} {word:?}"), "a scheme, as w4g128")),
        }
    }

    /// A linear (its Hugging Face name without `.weight`), its integers in Hugging Face order.
    pub fn linear(&self, linear: &str, scheme: Scheme) -> Result<Stored> {
        let name = format!("{linear}.weight");
        let (tensor, stored) = self.find(&name)?;
        let (path, stored) = (self.gguf.path().to_path_buf(), stored.to_string());
        let packed = self.gguf.stored(&stored)?;
        let ty = self.gguf.info(&stored)?.ty;
        let refuse = move |found: String| {
            let cure = "fold the checkpoint again, or give a file that fold wrote";
            Error::input(&path, format!("{stored} has {found}"), format!("integers of {scheme}"), cure)
        };
        let &[n, k] = tensor.shape.as_slice() else { return Err(refuse(format!("shape {:?}", tensor.shape))) };
        let blocks = Linear::new(ty, scheme, n, k, packed.bytes().len()).map_err(&refuse)?;
        let head_dim = rotated(&name).then_some(self.widths.head_dim);
        let read = move |bytes: &[u8], first: usize, codes: &mut [u8]| {
            let rows = (first..first + codes.len() / k).map(|row| head_dim.map_or(row, |hd| row_in_file(row, hd)));
            blocks.read(bytes, rows, codes).map(Some).map_err(&refuse)
        };
        Ok(Stored { n, k, packed, grid: None, together: 16, read: Box::new(read) })
    }

    fn find(&self, name: &str) -> Result<(&HfTensor, &str)> {
        match self.tensors.iter().find(|(tensor, _)| tensor.name == name) {
            Some((tensor, stored)) => Ok((tensor, stored)),
            None => Err(wrong(&self.gguf, format!("no tensor \"{name}\""), "a complete model")),
        }
    }
}

/// Are the rows of this tensor in another order than Hugging Face's?
fn rotated(name: &str) -> bool {
    name.ends_with("self_attn.q_proj.weight") || name.ends_with("self_attn.k_proj.weight")
}

/// llama.cpp rotates neighbouring pairs, Hugging Face the two halves of a head: row 2j + p of a head in the file is its
/// row p·hd/2 + j there.
fn row_in_file(row: usize, head_dim: usize) -> usize {
    let (half, at) = (head_dim / 2, row % head_dim);
    row - at + 2 * (at % half) + at / half
}

fn rows_to_hf(rows: &[f32], head_dim: usize, k: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows.len()];
    out.par_chunks_mut(k).enumerate().for_each(|(row, to)| {
        let from = row_in_file(row, head_dim);
        to.copy_from_slice(&rows[from * k..(from + 1) * k]);
    });
    out
}

fn wrong(gguf: &Gguf, found: String, expected: impl std::fmt::Display) -> Error {
    Error::input(gguf.path(), found, expected, CONVERT_AGAIN)
}

fn widths(gguf: &Gguf) -> Result<Widths> {
    match gguf.text("general.architecture")? {
        Some("llama") => {}
        Some(other) => {
            let cure = "give a model of a supported architecture";
            return Err(Error::input(gguf.path(), format!("architecture \"{other}\""), "one of: llama", cure));
        }
        None => return Err(wrong(gguf, "no general.architecture".into(), "one of: llama")),
    }
    if let Some(experts @ 1..) = gguf.uint("llama.expert_count")? {
        return Err(wrong(gguf, format!("a mixture of {experts} experts"), "a dense llama model"));
    }
    let size = |key: &str| match gguf.uint(key)? {
        Some(v @ 1..=0xffff_ffff) => Ok(v as usize),
        Some(v) => Err(wrong(gguf, format!("{key} {v}"), "at least 1, below 2^32")),
        None => Err(wrong(gguf, format!("no {key}"), "its value")),
    };
    let (hidden, heads) = (size("llama.embedding_length")?, size("llama.attention.head_count")?);
    let optional = |key: &str, default: usize| if gguf.get(key).is_some() { size(key) } else { Ok(default) };
    let kv_heads = optional("llama.attention.head_count_kv", heads)?;
    let head_dim = optional("llama.attention.key_length", hidden / heads)?;
    let rope = optional("llama.rope.dimension_count", head_dim)?;
    let value_dim = optional("llama.attention.value_length", head_dim)?;
    if heads % kv_heads != 0 {
        return Err(wrong(gguf, format!("{heads} heads with {kv_heads} key-value heads"), "a multiple of them"));
    }
    if head_dim % 2 != 0 || rope != head_dim || value_dim != head_dim {
        let found = format!("heads of {head_dim}, values of {value_dim}, {rope} of them rotated");
        return Err(wrong(gguf, found, "one even width for all three"));
    }
    let (ffn, layers) = (size("llama.feed_forward_length")?, size("llama.block_count")?);
    if layers > gguf.tensors().len() {
        return Err(wrong(gguf, format!("{layers} layers in {} tensors", gguf.tensors().len()), "a complete model"));
    }
    Ok(Widths { hidden, ffn, layers, heads, kv_heads, head_dim })
}

fn dtype(ty: GgmlType) -> Dtype {
    match ty {
        GgmlType::F32 => Dtype::F32,
        GgmlType::F16 => Dtype::F16,
        _ => Dtype::BF16,
    }
}

/// All tensors of the model, with the shapes that the metadata ask for; anything else in the file is refused.
fn tensors(gguf: &Gguf, w: Widths) -> Result<Vec<(HfTensor, String)>> {
    let embedding = gguf.info(EMBEDDING.1)?.shape();
    if embedding.len() != 2 || embedding[1] != w.hidden {
        return Err(wrong(
            gguf,
            format!("{} of shape {embedding:?}", EMBEDDING.1),
            format!("[vocabulary, {}]", w.hidden),
        ));
    }
    let mut all = Vec::new();
    let mut add = |hf: String, stored: String, shape: Vec<usize>| {
        let info: &TensorInfo = gguf.info(&stored)?;
        if info.shape() != shape {
            return Err(wrong(gguf, format!("{stored} of shape {:?}", info.shape()), format!("{shape:?}")));
        }
        all.push((HfTensor { name: hf, shape, dtype: dtype(info.ty) }, stored));
        Ok(())
    };
    add(EMBEDDING.0.into(), EMBEDDING.1.into(), embedding.clone())?;
    let (q, kv) = (w.heads.saturating_mul(w.head_dim), w.kv_heads.saturating_mul(w.head_dim));
    for layer in 0..w.layers {
        for (hf, stored) in LAYER {
            let shape = match stored {
                "attn_norm" | "ffn_norm" => vec![w.hidden],
                "attn_q" => vec![q, w.hidden],
                "attn_k" | "attn_v" => vec![kv, w.hidden],
                "attn_output" => vec![w.hidden, q],
                "ffn_down" => vec![w.hidden, w.ffn],
                _ => vec![w.ffn, w.hidden],
            };
            add(format!("model.layers.{layer}.{hf}.weight"), format!("blk.{layer}.{stored}.weight"), shape)?;
        }
    }
    add(NORM.0.into(), NORM.1.into(), vec![w.hidden])?;
    if gguf.has(HEAD.1) {
        add(HEAD.0.into(), HEAD.1.into(), embedding)?;
    }
    let known: std::collections::HashSet<&str> = all.iter().map(|(_, stored)| stored.as_str()).collect();
    match gguf.tensors().iter().find(|t| !known.contains(t.name.as_str()) && t.name != ROPE_FACTORS) {
        Some(extra) => Err(wrong(gguf, format!("tensor {}", extra.name), "only those of a LLaMA without biases")),
        None => Ok(all),
    }
}

/// The dtype of the model as a whole: that of its matrices if they are all F32 or all F16, else bf16.
fn torch_dtype(gguf: &Gguf) -> &'static str {
    let all = |ty| gguf.tensors().iter().filter(|t| t.dims.len() == 2).all(|t| t.ty == ty);
    match () {
        _ if all(GgmlType::F32) => "float32",
        _ if all(GgmlType::F16) => "float16",
        _ => "bfloat16",
    }
}

fn config(gguf: &Gguf, w: Widths, embedding: &[usize]) -> Result<Value> {
    let theta = gguf.float("llama.rope.freq_base")?.unwrap_or(10000.0);
    let context = gguf.uint("llama.context_length")?;
    let Some(eps) = gguf.float("llama.attention.layer_norm_rms_epsilon")? else {
        return Err(wrong(gguf, "no llama.attention.layer_norm_rms_epsilon".into(), "its value"));
    };
    let (Some(context), true) = (context, theta > 0.0 && eps >= 0.0) else {
        return Err(wrong(gguf, format!("context {context:?}, rope base {theta}, epsilon {eps}"), "usable values"));
    };
    let mut factors = Vec::new();
    if gguf.has(ROPE_FACTORS) {
        gguf.read(ROPE_FACTORS, &mut factors)?;
    }
    let scaling = rope::scaling(gguf, theta, w.head_dim, context, &factors)?;
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": false,
        "head_dim": w.head_dim,
        "hidden_act": "silu",
        "hidden_size": w.hidden,
        "intermediate_size": w.ffn,
        "max_position_embeddings": context,
        "mlp_bias": false,
        "num_attention_heads": w.heads,
        "num_hidden_layers": w.layers,
        "num_key_value_heads": w.kv_heads,
        "rms_norm_eps": eps,
        "rope_scaling": scaling,
        "rope_theta": theta,
        "tie_word_embeddings": !gguf.has(HEAD.1),
        "torch_dtype": torch_dtype(gguf),
        "vocab_size": embedding[0],
    });
    let tokens = gguf.texts("tokenizer.ggml.tokens")?.map_or(0, <[String]>::len);
    if tokens > embedding[0] {
        let found = format!("{tokens} tokens with an embedding of {} rows", embedding[0]);
        return Err(wrong(gguf, found, "a row for each token"));
    }
    for (key, ours) in [("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")] {
        if let Some(id) = gguf.uint(&format!("tokenizer.ggml.{key}_token_id"))? {
            if id >= embedding[0] as u64 {
                let found = format!("{ours} {id} with an embedding of {} rows", embedding[0]);
                return Err(wrong(gguf, found, "an id within the vocabulary"));
            }
            config[ours] = json!(id);
        }
    }
    Ok(config)
}

#[cfg(test)]
#[path = "llama_tests.rs"]
mod tests;
