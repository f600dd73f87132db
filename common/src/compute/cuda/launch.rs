//! Kernels as typed functions: what a wrapper hands over has the type of the parameter, and a test holds the sizes
//! against the PTX, since the driver takes whatever lies where an argument should.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use half::bf16;

use super::gpu::Gpu;
use super::memory::{Mut, Ref};
use crate::error::Result;

/// What can be a kernel's argument, as it lies in memory.
///
/// # Safety
/// The type must have the layout that the kernel's parameter has in C.
pub unsafe trait Argument {
    /// As C has it: `*` and `const *` for pointers.
    const SIZE: usize;
}

macro_rules! arguments {
    ($($type:ty),*) => { $(
        // SAFETY: the numbers are those of C.
        unsafe impl Argument for $type {
            const SIZE: usize = size_of::<$type>();
        }
    )* };
}

arguments!(i32, i64, f32);

// SAFETY: a transparent device address.
unsafe impl<T: Element> Argument for Ref<'_, T> {
    const SIZE: usize = 8;
}

// SAFETY: a transparent device address.
unsafe impl<T: Element> Argument for Mut<'_, T> {
    const SIZE: usize = 8;
}

/// What device memory can hold.
pub trait Element {}

macro_rules! elements {
    ($($type:ty),*) => { $( impl Element for $type {} )* };
}

elements!(u8, i8, i16, i32, u32, f32, f64, bf16, super::optimizer::Part);

/// The PTX of a .cu file.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// Without its extension.
    pub file: &'static str,
    pub ptx: &'static str,
}

impl Source {
    pub fn load(&self, gpu: &Gpu) -> Result<Arc<CudaModule>> {
        let loaded = gpu.context.load_module(Ptx::from_src(self.ptx));
        loaded.map_err(|error| gpu.error(format_args!("loading {}.ptx", self.file), error))
    }

    pub fn function(&self, gpu: &Gpu, module: &Arc<CudaModule>, name: &str) -> Result<CudaFunction> {
        let found = module.load_function(name);
        found.map_err(|error| gpu.error(format_args!("{name} of {}.ptx", self.file), error))
    }
}

/// Where an argument lies, for the driver.
pub fn pointer<A: Argument>(argument: &A) -> *mut c_void {
    debug_assert_eq!(size_of::<A>(), A::SIZE);
    (&raw const *argument).cast_mut().cast()
}

/// The kernels of one .cu file as a struct with a method each: `kernels! { Norm in "norm"; fn f(x: Ref<f32>, d: i32); }`.
macro_rules! kernels {
    ($(#[$doc:meta])* $module:ident in $file:literal; $( fn $name:ident ( $($argument:ident : $type:ty),* $(,)? ); )*) => {
        $(#[$doc])*
        pub struct $module { $( $name: cudarc::driver::CudaFunction, )* }

        impl $module {
            pub const SOURCE: $crate::compute::cuda::launch::Source = $crate::compute::cuda::launch::Source {
                file: $file,
                ptx: include_str!(concat!($file, ".ptx")),
            };

            /// The kernels, and the sizes of what is handed over to them.
            #[cfg(test)]
            pub const KERNELS: &[(&str, &[usize])] = &[ $(
                (stringify!($name), &[ $( <$type as $crate::compute::cuda::launch::Argument>::SIZE ),* ])
            ),* ];

            pub fn load(gpu: &$crate::compute::cuda::gpu::Gpu) -> $crate::error::Result<$module> {
                let module = Self::SOURCE.load(gpu)?;
                Ok($module { $( $name: Self::SOURCE.function(gpu, &module, stringify!($name))?, )* })
            }

            $(
                #[allow(clippy::too_many_arguments)]
                pub fn $name(
                    &self,
                    gpu: &$crate::compute::cuda::gpu::Gpu,
                    grid: $crate::compute::cuda::gpu::Grid,
                    $($argument: $type),*
                ) {
                    let arguments = &mut [ $( $crate::compute::cuda::launch::pointer(&$argument) ),* ];
                    gpu.launch(stringify!($name), &self.$name, grid, arguments);
                }
            )*
        }
    };
}
pub(super) use kernels;
