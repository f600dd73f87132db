//! Codes of errors, with the names that the driver gives them.

use std::ffi::{CStr, c_char};

use super::ffi::Out;

macro_rules! status {
    ($($name:ident = $code:literal, $text:literal, $description:literal;)*) => {
        /// What a call ends with when it does not succeed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Status {
            $($name = $code,)*
        }

        fn texts(code: u32) -> Option<(&'static CStr, &'static CStr)> {
            match code {
                0 => Some((c"CUDA_SUCCESS", c"no error")),
                $($code => Some(($text, $description)),)*
                _ => None,
            }
        }
    };
}

status! {
    InvalidValue = 1, c"CUDA_ERROR_INVALID_VALUE", c"invalid argument";
    OutOfMemory = 2, c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory";
    NoDevice = 100, c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected";
    InvalidDevice = 101, c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal";
    InvalidContext = 201, c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context";
    NoBinary = 209, c"CUDA_ERROR_NO_BINARY_FOR_GPU", c"no kernel image is available for execution on the device";
    InvalidPtx = 218, c"CUDA_ERROR_INVALID_PTX", c"a PTX JIT compilation failed";
    UnsupportedPtx = 222, c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        c"the provided PTX was compiled with an unsupported toolchain.";
    FileNotFound = 301, c"CUDA_ERROR_FILE_NOT_FOUND", c"file not found";
    InvalidHandle = 400, c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle";
    NotFound = 500, c"CUDA_ERROR_NOT_FOUND", c"named symbol not found";
    NotReady = 600, c"CUDA_ERROR_NOT_READY", c"device not ready";
    IllegalAddress = 700, c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered";
    IllegalInstruction = 715, c"CUDA_ERROR_ILLEGAL_INSTRUCTION", c"an illegal instruction was encountered";
    MisalignedAddress = 716, c"CUDA_ERROR_MISALIGNED_ADDRESS", c"misaligned address";
    LaunchFailed = 719, c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure";
    Unknown = 999, c"CUDA_ERROR_UNKNOWN", c"unknown error";
}

impl Status {
    /// After these nothing runs any more in the context.
    pub fn is_sticky(self) -> bool {
        self as u32 >= Status::IllegalAddress as u32 && self != Status::Unknown
    }
}

fn give(code: u32, to: Out<*const c_char>, pick: fn((&'static CStr, &'static CStr)) -> &'static CStr) -> u32 {
    let text = texts(code).map_or(std::ptr::null(), |texts| pick(texts).as_ptr());
    let known = if text.is_null() { Err(Status::InvalidValue) } else { Ok(()) };
    super::ffi::code(to.set(text).and(known))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(code: u32, to: Out<*const c_char>) -> u32 {
    give(code, to, |texts| texts.0)
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(code: u32, to: Out<*const c_char>) -> u32 {
    give(code, to, |texts| texts.1)
}
