//! The GPU: kernels (a .cu file, its PTX and its wrapper side by side), memory, products, and the [`Cuda`] backend.
//!
//! The library of the driver is opened at run time, so that one program runs with and without a GPU. Kernels come as
//! PTX, which the driver compiles for its GPU; `tests/ptx/compile` makes it from the sources.

mod adapter;
mod attention;
mod cublaslt;
mod device;
mod fit;
mod frozen;
mod gpu;
mod head;
mod kernels;
mod launch;
mod linear;
mod memory;
mod open;
mod optimizer;
mod product;
mod scratch;
mod state;
#[cfg(test)]
mod tests;
mod times;
mod weight;

pub use fit::Fitting;
pub use open::present;
pub use state::Cuda;
pub use times::Time;
