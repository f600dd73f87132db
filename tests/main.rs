//! Tests of the six tools as they are typed, of their numbers, and of the layers of the library.

/// Data beside the checkout, where there is some.
mod beside;
/// Runs tools in temporary directories.
mod tools;
/// A tiny random LLaMA and a text, made the same way each time.
mod tiny_llama;
/// A module of the library uses only those below it.
mod layers;
/// Values from PyTorch, transformers and lm-evaluation-harness; gradients against finite differences.
mod golden;
/// The cost in a recipe's header is what the plan says.
mod recipes;
/// All stages one after another: what they print, skip, replace and resume.
mod pipeline;
/// Every format that `fold` writes.
mod formats;
/// Everything that can be wrong with an input, an output or a command line, a row each.
mod faults;
/// Training and evaluating on an emulated GPU.
mod cuda;
