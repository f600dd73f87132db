//! Frozen tensors: on the GPU as stored, or, where only rows of them are read, on the host.

use super::memory::Memory;
use crate::format::tensor::{Dtype, Tensor};

pub struct Frozen {
    place: Place,
    dtype: Dtype,
}

enum Place {
    Device(Memory<u8>),
    Host(Tensor),
}

impl Frozen {
    pub fn device(bytes: Memory<u8>, dtype: Dtype) -> Frozen {
        Frozen { place: Place::Device(bytes), dtype }
    }

    pub fn host(tensor: Tensor) -> Frozen {
        Frozen { dtype: tensor.dtype, place: Place::Host(tensor) }
    }

    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// # Panics
    /// If it is on the host: only tables of rows are.
    pub fn on_device(&self) -> &Memory<u8> {
        match &self.place {
            Place::Device(bytes) => bytes,
            Place::Host(_) => panic!("a table of rows is no weight"),
        }
    }

    /// The bytes of rows of `d` elements, where they are on the host.
    pub fn gather(&self, tokens: &[u32], d: usize) -> Option<Vec<u8>> {
        let Place::Host(tensor) = &self.place else { return None };
        let row = d * tensor.dtype.bitsize() / 8;
        let bytes = tensor.bytes();
        Some(tokens.iter().flat_map(|token| &bytes[*token as usize * row..][..row]).copied().collect())
    }
}
