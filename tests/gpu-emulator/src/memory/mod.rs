//! Memory of the device: allocations in an address space of its own, each byte with a note of whether it was written.

mod bytes;
mod space;

pub use bytes::Bytes;
pub use space::{Allocation, DeviceMemory, Range};
