//! cuBLAS and cuBLASLt: products of matrices by the textbook definition, column-major, with every argument checked.

mod cublas;
mod cublaslt;
mod product;

use std::collections::HashMap;

pub use product::Product;

/// What a call ends with when it does not succeed: codes of cublasStatus_t.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    NotInitialized = 1,
    InvalidValue = 7,
    ExecutionFailed = 13,
    InternalError = 14,
    NotSupported = 15,
}

/// A call that fails in the driver below.
impl From<crate::driver::Status> for Status {
    fn from(status: crate::driver::Status) -> Self {
        match status {
            crate::driver::Status::InvalidValue => Status::InvalidValue,
            crate::driver::Status::Unknown => Status::InternalError,
            _ => Status::ExecutionFailed,
        }
    }
}

/// The objects of both libraries.
#[derive(Default)]
pub struct Handles {
    /// The stream of each handle of cuBLAS.
    cublas: HashMap<u64, u64>,
    /// Handles of cuBLASLt have nothing to them.
    cublaslt: Vec<u64>,
    descriptors: HashMap<u64, cublaslt::Descriptor>,
}
