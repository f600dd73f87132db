//! Races: two accesses of one place by different threads, at least one of them a write, that nothing orders. Each grain
//! of memory remembers its last write and its last read. What orders two accesses is `bar.sync` (within a block),
//! `bar.warp.sync` (within a warp), and a fence with an atomic (between blocks); a shuffle orders nothing.
//!
//! Of the readers of a grain only the last is kept, with marks for readers of other lanes, warps and blocks: a write is
//! compared with those as a whole.

use super::order::{Acquired, WarpOrder};

/// When and by whom: `phase` counts barriers over all blocks that ran so far, so that every block, and every stretch of
/// it between two barriers, has numbers of its own.
pub struct Now<'a> {
    /// The first phase of this launch (of this block for shared memory): what is older does not matter.
    pub launch: u32,
    /// The first phase of this block.
    pub block: u32,
    pub phase: u32,
    /// The thread of lane 0.
    pub thread: u32,
    pub warp: &'a WarpOrder,
    pub acquired: &'a Acquired,
    pub line: u32,
    /// Atomics and the like do not race with each other.
    pub strong: bool,
}

/// Who and how: thread (10 bits), count of the warp's synchronizations (18), marks (4).
type Who = u32;
const THREAD: u32 = 0x3ff;
const WARP: u32 = 0x3e0;
const EPOCH_SHIFT: u32 = 10;
const EPOCH_BITS: u32 = 0x3ffff;
const STRONG: Who = 1 << 28;
const MANY_LANES: Who = 1 << 29;
const MANY_WARPS: Who = 1 << 30;
const MANY_BLOCKS: Who = 1 << 31;

#[derive(Default)]
struct Marks {
    phase: Vec<u32>,
    who: Vec<Who>,
    line: Vec<u32>,
}

impl Marks {
    fn new(cells: usize) -> Self {
        Marks { phase: vec![0; cells], who: vec![0; cells], line: vec![0; cells] }
    }
}

#[derive(Default)]
pub struct Shadow {
    grain: usize,
    wrote: Marks,
    read: Marks,
}

/// The other side of a race.
#[derive(Debug, PartialEq)]
pub struct Race {
    /// From the start of the memory.
    pub byte: usize,
    pub lane: usize,
    pub other_wrote: bool,
    /// None if it is one of several.
    pub other_thread: Option<u32>,
    pub other_warp: bool,
    pub other_line: u32,
    pub other_block: bool,
}

impl Shadow {
    pub fn new(bytes: usize, grain: u32) -> Self {
        let cells = bytes.div_ceil(grain as usize);
        Shadow { grain: grain as usize, wrote: Marks::new(cells), read: Marks::new(cells) }
    }

    pub fn grain(&self) -> u32 {
        self.grain as u32
    }

    /// An access of `each` bytes by every lane from `first` on, side by side, `len` bytes in all.
    #[inline(always)]
    pub fn access(
        &mut self,
        now: &Now,
        at: usize,
        len: usize,
        first: usize,
        each: usize,
        writes: bool,
    ) -> Option<Race> {
        let (from, to) = (at / self.grain, (at + len).div_ceil(self.grain));
        let step = (each / self.grain).max(1);
        let own = (now.thread + first as u32) | ((now.warp.epoch & EPOCH_BITS) << EPOCH_SHIFT);
        let own = if now.strong { own | STRONG } else { own };
        let mut suspect = false;
        let (phase, who) = (&self.wrote.phase[from..to], &self.wrote.who[from..to]);
        for (cell, (phase, who)) in phase.iter().zip(who).enumerate() {
            suspect |= conflict(now, *phase, *who, own + (cell / step) as u32);
        }
        if writes {
            let (phase, who) = (&self.read.phase[from..to], &self.read.who[from..to]);
            for (cell, (phase, who)) in phase.iter().zip(who).enumerate() {
                suspect |= conflict(now, *phase, *who, own + (cell / step) as u32);
            }
        }
        if suspect {
            let found = (from..to).find_map(|cell| self.race(now, cell, own + ((cell - from) / step) as u32, writes));
            if let Some(race) = found {
                let lane = first + (race.byte / self.grain - from) / step;
                return Some(Race { lane, ..race });
            }
        }
        let marks = if writes { &mut self.wrote } else { &mut self.read };
        let (phases, whos) = (&mut marks.phase[from..to], &mut marks.who[from..to]);
        for (cell, (phase, who)) in phases.iter_mut().zip(whos).enumerate() {
            let own = own + (cell / step) as u32;
            *who = if writes { own } else { own | others(now, *phase, *who, own) };
            *phase = now.phase;
        }
        marks.line[from..to].fill(now.line);
        None
    }

    /// All lanes of the mask read the same place.
    pub fn read_by_all(&mut self, now: &Now, at: usize, len: usize, mask: u32) -> Option<Race> {
        let first = mask.trailing_zeros() as usize;
        let race = self.access(now, at, len, first, len, false);
        if race.is_none() && mask.count_ones() > 1 {
            for who in &mut self.read.who[at / self.grain..(at + len).div_ceil(self.grain)] {
                *who |= MANY_LANES;
            }
        }
        race
    }

    /// The race at a cell, if what is suspected is one.
    #[cold]
    fn race(&self, now: &Now, cell: usize, own: Who, writes: bool) -> Option<Race> {
        let sides = [(&self.wrote, true), (&self.read, false)];
        for (marks, other_wrote) in &sides[..if writes { 2 } else { 1 }] {
            let (phase, who) = (marks.phase[cell], marks.who[cell]);
            if !conflict(now, phase, who, own) || self.excused(now, phase, who, own) {
                continue;
            }
            return Some(Race {
                byte: cell * self.grain,
                lane: 0,
                other_wrote: *other_wrote,
                other_thread: (who & (MANY_LANES | MANY_WARPS) == 0).then_some(who & THREAD),
                other_warp: (who ^ own) & WARP != 0 || who & MANY_WARPS != 0,
                other_line: marks.line[cell],
                other_block: phase < now.block || who & MANY_BLOCKS != 0,
            });
        }
        None
    }

    /// What the quick test does not know: atomics, synchronization of a part of the warp, fences between blocks.
    fn excused(&self, now: &Now, phase: u32, who: Who, own: Who) -> bool {
        if own & who & STRONG != 0 {
            return true;
        }
        if phase < now.block || who & MANY_BLOCKS != 0 {
            return match who & MANY_BLOCKS {
                0 => now.acquired.covers(phase),
                _ => now.acquired.covers_all(now.launch, now.block),
            };
        }
        let one_warp = (who ^ own) & WARP == 0 && who & (MANY_WARPS | MANY_LANES) == 0;
        one_warp && now.warp.synced(who & 31, own & 31) > who >> EPOCH_SHIFT & EPOCH_BITS
    }
}

/// Whether a mark and this access may race. For a mark of a write the MANY bits are never set.
#[inline(always)]
fn conflict(now: &Now, phase: u32, who: Who, own: Who) -> bool {
    let this_launch = phase >= now.launch;
    let other_block = phase < now.block || who & MANY_BLOCKS != 0;
    let other_warp = (who ^ own) & WARP != 0 || who & MANY_WARPS != 0;
    let other_lane = (who ^ own) & THREAD != 0 || who & MANY_LANES != 0;
    let unsynced = who >> EPOCH_SHIFT & EPOCH_BITS >= now.warp.all & EPOCH_BITS;
    this_launch & (other_block | ((phase == now.phase) & (other_warp | (other_lane & unsynced))))
}

/// The marks that a new last reader takes over.
#[inline(always)]
fn others(now: &Now, phase: u32, who: Who, own: Who) -> Who {
    let this_launch = phase >= now.launch;
    let blocks = this_launch & ((phase < now.block) | (who & MANY_BLOCKS != 0));
    let here = phase == now.phase;
    let warps = here & (((who ^ own) & WARP != 0) | (who & MANY_WARPS != 0));
    let same_epoch = (who ^ own) >> EPOCH_SHIFT & EPOCH_BITS == 0;
    let lanes = here & same_epoch & (((who ^ own) & THREAD != 0) | (who & MANY_LANES != 0));
    (blocks as u32 * MANY_BLOCKS) | (warps as u32 * MANY_WARPS) | (lanes as u32 * MANY_LANES)
}
