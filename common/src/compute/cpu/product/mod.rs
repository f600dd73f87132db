//! Matrix products C[m, n] = A[m, k]·B[k, n] of bf16 or f32 numbers with sums in f32.
//!
//! One driver cuts C into tiles and walks them so that operands stay in the caches; a [`Kernel`] computes a tile from
//! packed panels: the tile unit of x86 (amx.rs), its dot products of bf16 (dot.rs), or fused multiply-adds in vector
//! registers (fma.rs), to which bf16 is widened while it is packed. B comes from a matrix in memory or is made block by
//! block ([`Right`]), C goes to memory or is consumed tile by tile ([`Sink`]), so that weights and their gradients need
//! never exist whole.
//!
//! The bits of an element of C depend on the kernel alone: not on the blocking, the number of threads or the
//! instruction set of the fused multiply-adds.

#[cfg(target_arch = "x86_64")]
pub mod amx;
#[cfg(target_arch = "x86_64")]
pub mod dot;
mod driver;
mod fma;
mod kernel;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod right;
mod scratch;
mod sink;

pub use driver::{Left, Split, product, thread_bytes};
pub use kernel::{Ahead, Fma, Kernel, Work, has_tiles, kernel_name, multiplies_bf16, with_kernel};
pub use pack::{Lines, Square, Tiled, transpose};
pub use right::{Made, PackedColumns, Place, Right, Rows, SideBySide};
pub use scratch::Scratch;
pub use sink::{Shared, Sink, Tile, ToActivation, ToActivations, ToF32};

/// Columns of a tile of C: lines of a panel of B.
pub const COLUMNS: usize = 32;

#[cfg(test)]
mod tests;
