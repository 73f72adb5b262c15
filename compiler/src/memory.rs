//! How much memory there is.

use std::fs;

/// Bytes of memory that the process can get, as far as Linux tells: what is free or can be freed, and no more than control
/// groups allow it to have. `None` elsewhere.
pub fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let free = field("MemAvailable")?.saturating_add(field("SwapFree").unwrap_or(0));
    // The file says `max` where there is no limit.
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    Some(limits.into_iter().filter_map(limit).fold(free, u64::min))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_some() {
        assert!(!cfg!(target_os = "linux") || available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
