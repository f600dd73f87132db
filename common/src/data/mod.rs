//! From text to batches of tokens.

pub mod text;
pub mod tokenizer;
