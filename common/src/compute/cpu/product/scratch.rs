//! Memory for packed operands, reused and never shrunk.

use bytemuck::{AnyBitPattern, NoUninit};

use super::super::aligned::Aligned;

#[derive(Default)]
pub struct Scratch(Option<Aligned<u8>>);

impl Scratch {
    /// `len` elements with whatever was there before, from a page on.
    ///
    /// Panics if there is no memory for them: passes have checked their plan before.
    pub fn take<T: AnyBitPattern + NoUninit>(&mut self, len: usize) -> &mut [T] {
        let bytes = len * size_of::<T>();
        if self.bytes() < bytes {
            self.0 = None; // before there is another
            self.0 = Some(Aligned::zeros(bytes).expect("memory for packed operands"));
        }
        self.0.as_mut().map_or(&mut [], |held| bytemuck::cast_slice_mut(&mut held[..bytes]))
    }

    /// All that was ever taken.
    pub fn held<T: AnyBitPattern + NoUninit>(&self) -> &[T] {
        self.0.as_ref().map_or(&[], |held| bytemuck::cast_slice(&held[..held.len() / size_of::<T>() * size_of::<T>()]))
    }

    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |held| held.len())
    }
}
