//! The address space. Addresses are never used twice, so that a pointer into a freed allocation is known as one, and are
//! none of the host's, so that the host cannot read through them by mistake.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::Bytes;

/// The first address: no pointer of the host looks like this.
pub const BASE: u64 = 0x0100_0000_0000_0000;
/// Allocations begin at multiples of it, as those of the driver do.
const ALIGN: u64 = 256;
/// What lies between two allocations at least.
const GAP: u64 = 4096;
/// Order between streams is followed in pieces of this many bytes.
pub const CHUNK: usize = 256;

/// What the operation that runs has read and written of an allocation, a bit a chunk.
pub struct Touched {
    /// Whether any bit is set.
    pub any: AtomicBool,
    pub read: Box<[AtomicU64]>,
    pub written: Box<[AtomicU64]>,
}

impl Touched {
    fn new(len: usize) -> Self {
        let bits = || (0..len.div_ceil(CHUNK * 64)).map(|_| AtomicU64::new(0)).collect();
        Touched { any: AtomicBool::new(false), read: bits(), written: bits() }
    }

    #[inline(always)]
    pub fn note(&self, at: usize, len: usize, writes: bool) {
        let bits = if writes { &self.written } else { &self.read };
        for chunk in at / CHUNK..(at + len).div_ceil(CHUNK) {
            let bit = 1 << (chunk % 64);
            let word = &bits[chunk / 64];
            if word.load(Relaxed) & bit == 0 {
                word.fetch_or(bit, Relaxed);
                self.any.store(true, Relaxed);
            }
        }
    }
}

pub struct Allocation {
    pub base: u64,
    /// Of its own.
    pub number: u64,
    /// `allocation 3`, counted from 1, or the variable of a module.
    pub name: String,
    pub bytes: Bytes,
    pub touched: Touched,
    /// Its free is on the way: it counts no more, and is there until that runs.
    released: bool,
}

/// A part of an allocation.
pub struct Range<'a> {
    pub allocation: &'a Allocation,
    pub at: usize,
    pub len: usize,
}

/// An access that no allocation has room for.
#[derive(Debug)]
pub struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub struct DeviceMemory {
    live: BTreeMap<u64, Allocation>,
    /// Length and name of those that were freed.
    freed: BTreeMap<u64, (usize, String)>,
    next: u64,
    numbers: u64,
    count: u64,
    poison: u8,
    pub total: usize,
    /// Without the variables of modules.
    pub used: usize,
    pub peak: usize,
}

impl DeviceMemory {
    pub fn new(total: usize, poison: u8) -> Self {
        let (live, freed) = (BTreeMap::new(), BTreeMap::new());
        DeviceMemory { live, freed, next: BASE, numbers: 0, count: 0, poison, total, used: 0, peak: 0 }
    }

    /// None if there is no room.
    pub fn allocate(&mut self, len: usize) -> Option<u64> {
        if len > self.total - self.used {
            return None;
        }
        self.used += len;
        self.peak = self.peak.max(self.used);
        self.count += 1;
        Some(self.place(len, format!("allocation {}", self.count)))
    }

    /// A variable of a module, with its value.
    pub fn place_variable(&mut self, name: &str, value: &[u8]) -> u64 {
        let base = self.place(value.len(), format!("variable `{name}`"));
        if let Some(allocation) = self.live.get(&base) {
            allocation.bytes.write(0, value);
        }
        base
    }

    pub fn remove_variable(&mut self, base: u64) {
        self.live.remove(&base);
    }

    fn place(&mut self, len: usize, name: String) -> u64 {
        let base = self.next;
        self.next = (base + len as u64 + GAP).next_multiple_of(ALIGN);
        self.numbers += 1;
        let (number, bytes, touched) = (self.numbers, Bytes::new(len, self.poison), Touched::new(len));
        self.live.insert(base, Allocation { base, number, name, bytes, touched, released: false });
        base
    }

    /// Gives the room back, which the next allocation of the stream may have. The bytes stay until [`Self::remove`].
    pub fn release(&mut self, base: u64) -> Result<(), String> {
        match self.live.get_mut(&base) {
            Some(allocation) if !allocation.released => {
                allocation.released = true;
                self.used -= allocation.bytes.len();
                Ok(())
            }
            None if !self.freed.contains_key(&base) => Err(format!("{base:#x} is not the start of an allocation")),
            _ => Err(format!("{base:#x} was freed already")),
        }
    }

    /// Of what was released. The number of the allocation.
    pub fn remove(&mut self, base: u64) -> Option<u64> {
        let allocation = self.live.remove(&base)?;
        self.freed.insert(base, (allocation.bytes.len(), allocation.name));
        Some(allocation.number)
    }

    pub fn allocations(&self) -> impl Iterator<Item = &Allocation> {
        self.live.values()
    }

    #[cfg(test)]
    pub fn get(&self, base: u64) -> Option<&Allocation> {
        self.live.get(&base)
    }

    /// The allocation that holds the whole range.
    pub fn range(&self, address: u64, len: usize) -> Result<Range<'_>, Fault> {
        if let Some(allocation) = self.live.range(..=address).next_back().map(|entry| entry.1) {
            let at = (address - allocation.base) as usize;
            if at < allocation.bytes.len() && len <= allocation.bytes.len() - at {
                return Ok(Range { allocation, at, len });
            }
        }
        Err(Fault(self.describe(address, len)))
    }

    /// Where an address lies that it should not.
    pub fn describe(&self, address: u64, len: usize) -> String {
        let live = self.live.range(..=address).next_back().map(|(base, a)| (*base, a.bytes.len(), &a.name, ""));
        let freed = self.freed.range(..=address).next_back();
        let freed = freed.map(|(base, (len, name))| (*base, *len, name, ", which was freed"));
        // The nearer one below is what was meant.
        match live.max(freed) {
            Some((base, size, name, freed)) if address - base < size as u64 + GAP => {
                let offset = address - base;
                format!("{len} bytes at {address:#x}: offset {offset} of {name} of {size} bytes{freed}")
            }
            _ => format!("{len} bytes at {address:#x}: no allocation is near"),
        }
    }
}

impl Range<'_> {
    pub fn note(&self, writes: bool) {
        self.allocation.touched.note(self.at, self.len, writes);
    }

    /// The bytes; an error names the first one that nothing has written.
    pub fn read(&self, check: bool) -> Result<Vec<u8>, String> {
        self.note(false);
        let bytes = &self.allocation.bytes;
        if let Some(at) = bytes.unwritten(self.at, self.len).filter(|_| check) {
            let (name, size) = (&self.allocation.name, bytes.len());
            return Err(format!("byte {at} of {name} of {size} bytes was never written"));
        }
        let mut values = vec![0; self.len];
        bytes.read(self.at, &mut values);
        Ok(values)
    }

    pub fn write(&self, values: &[u8]) {
        self.note(true);
        self.allocation.bytes.write(self.at, values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_known_before_and_after() {
        let mut memory = DeviceMemory::new(1000, 0xff);
        let (a, b) = (memory.allocate(300).unwrap(), memory.allocate(600).unwrap());
        assert_eq!(memory.allocate(101), None);
        assert!(memory.range(a, 300).is_ok() && memory.range(a + 299, 1).is_ok());
        assert!(memory.describe(a + 300, 4).contains("offset 300 of allocation 1 of 300 bytes"));
        assert!(memory.range(a + 299, 2).is_err() && memory.range(BASE - 1, 1).is_err());
        memory.release(b).unwrap();
        assert_eq!((memory.used, memory.range(b, 600).is_ok()), (300, true));
        assert_eq!(memory.remove(b), Some(2));
        assert!(memory.describe(b + 8, 4).contains("offset 8 of allocation 2 of 600 bytes, which was freed"));
        assert!(memory.release(b).unwrap_err().contains("freed already"));
        assert!(memory.release(a + 8).unwrap_err().contains("not the start"));
        assert_eq!((memory.used, memory.peak), (300, 900));
    }
}
