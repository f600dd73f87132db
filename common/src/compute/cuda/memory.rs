//! Memory of the GPU: owned, borrowed by kernels, filled from the host.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{CudaEvent, DriverError, PinnedHostSlice, result, sys};

use super::gpu::Gpu;
use crate::error::{Error, Result};
use crate::format::tensor::Tensor;

/// What the driver hands out is a multiple of this.
pub const GRANULE: u64 = 512;

/// Bytes that `len` elements hold on the device.
pub fn bytes_of<T>(len: usize) -> u64 {
    ((len * size_of::<T>()) as u64).next_multiple_of(GRANULE)
}

/// `len` elements on the GPU.
pub struct Memory<T> {
    at: sys::CUdeviceptr,
    len: usize,
    gpu: Arc<Gpu>,
    _of: PhantomData<T>,
}

/// Where a kernel reads. It lives no longer than the memory.
#[repr(transparent)]
pub struct Ref<'a, T>(sys::CUdeviceptr, PhantomData<&'a T>);

/// Where a kernel writes.
#[repr(transparent)]
pub struct Mut<'a, T>(sys::CUdeviceptr, PhantomData<&'a mut T>);

impl<T> Clone for Ref<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Ref<'_, T> {}

impl<'a, T> Ref<'a, T> {
    pub const NULL: Ref<'a, T> = Ref(0, PhantomData);

    /// For the driver and for structs that kernels read.
    pub fn address(self) -> u64 {
        self.0
    }

    /// Elements further on: the caller has taken a view that reaches as far.
    pub fn offset(self, elements: usize) -> Ref<'a, T> {
        Ref(self.0 + (elements * size_of::<T>()) as u64, PhantomData)
    }

    /// Where element 0 would be if this were element `elements`: for a kernel that touches none before that one.
    pub fn placed_at(self, elements: usize) -> Ref<'a, T> {
        Ref(self.0.wrapping_sub((elements * size_of::<T>()) as u64), PhantomData)
    }
}

impl<'a, T> Mut<'a, T> {
    pub const NULL: Mut<'a, T> = Mut(0, PhantomData);

    pub fn address(&self) -> u64 {
        self.0
    }

    /// Where element 0 would be if this were element `elements`: for a kernel that touches none before that one.
    pub fn placed_at(self, elements: usize) -> Mut<'a, T> {
        Mut(self.0.wrapping_sub((elements * size_of::<T>()) as u64), PhantomData)
    }

    /// For a shorter time.
    pub fn again(&mut self) -> Mut<'_, T> {
        Mut(self.0, PhantomData)
    }

    /// Elements further on: the caller has taken a view that reaches as far.
    pub fn offset(&mut self, elements: usize) -> Mut<'_, T> {
        Mut(self.0 + (elements * size_of::<T>()) as u64, PhantomData)
    }

    pub fn read(&self) -> Ref<'_, T> {
        Ref(self.0, PhantomData)
    }

    /// For a kernel that reads each element where it then writes it.
    pub fn in_place(&self) -> Ref<'a, T> {
        Ref(self.0, PhantomData)
    }
}

impl<T> Memory<T> {
    /// Memory that holds nothing yet.
    pub fn new(gpu: &Arc<Gpu>, len: usize) -> Result<Memory<T>> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| too_large(gpu, len))?;
        if bytes == 0 {
            return Ok(Memory { at: 0, len: 0, gpu: gpu.clone(), _of: PhantomData });
        }
        gpu.check()?;
        // SAFETY: freed once, in `drop`.
        let at = gpu.context.bind_to_thread().and_then(|()| unsafe { result::malloc_sync(bytes) });
        let at = at.map_err(|error| no_room(gpu, bytes as u64, error))?;
        gpu.holds(bytes_of::<T>(len));
        Ok(Memory { at, len, gpu: gpu.clone(), _of: PhantomData })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// # Panics
    /// If it is not that long.
    pub fn view(&self, range: Range<usize>) -> Ref<'_, T> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        Ref(self.at + (range.start * size_of::<T>()) as u64, PhantomData)
    }

    /// # Panics
    /// If it is not that long.
    pub fn view_mut(&mut self, range: Range<usize>) -> Mut<'_, T> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        Mut(self.at + (range.start * size_of::<T>()) as u64, PhantomData)
    }

    pub fn all(&self) -> Ref<'_, T> {
        self.view(0..self.len)
    }

    pub fn all_mut(&mut self) -> Mut<'_, T> {
        self.view_mut(0..self.len)
    }
}

impl Memory<u8> {
    /// All of it as elements of another type.
    pub fn as_elements<T>(&self) -> Ref<'_, T> {
        Ref(self.at, PhantomData)
    }

    /// To be shared out.
    pub fn carve(&mut self) -> Carve<'_> {
        Carve { at: self.at, left: self.len, _of: PhantomData }
    }
}

/// Memory that is shared out piece by piece.
pub struct Carve<'a> {
    at: sys::CUdeviceptr,
    left: usize,
    _of: PhantomData<&'a mut u8>,
}

impl<'a> Carve<'a> {
    /// Pieces begin at multiples of this.
    pub const ALIGNED: usize = 256;

    /// The next `len` elements.
    ///
    /// # Panics
    /// If so many are not left.
    pub fn take<T>(&mut self, len: usize) -> Mut<'a, T> {
        let bytes = len * size_of::<T>();
        assert!(bytes <= self.left, "{bytes} bytes of {} that are left", self.left);
        let (taken, whole) = (self.at, bytes.next_multiple_of(Self::ALIGNED));
        (self.at, self.left) = (self.at + whole as u64, self.left.saturating_sub(whole));
        Mut(taken, PhantomData)
    }
}

impl<T: Pod> Memory<T> {
    pub fn zeros(gpu: &Arc<Gpu>, len: usize) -> Result<Memory<T>> {
        let mut memory = Memory::new(gpu, len)?;
        memory.fill_zero();
        Ok(memory)
    }

    pub fn of(gpu: &Arc<Gpu>, values: &[T]) -> Result<Memory<T>> {
        let mut memory = Memory::new(gpu, values.len())?;
        memory.write(values);
        Ok(memory)
    }

    pub fn fill_zero(&mut self) {
        let bytes = self.len * size_of::<T>();
        if bytes > 0 {
            // SAFETY: the memory is of this length.
            self.gpu.work("zeroing memory", |stream| unsafe { result::memset_d8_async(self.at, 0, bytes, stream) });
        }
    }

    /// Its first elements. The driver has read `values` when this returns, since they are not pinned.
    ///
    /// # Panics
    /// If it is not that long.
    pub fn write(&mut self, values: &[T]) {
        let gpu = self.gpu.clone();
        gpu.write(self.view_mut(0..values.len()), values);
    }

    /// Its first `len` elements, after all work before.
    ///
    /// # Panics
    /// If it is not that long.
    pub fn read(&self, len: usize) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); len];
        self.gpu.read(self.view(0..len), &mut values);
        self.gpu.wait()?;
        Ok(values)
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        if self.at != 0 {
            self.gpu.released(bytes_of::<T>(self.len));
            // Work that is under way is waited for. What was refused before is refused again, and known.
            // SAFETY: allocated in `new`, and borrowed by nobody.
            let freed = self.gpu.context.bind_to_thread().and_then(|()| unsafe { result::free_sync(self.at) });
            if !self.gpu.failed() {
                self.gpu.note("freeing memory", freed);
            }
        }
    }
}

fn too_large(gpu: &Gpu, len: usize) -> Error {
    Error::device(format!("{}: no room for {len} elements", gpu.name), super::gpu::BATCH_CURE)
}

fn no_room(gpu: &Gpu, bytes: u64, error: DriverError) -> Error {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / (1u64 << 20) as f64);
    let what = format!("{}: {} more than the {} held", gpu.name, mib(bytes), mib(gpu.held()));
    match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::device(
            format!("{what} do not fit into its memory"),
            "end other programs on it, take fewer tokens at a time (--batch and --seq of qat-step, --ctx of eval), or use \
             --device cpu",
        ),
        _ => gpu.error("memory", error),
    }
}

/// Pinned memory through which large tensors go to the GPU, a part being read from the file while the one before is on
/// its way.
pub struct Staging {
    parts: [Part; 2],
}

struct Part {
    pinned: PinnedHostSlice<u8>,
    /// The copy from it is done. (cudarc records an event of its own only where it sees several streams.)
    sent: CudaEvent,
}

impl Staging {
    const PART: usize = 8 << 20;

    pub fn new(gpu: &Gpu) -> Result<Staging> {
        let part = || {
            Ok(Part {
                // SAFETY: written before it is read.
                pinned: unsafe { gpu.context.alloc_pinned::<u8>(Self::PART) }?,
                sent: gpu.context.new_event(None)?,
            })
        };
        let parts: Result<[Part; 2], DriverError> = part().and_then(|first| Ok([first, part()?]));
        Ok(Staging { parts: parts.map_err(|error| gpu.error("pinned memory", error))? })
    }

    /// A tensor's bytes, whose pages are let go of on the way.
    pub fn upload(&mut self, gpu: &Arc<Gpu>, tensor: &Tensor) -> Result<Memory<u8>> {
        let memory = Memory::new(gpu, tensor.bytes().len())?;
        let mut at = memory.at;
        tensor.for_each_part(|bytes| {
            for bytes in bytes.chunks(Self::PART) {
                self.parts.swap(0, 1);
                let sent = self.parts[0].send(gpu, bytes, at);
                sent.map_err(|error| gpu.error("copying to the GPU", error))?;
                at += bytes.len() as u64;
            }
            Ok(())
        })?;
        Ok(memory)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // What cannot be waited for is not under way either.
        let _ = self.sent.synchronize();
    }
}

impl Part {
    /// Waits until what it held is sent, is filled, and goes off.
    fn send(&mut self, gpu: &Gpu, bytes: &[u8], to: sys::CUdeviceptr) -> Result<(), DriverError> {
        self.sent.synchronize()?;
        let pinned = &mut self.pinned.as_mut_slice()?[..bytes.len()];
        pinned.copy_from_slice(bytes);
        // SAFETY: the target has room for the bytes, which are not written again before the event says that they are sent.
        unsafe { result::memcpy_htod_async(to, pinned, gpu.stream.cu_stream()) }?;
        self.sent.record(&gpu.stream)
    }
}
