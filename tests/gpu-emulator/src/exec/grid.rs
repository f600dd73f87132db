//! A launch: all blocks of a grid.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::arithmetic;
use super::block::Core;
use super::fault::Fault;
use super::program::Program;
use super::race::Shadow;
use crate::memory::{Allocation, DeviceMemory};

/// What is looked for, and how the order is bent.
#[derive(Debug, Clone, Copy)]
pub struct Checks {
    pub races: bool,
    /// Reads of memory that was never written.
    pub unwritten: bool,
    pub reversed_blocks: bool,
    pub reversed_threads: bool,
    /// What shared and local memory are filled with.
    pub poison: u8,
    /// The most instructions of a warp.
    pub budget: u64,
}

/// What is kept from launch to launch: the phases that were used up, and the marks of each allocation by its number.
#[derive(Default)]
pub struct History {
    pub(super) phase: u32,
    pub(super) shadows: HashMap<u64, Shadow>,
}

impl History {
    /// The allocation is gone.
    pub fn forget(&mut self, number: u64) {
        self.shadows.remove(&number);
    }
}

pub struct Launch<'a> {
    pub program: &'a Program,
    /// The text of the module, for the lines in messages.
    pub source: &'a str,
    pub memory: &'a DeviceMemory,
    pub parameters: &'a [u8],
    pub blocks: [u32; 3],
    pub threads: [u32; 3],
    pub dynamic_shared: usize,
    pub checks: Checks,
}

/// The launch as the cores see it.
pub struct Grid<'a> {
    pub launch: &'a Launch<'a>,
    pub allocations: Vec<&'a Allocation>,
    pub arithmetic: arithmetic::Run,
}

/// Instructions (counted by threads) that are worth a thread of the host.
const WORTH_A_THREAD: u64 = 1 << 21;
/// When phases are about to run out, all marks are dropped.
const LAST_PHASE: u32 = 1 << 31;

impl Launch<'_> {
    /// The instructions that ran, counted by threads.
    pub fn run(&self, history: &mut History) -> Result<u64, Fault> {
        let allocations = self.memory.allocations().collect();
        let grid = Grid { launch: self, allocations, arithmetic: arithmetic::best() };
        let count = self.blocks.iter().map(|n| *n as u64).product::<u64>();
        if self.checks.races {
            return self.in_order(&grid, count, history);
        }
        let mut core = Core::new(&grid);
        self.block(&mut core, count, 0)?;
        if count == 1 {
            return Ok(core.executed);
        }
        let left = core.executed * (count - 1);
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let cores = cores.min(count - 1).min(left / WORTH_A_THREAD + 1);
        self.in_parallel(&grid, count, cores).map(|executed| executed + core.executed)
    }

    fn in_order(&self, grid: &Grid, count: u64, history: &mut History) -> Result<u64, Fault> {
        if history.phase > LAST_PHASE {
            *history = History::default();
        }
        let mut core = Core::new(grid);
        core.begin(std::mem::take(history));
        let done = (0..count).try_for_each(|index| self.block(&mut core, count, index));
        *history = core.end();
        done.map(|()| core.executed)
    }

    /// Blocks 1 and on; the first that failed counts.
    fn in_parallel(&self, grid: &Grid, count: u64, cores: u64) -> Result<u64, Fault> {
        let (next, executed) = (AtomicU64::new(1), AtomicU64::new(0));
        let failed: Mutex<Option<(u64, Fault)>> = Mutex::new(None);
        let work = || {
            let mut core = Core::new(grid);
            loop {
                let index = next.fetch_add(1, Relaxed);
                if index >= count || failed.lock().is_ok_and(|failed| failed.is_some()) {
                    break;
                }
                if let Err(fault) = self.block(&mut core, count, index)
                    && let Ok(mut failed) = failed.lock()
                    && failed.as_ref().is_none_or(|(other, _)| index < *other)
                {
                    *failed = Some((index, fault));
                }
            }
            executed.fetch_add(core.executed, Relaxed);
        };
        std::thread::scope(|scope| {
            (1..cores).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        match failed.into_inner() {
            Ok(Some((_, fault))) => Err(fault),
            _ => Ok(executed.into_inner()),
        }
    }

    fn block(&self, core: &mut Core, count: u64, index: u64) -> Result<(), Fault> {
        let index = if self.checks.reversed_blocks { count - 1 - index } else { index };
        let [x, y, _] = self.blocks.map(u64::from);
        core.block([(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32])
    }
}
