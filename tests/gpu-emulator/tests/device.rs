//! What the tests do on the device.

use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;

/// A module on its device, with the default stream.
pub struct Loaded {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
}

pub fn kernels(name: &str) -> String {
    format!("{}/kernels/{name}.ptx", env!("CARGO_MANIFEST_DIR"))
}

pub fn load(name: &str) -> Loaded {
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let module = context.load_module(Ptx::from_file(kernels(name))).unwrap();
    Loaded { context, stream, module }
}

pub fn shape(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

impl Loaded {
    pub fn kernel(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).unwrap()
    }

    /// The error of a kernel that the module does not have.
    pub fn missing(&self, name: &str) -> CUresult {
        self.module.load_function(name).unwrap_err().0
    }

    /// The bytes of a variable of the module.
    pub fn global(&self, name: &str) -> CudaSlice<u8> {
        let symbol = self.module.get_global(name, &self.stream).unwrap();
        let mut bytes = self.stream.alloc_zeros::<u8>(symbol.len()).unwrap();
        self.stream.memcpy_dtod(&symbol.as_view(), &mut bytes).unwrap();
        bytes
    }

    /// Runs a kernel of the form (out, in, n), a thread an element, and gives `per` results an element.
    pub fn map<I: DeviceRepr, O: DeviceRepr + Default + Clone>(&self, kernel: &str, input: &[I], per: usize) -> Vec<O> {
        let from = self.stream.clone_htod(input).unwrap();
        let mut to: CudaSlice<O> = unsafe { self.stream.alloc(input.len() * per) }.unwrap();
        let (kernel, count) = (self.kernel(kernel), input.len() as i32);
        let mut launch = self.stream.launch_builder(&kernel);
        launch.arg(&mut to).arg(&from).arg(&count);
        unsafe { launch.launch(shape(input.len().div_ceil(128) as u32, 128)) }.unwrap();
        self.stream.clone_dtoh(&to).unwrap()
    }

    /// Runs a kernel of the form (out, in) on 256 floats, and gives what came out, or the error.
    pub fn try_out(&self, kernel: &str, shape: LaunchConfig) -> Result<Vec<f32>, DriverError> {
        let input: Vec<f32> = (0..512).map(|i| i as f32).collect();
        let from = self.stream.clone_htod(&input)?;
        let mut to = self.stream.alloc_zeros::<f32>(512)?;
        let kernel = self.kernel(kernel);
        let mut launch = self.stream.launch_builder(&kernel);
        launch.arg(&mut to).arg(&from);
        unsafe { launch.launch(shape) }?;
        self.stream.clone_dtoh(&to)
    }
}
