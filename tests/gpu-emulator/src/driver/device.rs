//! The device, and its context: one primary context, which every thread of the host has to bind.

use std::cell::Cell;
use std::ffi::c_char;

use super::{Out, State, Status, entry_points};

const NAME: &[u8] = b"CUDA emulator (CPU)\0";
const CONTEXT: u64 = 0xc0de_0000;

thread_local! {
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// A context is bound to this thread.
pub fn need_context() -> Result<(), Status> {
    if CURRENT.get() == CONTEXT { Ok(()) } else { Err(Status::InvalidContext) }
}

/// Bytes of shared memory that a block may have if the kernel asks for it (CUDA C++ Programming Guide, table of
/// technical specifications by compute capability).
pub fn most_shared(compute_capability: i32) -> usize {
    let kilobytes = match compute_capability {
        80 | 87 => 163,
        86 | 89 | 120 | 121 => 99,
        90..=119 => 227,
        _ => 64,
    };
    kilobytes << 10
}

/// By number of CUdevice_attribute.
fn attribute(state: &State, which: u32) -> i32 {
    let capability = state.knobs.compute_capability;
    match which {
        1..=3 => 1024,         // threads of a block, and along x and y
        4 => 64,               // along z
        5 => i32::MAX,         // blocks along x
        6 | 7 => 65535,        // along y and z
        8 => 48 << 10,         // shared memory of a block
        9 => 64 << 10,         // constant memory
        10 => 32,              // warp
        12 => 65536,           // registers of a block
        16 => 108,             // multiprocessors
        39 => 2048,            // threads of a multiprocessor
        75 => capability / 10, // compute capability
        76 => capability % 10, //
        81 | 97 => most_shared(capability) as i32,
        115 => 1, // memory pools
        _ => 0,
    }
}

fn device(state: &State, ordinal: i32) -> Result<(), Status> {
    if (0..state.knobs.devices).contains(&ordinal) { Ok(()) } else { Err(Status::InvalidDevice) }
}

entry_points! {
    fn cuInit(_flags: u32) |state| {
        if state.knobs.devices == 0 { Err(Status::NoDevice) } else { Ok(()) }
    }
    fn cuDriverGetVersion(version: Out<i32>) |state| { version.set(state.knobs.driver) }
    fn cuDeviceGetCount(count: Out<i32>) |state| { count.set(state.knobs.devices) }
    fn cuDeviceGet(to: Out<i32>, ordinal: i32) |state| {
        device(state, ordinal)?;
        to.set(ordinal)
    }
    fn cuDeviceGetName(name: Out<c_char>, room: i32, ordinal: i32) |state| {
        device(state, ordinal)?;
        let text: Vec<c_char> = NAME.iter().map(|byte| *byte as c_char).collect();
        name.set_all(&text, room.max(0) as usize)
    }
    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, ordinal: i32) |state| {
        device(state, ordinal)?;
        uuid.set([ordinal as u8; 16])
    }
    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, ordinal: i32) |state| {
        device(state, ordinal)?;
        uuid.set([ordinal as u8; 16])
    }
    fn cuDeviceTotalMem_v2(bytes: Out<usize>, ordinal: i32) |state| {
        device(state, ordinal)?;
        bytes.set(state.memory.total)
    }
    fn cuDeviceGetAttribute(value: Out<i32>, which: u32, ordinal: i32) |state| {
        device(state, ordinal)?;
        value.set(attribute(state, which))
    }
    fn cuDevicePrimaryCtxRetain(context: Out<u64>, ordinal: i32) |state| {
        device(state, ordinal)?;
        context.set(CONTEXT)
    }
    fn cuDevicePrimaryCtxRelease_v2(ordinal: i32) |state| { device(state, ordinal) }
    fn cuCtxGetCurrent(context: Out<u64>) |state| { context.set(CURRENT.get()) }
    fn cuCtxSetCurrent(context: u64) |state| {
        if context != CONTEXT && context != 0 {
            return Err(Status::InvalidContext);
        }
        CURRENT.set(context);
        Ok(())
    }
    fn cuCtxSetFlags(_flags: u32) |state| { need_context() }
    fn cuCtxSynchronize() |state| {
        need_context()?;
        state.run_all()
    }
    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) |state| {
        least.set(0)?;
        greatest.set(-5)
    }
}
