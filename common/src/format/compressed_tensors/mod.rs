//! compressed-tensors (vllm-project/compressed-tensors ≥ 0.17), which transformers and vLLM load: the formats
//! `pack-quantized` (weights only) and `int-quantized` (8-bit weights with 8-bit activations), and the
//! `quantization_config` that both share. Its keys are those of the package's `QuantizationConfig`,
//! `QuantizationScheme` and `QuantizationArgs`; the latter two refuse keys that they do not know, in every release.

pub mod config;
pub mod int_quantized;
pub mod pack_quantized;
