//! Memory for packed operands: whole cache lines, huge pages where it is large, reused and never shrunk.

use bytemuck::{AnyBitPattern, NoUninit, Pod, Zeroable};

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: 64 bytes without padding; any bytes are valid.
unsafe impl Zeroable for Line {}
// SAFETY: as above.
unsafe impl Pod for Line {}

#[derive(Default)]
pub struct Scratch(Vec<Line>);

impl Scratch {
    /// `len` elements with whatever was there before, on a boundary of 64 bytes.
    pub fn take<T: AnyBitPattern + NoUninit>(&mut self, len: usize) -> &mut [T] {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        if lines > self.0.len() {
            self.0 = Vec::new(); // what it held is not worth copying
            let mut grown = Vec::with_capacity(lines);
            advise_huge_pages(&grown);
            grown.resize(lines, Line([0; 64]));
            self.0 = grown;
        }
        &mut bytemuck::cast_slice_mut(&mut self.0[..lines])[..len]
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&self.0[..])
    }
}

/// Pages of 2 MiB, where Linux gives them on request only: fewer misses of the TLB.
fn advise_huge_pages(memory: &Vec<Line>) {
    const HUGE: usize = 2 << 20;
    let bytes = memory.capacity() * size_of::<Line>();
    if cfg!(target_os = "linux") && bytes >= 2 * HUGE {
        let first = (memory.as_ptr() as usize).next_multiple_of(HUGE);
        let whole = (memory.as_ptr() as usize + bytes - first) / HUGE * HUGE;
        // SAFETY: the range lies within an allocation of ours; the advice changes no contents.
        unsafe { libc::madvise(first as *mut libc::c_void, whole, libc::MADV_HUGEPAGE) };
    }
}
