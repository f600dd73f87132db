//! PTX as text: tokens, and from them a module of variables and functions. What the instructions mean is in
//! [`crate::decode`]. After "Parallel Thread Execution ISA", version 8.0, chapters 4 (syntax) and 11 (directives).

pub mod lexer;
pub mod parser;
pub mod types;

pub use types::*;
