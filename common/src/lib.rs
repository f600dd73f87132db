//! What the lrqat tools share, in layer order: a module uses only those above it.
//!
//! Dims: b batch, t time, d model, h heads, k kv heads, f ffn, v vocab, l layers, g group; a linear is
//! W [N, K] (N outputs, K inputs), its low-rank factors A [N, r] and B [r, K].

pub mod error;
pub mod quant;
pub mod format;
pub mod data;
pub mod compute;
pub mod model;
pub mod stage;
pub mod train;
pub mod score;
pub mod cli;

pub use error::{Error, Result};

#[cfg(test)]
#[path = "../../tests/beside.rs"]
mod beside;
