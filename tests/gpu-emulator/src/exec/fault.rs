//! What a kernel did wrong.

use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A GPU would report this too, as CUDA_ERROR_ILLEGAL_ADDRESS.
    IllegalAddress,
    /// CUDA_ERROR_MISALIGNED_ADDRESS
    Misaligned,
    /// CUDA_ERROR_ILLEGAL_INSTRUCTION: `trap`
    Trap,
    /// What a GPU would run past, with a wrong result or none: CUDA_ERROR_LAUNCH_FAILED here.
    Wrong,
}

/// With its place: the kernel, block, thread, line and instruction are put in front as they become known.
#[derive(Debug, Clone)]
pub struct Fault {
    pub kind: Kind,
    pub what: String,
    /// The lane that did it, where it is one.
    pub lane: Option<usize>,
}

impl Fault {
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Fault { kind, what: what.into(), lane: None }
    }

    pub fn wrong(what: impl Into<String>) -> Self {
        Fault::new(Kind::Wrong, what)
    }

    pub fn by(self, lane: usize) -> Self {
        Fault { lane: Some(lane), ..self }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.what)
    }
}
