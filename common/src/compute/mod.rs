//! The arithmetic of the model's layers, by device.

pub mod cpu;
