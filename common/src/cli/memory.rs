//! What the kernel says of this process's memory.

/// Peak resident bytes, mapped file pages included.
pub fn peak_resident() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: getrusage writes one struct rusage through the pointer, which is valid and of that type.
    let ok = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) } == 0;
    // SAFETY: zeroed above, which is a valid rusage even if the call failed.
    let usage = unsafe { usage.assume_init() };
    if ok { usage.ru_maxrss as u64 * 1024 } else { 0 }
}
