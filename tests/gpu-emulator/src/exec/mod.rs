//! The interpreter. A warp runs in lockstep: an instruction is taken once for all lanes that are at it. Lanes that
//! diverge are kept in groups, of which the one that is furthest back runs, so that they meet again where the compiler
//! joins them. Warps run until they wait for each other at a barrier; blocks run one after the other, or on several
//! cores if no races are looked for.

pub mod op;
pub mod program;

mod access;
mod arithmetic;
mod bits;
mod block;
mod compare;
mod convert;
mod copy;
mod exchange;
mod fault;
mod float;
mod grid;
mod integer;
mod matrix;
mod memory;
mod order;
mod race;
mod registers;
pub mod rounding;
mod warp;

pub use fault::Kind;
pub use grid::{Checks, History, Launch};
pub use memory::{LOCAL_WINDOW, SHARED_WINDOW};
