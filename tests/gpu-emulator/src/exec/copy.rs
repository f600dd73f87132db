//! `cp.async` (PTX ISA 9.7.9.22): copies that land in shared memory when they are waited for, and not before; until
//! then their target counts as unwritten.

use super::access::{Use, Wish};
use super::block::Core;
use super::fault::Fault;
use super::memory::addresses;
use super::op::{Address, NONE, Row, Where};
use super::registers::{InBank, LANES, Lanes, lanes};
use super::warp::Warp;

struct Pending {
    lane: usize,
    group: u32,
    /// Address in shared memory.
    to: u64,
    data: [u8; 16],
    size: usize,
}

/// The copies of a warp that have not landed.
#[derive(Default)]
pub struct Copies {
    pending: Vec<Pending>,
    /// Groups that each lane has committed.
    committed: Lanes<u32>,
}

impl Copies {
    pub fn clear(&mut self) {
        self.pending.clear();
        self.committed = [0; LANES];
    }

    pub fn commit(&mut self, mask: u32) {
        lanes(mask).for_each(|lane| self.committed[lane] += 1);
    }
}

impl Core<'_> {
    /// Reads at once; bytes beyond `from_size` are zero.
    pub fn copy_async(
        &mut self,
        warp: &mut Warp,
        pc: u32,
        mask: u32,
        [to, from]: [&Address; 2],
        size: u32,
        from_size: Row,
    ) -> Result<(), Fault> {
        let size = size as usize;
        let targets = addresses(&warp.registers, to);
        let sources = addresses(&warp.registers, from);
        let taken = if from_size == NONE { [size as u32; LANES] } else { u32::row(&warp.registers, from_size) };
        let reads = lanes(mask).filter(|lane| taken[*lane] > 0).fold(0, |set, lane| set | 1 << lane);
        let mut data = [[0; 16]; LANES];
        let wish = Wish { pc, space: Where::Global, addresses: &sources, size, for_: Use::Load, strong: false };
        let mut left = reads;
        while left != 0 {
            let placed = self.place(warp, &wish, left)?;
            for lane in lanes(placed.mask) {
                let taken = size.min(taken[lane] as usize);
                self.grid.allocations[placed.index].bytes.read(placed.offsets[lane], &mut data[lane][..taken]);
            }
            left &= !placed.mask;
        }
        let wish = Wish { pc, space: Where::Shared, addresses: &targets, size, for_: Use::Store, strong: false };
        let mut left = mask;
        while left != 0 {
            let placed = self.place(warp, &wish, left)?;
            for lane in lanes(placed.mask) {
                self.shared.mark_unwritten(placed.offsets[lane], size);
                let group = warp.copies.committed[lane];
                warp.copies.pending.push(Pending { lane, group, to: targets[lane], data: data[lane], size });
            }
            left &= !placed.mask;
        }
        Ok(())
    }

    /// Lands all groups of these lanes but the newest `keep`; with `u32::MAX` those of `cp.async.wait_all`, committed or
    /// not.
    pub fn copy_wait(&mut self, warp: &mut Warp, pc: u32, mask: u32, keep: u32) -> Result<(), Fault> {
        let pending = std::mem::take(&mut warp.copies.pending);
        for copy in pending {
            let committed = warp.copies.committed[copy.lane];
            let lands = keep == u32::MAX || copy.group + keep < committed;
            if mask >> copy.lane & 1 == 0 || !lands {
                warp.copies.pending.push(copy);
                continue;
            }
            let addresses = [copy.to; LANES];
            let (space, for_) = (Where::Shared, Use::Store);
            let wish = Wish { pc, space, addresses: &addresses, size: copy.size, for_, strong: false };
            let placed = self.place(warp, &wish, 1 << copy.lane)?;
            self.shared.write(placed.offsets[copy.lane], &copy.data[..copy.size]);
        }
        Ok(())
    }
}
