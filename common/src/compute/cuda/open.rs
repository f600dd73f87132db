//! From a machine to a device, or to the one line that says what is missing.

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::gpu::{Gpu, cure, reason};
use crate::error::{Error, Result};

/// The oldest driver that takes the committed PTX: CUDA 12.0, driver 525.
const DRIVER: i32 = 12_000;
/// Tensor cores that multiply bf16: Ampere.
const CAPABILITY: (i32, i32) = (8, 0);

const CPU: &str = "or use --device cpu";

/// Is there a driver, and a GPU? Nothing is said of whether it will do.
pub fn present() -> bool {
    // SAFETY: opens the library, and closes it.
    let driver = unsafe { sys::is_culib_present() };
    driver && CudaContext::device_count().is_ok_and(|count| count > 0)
}

/// The first GPU (CUDA_VISIBLE_DEVICES decides which that is).
pub fn gpu() -> Result<Gpu> {
    // SAFETY: opens the library, and closes it.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::device("no NVIDIA driver (libcuda.so.1)", format!("install one from 525 on, {CPU}")));
    }
    let refused = |error: DriverError| Error::device(format!("CUDA: {}", reason(error)), cure(error));
    let version = driver_version().map_err(refused)?;
    if version < DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(Error::device(
            format!("the NVIDIA driver is for CUDA {major}.{minor}, expected 12.0 or later"),
            format!("install one from 525 on, {CPU}"),
        ));
    }
    match CudaContext::device_count() {
        Ok(count) if count > 0 => {}
        Ok(_) | Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => {
            return Err(Error::device(
                "the NVIDIA driver finds no GPU",
                format!("see nvidia-smi and CUDA_VISIBLE_DEVICES, {CPU}"),
            ));
        }
        Err(error) => return Err(refused(error)),
    }
    let context = CudaContext::new(0).map_err(refused)?;
    let capability = context.compute_capability().map_err(refused)?;
    if capability < CAPABILITY {
        let name = context.name().map_err(refused)?;
        return Err(Error::device(
            format!("{name} has compute capability {}.{}, expected 8.0 or later", capability.0, capability.1),
            format!("take an A100, RTX 30 or later, {CPU}"),
        ));
    }
    Gpu::new(context, capability).map_err(refused)
}

fn driver_version() -> Result<i32, DriverError> {
    // Drivers without a GPU refuse to be initialized, and tell their version.
    let _ = result::init();
    let mut version = 0;
    // SAFETY: writes an integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(version)
}
