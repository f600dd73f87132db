//! The choice of device and of the type that it computes in.

use clap::{Args, ValueEnum};

use crate::compute::cpu::Cpu;
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    Auto,
    Cpu,
    Cuda,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compute {
    Auto,
    Bf16,
    F32,
}

#[derive(Debug, Args)]
pub struct DeviceFlags {
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    pub device: Device,
    /// Type of activations and products
    #[arg(long, value_enum, default_value = "auto")]
    pub compute: Compute,
}

impl DeviceFlags {
    /// The CPU is the one device of this version, and computes in f32.
    pub fn open(&self) -> Result<Cpu> {
        if self.device == Device::Cuda {
            return Err(Error::usage("--device cuda: this version has no CUDA backend", "use --device cpu"));
        }
        if self.compute == Compute::Bf16 {
            return Err(Error::usage("--compute bf16: the CPU computes in f32 in this version", "use --compute f32"));
        }
        Ok(Cpu::new())
    }
}
