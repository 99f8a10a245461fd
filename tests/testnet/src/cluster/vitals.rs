//! What a daemon takes of the machine, read from `/proc`.

use std::fs;

use serde::Serialize;

/// What a process takes at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Vitals {
    /// The process.
    pub pid: i32,
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// Open file descriptors.
    pub files: usize,
    /// Threads.
    pub threads: u64,
}

impl Vitals {
    /// Those of a process; `None` if it has ended, or is not ours to look into.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let number = |name: &str| -> Option<u64> {
            let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        Some(Self { pid, rss_kib: number("VmRSS:")?, files, threads: number("Threads:")? })
    }
}
