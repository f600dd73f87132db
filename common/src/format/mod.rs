//! Bytes to named tensors and back.

pub mod mmap;
pub mod peft;
pub mod spare;
pub mod atomic;
pub mod tensor;
pub mod safetensors;
pub mod rope_config;
pub mod gguf;
pub mod quantized;
pub mod compressed_tensors;
pub mod gptq;
pub mod awq;

#[cfg(test)]
mod packed_tests;
