//! From the addresses of the lanes to bytes of an allocation, of shared or of local memory, with all checks on the way:
//! bounds, alignment, unwritten bytes, races. Lanes side by side, the usual case, are checked as one range.

use super::block::Core;
use super::fault::{Fault, Kind};
use super::op::Where;
use super::race::{Now, Race, Shadow};
use super::registers::{LANES, Lanes, lanes};
use super::warp::Warp;
use crate::memory::Bytes;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Load,
    Store,
    /// Reads and writes.
    Update,
}

/// What an instruction wants.
pub struct Wish<'a> {
    pub pc: u32,
    pub space: Where,
    pub addresses: &'a Lanes<u64>,
    /// Bytes of each lane.
    pub size: usize,
    pub for_: Use,
    /// Ordered with others of its kind, as atomics are.
    pub strong: bool,
}

/// The lanes that got bytes of one allocation.
pub struct Placed {
    pub mask: u32,
    pub offsets: Lanes<usize>,
    /// Index of the allocation or shared variable.
    pub index: usize,
    pub shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Each lane right after the one before.
    SideBySide,
    /// All at one place.
    Same,
    Scattered,
}

impl Core<'_> {
    /// Places the first lane of the mask and all others that lie in the same allocation, and checks them.
    #[inline(always)]
    pub fn place(&mut self, warp: &Warp, wish: &Wish, mask: u32) -> Result<Placed, Fault> {
        let first = mask.trailing_zeros() as usize;
        let low_bits = lanes_or(wish.addresses, mask) & (wish.size as u64 - 1);
        if low_bits != 0 {
            return Err(misaligned(wish, mask));
        }
        let (index, start, size, shift) = match wish.space {
            Where::Global => self.global(wish, first)?,
            Where::Shared => self.shared(wish, first)?,
            _ => (0, 0, self.program().local_bytes as u64, 0),
        };
        let room = size.checked_sub(wish.size as u64);
        let (mut offsets, mut fits) = ([0; LANES], 0);
        for (lane, (to, address)) in offsets.iter_mut().zip(wish.addresses).enumerate() {
            let offset = address.wrapping_sub(start);
            *to = offset.wrapping_add(shift) as usize;
            fits |= (room.is_some_and(|room| offset <= room) as u32) << lane;
        }
        let placed = mask & fits;
        if placed >> first & 1 == 0 {
            return Err(self.out_of_bounds(wish, first));
        }
        if wish.space == Where::Local {
            let stride = self.program().local_bytes;
            offsets.iter_mut().enumerate().for_each(|(lane, offset)| *offset = offset.wrapping_add(lane * stride));
        }
        let placed = Placed { mask: placed, offsets, index, shape: shape(&offsets, placed, wish.size) };
        if wish.space != Where::Local {
            self.check(warp, wish, &placed)?;
        }
        Ok(placed)
    }

    pub fn bytes<'b>(&'b self, warp: &'b Warp, space: Where, index: usize) -> &'b Bytes {
        match space {
            Where::Global => &self.grid.allocations[index].bytes,
            Where::Shared => &self.shared,
            _ => &warp.local,
        }
    }

    /// Index, start and size of the allocation with this address, and what is added to offsets in it.
    #[inline(always)]
    fn global(&mut self, wish: &Wish, lane: usize) -> Result<(usize, u64, u64, u64), Fault> {
        let address = wish.addresses[lane];
        let holds = |index: usize| {
            let a = self.grid.allocations.get(index)?;
            (address.wrapping_sub(a.base) < a.bytes.len() as u64).then_some((index, a.base, a.bytes.len() as u64, 0))
        };
        let site = self.sites[wish.pc as usize] as usize;
        if let Some(found) = holds(site) {
            return Ok(found);
        }
        let index = self.grid.allocations.partition_point(|a| a.base <= address).wrapping_sub(1);
        let found = holds(index).ok_or_else(|| self.out_of_bounds(wish, lane))?;
        self.sites[wish.pc as usize] = index as u32;
        Ok(found)
    }

    /// The same for a variable in shared memory; offsets are from the start of the whole.
    fn shared(&mut self, wish: &Wish, lane: usize) -> Result<(usize, u64, u64, u64), Fault> {
        let address = wish.addresses[lane];
        let dynamic = self.grid.launch.dynamic_shared as u64;
        let variables = &self.program().shared;
        let holds = |index: usize| {
            let variable = variables.get(index)?;
            let size = variable.bytes.unwrap_or(dynamic);
            (address.wrapping_sub(variable.start) < size).then_some((index, variable.start, size, variable.start))
        };
        let site = self.sites[wish.pc as usize] as usize;
        if let Some(found) = holds(site) {
            return Ok(found);
        }
        let found = (0..variables.len()).find_map(holds).ok_or_else(|| self.out_of_bounds(wish, lane))?;
        self.sites[wish.pc as usize] = found.0 as u32;
        Ok(found)
    }

    #[inline(always)]
    fn check(&mut self, warp: &Warp, wish: &Wish, placed: &Placed) -> Result<(), Fault> {
        let first = placed.mask.trailing_zeros() as usize;
        let (at, size) = (placed.offsets[first], wish.size);
        match placed.shape {
            Shape::SideBySide => {
                let len = size * placed.mask.count_ones() as usize;
                self.check_range(warp, wish, placed, at, len, first)?;
            }
            Shape::Same if wish.for_ == Use::Load => self.check_range(warp, wish, placed, at, size, first)?,
            // Several lanes at one place: each is an access of its own.
            Shape::Same => {
                for lane in lanes(placed.mask) {
                    self.check_range(warp, wish, placed, at, size, lane)?;
                }
            }
            Shape::Scattered => {
                let mut left = placed.mask;
                while left != 0 {
                    let (first, count) = run_of_lanes(&placed.offsets, left, size);
                    self.check_range(warp, wish, placed, placed.offsets[first], size * count, first)?;
                    left &= !((u32::MAX >> (LANES - count)) << first);
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn check_range(
        &mut self,
        warp: &Warp,
        wish: &Wish,
        placed: &Placed,
        at: usize,
        len: usize,
        first: usize,
    ) -> Result<(), Fault> {
        let bytes = self.bytes(warp, wish.space, placed.index);
        if wish.for_ != Use::Store
            && self.checks().unwritten
            && let Some(byte) = bytes.unwritten(at, len)
        {
            return Err(self.unwritten(wish, placed, byte, first + (byte - at) / wish.size));
        }
        if wish.for_ != Use::Load {
            bytes.mark_written(at, len);
        }
        if wish.space == Where::Global {
            let touched = &self.grid.allocations[placed.index].touched;
            if wish.for_ != Use::Store {
                touched.note(at, len, false);
            }
            if wish.for_ != Use::Load {
                touched.note(at, len, true);
            }
        }
        if self.checks().races
            && let Some(race) = self.look_for_race(warp, wish, placed, at, len, first)
        {
            return Err(self.race(warp, wish, placed, race));
        }
        Ok(())
    }

    #[inline(always)]
    fn look_for_race(
        &mut self,
        warp: &Warp,
        wish: &Wish,
        placed: &Placed,
        at: usize,
        len: usize,
        first: usize,
    ) -> Option<Race> {
        let line = self.program().lines[wish.pc as usize];
        let now = Now {
            launch: if wish.space == Where::Shared { self.clock.block } else { self.clock.launch },
            block: self.clock.block,
            phase: self.clock.phase,
            thread: warp.place.warp * LANES as u32,
            warp: &warp.order,
            acquired: &self.acquired,
            line,
            strong: wish.strong,
        };
        let shadow = match wish.space {
            Where::Shared => self.shared_shadow.as_mut()?,
            _ => {
                let slot = &mut self.shadows[placed.index];
                if slot.is_none() {
                    let allocation = self.grid.allocations[placed.index];
                    let grain = self.grid.launch.program.grain_global;
                    let kept = self.history.shadows.remove(&allocation.number).filter(|kept| kept.grain() == grain);
                    *slot = Some(kept.unwrap_or_else(|| Shadow::new(allocation.bytes.len(), grain)));
                }
                slot.as_mut()?
            }
        };
        if wish.for_ == Use::Load && placed.shape == Shape::Same {
            return shadow.read_by_all(&now, at, len, placed.mask);
        }
        shadow.access(&now, at, len, first, wish.size, wish.for_ != Use::Load)
    }
}

/// The faults.
impl Core<'_> {
    #[cold]
    fn out_of_bounds(&self, wish: &Wish, lane: usize) -> Fault {
        let (address, size) = (wish.addresses[lane], wish.size);
        let what = match wish.space {
            Where::Global => format!("of global memory: {}", self.grid.launch.memory.describe(address, size)),
            Where::Shared => {
                let near = self.program().shared.iter().rfind(|variable| variable.start <= address);
                let near = near.map(|variable| {
                    let bytes = variable.bytes.unwrap_or(self.grid.launch.dynamic_shared as u64);
                    format!(": offset {} of `{}` of {bytes} bytes", address - variable.start, variable.name)
                });
                format!("of shared memory: {size} bytes at {address}{}", near.unwrap_or_default())
            }
            _ => format!("of local memory: {size} bytes at {address} of {}", self.program().local_bytes),
        };
        Fault::new(Kind::IllegalAddress, format!("{} out of the bounds {what}", verb(wish.for_))).by(lane)
    }

    #[cold]
    fn unwritten(&self, wish: &Wish, placed: &Placed, byte: usize, lane: usize) -> Fault {
        let place = self.name(wish.space, placed.index, byte);
        Fault::wrong(format!("reads unwritten memory: {place}, which nothing has written")).by(lane)
    }

    #[cold]
    fn race(&self, warp: &Warp, wish: &Wish, placed: &Placed, race: Race) -> Fault {
        let place = self.name(wish.space, placed.index, race.byte);
        let (own, other) = (verb(wish.for_), if race.other_wrote { "wrote" } else { "read" });
        let who = match race.other_thread {
            _ if race.other_block => "another block".to_string(),
            Some(index) => format!("thread {:?}", self.thread(warp, index)),
            None => "another thread".to_string(),
        };
        let missing = match race.other_warp {
            _ if race.other_block => "nothing orders the blocks",
            true => "no barrier is between",
            false => "no __syncwarp is between",
        };
        let space = if wish.space == Where::Shared { "shared" } else { "global" };
        Fault::wrong(format!(
            "race in {space} memory: {own} {place}, which {who} {other} (line {}), and {missing}",
            race.other_line
        ))
        .by(race.lane)
    }

    fn thread(&self, warp: &Warp, index: u32) -> [u32; 3] {
        let [x, y, _] = warp.place.threads;
        [index % x, index / x % y, index / x / y]
    }

    /// `byte 12 of shared `tile`` or `byte 12 (0x...) of allocation 3 of 400 bytes`
    fn name(&self, space: Where, index: usize, byte: usize) -> String {
        if space == Where::Shared {
            let variable = &self.program().shared[index];
            return format!("byte {} of shared `{}`", byte as u64 - variable.start, variable.name);
        }
        let a = self.grid.allocations[index];
        format!("byte {byte} ({:#x}) of {} of {} bytes", a.base + byte as u64, a.name, a.bytes.len())
    }
}

fn verb(for_: Use) -> &'static str {
    match for_ {
        Use::Load => "reads",
        Use::Store => "writes",
        Use::Update => "updates",
    }
}

#[cold]
fn misaligned(wish: &Wish, mask: u32) -> Fault {
    let wrong = |lane: &usize| !wish.addresses[*lane].is_multiple_of(wish.size as u64);
    let lane = lanes(mask).find(wrong).unwrap_or_default();
    let (address, size) = (wish.addresses[lane], wish.size);
    Fault::new(Kind::Misaligned, format!("misaligned: {} {size} bytes at {address:#x}", verb(wish.for_))).by(lane)
}

#[inline(always)]
fn lanes_or(addresses: &Lanes<u64>, mask: u32) -> u64 {
    let mut all = 0;
    for (lane, address) in addresses.iter().enumerate() {
        all |= if mask >> lane & 1 == 1 { *address } else { 0 };
    }
    all
}

/// The first lanes of the mask that lie side by side: where they begin and how many they are.
#[inline(always)]
fn run_of_lanes(offsets: &Lanes<usize>, mask: u32, size: usize) -> (usize, usize) {
    let first = mask.trailing_zeros() as usize;
    let mut end = first + 1;
    while end < LANES && mask >> end & 1 == 1 && offsets[end] == offsets[end - 1].wrapping_add(size) {
        end += 1;
    }
    (first, end - first)
}

#[inline(always)]
fn shape(offsets: &Lanes<usize>, mask: u32, size: usize) -> Shape {
    let first = mask.trailing_zeros() as usize;
    let run = mask >> first;
    let (mut gaps, mut others) = (run & run.wrapping_add(1) != 0, false);
    for (lane, offset) in offsets.iter().enumerate() {
        let active = mask >> lane & 1 == 1;
        let beside = offsets[first].wrapping_add(lane.wrapping_sub(first).wrapping_mul(size));
        gaps |= active && *offset != beside;
        others |= active && *offset != offsets[first];
    }
    match (gaps, others) {
        (_, false) => Shape::Same,
        (false, _) => Shape::SideBySide,
        _ => Shape::Scattered,
    }
}
