//! The memory that clients may take, a share of what this machine or its control group has. And the
//! memory that this process takes.
//!
//! The share bounds the bytes that clients and targets have sent and the other side has not read
//! yet (Arti's quota), and the circuits of clients that are open at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// The quota is one quarter of the memory. Above it, Arti closes the circuits that hold most. Its
/// own default is three quarters, which leaves too little for the application on a small host, and
/// it ignores the limit of a systemd unit.
const SHARE: u64 = 4;
/// Smallest quota, in bytes: below it, circuits of clients that only download would be closed.
const LEAST: u64 = 64 << 20;

/// Memory of one client's circuit with its streams, in bytes, as an attacker can make it last
/// (docs/MEASUREMENTS.md, "What clients cost").
const CIRCUIT: u64 = 100 << 10;

/// Circuits of clients for which there is memory, whatever is configured.
pub(crate) fn circuits() -> usize {
    circuits_in(quota())
}

/// The resident memory of this process in bytes, pages of its program file included; `None` where
/// the system does not say.
pub(crate) fn resident() -> Option<u64> {
    amount(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

fn circuits_in(quota: Option<u64>) -> usize {
    quota.map_or(usize::MAX, |quota| usize::try_from(quota / CIRCUIT).unwrap_or(usize::MAX))
}

/// The quota in bytes for this machine and control group; `None` if the amount of memory cannot be
/// read from either. It is read once: Arti and the bound on circuits keep the first value.
pub(crate) fn quota() -> Option<u64> {
    static QUOTA: LazyLock<Option<u64>> = LazyLock::new(read_quota);
    *QUOTA
}

fn read_quota() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| amount(&text, "MemTotal:"));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limits_of(&groups).into_iter().filter_map(|file| fs::read_to_string(file).ok());
    of(machine, limits.filter_map(|text| text.trim().parse().ok()))
}

/// The quota for the smallest of these amounts of memory.
fn of(machine: Option<u64>, limits: impl Iterator<Item = u64>) -> Option<u64> {
    let memory = machine.into_iter().chain(limits).min()?;
    Some((memory / SHARE).max(LEAST))
}

/// The amount in bytes that stands after `name` in `/proc/meminfo` or a process's `status`.
fn amount(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The files with the memory limits of a process's control group and of its ancestors. `cgroup` is
/// the text of `/proc/PID/cgroup` (version 2).
fn limits_of(cgroup: &str) -> Vec<PathBuf> {
    let Some(own) = cgroup.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    let root = Path::new("/sys/fs/cgroup");
    root.join(own)
        .ancestors()
        .take_while(|group| group.starts_with(root))
        .map(|group| group.join("memory.max"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_is_a_quarter_of_the_least_memory_there_is() {
        let meminfo = "MemTotal:        2048000 kB\nMemFree:          100000 kB\n";
        let total = amount(meminfo, "MemTotal:");
        assert_eq!(total, Some(2_048_000 * 1024));
        assert_eq!(amount("MemFree: 1 kB", "MemTotal:"), None);
        assert_eq!(of(total, [].into_iter()), Some(512_000 * 1024));
        assert_eq!(of(total, [1 << 30, 600 << 20].into_iter()), Some(150 << 20), "a unit's or container's limit");
        assert_eq!(of(Some(128 << 20), [].into_iter()), Some(LEAST));
        assert_eq!(of(None, [].into_iter()), None);
    }

    #[test]
    fn the_resident_memory_is_at_least_what_was_just_written() {
        let before = resident().unwrap();
        let written = vec![1_u8; 64 << 20];
        let after = resident().unwrap();
        assert!(after >= before + (32 << 20), "{before} and then {after} bytes with {} written", written.len());
    }

    #[test]
    fn a_small_host_has_memory_for_fewer_circuits_than_the_default_allows() {
        let of_host = |mebibytes: u64| circuits_in(of(Some(mebibytes << 20), [].into_iter()));
        assert_eq!((of_host(128), of_host(512)), (655, 1310));
        assert!(of_host(2048) > 4096);
        assert_eq!(circuits_in(None), usize::MAX);
    }

    #[test]
    fn the_limits_of_all_groups_above_count() {
        let files = limits_of("1:name=x:/old\n0::/system.slice/rustbalance.service\n");
        let names: Vec<_> = files.iter().map(|file| file.to_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "/sys/fs/cgroup/system.slice/rustbalance.service/memory.max",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        assert_eq!(limits_of("0::/\n"), [PathBuf::from("/sys/fs/cgroup/memory.max")], "in a container");
        assert!(limits_of("").is_empty());
    }
}
