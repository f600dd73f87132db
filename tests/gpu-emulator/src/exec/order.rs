//! What orders accesses: synchronization of a warp, and between blocks a fence with an atomic, as in "the last block sums
//! what the others have left".

use std::collections::HashMap;

use super::registers::{LANES, lanes};

/// The synchronizations of a warp since the last barrier of its block.
#[derive(Default)]
pub struct WarpOrder {
    /// How many there were.
    pub epoch: u32,
    /// The last one of the whole warp: accesses of an earlier epoch are ordered before those that come.
    pub all: u32,
    /// The last ones of two lanes each.
    pairs: Option<Box<[[u32; LANES]; LANES]>>,
}

impl WarpOrder {
    /// `bar.warp.sync` of `mask`, where `alive` are the lanes that have not exited.
    pub fn synchronize(&mut self, mask: u32, alive: u32) {
        self.epoch += 1;
        if mask & alive == alive {
            self.all = self.epoch;
            return;
        }
        let pairs = self.pairs.get_or_insert_default();
        for a in lanes(mask) {
            for b in lanes(mask) {
                pairs[a][b] = self.epoch;
            }
        }
    }

    /// The last one of both lanes.
    pub fn synced(&self, a: u32, b: u32) -> u32 {
        self.pairs.as_ref().map_or(0, |pairs| pairs[a as usize][b as usize]).max(self.all)
    }

    pub fn reset(&mut self) {
        *self = WarpOrder::default();
    }
}

/// The phases of other blocks that come before what this block does now: stretches, in order.
#[derive(Default, Clone)]
pub struct Acquired(Vec<(u32, u32)>);

impl Acquired {
    pub fn covers(&self, phase: u32) -> bool {
        let next = self.0.partition_point(|stretch| stretch.0 <= phase);
        next > 0 && phase < self.0[next - 1].1
    }

    pub fn covers_all(&self, from: u32, to: u32) -> bool {
        from >= to || self.0.iter().any(|stretch| stretch.0 <= from && to <= stretch.1)
    }

    fn add(&mut self, stretches: &[(u32, u32)]) {
        self.0.extend_from_slice(stretches);
        self.0.sort_unstable();
        self.0.dedup_by(|next, last| {
            let joins = next.0 <= last.1;
            if joins {
                last.1 = last.1.max(next.1);
            }
            joins
        });
    }
}

/// What was released at each word by an atomic after a fence, in this launch.
#[derive(Default)]
pub struct Releases(HashMap<u64, Acquired>);

impl Releases {
    /// An atomic at `address` by a block that began at `block` and is in `phase`. What it wrote before its last fence is
    /// released; what others have released there is acquired. The fence is taken as the whole block's: a thread that did
    /// not pass it is not told apart.
    pub fn atomic(&mut self, address: u64, block: u32, phase: u32, fenced: bool, acquired: &mut Acquired) {
        let here = self.0.entry(address).or_default();
        acquired.add(&here.0);
        if fenced {
            let mut all = acquired.clone();
            all.add(&[(block, phase + 1)]);
            *here = all;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_ordered_by_what_they_passed_together() {
        let mut order = WarpOrder::default();
        order.synchronize(0b0011, u32::MAX);
        assert_eq!((order.synced(0, 1), order.synced(0, 2)), (1, 0));
        order.synchronize(u32::MAX, u32::MAX);
        assert_eq!((order.synced(0, 1), order.synced(30, 2)), (2, 2));
        order.synchronize(0b0011, 0b0011);
        assert_eq!(order.all, 3);
    }

    #[test]
    fn the_last_block_acquires_all_others() {
        let mut releases = Releases::default();
        let mut last = Acquired::default();
        for block in 0..5 {
            last = Acquired::default();
            releases.atomic(64, 10 + 2 * block, 11 + 2 * block, block != 3, &mut last);
        }
        assert!(last.covers(10) && last.covers(15) && !last.covers(16) && !last.covers(18) && !last.covers(9));
        assert!(last.covers_all(10, 16) && !last.covers_all(10, 17));
    }
}
