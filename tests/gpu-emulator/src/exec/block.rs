//! A block: its warps, its shared memory, and the barrier they meet at.

use super::fault::Fault;
use super::grid::{Checks, Grid, History};
use super::op::{NONE, Op};
use super::order::{Acquired, Releases};
use super::program::Program;
use super::race::Shadow;
use super::registers::{LANES, Place};
use super::warp::{Group, State, Warp};
use crate::memory::Bytes;

/// Where the launch is in the count of phases; see [`super::race::Now`].
#[derive(Default, Clone, Copy)]
pub struct Clock {
    pub launch: u32,
    pub block: u32,
    pub phase: u32,
}

/// Runs blocks one after the other.
pub struct Core<'a> {
    pub grid: &'a Grid<'a>,
    pub shared: Bytes,
    pub shared_shadow: Option<Shadow>,
    /// By allocation, as in [`Grid::allocations`]; made when it is first accessed.
    pub shadows: Vec<Option<Shadow>>,
    pub history: History,
    /// Of each instruction, the allocation (or shared variable) that it accessed last: it is tried first.
    pub sites: Vec<u32>,
    pub clock: Clock,
    pub releases: Releases,
    pub acquired: Acquired,
    /// Whether a thread of this block has passed a fence.
    pub fenced: bool,
    pub executed: u64,
    warps: Vec<Warp>,
}

impl<'a> Core<'a> {
    pub fn new(grid: &'a Grid<'a>) -> Self {
        let launch = grid.launch;
        let bytes = launch.program.shared_bytes + launch.dynamic_shared;
        let races = launch.checks.races;
        Core {
            grid,
            shared: Bytes::new(bytes, launch.checks.poison),
            shared_shadow: races.then(|| Shadow::new(bytes, launch.program.grain_shared)),
            shadows: grid.allocations.iter().map(|_| None).collect(),
            history: History::default(),
            sites: vec![0; launch.program.code.len()],
            clock: Clock::default(),
            releases: Releases::default(),
            acquired: Acquired::default(),
            fenced: false,
            executed: 0,
            warps: Vec::new(),
        }
    }

    pub fn program(&self) -> &'a Program {
        self.grid.launch.program
    }

    pub fn checks(&self) -> &'a Checks {
        &self.grid.launch.checks
    }

    pub fn begin(&mut self, history: History) {
        self.history = history;
        self.clock.launch = self.history.phase + 1;
        self.clock.phase = self.history.phase;
    }

    pub fn end(&mut self) -> History {
        let mut history = std::mem::take(&mut self.history);
        history.phase = self.clock.phase;
        for (allocation, shadow) in self.grid.allocations.iter().zip(&mut self.shadows) {
            if let Some(shadow) = shadow.take() {
                history.shadows.insert(allocation.number, shadow);
            }
        }
        history
    }

    /// Runs the block at this place of the grid.
    pub fn block(&mut self, place: [u32; 3]) -> Result<(), Fault> {
        let launch = self.grid.launch;
        self.shared.reset(launch.checks.poison);
        self.clock.phase += 1;
        self.clock.block = self.clock.phase;
        self.acquired = Acquired::default();
        self.fenced = false;
        let threads = launch.threads.iter().product::<u32>() as usize;
        let mut warps = std::mem::take(&mut self.warps);
        warps.resize_with(threads.div_ceil(LANES), Warp::default);
        for (index, warp) in warps.iter_mut().enumerate() {
            let place = Place { warp: index as u32, block: place, blocks: launch.blocks, threads: launch.threads };
            warp.start(launch.program, place, (threads - index * LANES).min(LANES), launch.checks.poison);
        }
        let done = self.run_warps(&mut warps);
        self.warps = warps;
        done.map_err(|fault| Fault {
            what: format!("kernel {}, block {place:?}, {fault}", launch.program.name),
            ..fault
        })
    }

    fn run_warps(&mut self, warps: &mut [Warp]) -> Result<(), Fault> {
        loop {
            for turn in 0..warps.len() {
                let index = if self.checks().reversed_threads { warps.len() - 1 - turn } else { turn };
                self.run(&mut warps[index])?;
            }
            if warps.iter().all(|warp| warp.groups.is_empty()) {
                return Ok(());
            }
            let first = warps.iter().find_map(|warp| warp.groups.first()).map(|group| group.pc);
            if !warps.iter().all(|warp| warp.all_at_barrier(first)) {
                return Err(self.stuck(warps));
            }
            self.clock.phase += 1;
            for warp in warps.iter_mut() {
                warp.pass_barrier();
            }
        }
    }

    /// Nothing can run, and not all threads are at one barrier.
    #[cold]
    fn stuck(&self, warps: &[Warp]) -> Fault {
        let mut places: Vec<(String, u32, usize)> = Vec::new();
        let mut exited = 0;
        let mut note = |what: String, lanes: u32, thread: usize| match places.iter_mut().find(|p| p.0 == what) {
            Some(place) => place.1 += lanes,
            None => places.push((what, lanes, thread)),
        };
        for warp in warps {
            exited += (warp.lanes & !warp.alive()).count_ones();
            for group in &warp.groups {
                let lane = group.mask.trailing_zeros() as usize;
                let doing = match group.state {
                    State::AtBarrier => "wait".to_string(),
                    _ => self.waits_for(warp, group, lane),
                };
                let thread = warp.place.warp as usize * LANES + lane;
                note(format!("{doing} at {}", self.instruction(group.pc)), group.mask.count_ones(), thread);
            }
        }
        let mut parts: Vec<String> = places
            .iter()
            .map(|(what, lanes, first)| format!("{lanes} threads (from thread {first} on) {what}"))
            .collect();
        if exited > 0 {
            parts.push(format!("{exited} threads have exited"));
        }
        Fault::wrong(format!("divergent synchronization: {}", parts.join("; ")))
    }

    /// The first lane that the mask of `lane` names and that is not with it.
    fn waits_for(&self, warp: &Warp, group: &Group, lane: usize) -> String {
        let members = match self.program().code[group.pc as usize].op {
            Op::Together { mask: NONE, .. } => u32::MAX,
            Op::Together { mask, .. } => warp.registers.narrow[mask as usize][lane],
            _ => 0,
        };
        let missing = (members & !group.mask).trailing_zeros();
        let gone = warp.alive() >> missing.min(31) & 1 == 0;
        format!("wait for lane {missing} of their warp, which {}", if gone { "has exited," } else { "is elsewhere," })
    }

    /// `line 12: bar.sync 0;`
    pub fn instruction(&self, pc: u32) -> String {
        let line = self.program().lines[pc as usize];
        let text = self.grid.launch.source.lines().nth(line as usize - 1).unwrap_or_default();
        format!("line {line} `{}`", text.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}
