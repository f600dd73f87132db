//! The emulator's own tests, through cudarc, as a program uses it. Kernels are in ../kernels.

mod device; // loads kernels and runs them
mod numbers; // seeded inputs, and comparison

mod blas; // products of cuBLAS and cuBLASLt, and wrong arguments
mod committed; // the PTX beside its sources
mod floats; // rounding, conversions and approximate functions of f32
mod halves; // bf16 and f16
mod integers; // integers and bits
mod knobs; // what can be set of a device
mod math; // functions of f32 as the compiler lowers them
mod matrix; // ldmatrix, cp.async and mma
mod memory; // spaces, calls, order between blocks
mod streams; // order between streams and the host
mod warps; // exchange between lanes, divergence, atomics
mod wrong; // wrong kernels are reported
