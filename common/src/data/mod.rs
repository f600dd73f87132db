//! From text to batches of tokens.

pub mod text;
pub mod order;
pub mod tokenizer;
