//! Bytes to named tensors and back.

pub mod mmap;
pub mod atomic;
pub mod tensor;
pub mod safetensors;
pub mod ggml_blocks;
pub mod gguf;
mod gguf_header;
pub mod gguf_llama;
mod gguf_rope;
#[cfg(test)]
pub(crate) mod gguf_testing;
pub mod compressed_tensors;
