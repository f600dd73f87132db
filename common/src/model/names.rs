//! Names and shapes of the tensors of a model, as Hugging Face writes them.

use super::Config;

pub const EMBEDDING: &str = "model.embed_tokens.weight";
pub const HEAD: &str = "lm_head.weight";
pub const NORM: &str = "model.norm.weight";

/// The quantized linears of a block, in forward order.
pub const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// A quantized linear W [n, k]; `.weight` is left off its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearName {
    pub name: String,
    pub n: usize,
    pub k: usize,
}

/// The linears of block `layer`, in the order of [`LINEARS`].
pub fn block_linears(config: &Config, layer: usize) -> [LinearName; 7] {
    let shapes = block_shapes(config);
    std::array::from_fn(|i| LinearName {
        name: format!("model.layers.{layer}.{}", LINEARS[i]),
        n: shapes[i].0,
        k: shapes[i].1,
    })
}

/// (n, k) of the linears of a block.
pub fn block_shapes(config: &Config) -> [(usize, usize); 7] {
    let (d, f, q, kv) = (config.d, config.ffn, config.q_width(), config.kv_width());
    [(q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f)]
}

/// All linears, block by block.
pub fn linears(config: &Config) -> Vec<LinearName> {
    (0..config.layers).flat_map(|l| block_linears(config, l)).collect()
}

pub fn attention_norm(layer: usize) -> String {
    format!("model.layers.{layer}.input_layernorm.weight")
}

pub fn mlp_norm(layer: usize) -> String {
    format!("model.layers.{layer}.post_attention_layernorm.weight")
}

/// The tensors that stay floating point, with their shapes.
pub fn floats(config: &Config) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![(EMBEDDING.to_string(), vec![config.vocab, config.d])];
    for layer in 0..config.layers {
        all.push((attention_norm(layer), vec![config.d]));
        all.push((mlp_norm(layer), vec![config.d]));
    }
    all.push((NORM.to_string(), vec![config.d]));
    if !config.tied {
        all.push((HEAD.to_string(), vec![config.vocab, config.d]));
    }
    all
}
