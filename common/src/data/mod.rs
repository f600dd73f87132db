//! Text, tokens and their order.

pub mod tokenizer;
