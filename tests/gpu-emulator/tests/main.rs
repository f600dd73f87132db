//! The emulator's own tests, through cudarc, as a program uses it. Kernels are in ../kernels.

mod device; // loads kernels and runs them
mod numbers; // seeded inputs, and comparison

mod floats; // rounding, conversions and approximate functions of f32
mod halves; // bf16 and f16
mod integers; // integers and bits
mod math; // functions of f32 as the compiler lowers them
mod warps; // exchange between lanes, divergence, atomics
mod wrong; // wrong kernels are reported
