//! What the kernel says of memory.

use std::path::Path;

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

/// Bytes of memory that this process may have: of this machine, or of its control group. None if the system does not say.
pub fn installed() -> Option<u64> {
    // SAFETY: sysconf has no preconditions; it returns -1 for what it does not know.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    let all = u64::try_from(pages).ok()?.checked_mul(u64::try_from(size).ok()?)?;
    Some(all.min(control_group()))
}

/// Bytes of it that no process holds. None if the system does not say.
pub fn available() -> Option<u64> {
    let all = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(kibibytes(&all, "MemAvailable")?.checked_mul(1024)?.min(control_group()))
}

/// A row of /proc/meminfo (proc_meminfo(5)).
fn kibibytes(all: &str, name: &str) -> Option<u64> {
    let value = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim_end().parse().ok()
}

/// The least limit of the control groups that this process is in (cgroups(7), both versions): what a job of a cluster, or a
/// container, is given.
fn control_group() -> u64 {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = |file: &Path| std::fs::read_to_string(file).ok()?.trim().parse().ok();
    let least = |(below, file, own): (&str, &str, &str)| {
        let groups = Path::new(own).ancestors().map(|group| Path::new(below).join(group).join(file));
        groups.filter_map(|file| limit(&file)).min()
    };
    groups.lines().filter_map(limit_file).filter_map(least).min().unwrap_or(u64::MAX)
}

/// Of a row of /proc/self/cgroup: where the limits are, the name of their file, and the group below it.
fn limit_file(row: &str) -> Option<(&'static str, &'static str, &str)> {
    let mut parts = row.splitn(3, ':').skip(1);
    let (controllers, group) = (parts.next()?, parts.next()?.trim_start_matches('/'));
    match controllers {
        "" => Some(("/sys/fs/cgroup", "memory.max", group)),
        _ if controllers.split(',').any(|c| c == "memory") => {
            Some(("/sys/fs/cgroup/memory", "memory.limit_in_bytes", group))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_meminfo() {
        let all = "MemTotal:       24689764 kB\nMemFree:         1032 kB\nMemAvailable:   21000000 kB\n";
        assert_eq!(kibibytes(all, "MemAvailable"), Some(21_000_000));
        assert_eq!(kibibytes(all, "Mem"), None);
        assert_eq!(kibibytes("", "MemAvailable"), None);
    }

    #[test]
    fn of_control_groups() {
        let below = "/sys/fs/cgroup/memory";
        assert_eq!(limit_file("4:cpu,memory:/job/1"), Some((below, "memory.limit_in_bytes", "job/1")));
        assert_eq!(limit_file("0::/user.slice/a:b"), Some(("/sys/fs/cgroup", "memory.max", "user.slice/a:b")));
        assert_eq!(limit_file("9:name=systemd:/"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn no_more_is_available_than_there_is() {
        let (available, installed) = (available().unwrap(), installed().unwrap());
        assert!(0 < available && available <= installed, "{available} of {installed}");
    }
}
