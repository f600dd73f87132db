//! What the lrqat tools share, in layer order: a module uses only those above it.
//!
//! Dims: b batch, t time, d model, h heads, k kv heads, f ffn, v vocab, l layers, g group; a linear is
//! W [N, K] (N outputs, K inputs), its low-rank factors A [N, r] and B [r, K].

pub mod error;
pub mod format;
pub mod data;

pub use error::{Error, Result};
