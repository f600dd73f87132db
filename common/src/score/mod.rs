//! How good a model is: what `eval` measures.

pub mod tasks;
