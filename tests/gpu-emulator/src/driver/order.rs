//! Order between streams: which work comes before which, by clocks that count the work of each stream (Lamport's, one
//! component a stream), and for every chunk of memory who wrote and who read it last. Two accesses of a chunk, one of
//! them a write, need an order: a stream, an event, or the host's waiting.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering::Relaxed;

use crate::memory::{Allocation, DeviceMemory};

/// For each stream, how much of its work is known to be done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Clock(BTreeMap<u64, u64>);

impl Clock {
    pub fn join(&mut self, other: &Clock) {
        for (stream, done) in &other.0 {
            let own = self.0.entry(*stream).or_default();
            *own = (*own).max(*done);
        }
    }

    pub fn advance(&mut self, stream: u64) {
        *self.0.entry(stream).or_default() += 1;
    }

    fn of(&self, stream: u64) -> u64 {
        self.0.get(&stream).copied().unwrap_or_default()
    }

    fn includes(&self, work: Stamp) -> bool {
        self.of(work.0) >= work.1
    }
}

/// A stream and the count of its work.
type Stamp = (u64, u64);

#[derive(Clone, Default)]
struct Chunk {
    writer: Option<Stamp>,
    /// Of each stream the last; only those that are not known to be done by a later writer.
    readers: Vec<Stamp>,
}

#[derive(Default)]
pub struct StreamOrder {
    /// What the host has waited for.
    pub host: Clock,
    /// By the number of the allocation.
    chunks: HashMap<u64, Vec<Chunk>>,
    names: HashMap<Stamp, String>,
}

/// Of so many pieces of work the names are kept.
const NAMES: usize = 1 << 16;

impl StreamOrder {
    /// The allocation is gone.
    pub fn forget(&mut self, number: u64) {
        self.chunks.remove(&number);
    }

    /// After work has run: compares what it touched with who was there before.
    pub fn note(&mut self, memory: &DeviceMemory, stream: u64, clock: &Clock, name: &str) -> Result<(), String> {
        let stamp = (stream, clock.of(stream));
        if self.names.len() >= NAMES {
            self.names.clear();
        }
        self.names.insert(stamp, name.to_string());
        let mut wrong: Option<(Stamp, String, &str)> = None;
        for allocation in memory.allocations().filter(|a| a.touched.any.swap(false, Relaxed)) {
            let found = self.note_allocation(allocation, stamp, clock);
            wrong = wrong.or(found);
        }
        match wrong {
            None => Ok(()),
            Some((other, place, what)) => Err(format!(
                "{name} (stream {stream:#x}) {what} {place}, which {} (stream {:#x}) uses too, and nothing orders \
                 the two: a wait between the streams is missing",
                self.names.get(&other).map_or("earlier work", String::as_str),
                other.0
            )),
        }
    }

    fn note_allocation(
        &mut self,
        allocation: &Allocation,
        stamp: Stamp,
        clock: &Clock,
    ) -> Option<(Stamp, String, &'static str)> {
        let touched = &allocation.touched;
        let chunks = self.chunks.entry(allocation.number).or_default();
        chunks.resize(touched.read.len() * 64, Chunk::default());
        let mut wrong = None;
        for (word, (read, written)) in touched.read.iter().zip(&touched.written).enumerate() {
            let (read, written) = (read.swap(0, Relaxed), written.swap(0, Relaxed));
            let mut left = read | written;
            while left != 0 {
                let bit = left.trailing_zeros() as usize;
                left &= left - 1;
                let chunk = &mut chunks[word * 64 + bit];
                let writes = written >> bit & 1 == 1;
                let writer = chunk.writer.filter(|writer| !clock.includes(*writer));
                let reader = chunk.readers.iter().find(|reader| !clock.includes(**reader)).copied();
                if let Some(other) = writer.or(reader.filter(|_| writes)) {
                    wrong.get_or_insert((other, allocation.name.clone(), if writes { "writes" } else { "reads" }));
                }
                if writes {
                    *chunk = Chunk { writer: Some(stamp), readers: Vec::new() };
                } else {
                    chunk.readers.retain(|reader| reader.0 != stamp.0);
                    chunk.readers.push(stamp);
                }
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(memory: &DeviceMemory, base: u64, at: usize, writes: bool) {
        memory.get(base).unwrap().touched.note(at, 4, writes);
    }

    #[test]
    fn a_write_and_a_read_need_an_order() {
        let mut memory = DeviceMemory::new(1 << 20, 0);
        let base = memory.allocate(4096).unwrap();
        let (mut order, mut a, mut b) = (StreamOrder::default(), Clock::default(), Clock::default());
        a.advance(16);
        touch(&memory, base, 0, true);
        order.note(&memory, 16, &a, "writer").unwrap();
        // Another chunk is no matter, the same one is.
        b.advance(32);
        touch(&memory, base, 512, false);
        order.note(&memory, 32, &b, "elsewhere").unwrap();
        let mut unordered = b.clone();
        unordered.advance(32);
        touch(&memory, base, 8, false);
        let wrong = order.note(&memory, 32, &unordered, "reader").unwrap_err();
        assert!(wrong.contains("reader (stream 0x20) reads allocation 1, which writer (stream 0x10)"), "{wrong}");
        // After a wait it is in order, and so is a write by the first stream that waits in turn.
        b.join(&a);
        b.advance(32);
        touch(&memory, base, 8, false);
        order.note(&memory, 32, &b, "reader").unwrap();
        a.join(&b);
        a.advance(16);
        touch(&memory, base, 0, true);
        order.note(&memory, 16, &a, "writer").unwrap();
    }
}
