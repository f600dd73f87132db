//! Making tensors while those before them are written, in two buffers that serve them all: memory that was never touched
//! before costs more than most of the work that is done in it. Small tensors are made side by side, along with the large
//! one that follows, so that there is always something large to make while something large is written.

use std::mem::swap;

use rayon::prelude::*;

use crate::compute::cpu::aligned::Aligned;
use crate::error::Result;
use crate::format::tensor::Tensor;

/// Bytes of small tensors that are written together.
const ENOUGH: usize = 1 << 20;

/// A tensor on its way to a file.
#[derive(Default)]
pub struct Made {
    holds: Holds,
    small: Vec<u8>,
    /// In huge pages: formats that store a linear transposed write to all of its pages over and over.
    large: Option<Aligned<u8>>,
}

#[derive(Default)]
enum Holds {
    #[default]
    Small,
    Large {
        used: usize,
    },
    /// It is copied as it lies in the input.
    Stored(Tensor),
}

impl Made {
    /// Room for a large tensor of `len` bytes, which hold anything.
    pub fn room(&mut self, len: usize) -> Result<&mut [u8]> {
        self.holds = Holds::Large { used: len };
        let buffer = match self.large.take() {
            Some(buffer) if buffer.len() >= len => buffer,
            less => {
                drop(less);
                Aligned::zeros(len)?
            }
        };
        Ok(&mut self.large.insert(buffer)[..len])
    }

    pub fn put(&mut self, bytes: Vec<u8>) {
        (self.holds, self.small) = (Holds::Small, bytes);
    }

    /// It is copied as it lies in the input.
    pub fn store(&mut self, tensor: Tensor) {
        self.holds = Holds::Stored(tensor);
    }

    pub fn stored(&self) -> Option<&Tensor> {
        match &self.holds {
            Holds::Stored(tensor) => Some(tensor),
            _ => None,
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match &self.holds {
            Holds::Large { used } => self.large.as_ref().map_or(&[], |buffer| &buffer[..*used]),
            _ => &self.small,
        }
    }
}

/// Some tensors that follow each other, of which only the last may be large.
#[derive(Default)]
struct Batch {
    made: Vec<Made>,
    /// From the smallest to the largest.
    buffers: Vec<Aligned<u8>>,
}

impl Batch {
    /// Makes the first of `specs`.
    fn make<S: Sync>(
        &mut self,
        specs: &[S],
        bytes: impl Fn(&S) -> usize,
        make: &(impl Fn(&S, &mut Made) -> Result<()> + Sync),
    ) -> Result<()> {
        let mut before = 0;
        let small = |spec: &&S| {
            let first = before < ENOUGH;
            before += bytes(spec);
            first
        };
        let count = specs.iter().take_while(small).count();
        self.buffers.extend(self.made.drain(..).filter_map(|made| made.large));
        self.buffers.sort_unstable_by_key(|buffer| buffer.len());
        self.made.resize_with(count, Made::default);
        for made in self.made.iter_mut().rev() {
            made.large = self.buffers.pop();
        }
        let made = self.made.par_iter_mut().zip(specs).with_max_len(1);
        let results: Vec<Result<()>> = made.map(|(made, spec)| make(spec, made)).collect();
        // In order, so that of several errors the first is told.
        results.into_iter().collect()
    }
}

/// `write` sees the specs in order, when they are made; `bytes` says how large they become.
pub fn ahead<S: Sync>(
    specs: &[S],
    bytes: impl Fn(&S) -> usize + Sync,
    make: impl Fn(&S, &mut Made) -> Result<()> + Sync,
    mut write: impl FnMut(&S, &Made) -> Result<()> + Send,
) -> Result<()> {
    let (mut now, mut next) = (Batch::default(), Batch::default());
    let mut rest = specs;
    now.make(rest, &bytes, &make)?;
    while !rest.is_empty() {
        let (specs, after) = rest.split_at(now.made.len());
        let mut write_all = || specs.iter().zip(&now.made).try_for_each(|(spec, made)| write(spec, made));
        let (written, made) = rayon::join(&mut write_all, || next.make(after, &bytes, &make));
        written?;
        made?;
        swap(&mut now, &mut next);
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::error::Error;
    use crate::format::tensor::Dtype;

    #[test]
    fn each_is_written_as_it_was_made() {
        for count in 0..20usize {
            for unit in [1, ENOUGH / 16, ENOUGH] {
                let specs: Vec<usize> = (0..count).map(|i| (i * i * 7 + 3) % 11).collect();
                let mut written = Vec::new();
                let make = |n: &usize, made: &mut Made| {
                    let bytes = vec![*n as u8; *n];
                    match n % 3 {
                        0 => made.room(*n)?.copy_from_slice(&bytes),
                        1 => made.put(bytes),
                        _ => made.store(Tensor::owned(bytes, Dtype::U8, vec![*n])),
                    }
                    Ok(())
                };
                let write = |_: &usize, made: &Made| {
                    written.push(made.stored().map_or(made.bytes(), Tensor::bytes).to_vec());
                    Ok(())
                };
                ahead(&specs, |n| n * unit, make, write).unwrap();
                assert_eq!(written, specs.iter().map(|n| vec![*n as u8; *n]).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn an_error_ends_it() {
        let (made, mut written) = (AtomicUsize::new(0), 0);
        let make = |n: &usize, of: &mut Made| {
            made.fetch_add(1, Ordering::Relaxed);
            of.room(1)?;
            if *n < 2 { Ok(()) } else { Err(Error::usage(n.to_string(), "less")) }
        };
        let write = |_: &usize, _: &Made| {
            written += 1;
            Ok(())
        };
        assert!(ahead(&[0, 1, 2, 3], |_| ENOUGH, make, write).is_err());
        assert_eq!((made.load(Ordering::Relaxed), written), (3, 2));
        for _ in 0..20 {
            let said = ahead(&[0, 1, 2, 3, 4], |_| 1, make, |_, _| Ok(())).unwrap_err().to_string();
            assert!(said.starts_with('2'), "{said}");
        }
    }
}
