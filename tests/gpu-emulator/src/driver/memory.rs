//! Allocation, copies and fills.

use std::alloc::Layout;

use super::device::need_context;
use super::ffi::{read_host, write_host};
use super::queue::Work;
use super::{In, Out, State, Status, entry_points};

impl State {
    fn allocate(&mut self, bytes: usize) -> Result<u64, Status> {
        need_context()?;
        self.healthy()?;
        self.may_allocate()?;
        match self.memory.allocate(bytes) {
            Some(address) => Ok(address),
            None => {
                let (used, total) = (self.memory.used, self.memory.total);
                let what = format!("no room for {bytes} bytes: {used} of {total} are in use");
                Err(self.fail(Status::OutOfMemory, what))
            }
        }
    }

    /// A range that a call names has to be there when it is called.
    fn known(&mut self, address: u64, len: usize, what: &str) -> Result<(), Status> {
        need_context()?;
        match self.memory.range(address, len).err() {
            Some(fault) if len > 0 => Err(self.fail(Status::InvalidValue, format!("{what}: {fault}"))),
            _ => Ok(()),
        }
    }

    fn is_pinned(&self, address: usize) -> bool {
        let below = self.pinned.range(..=address).next_back();
        below.is_some_and(|(start, layout)| address - start < layout.size())
    }

    /// From pageable memory the bytes are taken at once, from pinned memory when the copy runs.
    fn upload(&mut self, to: u64, from: In<u8>, len: usize, stream: u64) -> Result<(), Status> {
        self.known(to, len, "copy to the device")?;
        let work = match self.is_pinned(from.address()) {
            true => Work::UploadPinned { to, from: from.address(), len },
            false => Work::Upload { to, data: from.slice(len) },
        };
        if len == 0 { Ok(()) } else { self.submit(stream, work) }
    }

    /// Into pageable memory it has run when the call returns. Pinned memory is spoiled until the copy runs.
    fn download(&mut self, to: In<u8>, from: u64, len: usize, stream: u64) -> Result<(), Status> {
        self.known(from, len, "copy from the device")?;
        if len == 0 {
            return Ok(());
        }
        let pinned = self.is_pinned(to.address());
        if pinned {
            write_host(to.address(), &vec![self.knobs.poison; len]);
        }
        self.submit(stream, Work::Download { to: to.address(), from, len })?;
        if pinned { Ok(()) } else { self.synchronize(stream) }
    }

    fn copy(&mut self, to: u64, from: u64, len: usize, stream: u64) -> Result<(), Status> {
        self.known(to, len, "copy on the device, target")?;
        self.known(from, len, "copy on the device, source")?;
        if len == 0 { Ok(()) } else { self.submit(stream, Work::Copy { to, from, len }) }
    }

    fn fill(&mut self, at: u64, value: &[u8], count: usize, stream: u64) -> Result<(), Status> {
        let len = count * value.len();
        self.known(at, len, "memset")?;
        if len == 0 { Ok(()) } else { self.submit(stream, Work::Fill { at, data: value.repeat(count) }) }
    }

    fn release(&mut self, address: u64) -> Result<(), Status> {
        match self.memory.release(address) {
            Ok(()) => Ok(()),
            Err(what) => Err(self.fail(Status::InvalidValue, format!("free: {what}"))),
        }
    }

    /// After the release, when nothing uses it any more.
    pub fn remove(&mut self, address: u64) {
        if let Some(number) = self.memory.remove(address) {
            self.history.forget(number);
            self.order.forget(number);
        }
    }
}

/// What a copy does when it runs.
pub fn run_copy(state: &State, work: &Work) -> Result<(), String> {
    let range = |address: u64, len: usize| state.memory.range(address, len).map_err(|fault| fault.to_string());
    let check = state.knobs.unwritten != 0;
    match work {
        Work::Upload { to, data } | Work::Fill { at: to, data } => range(*to, data.len())?.write(data),
        Work::UploadPinned { to, from, len } => range(*to, *len)?.write(&read_host(*from, *len)),
        Work::Download { to, from, len } => write_host(*to, &range(*from, *len)?.read(check)?),
        Work::Copy { to, from, len } => {
            let (to, from) = (range(*to, *len)?, range(*from, *len)?);
            from.note(false);
            to.note(true);
            to.allocation.bytes.copy_from(to.at, &from.allocation.bytes, from.at, *len);
        }
        _ => {}
    }
    Ok(())
}

entry_points! {
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) |state| {
        need_context()?;
        free.set(state.memory.total - state.memory.used)?;
        total.set(state.memory.total)
    }
    fn cuMemAlloc_v2(to: Out<u64>, bytes: usize) |state| {
        if bytes == 0 {
            return Err(Status::InvalidValue);
        }
        to.set(state.allocate(bytes)?)
    }
    fn cuMemAllocAsync(to: Out<u64>, bytes: usize, _stream: u64) |state| {
        to.set(if bytes == 0 { 0 } else { state.allocate(bytes)? })
    }
    fn cuMemFree_v2(address: u64) |state| {
        state.run_all()?;
        if address != 0 {
            state.release(address)?;
            state.remove(address);
        }
        Ok(())
    }
    fn cuMemFreeAsync(address: u64, stream: u64) |state| {
        if address == 0 {
            return Ok(());
        }
        state.release(address)?;
        state.submit(stream, Work::Free { at: address })
    }
    fn cuMemHostAlloc(to: Out<usize>, bytes: usize, _flags: u32) |state| {
        need_context()?;
        state.may_allocate()?;
        let layout = Layout::from_size_align(bytes.max(1), 4096).map_err(|_| Status::InvalidValue)?;
        // SAFETY: the layout has a size.
        let start = unsafe { std::alloc::alloc(layout) } as usize;
        if start == 0 {
            return Err(Status::OutOfMemory);
        }
        write_host(start, &vec![state.knobs.poison; layout.size()]);
        state.pinned.insert(start, layout);
        to.set(start)
    }
    fn cuMemFreeHost(start: usize) |state| {
        // What is queued may still read or write it.
        let done = state.run_all();
        let layout = state.pinned.remove(&start).ok_or(Status::InvalidValue)?;
        // SAFETY: it was allocated with this layout and not freed: it was in the table.
        unsafe { std::alloc::dealloc(start as *mut u8, layout) };
        done
    }
    fn cuMemsetD8_v2(at: u64, value: u8, count: usize) |state| {
        state.fill(at, &[value], count, 0)?;
        state.synchronize(0)
    }
    fn cuMemsetD8Async(at: u64, value: u8, count: usize, stream: u64) |state| {
        state.fill(at, &[value], count, stream)
    }
    fn cuMemsetD32Async(at: u64, value: u32, count: usize, stream: u64) |state| {
        state.fill(at, &value.to_le_bytes(), count, stream)
    }
    fn cuMemcpyHtoD_v2(to: u64, from: In<u8>, len: usize) |state| {
        state.upload(to, from, len, 0)?;
        state.synchronize(0)
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: In<u8>, len: usize, stream: u64) |state| {
        state.upload(to, from, len, stream)
    }
    fn cuMemcpyDtoH_v2(to: In<u8>, from: u64, len: usize) |state| {
        state.download(to, from, len, 0)?;
        state.synchronize(0)
    }
    fn cuMemcpyDtoHAsync_v2(to: In<u8>, from: u64, len: usize, stream: u64) |state| {
        state.download(to, from, len, stream)
    }
    fn cuMemcpyDtoD_v2(to: u64, from: u64, len: usize) |state| { state.copy(to, from, len, 0) }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: u64) |state| { state.copy(to, from, len, stream) }
}
