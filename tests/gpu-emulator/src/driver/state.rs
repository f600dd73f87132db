//! All that the device knows, behind one lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::event::Event;
use super::module::{Function, Module};
use super::order::StreamOrder;
use super::queue::Stream;
use super::report;
use super::status::Status;
use crate::exec::History;
use crate::knobs::Knobs;
use crate::memory::DeviceMemory;

pub struct State {
    pub knobs: Knobs,
    pub memory: DeviceMemory,
    /// Start and layout of each pinned allocation.
    pub pinned: BTreeMap<usize, std::alloc::Layout>,
    pub streams: BTreeMap<u64, Stream>,
    pub events: HashMap<u64, Event>,
    pub modules: HashMap<u64, Module>,
    pub functions: HashMap<u64, Function>,
    pub history: History,
    pub order: StreamOrder,
    /// What ended the context, if something did.
    pub sticky: Option<Status>,
    pub blas: crate::blas::Handles,
    next_handle: u64,
    pub calls: u64,
    pub allocations: u64,
    pub launches: u64,
    pub instructions: u64,
    pub messages: Vec<String>,
    /// Every function that was called, with how often.
    pub entry_points: BTreeMap<&'static str, u64>,
}

static STATE: OnceLock<Mutex<State>> = OnceLock::new();

pub fn lock() -> MutexGuard<'static, State> {
    STATE.get_or_init(|| Mutex::new(State::new())).lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn new() -> Self {
        let knobs = Knobs::from_environment();
        if !knobs.report.is_empty() {
            report::write_at_exit();
        }
        State {
            memory: DeviceMemory::new(knobs.memory, knobs.poison),
            knobs,
            pinned: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            history: History::default(),
            order: StreamOrder::default(),
            sticky: None,
            blas: Default::default(),
            next_handle: 0x1000,
            calls: 0,
            allocations: 0,
            launches: 0,
            instructions: 0,
            messages: Vec::new(),
            entry_points: BTreeMap::new(),
        }
    }

    /// At the start of every call.
    pub fn enter(&mut self, name: &'static str) -> Result<(), Status> {
        self.calls += 1;
        *self.entry_points.entry(name).or_default() += 1;
        if self.calls == self.knobs.fail_call {
            return Err(self.fail(Status::Unknown, format!("call {} ({name}) fails, as asked for", self.calls)));
        }
        Ok(())
    }

    /// A number that no other object has.
    pub fn handle(&mut self) -> u64 {
        self.next_handle += 16;
        self.next_handle
    }

    /// Says what is wrong, and gives the status back.
    pub fn fail(&mut self, status: Status, what: impl Into<String>) -> Status {
        self.say(what);
        if status.is_sticky() {
            self.sticky = Some(status);
        }
        status
    }

    pub fn say(&mut self, what: impl Into<String>) {
        let what = what.into();
        eprintln!("gpu-emulator: {what}");
        self.messages.push(what);
    }

    pub fn log(&self, what: impl FnOnce() -> String) {
        if self.knobs.log != 0 {
            eprintln!("gpu-emulator: {}", what());
        }
    }

    pub fn healthy(&self) -> Result<(), Status> {
        self.sticky.map_or(Ok(()), Err)
    }

    /// Before device or pinned memory is allocated: it may be the allocation that is to find no room.
    pub fn may_allocate(&mut self) -> Result<(), Status> {
        self.allocations += 1;
        if self.allocations == self.knobs.fail_allocation {
            let what = format!("allocation {} finds no room, as asked for", self.allocations);
            return Err(self.fail(Status::OutOfMemory, what));
        }
        Ok(())
    }
}
