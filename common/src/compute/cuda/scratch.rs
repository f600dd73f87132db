//! Memory that ops share, one after another; and small tables of the host's that several ops of a pass read.

use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;

use super::gpu::Gpu;
use super::memory::{Memory, Ref};

/// Memory that is as large as the largest op so far needed it.
pub struct Scratch<T> {
    held: Mutex<Option<Memory<T>>>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Scratch { held: Mutex::default() }
    }
}

impl<T> Scratch<T> {
    /// Lends at least `len` elements; where there is no room for them, the GPU has failed, and nothing is done.
    pub fn with(&self, gpu: &Arc<Gpu>, len: usize, work: impl FnOnce(&mut Memory<T>)) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_none_or(|memory| memory.len() < len) {
            // What there is goes first.
            *held = None;
            match Memory::new(gpu, len) {
                Ok(memory) => *held = Some(memory),
                Err(error) => return gpu.keep(error),
            }
        }
        if let Some(memory) = held.as_mut() {
            work(memory);
        }
    }
}

/// Values of the host as they were last asked for.
pub struct Table<T> {
    held: Mutex<(Vec<T>, Option<Memory<T>>)>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table { held: Mutex::new((Vec::new(), None)) }
    }
}

impl<T: Pod + PartialEq> Table<T> {
    /// Lends `values` on the GPU. They are copied when they are not those of the time before.
    pub fn with(&self, gpu: &Arc<Gpu>, values: Vec<T>, work: impl FnOnce(Ref<T>)) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, memory) = &mut *held;
        if memory.as_ref().is_none_or(|memory| memory.len() < values.len()) {
            *memory = None;
            last.clear();
            match Memory::new(gpu, values.len()) {
                Ok(new) => *memory = Some(new),
                Err(error) => return gpu.keep(error),
            }
        }
        if let Some(memory) = memory {
            if *last != values {
                memory.write(&values);
                *last = values;
            }
            work(memory.all());
        }
    }
}
