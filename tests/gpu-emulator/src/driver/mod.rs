//! The driver: the `cu*` functions by the names and signatures of the CUDA driver API 12.0.

mod device;
mod event;
mod ffi;
mod launch;
mod memory;
mod module;
mod order;
mod queue;
mod report;
mod state;
mod status;
mod stream;

pub(crate) use ffi::{Bits, In, Out, entry_points};
pub(crate) use queue::Work;
pub(crate) use state::{State, lock};
pub(crate) use status::Status;
