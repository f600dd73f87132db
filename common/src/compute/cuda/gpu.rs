//! The GPU: its context, the one stream that all work goes through in order, and the first failure.
//!
//! Ops have no results. As the driver itself does, the device remembers the first thing that failed, does nothing from
//! then on, and says so where something is read back ([`Gpu::wait`]).

use std::ffi::c_void;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;
use cudarc::driver::sys::{CUresult, CUstream};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError, result};

use super::memory::{Mut, Ref};
use super::times::{Time, Timer};
use crate::error::{Error, Result};

/// Most blocks along y.
pub const MAX_BLOCKS_Y: usize = 65_535;

pub struct Gpu {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    /// "NVIDIA A100-SXM4-80GB", for messages.
    pub name: String,
    /// Compute capability: (8, 0) is an A100.
    pub capability: (i32, i32),
    failure: Mutex<Option<Failure>>,
    held: AtomicU64,
    peak: AtomicU64,
    timer: Timer,
}

struct Failure {
    what: String,
    cure: String,
}

/// Blocks of a launch, threads of a block, and its dynamic shared memory in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    pub blocks: (usize, usize),
    pub threads: u32,
    pub shared: usize,
}

impl Grid {
    /// A thread an element.
    pub fn elements(len: usize) -> Grid {
        const THREADS: u32 = 256;
        Grid::blocks(len.div_ceil(THREADS as usize), THREADS)
    }

    pub fn blocks(blocks: usize, threads: u32) -> Grid {
        Grid { blocks: (blocks, 1), threads, shared: 0 }
    }
}

impl Gpu {
    pub fn new(context: Arc<CudaContext>, capability: (i32, i32)) -> Result<Gpu, DriverError> {
        // One stream: nothing has to be tracked.
        // SAFETY: no memory of cudarc's own kind is used on several streams.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream()?;
        let name = context.name()?;
        let (failure, held, peak) = (Mutex::default(), AtomicU64::new(0), AtomicU64::new(0));
        Ok(Gpu { context, stream, name, capability, failure, held, peak, timer: Timer::default() })
    }

    /// What the driver refused, as an error.
    pub fn error(&self, doing: impl Display, error: DriverError) -> Error {
        Error::device(format!("{}: {doing}: {}", self.name, reason(error)), cure(error))
    }

    pub fn launch(&self, name: &str, function: &CudaFunction, grid: Grid, arguments: &mut [*mut c_void]) {
        let (x, y) = grid.blocks;
        if x == 0 || y == 0 || self.failed() {
            return;
        }
        let (Ok(x), Ok(y), Ok(shared)) = (u32::try_from(x), u32::try_from(y), u32::try_from(grid.shared)) else {
            return self.fail(format!("{name}: {x} × {y} blocks are more than a launch can have"), BATCH_CURE);
        };
        let (blocks, threads) = ((x, y, 1), (grid.threads, 1, 1));
        self.work(name, |stream| {
            // SAFETY: `kernels!` hands over an argument of the parameter's type for each parameter; device memory is
            // borrowed for the launch, and the stream keeps the order of all that follows, its release included.
            unsafe { result::launch_kernel(function.cu_function(), blocks, threads, shared, stream, arguments) }
        });
    }

    /// Hands work to the stream, unless something failed before; remembers what the driver refuses.
    pub fn work(&self, doing: &str, submit: impl FnOnce(CUstream) -> Result<(), DriverError>) {
        if !self.failed() {
            let bound = self.context.bind_to_thread();
            self.note(doing, bound.and_then(|()| self.timer.around(self, doing, || submit(self.stream.cu_stream()))));
        }
    }

    /// Remembers what the driver refused.
    pub fn note(&self, doing: &str, outcome: Result<(), DriverError>) {
        if let Err(error) = outcome {
            self.keep(self.error(doing, error));
        }
    }

    pub fn fail(&self, what: impl Display, cure: &str) {
        self.keep(Error::device(format!("{}: {what}", self.name), cure));
    }

    /// Remembers an error.
    pub fn keep(&self, error: Error) {
        let (what, cure) = match error {
            Error::Device { what, cure } => (what, cure),
            other => (other.to_string(), "run the same command again".to_string()),
        };
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(Failure { what, cure });
    }

    pub fn failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The first failure, if there was one.
    pub fn check(&self) -> Result<()> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Failure { what, cure }) => Err(Error::device(what, cure)),
            None => Ok(()),
        }
    }

    /// Copies from the host: the driver has read the values when this returns, since they are not pinned. The caller's view
    /// is as long.
    pub fn write<T: Pod>(&self, to: Mut<T>, values: &[T]) {
        if !values.is_empty() {
            // SAFETY: the caller's view is as long.
            self.work("copying to the GPU", |stream| unsafe {
                result::memcpy_htod_async(to.address(), values, stream)
            });
        }
    }

    /// Copies `len` elements, which both views have.
    pub fn copy<T: Pod>(&self, from: Ref<T>, to: Mut<T>, len: usize) {
        // SAFETY: both views are as long.
        let copy =
            |stream| unsafe { result::memcpy_dtod_async(to.address(), from.address(), len * size_of::<T>(), stream) };
        self.work("copying on the GPU", copy);
    }

    /// Copies to the host, after all work before.
    pub fn read<T: Pod>(&self, from: Ref<T>, to: &mut [T]) {
        if to.is_empty() {
            return;
        }
        // SAFETY: the caller's view is as long, and the copy is done when this returns.
        self.work("copying from the GPU", |stream| unsafe {
            result::memcpy_dtoh_async(to, from.address(), stream)?;
            result::stream::synchronize(stream)
        });
    }

    /// Waits until all work is done.
    pub fn wait(&self) -> Result<()> {
        self.check()?;
        self.note("its work", self.stream.synchronize());
        self.check()
    }

    /// What `call` hands to the stream, and the time that the GPU takes for it.
    pub fn times(&self, call: impl FnOnce()) -> Result<Vec<Time>> {
        self.wait()?;
        self.timer.start();
        call();
        let times = self.timer.stop();
        self.check()?;
        times.map_err(|error| self.error("timing", error))
    }

    /// The timer, for work that a library hands to the stream.
    pub fn timer(&self) -> &Timer {
        &self.timer
    }

    /// Memory is held, or no longer.
    pub fn holds(&self, bytes: u64) {
        let held = self.held.fetch_add(bytes, Relaxed) + bytes;
        self.peak.fetch_max(held, Relaxed);
    }

    pub fn released(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Relaxed);
    }

    /// The most bytes that were held at a time.
    pub fn peak(&self) -> u64 {
        self.peak.load(Relaxed)
    }

    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }
}

pub const BATCH_CURE: &str = "lower --batch (and raise --accum) or --seq";

/// The driver's name of an error.
pub fn reason(error: DriverError) -> String {
    match error.error_name() {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("error {}", error.0 as u32),
    }
}

pub fn cure(error: DriverError) -> &'static str {
    match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            "end other programs on the GPU, lower --batch or --seq, or use --device cpu"
        }
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS | CUresult::CUDA_ERROR_LAUNCH_FAILED => {
            "run the same command again; if it happens again, report it with the output of make gpu-check"
        }
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            "install a driver from 525 on, or use --device cpu"
        }
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE => "the GPU's memory is broken: take another, or use --device cpu",
        _ => "run the same command again (see nvidia-smi and the system's log), or use --device cpu",
    }
}
