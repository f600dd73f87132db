//! The choice of device and of the type that it computes in.

use clap::{Args, ValueEnum};
use half::bf16;

use crate::compute::cpu::Cpu;
use crate::compute::cpu::product::amx;
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

/// A backend as the command line asks for it. Tools match on it once, and go on in code that is generic.
pub enum Opened {
    CpuF32(Cpu<f32>),
    CpuBf16(Cpu<bf16>),
}

#[derive(Debug, Args)]
pub struct DeviceFlags {
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    pub device: Device,
    /// Type of activations and products; auto is bf16 where the processor multiplies matrices in it, else f32
    #[arg(long, value_enum, default_value = "auto")]
    pub compute: Compute,
}

impl DeviceFlags {
    /// The CPU is the one device of this version.
    pub fn open(&self) -> Result<Opened> {
        if self.device == Device::Cuda {
            return Err(Error::usage("--device cuda: this version has no CUDA backend", "use --device cpu"));
        }
        let bf16 = match self.compute {
            Compute::Auto => amx::available(),
            Compute::Bf16 => true,
            Compute::F32 => false,
        };
        Ok(if bf16 { Opened::CpuBf16(Cpu::new()) } else { Opened::CpuF32(Cpu::new()) })
    }
}
