//! Bytes to named tensors and back.

pub mod mmap;
pub mod atomic;
pub mod tensor;
pub mod safetensors;
pub mod gguf;
pub mod compressed_tensors;
