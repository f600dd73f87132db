//! The edge to C: arguments that are pointers, and the frame of every entry point. What a caller in C promises of a
//! pointer is taken on trust here and nowhere else.

use std::ffi::{CStr, c_char, c_void};

use super::Status;

/// A pointer to where a result goes.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    pub fn set(&self, value: T) -> Result<(), Status> {
        if self.0.is_null() {
            return Err(Status::InvalidValue);
        }
        // SAFETY: not null; the caller of the entry point promises that a T can be written there.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// The first of `values`, as many as there is room for.
    pub fn set_all(&self, values: &[T], room: usize) -> Result<(), Status>
    where
        T: Copy,
    {
        if self.0.is_null() {
            return Err(Status::InvalidValue);
        }
        for (index, value) in values.iter().take(room).enumerate() {
            // SAFETY: not null, and the caller promises room for `room` of them.
            unsafe { self.0.add(index).write(*value) };
        }
        Ok(())
    }
}

/// A pointer to a value.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    pub fn get(&self) -> Option<T> {
        // SAFETY: the caller promises a T there, if it is not null.
        (!self.0.is_null()).then(|| unsafe { self.0.read_unaligned() })
    }

    pub fn slice(&self, len: usize) -> Vec<T> {
        match self.0.is_null() || len == 0 {
            true => Vec::new(),
            // SAFETY: not null; the caller promises `len` values there.
            false => (0..len).map(|index| unsafe { self.0.add(index).read_unaligned() }).collect(),
        }
    }

    pub fn address(&self) -> usize {
        self.0 as usize
    }
}

impl In<c_char> {
    pub fn text(&self) -> Option<String> {
        // SAFETY: the caller promises a string with a zero at its end, if it is not null.
        (!self.0.is_null()).then(|| unsafe { CStr::from_ptr(self.0) }.to_string_lossy().into_owned())
    }
}

/// The arguments of a launch: a pointer to each.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Bits(*const *const c_void);

impl Bits {
    /// The bytes of argument `index`.
    pub fn argument(&self, index: usize, len: usize) -> Option<Vec<u8>> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the caller promises as many pointers as the kernel has parameters, each to a value of its size.
        unsafe {
            let value = self.0.add(index).read();
            (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), len).to_vec())
        }
    }
}

/// Bytes of the host that a copy reads or writes when it runs, which may be later.
pub fn read_host(from: usize, len: usize) -> Vec<u8> {
    // SAFETY: the caller promised the bytes to the copy until it has run.
    unsafe { std::slice::from_raw_parts(from as *const u8, len) }.to_vec()
}

pub fn write_host(to: usize, bytes: &[u8]) {
    // SAFETY: as above, for writing.
    unsafe { std::ptr::copy(bytes.as_ptr(), to as *mut u8, bytes.len()) }
}

pub fn code(result: Result<(), Status>) -> u32 {
    result.map_or_else(|status| status as u32, |()| 0)
}

/// Functions of a library. Each takes the state, counts the call, and may be the one that is to fail; it ends with the
/// `Status` of the module that it is in.
macro_rules! entry_points {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) |$state:ident| $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($argument: $type),*) -> u32 {
                let mut guard = $crate::driver::lock();
                #[allow(unused_variables)]
                let $state: &mut $crate::driver::State = &mut guard;
                let mut run = || -> Result<(), Status> {
                    $state.enter(stringify!($name))?;
                    $body
                };
                run().map_or_else(|status| status as u32, |()| 0)
            }
        )*
    };
}
pub(crate) use entry_points;
