//! Streams. Work is queued and runs only when something waits for it, which is as late as a GPU may run it: a wait that
//! is missing shows. The newest stream runs first, which is least like the order of submission.

use std::collections::VecDeque;

use super::launch::KernelLaunch;
use super::memory::run_copy;
use super::order::Clock;
use super::{State, Status};
use crate::blas::Product;

pub enum Work {
    Upload { to: u64, data: Vec<u8> },
    UploadPinned { to: u64, from: usize, len: usize },
    Download { to: usize, from: u64, len: usize },
    Copy { to: u64, from: u64, len: usize },
    Fill { at: u64, data: Vec<u8> },
    Free { at: u64 },
    Kernel(Box<KernelLaunch>),
    Product(Box<Product>),
    Record { event: u64, version: u64 },
    Wait { event: u64, version: u64 },
}

impl Work {
    pub fn name(&self) -> String {
        match self {
            Work::Upload { .. } | Work::UploadPinned { .. } => "copy to the device".into(),
            Work::Download { .. } => "copy from the device".into(),
            Work::Copy { .. } => "copy on the device".into(),
            Work::Fill { .. } => "memset".into(),
            Work::Free { .. } => "free".into(),
            Work::Kernel(launch) => format!("kernel {}", launch.name()),
            Work::Product(product) => product.name(),
            Work::Record { .. } => "event".into(),
            Work::Wait { .. } => "wait".into(),
        }
    }
}

#[derive(Default)]
pub struct Stream {
    /// With what the host knew to be done when it was submitted.
    queue: VecDeque<(Work, Clock)>,
    /// What comes before the work that runs next.
    pub clock: Clock,
    running: bool,
    /// Ordered with the default stream, as all streams are that were not created otherwise.
    pub blocking: bool,
}

impl Stream {
    pub fn new(blocking: bool) -> Self {
        Stream { blocking, ..Stream::default() }
    }
}

/// The default streams, legacy and of the thread: they are there without being created.
pub fn is_default(stream: u64) -> bool {
    stream <= 2
}

impl State {
    fn stream(&mut self, id: u64) -> Result<&mut Stream, Status> {
        if is_default(id) {
            return Ok(self.streams.entry(id).or_insert_with(|| Stream::new(true)));
        }
        self.streams.get_mut(&id).ok_or(Status::InvalidHandle)
    }

    pub fn submit(&mut self, id: u64, work: Work) -> Result<(), Status> {
        self.healthy()?;
        let known = self.order.host.clone();
        self.join_default(id)?;
        self.stream(id)?.queue.push_back((work, known));
        if self.knobs.eager != 0 { self.drain(id, None) } else { Ok(()) }
    }

    /// Work on the legacy default stream comes after all that blocking streams have, and before what they get.
    fn join_default(&mut self, id: u64) -> Result<(), Status> {
        if !self.stream(id)?.blocking {
            return Ok(());
        }
        let others = self.streams.iter().filter(|(other, stream)| {
            **other != id && stream.blocking && (**other <= 1) != (id <= 1) && !stream.queue.is_empty()
        });
        for other in others.map(|(other, _)| *other).collect::<Vec<_>>() {
            let event = self.create_event();
            let version = self.mark(event, other)?;
            let known = self.order.host.clone();
            self.stream(other)?.queue.push_back((Work::Record { event, version }, known.clone()));
            self.stream(id)?.queue.push_back((Work::Wait { event, version }, known));
        }
        Ok(())
    }

    /// Runs the work of a stream up to the record of an event, or all of it.
    pub fn drain(&mut self, id: u64, until: Option<(u64, u64)>) -> Result<(), Status> {
        let stream = self.stream(id)?;
        if std::mem::replace(&mut stream.running, true) {
            return Err(self.fail(Status::LaunchFailed, "streams wait for each other in a circle"));
        }
        let mut done = Ok(());
        while let Some((work, known)) = self.streams.get_mut(&id).and_then(|stream| stream.queue.pop_front()) {
            let last = matches!((&work, until), (Work::Record { event, version }, Some(until))
                if *event == until.0 && *version >= until.1);
            done = self.run_work(id, work, known);
            if last || done.is_err() {
                break;
            }
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.running = false;
            if done.is_err() {
                stream.queue.clear();
            }
        }
        done
    }

    pub fn run_all(&mut self) -> Result<(), Status> {
        for id in self.streams.keys().rev().copied().collect::<Vec<_>>() {
            self.drain(id, None)?;
        }
        for stream in self.streams.values() {
            self.order.host.join(&stream.clock);
        }
        self.healthy()
    }

    /// The host waits for a stream.
    pub fn synchronize(&mut self, id: u64) -> Result<(), Status> {
        self.healthy()?;
        self.drain(id, None)?;
        let clock = self.stream(id)?.clock.clone();
        self.order.host.join(&clock);
        self.healthy()
    }

    fn run_work(&mut self, id: u64, work: Work, known: Clock) -> Result<(), Status> {
        let stream = self.stream(id)?;
        stream.clock.join(&known);
        let name = work.name();
        self.log(|| format!("stream {id:#x}: {name}"));
        match work {
            Work::Record { event, version } => {
                let clock = self.stream(id)?.clock.clone();
                self.event_happened(event, version, clock);
                return Ok(());
            }
            Work::Wait { event, version } => {
                if let Some(clock) = self.await_event(event, version)? {
                    self.stream(id)?.clock.join(&clock);
                }
                return Ok(());
            }
            _ => {}
        }
        let stream = self.stream(id)?;
        stream.clock.advance(id);
        let clock = stream.clock.clone();
        let pending = self.others_pending(id);
        let wrong = |what: String| format!("{name}: {what}{}", if what.contains("written") { &pending } else { "" });
        match &work {
            Work::Kernel(launch) => self.run_kernel(launch, &pending)?,
            Work::Product(product) => {
                if let Err(what) = product.run(&self.memory, self.knobs.unwritten != 0) {
                    return Err(self.fail(Status::LaunchFailed, wrong(what)));
                }
            }
            Work::Free { at } => {
                if let Ok(range) = self.memory.range(*at, 1) {
                    let len = range.allocation.bytes.len();
                    range.allocation.touched.note(0, len, true);
                }
            }
            copy => {
                if let Err(what) = run_copy(self, copy) {
                    return Err(self.fail(Status::LaunchFailed, wrong(what)));
                }
            }
        }
        if let Err(what) = self.order.note(&self.memory, id, &clock, &name) {
            return Err(self.fail(Status::LaunchFailed, what));
        }
        if let Work::Free { at } = work {
            self.remove(at);
        }
        Ok(())
    }

    /// What other streams have not run yet: a hint where something is missing.
    fn others_pending(&self, id: u64) -> String {
        let others = self.streams.iter().filter(|(other, stream)| **other != id && !stream.queue.is_empty());
        let work = others.flat_map(|(_, stream)| stream.queue.iter().map(|(work, _)| work.name()));
        let names: Vec<String> = work.filter(|name| name != "event" && name != "wait").take(4).collect();
        match names.is_empty() {
            true => String::new(),
            false => format!("; other streams have not run yet: {}: is a wait missing?", names.join(", ")),
        }
    }
}
