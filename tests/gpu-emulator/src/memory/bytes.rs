//! A stretch of bytes that several threads of the host may work on at once, as the blocks of a kernel do, with a bit a
//! byte that says whether it was written. Accesses of 1, 2, 4 and 8 bytes are atomic and relaxed, which costs nothing;
//! what a racing kernel reads is as undefined as on a GPU.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

pub struct Bytes {
    words: Box<[AtomicU64]>,
    written: Box<[AtomicU64]>,
    len: usize,
}

/// Bits `from..to` of word `word`, where both count from the start of the whole stretch.
fn bits_in_word(word: usize, from: usize, to: usize) -> u64 {
    let (low, high) = (from.max(word * 64) - word * 64, to.min(word * 64 + 64) - word * 64);
    if high - low == 64 { u64::MAX } else { ((1 << (high - low)) - 1) << low }
}

impl Bytes {
    /// Filled with `poison` and noted as never written.
    pub fn new(len: usize, poison: u8) -> Self {
        let fill = u64::from_ne_bytes([poison; 8]);
        Bytes {
            words: (0..len.div_ceil(8)).map(|_| AtomicU64::new(fill)).collect(),
            written: (0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            len,
        }
    }

    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// As `new` made it.
    pub fn reset(&mut self, poison: u8) {
        let fill = u64::from_ne_bytes([poison; 8]);
        self.words.iter_mut().for_each(|word| *word.get_mut() = fill);
        self.written.iter_mut().for_each(|word| *word.get_mut() = 0);
    }

    /// The cell of `T` at `at`.
    ///
    /// # Panics
    /// If it is not within the stretch, or not aligned.
    #[inline(always)]
    fn cell<T>(&self, at: usize) -> &T {
        let size = size_of::<T>();
        assert!(at.is_multiple_of(size) && at + size <= self.words.len() * 8);
        // SAFETY: within the words and aligned, by the line above; T is an atomic of that size, and all access to the
        // words is by atomics or through `&mut self`.
        unsafe { &*self.words.as_ptr().cast::<u8>().add(at).cast::<T>() }
    }

    /// A value of `size` bytes (1, 2, 4 or 8), aligned.
    #[inline(always)]
    pub fn load(&self, at: usize, size: u32) -> u64 {
        match size {
            1 => self.cell::<AtomicU8>(at).load(Relaxed) as u64,
            2 => self.cell::<AtomicU16>(at).load(Relaxed) as u64,
            4 => self.cell::<AtomicU32>(at).load(Relaxed) as u64,
            _ => self.cell::<AtomicU64>(at).load(Relaxed),
        }
    }

    #[inline(always)]
    pub fn store(&self, at: usize, size: u32, value: u64) {
        match size {
            1 => self.cell::<AtomicU8>(at).store(value as u8, Relaxed),
            2 => self.cell::<AtomicU16>(at).store(value as u16, Relaxed),
            4 => self.cell::<AtomicU32>(at).store(value as u32, Relaxed),
            _ => self.cell::<AtomicU64>(at).store(value, Relaxed),
        }
    }

    /// Replaces a value of 2, 4 or 8 bytes in one step, and gives the old one.
    pub fn update(&self, at: usize, size: u32, f: impl Fn(u64) -> u64) -> u64 {
        macro_rules! in_one_step {
            ($atomic:ty, $word:ty) => {{
                let cell = self.cell::<$atomic>(at);
                let step = |old: $word| Some(f(old as u64) as $word);
                cell.fetch_update(Relaxed, Relaxed, step).unwrap_or_default() as u64
            }};
        }
        match size {
            2 => in_one_step!(AtomicU16, u16),
            4 => in_one_step!(AtomicU32, u32),
            _ => in_one_step!(AtomicU64, u64),
        }
    }

    /// The first byte of the range that was never written.
    #[inline(always)]
    pub fn unwritten(&self, at: usize, len: usize) -> Option<usize> {
        let end = at + len;
        let mut word = at / 64;
        while word * 64 < end {
            let missing = bits_in_word(word, at, end) & !self.written[word].load(Relaxed);
            if missing != 0 {
                return Some(word * 64 + missing.trailing_zeros() as usize);
            }
            word += 1;
        }
        None
    }

    #[inline(always)]
    pub fn mark_written(&self, at: usize, len: usize) {
        let end = at + len;
        let mut word = at / 64;
        while word * 64 < end {
            let bits = bits_in_word(word, at, end);
            if bits & !self.written[word].load(Relaxed) != 0 {
                self.written[word].fetch_or(bits, Relaxed);
            }
            word += 1;
        }
    }

    pub fn mark_unwritten(&self, at: usize, len: usize) {
        for word in at / 64..(at + len).div_ceil(64) {
            self.written[word].fetch_and(!bits_in_word(word, at, at + len), Relaxed);
        }
    }

    pub fn read(&self, at: usize, to: &mut [u8]) {
        assert!(at + to.len() <= self.len);
        let mut done = 0;
        while done < to.len() {
            let from = at + done;
            let word = self.words[from / 8].load(Relaxed).to_ne_bytes();
            let n = (8 - from % 8).min(to.len() - done);
            to[done..done + n].copy_from_slice(&word[from % 8..from % 8 + n]);
            done += n;
        }
    }

    /// Writes, and notes it.
    pub fn write(&self, at: usize, from: &[u8]) {
        assert!(at + from.len() <= self.len);
        let mut done = 0;
        while done < from.len() {
            let to = at + done;
            let n = (8 - to % 8).min(from.len() - done);
            let cell = &self.words[to / 8];
            let mut word = cell.load(Relaxed).to_ne_bytes();
            word[to % 8..to % 8 + n].copy_from_slice(&from[done..done + n]);
            cell.store(u64::from_ne_bytes(word), Relaxed);
            done += n;
        }
        self.mark_written(at, from.len());
    }

    /// Copies values and notes: what was never written there is not written here.
    pub fn copy_from(&self, at: usize, source: &Bytes, from: usize, len: usize) {
        let mut values = vec![0; len];
        source.read(from, &mut values);
        let gaps: Vec<usize> = (0..len).filter(|i| source.unwritten(from + i, 1).is_some()).collect();
        self.write(at, &values);
        for i in gaps {
            self.mark_unwritten(at + i, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_follow_the_bytes() {
        let bytes = Bytes::new(200, 0xff);
        assert_eq!(bytes.unwritten(0, 200), Some(0));
        bytes.write(3, &[7; 130]);
        assert_eq!(
            (bytes.unwritten(3, 130), bytes.unwritten(3, 131), bytes.unwritten(2, 1)),
            (None, Some(133), Some(2))
        );
        let other = Bytes::new(200, 0);
        other.mark_written(0, 200);
        other.copy_from(10, &bytes, 0, 140);
        assert_eq!((other.unwritten(0, 10), other.unwritten(10, 140)), (None, Some(10)));
        assert_eq!(other.unwritten(13, 130), None);
        assert_eq!((other.load(12, 2), other.load(14, 1)), (0x07ff, 7));
        bytes.mark_unwritten(64, 64);
        assert_eq!((bytes.unwritten(3, 130), bytes.unwritten(128, 5)), (Some(64), None));
    }

    #[test]
    fn values_of_every_size() {
        let bytes = Bytes::new(24, 0);
        bytes.store(8, 8, 0x1122_3344_5566_7788);
        assert_eq!((bytes.load(8, 1), bytes.load(10, 2), bytes.load(12, 4)), (0x88, 0x5566, 0x1122_3344));
        assert_eq!(bytes.update(12, 4, |x| x + 1), 0x1122_3344);
        assert_eq!(bytes.load(8, 8), 0x1122_3345_5566_7788);
    }
}
