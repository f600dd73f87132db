//! A CUDA device on the CPU, for tests. The library stands in for libcuda, libcublas and libcublasLt: a program written
//! with `cudarc`, which loads these by name, runs on it unmodified, and its kernels are interpreted from the very PTX
//! that a GPU's driver would get.
//!
//! ```no_run
//! # use gpu_emulator::Device;
//! #[test]
//! fn sums() {
//!     Device::new().reversed_blocks().run(|| {
//!         // anything with cudarc; an assertion that fails fails the test
//!     });
//!     let status = Device::new().fail_call(7).command("target/release/qat-step").arg("--help").status();
//! }
//! ```
//!
//! A crate that has this one among its dev-dependencies needs nothing else: cargo builds the library beside the test.
//! [`Device`] has a method for every knob, and says how tests get the library to be found. Each knob is an environment
//! variable too, for programs that are started by hand: see [`Device::command`] and the table in README.md.
//!
//! # What is modelled
//!
//! * **The driver**, as of CUDA 12.0: devices, the primary context, memory (pageable and pinned), streams, events,
//!   modules, launches, with the status codes and limits of the real one. Parameters are copied at the launch. A fault
//!   of a kernel comes out of the next call that waits, and ends the context.
//! * **Streams** are lazy: work runs when something waits for it, the newest stream first. Copies from and to pinned
//!   memory happen when they run, and their target holds poison until then. Two pieces of work that touch the same 256
//!   bytes, one of them writing, need an order: a stream, an event, or the host's waiting.
//! * **Memory** knows its bounds to the byte, which bytes were written, and what was freed; addresses are not used twice.
//! * **PTX** up to version 8.0, by a parser and a decoder that refuse what they do not know when a module is loaded:
//!   integers and bits, f32 in all roundings, f64 to nearest, f16 and bf16 and their pairs, all conversions between
//!   them, memory of all spaces and widths, calls (put in place of the call), shuffles, votes, matches, reductions,
//!   atomics on 32 and 64 bits, `bar.sync`, `bar.warp.sync`, fences, `cp.async`, `ldmatrix`, `mma.sync` m16n8k16 of bf16
//!   and f16 into f32.
//! * **Every access of a kernel** is checked for bounds (of the allocation, or of the one shared variable), alignment,
//!   unwritten bytes, and races: between threads that no barrier separates, between lanes that no `__syncwarp` does
//!   (a shuffle is none), between blocks that no fence with an atomic orders.
//! * **Synchronization**: barriers that not all threads of the block reach, exchange with lanes that are elsewhere, have
//!   exited or are not in the mask.
//! * **cuBLAS and cuBLASLt**: products of f32, f16 and bf16, batched and strided, by the definition, sums in f32. Shapes,
//!   leading dimensions, extents, overlap, alignment and workspaces are checked; a workspace is spoiled.
//!
//! Messages go to stderr and into the [`Report`]. They name the kernel, the block, the thread, the line and text of the
//! instruction in the PTX, the place in memory, and, of a race, the other thread and its line.
//!
//! # What is not
//!
//! * Speed: occupancy, coalescing, bank conflicts, the time that anything takes.
//! * What ptxas and the driver's own compiler make of the PTX; register pressure and spills.
//! * The approximate functions (`ex2`, `lg2`, `rcp`, `rsqrt`, `sin`, `cos`, `tanh`) are exact here but for one rounding;
//!   a GPU may be off by a few units in the last place. Matrix instructions add in order of k in f32; tensor cores add in
//!   another order and cut low bits. Limits of tests have to leave room for both.
//! * The weak memory model: a thread sees what others have written at once. A missing `volatile` is not found; a fence
//!   counts for the whole block, and scopes are not told apart.
//! * Blocks run one after the other (on several cores, if races are not looked for): one that waits for a later one is
//!   stopped by the budget of instructions. No cooperative launches, clusters, graphs, managed memory, textures.
//! * Barriers of a part of the block, `brx`, `wmma`, `mbarrier`, `wgmma`, TMA, other types and shapes of `mma`, f16
//!   accumulators, `printf`, recursion: refused.
//! * An argument of a launch that has another size than the parameter: the driver reads what the PTX says, and so does
//!   this. [`parameter_sizes`] is there to compare them.
//! * cuBLAS's choice of algorithms, its NOT_SUPPORTED answers, and its rounding; several GPUs; two threads of the host
//!   that use one stream.
//! * What the author misunderstood of CUDA in the emulator, and in the kernels alike.

// Entry points have the names of the C functions.
#![allow(non_snake_case)]

mod blas;
pub mod committed;
mod decode;
mod device;
mod driver;
mod exec;
mod knobs;
mod memory;
mod ptx;

use std::collections::BTreeMap;

pub use device::{Device, Report};

/// Of every kernel in a module, the bytes of its parameters, in order. Launch wrappers can be held against it.
pub fn parameter_sizes(source: &str) -> Result<BTreeMap<String, Vec<usize>>, String> {
    let module = ptx::parser::parse(source)?;
    let sizes = |f: &ptx::Function| f.parameters.iter().map(|parameter| parameter.bytes.unwrap_or_default()).collect();
    let kernels = module.functions.iter().filter(|function| function.entry);
    Ok(kernels.map(|function| (function.name.clone(), sizes(function))).collect())
}
