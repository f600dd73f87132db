//! The choice of device and of the type that it computes in.

use clap::{Args, ValueEnum};

use crate::compute::cpu::product::multiplies_bf16;
use crate::compute::cuda;
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

impl Device {
    /// Is it the GPU? Opens nothing.
    pub fn is_gpu(self) -> bool {
        match self {
            Device::Auto => cuda::present(),
            Device::Cpu => false,
            Device::Cuda => true,
        }
    }
}

/// The backend that the command line asks for. Tools match on it once, and go on in code that is generic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    CpuF32,
    CpuBf16,
    Cuda,
}

#[derive(Debug, Args)]
pub struct DeviceFlags {
    /// Where to compute; auto is the GPU if there is one
    #[arg(long, value_enum, default_value = "auto")]
    pub device: Device,
    /// Type of activations and products; auto is bf16 where the device multiplies matrices in it, else f32
    #[arg(long, value_enum, default_value = "auto")]
    pub compute: Compute,
}

impl DeviceFlags {
    /// Is nothing asked for?
    pub fn is_default(&self) -> bool {
        (self.device, self.compute) == (Device::Auto, Compute::Auto)
    }

    /// Opens nothing: a plan needs no GPU.
    pub fn choose(&self) -> Result<Chosen> {
        let gpu = match (self.device, self.compute) {
            (Device::Auto, Compute::F32) => false,
            (Device::Cuda, Compute::F32) => {
                return Err(Error::usage(
                    "--compute f32: the GPU computes in bf16",
                    "leave it out, or use --device cpu",
                ));
            }
            (device, _) => device.is_gpu(),
        };
        Ok(match self.compute {
            _ if gpu => Chosen::Cuda,
            Compute::Bf16 => Chosen::CpuBf16,
            Compute::Auto if multiplies_bf16() => Chosen::CpuBf16,
            Compute::Auto | Compute::F32 => Chosen::CpuF32,
        })
    }
}
