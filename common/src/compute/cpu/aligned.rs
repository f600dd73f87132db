//! Memory for the vectors of an op: it begins on a page, so on a cache line and a tile row too; large ones lie in huge
//! pages where the system hands them out (`/sys/kernel/mm/transparent_hugepage/enabled`: always or madvise), since a
//! matrix product walks over more pages at once than the processor's table of them holds.

use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

use crate::error::{Error, Result};

/// From here on huge pages are asked for: there is at least a whole one of 2 MiB in it.
const LARGE: usize = 4 << 20;

pub struct Aligned<T> {
    /// Exactly the elements; empty for none.
    map: MmapMut,
    _of: std::marker::PhantomData<T>,
}

impl<T: Pod + Send + Sync> Aligned<T> {
    /// Pages are given out, as zeros, when they are first written.
    pub fn zeros(len: usize) -> Result<Aligned<T>> {
        let held = len.checked_mul(size_of::<T>()).and_then(|bytes| MmapMut::map_anon(bytes).ok());
        let Some(map) = held else {
            let what = format!("{len} numbers of {} bytes do not fit into memory", size_of::<T>());
            return Err(Error::usage(what, "lower --batch or --seq, or take a larger machine"));
        };
        #[cfg(target_os = "linux")]
        if map.len() >= LARGE {
            // A kernel without huge pages says no, and small ones serve.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Aligned { map, _of: std::marker::PhantomData })
    }

    pub fn of(values: &[T]) -> Result<Aligned<T>> {
        let mut all = Aligned::zeros(values.len())?;
        all.copy_from_slice(values);
        Ok(all)
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.map)
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn begins_on_a_page_and_is_zero() {
        for len in [0, 1, 31, 5000, 3 * LARGE / 2] {
            let mut x = Aligned::<bf16>::zeros(len).unwrap();
            assert_eq!((x.len(), x.as_ptr() as usize % 4096), (len, 0));
            assert!(x.iter().all(|x| x.to_bits() == 0));
            x.fill(bf16::ONE);
            assert!(x.iter().all(|x| *x == bf16::ONE));
        }
        assert_eq!(Aligned::of(&[1.0f32, 2.0, 3.0]).unwrap()[..], [1.0, 2.0, 3.0]);
    }

    #[test]
    fn too_much_is_an_error() {
        for len in [usize::MAX, usize::MAX / 4, 1 << 60] {
            let e = Aligned::<f32>::zeros(len).err().unwrap().to_string();
            assert!(e.contains("do not fit into memory; lower --batch"), "{e}");
        }
    }
}
