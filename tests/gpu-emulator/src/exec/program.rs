//! A kernel, ready to run.

use super::op::{Inst, Row};
use crate::ptx::Variable;

/// Rows that differ from thread to thread or block to block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    Thread(u8),
    Threads(u8),
    Block(u8),
    Blocks(u8),
    Lane,
    Warp,
    MaskEq,
    MaskLt,
    MaskLe,
    MaskGt,
    MaskGe,
    /// Zero here: the number of the multiprocessor, clocks.
    Zero,
}

/// A variable in shared memory.
#[derive(Debug, Clone)]
pub struct SharedVariable {
    pub name: String,
    pub start: u64,
    /// None for the dynamic part, whose size the launch gives.
    pub bytes: Option<u64>,
}

/// A kernel, decoded.
#[derive(Debug, Clone, Default)]
pub struct Program {
    pub name: String,
    pub code: Vec<Inst>,
    /// Of each instruction, its line in the text of the module.
    pub lines: Vec<u32>,
    pub lists: Vec<Row>,
    pub rows32: usize,
    pub rows64: usize,
    pub predicates: usize,
    pub constants32: Vec<(Row, u32)>,
    pub constants64: Vec<(Row, u64)>,
    pub specials: Vec<(Row, Special)>,
    /// With the offset of each in the block of parameters.
    pub parameters: Vec<(Variable, usize)>,
    pub shared: Vec<SharedVariable>,
    /// Static bytes of shared memory.
    pub shared_bytes: usize,
    /// Bytes of local memory a thread.
    pub local_bytes: usize,
    pub max_threads: u32,
    /// The smallest access to global and to shared memory, in bytes: the grain in which races are looked for.
    pub grain_global: u32,
    pub grain_shared: u32,
}
