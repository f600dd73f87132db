//! The arithmetic of the model's layers: what a device does (`backend`), and each device.

pub mod answers;
pub mod backend;
pub mod cpu;
pub mod cuda;
pub mod dropout;
pub mod selection;
