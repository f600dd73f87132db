//! Creation and end of streams.

use super::device::need_context;
use super::queue::{Stream, is_default};
use super::{Out, State, Status, entry_points};

const NON_BLOCKING: u32 = 1;

impl State {
    fn create_stream(&mut self, flags: u32) -> Result<u64, Status> {
        need_context()?;
        let handle = self.handle();
        self.streams.insert(handle, Stream::new(flags & NON_BLOCKING == 0));
        Ok(handle)
    }
}

entry_points! {
    fn cuStreamCreate(to: Out<u64>, flags: u32) |state| { to.set(state.create_stream(flags)?) }
    fn cuStreamCreateWithPriority(to: Out<u64>, flags: u32, _priority: i32) |state| {
        to.set(state.create_stream(flags)?)
    }
    fn cuStreamDestroy_v2(stream: u64) |state| {
        if is_default(stream) || !state.streams.contains_key(&stream) {
            return Err(Status::InvalidHandle);
        }
        let done = state.drain(stream, None);
        state.streams.remove(&stream);
        done
    }
    fn cuStreamSynchronize(stream: u64) |state| { state.synchronize(stream) }
}
