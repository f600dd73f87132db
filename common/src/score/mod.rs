//! How good a model is: what `eval` measures.

pub mod answers;
pub mod generate;
pub mod tasks;
pub mod perplexity;
pub mod likelihood;
