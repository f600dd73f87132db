//! The mathematics of LR-QAT on slices: no files, no devices.

pub mod fit;
pub mod grid;
pub mod integers;
pub mod isa;
pub(crate) mod lanes;
pub mod lowrank;
pub mod pack;
pub mod phi;
pub mod real;
pub mod rounding;
pub mod scheme;
mod search;

pub use integers::{Integers, LinearGrid};
pub use phi::Phi;
pub use real::{Factors, RealWeight};
pub use rounding::Rounding;
pub use scheme::{Scheme, Symmetry};
