//! Listens for signals; a signal that was ignored when the process started stays ignored.

use std::fs;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that are ignored, as the bits of `SigIgn` in `/proc/self/status` (proc(5)): bit 0 is
/// signal 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ignored(u64);

impl Ignored {
    /// Reads the text of `/proc/PID/status`; no signals if it has no valid mask.
    fn parse(status: &str) -> Self {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        Self(mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0))
    }

    fn contains(self, kind: SignalKind) -> bool {
        u32::try_from(kind.as_raw_value() - 1)
            .is_ok_and(|bit| self.0.checked_shr(bit).is_some_and(|mask| mask & 1 == 1))
    }
}

/// The signals that this process ignores now. Called before the first [`listen`], because tokio
/// then replaces the disposition of a signal and does not report the old one.
pub(super) fn ignored_at_start() -> Ignored {
    fs::read_to_string("/proc/self/status").map(|status| Ignored::parse(&status)).unwrap_or_default()
}

/// Listens for a signal; `None` if it was ignored at the start and stays so.
pub(super) fn listen(kind: SignalKind, ignored: &Ignored) -> io::Result<Option<Signal>> {
    if ignored.contains(kind) { Ok(None) } else { signal(kind).map(Some) }
}

/// Waits for the next signal; for ever if it is ignored.
pub(super) async fn next(signal: &mut Option<Signal>) {
    let received = match signal {
        Some(signal) => signal.recv().await,
        None => None,
    };
    if received.is_none() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask_of_proc() {
        // `nohup` ignores SIGHUP (1), and Python ignores SIGPIPE (13) and SIGXFSZ (25).
        let ignored = Ignored::parse("Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000001001001\nSigCgt:\t0\n");
        assert!(ignored.contains(SignalKind::hangup()) && ignored.contains(SignalKind::pipe()));
        assert!(!ignored.contains(SignalKind::interrupt()) && !ignored.contains(SignalKind::terminate()));
        for unreadable in ["", "SigIgn:\tnone", "SigIgn:"] {
            assert_eq!(Ignored::parse(unreadable), Ignored::default());
        }
    }
}
