//! The resources that a process uses, read from `/proc`.

use std::fs;

use serde::Serialize;

use crate::process::stat_fields;

/// The resources that a process uses at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Vitals {
    /// The process id.
    pub pid: i32,
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// Number of open file descriptors.
    pub files: usize,
    /// Number of threads.
    pub threads: u64,
    /// Processor time since its start, in milliseconds.
    pub cpu_ms: u64,
    /// Times that its threads of now have given up their processor, whether to wait or to let
    /// others run.
    pub switches: u64,
}

impl Vitals {
    /// The resources of a process; `None` if it has ended, or if this user may not read them.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let number = |name: &str| -> Option<u64> {
            let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        let cpu_ms = cpu_ms(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        Some(Self {
            pid,
            rss_kib: number("VmRSS:")?,
            files,
            threads: number("Threads:")?,
            cpu_ms,
            switches: switches(pid),
        })
    }
}

/// Sums the context switches of all threads. A thread that ends meanwhile counts as none.
fn switches(pid: i32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |text: String| -> u64 {
        let counts = text.lines().filter_map(|line| line.split_once("ctxt_switches:"));
        counts.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum()
    };
    threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok()).map(of).sum()
}

/// The user and system time, in milliseconds, in a `/proc/PID/stat`: fields 14 and 15 (proc(5)),
/// which Linux counts in hundredths of a second.
fn cpu_ms(stat: &str) -> Option<u64> {
    let mut fields = stat_fields(stat)?.skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_whatever_the_process_name() {
        let line = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 9 1 1 1";
        assert_eq!(cpu_ms(line), Some(3000));
        assert_eq!(cpu_ms("7 (cut"), None);
    }
}
