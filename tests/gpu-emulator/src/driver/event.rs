//! Events. One that is destroyed is kept: work may still wait for it, which CUDA allows.

use std::time::Instant;

use super::device::need_context;
use super::order::Clock;
use super::queue::Work;
use super::{Out, State, Status, entry_points};

#[derive(Default)]
pub struct Event {
    /// How often it was recorded, and up to which of these it has happened.
    recorded: u64,
    happened: u64,
    stream: u64,
    clock: Clock,
    time: Option<Instant>,
}

impl State {
    pub fn create_event(&mut self) -> u64 {
        let handle = self.handle();
        self.events.insert(handle, Event::default());
        handle
    }

    /// A new recording in a stream: its version.
    pub fn mark(&mut self, event: u64, stream: u64) -> Result<u64, Status> {
        let event = self.events.get_mut(&event).ok_or(Status::InvalidHandle)?;
        event.recorded += 1;
        event.stream = stream;
        Ok(event.recorded)
    }

    pub fn event_happened(&mut self, event: u64, version: u64, clock: Clock) {
        if let Some(event) = self.events.get_mut(&event) {
            event.happened = event.happened.max(version);
            event.clock = clock;
            event.time = Some(Instant::now());
        }
    }

    /// Runs what the event waits for. What comes before it, if it was ever recorded.
    pub fn await_event(&mut self, event: u64, version: u64) -> Result<Option<Clock>, Status> {
        let Some(found) = self.events.get(&event) else { return Ok(None) };
        if found.happened < version {
            self.drain(found.stream, Some((event, version)))?;
        }
        Ok(self.events.get(&event).filter(|_| version > 0).map(|event| event.clock.clone()))
    }

    fn version(&self, event: u64) -> Result<(u64, bool), Status> {
        let event = self.events.get(&event).ok_or(Status::InvalidHandle)?;
        Ok((event.recorded, event.happened >= event.recorded))
    }

    fn synchronize_event(&mut self, event: u64) -> Result<(), Status> {
        let (version, _) = self.version(event)?;
        if let Some(clock) = self.await_event(event, version)? {
            self.order.host.join(&clock);
        }
        self.healthy()
    }

    fn time(&self, event: u64) -> Result<Instant, Status> {
        let event = self.events.get(&event).ok_or(Status::InvalidHandle)?;
        event.time.filter(|_| event.happened >= event.recorded).ok_or(Status::NotReady)
    }
}

entry_points! {
    fn cuEventCreate(to: Out<u64>, _flags: u32) |state| {
        need_context()?;
        to.set(state.create_event())
    }
    fn cuEventRecord(event: u64, stream: u64) |state| {
        let version = state.mark(event, stream)?;
        state.submit(stream, Work::Record { event, version })
    }
    fn cuEventSynchronize(event: u64) |state| { state.synchronize_event(event) }
    fn cuEventQuery(event: u64) |state| {
        if state.version(event)?.1 {
            // The host knows it now.
            return state.synchronize_event(event);
        }
        // Whoever asks again and again gets an end to it.
        state.synchronize_event(event)?;
        Err(Status::NotReady)
    }
    fn cuEventElapsedTime(milliseconds: Out<f32>, start: u64, end: u64) |state| {
        let (start, end) = (state.time(start)?, state.time(end)?);
        milliseconds.set(end.saturating_duration_since(start).as_secs_f32() * 1e3)
    }
    fn cuEventDestroy_v2(event: u64) |state| {
        if state.events.contains_key(&event) { Ok(()) } else { Err(Status::InvalidHandle) }
    }
    fn cuStreamWaitEvent(stream: u64, event: u64, _flags: u32) |state| {
        let (version, _) = state.version(event)?;
        state.submit(stream, Work::Wait { event, version })
    }
}
