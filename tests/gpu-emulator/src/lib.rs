#![allow(non_snake_case)]

mod blas;
mod decode;
mod device;
mod driver;
mod exec;
mod knobs;
mod memory;
mod ptx;

pub use device::{Device, Report};
