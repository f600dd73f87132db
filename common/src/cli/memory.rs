//! What the kernel says of memory.

/// Peak resident bytes, mapped file pages included.
pub fn peak_resident() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: getrusage writes one struct rusage through the pointer, which is valid and of that type.
    let ok = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) } == 0;
    // SAFETY: zeroed above, which is a valid rusage even if the call failed.
    let usage = unsafe { usage.assume_init() };
    if ok { usage.ru_maxrss as u64 * 1024 } else { 0 }
}

/// What loading has freed goes back to the system, where the allocator keeps it.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of memory of this machine; None if the system does not say.
pub fn installed() -> Option<u64> {
    // SAFETY: sysconf has no preconditions; it returns -1 for what it does not know.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    u64::try_from(pages).ok()?.checked_mul(u64::try_from(size).ok()?)
}
