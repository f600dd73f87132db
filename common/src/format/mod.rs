//! Bytes to named tensors and back.

pub mod ggml_blocks;
pub mod gguf;
mod gguf_header;
pub mod mmap;
