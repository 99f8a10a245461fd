//! Open files: how many the system allows this process, and how many a node needs.
//!
//! Each client stream is a connection to a target, and so an open file. Without free files nothing
//! in the node works: circuits cannot be built, and nothing can be written to disk. So the soft
//! limit is raised at the start, and the number of streams is bounded by the files that are left
//! for them.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files for everything but client streams: Tor's connections and databases, links, the control
/// socket, the state directory. About 60 are in use at rest, 100 while circuits are built.
pub const RESERVE: u64 = 256;

/// The number of open files that the process may have, and that its configuration needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// Files that the system allows; `u64::MAX` if it sets no limit.
    pub limit: u64,
    /// Files that `[limits] streams` needs, including [`RESERVE`].
    pub needed: u64,
}

impl OpenFiles {
    /// The limit of this process, and the need if `[limits] streams` is `streams`.
    pub fn of_process(streams: usize) -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self { limit, needed: RESERVE.saturating_add(streams as u64) }
    }

    /// True if the limit allows what is needed.
    pub fn suffice(&self) -> bool {
        self.limit >= self.needed
    }

    /// Streams that can be served at once: the configured number, or fewer if there are too few
    /// files.
    pub fn streams(&self) -> usize {
        usize::try_from(self.needed - RESERVE).unwrap_or(usize::MAX).min(self.room())
    }

    /// Streams for which there are files, whatever is configured. At least an eighth of all files,
    /// and at least one, so that a node with very few files still serves.
    pub fn room(&self) -> usize {
        let room = self.limit.saturating_sub(RESERVE).max(self.limit / 8).max(1);
        usize::try_from(room).unwrap_or(usize::MAX)
    }
}

/// Raises the soft limit of this process to the hard one, as any process may.
///
/// # Errors
/// If the system refuses it (a sandbox may).
pub fn raise() -> Result<(), Errno> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_streams_are_served_than_there_are_files_for() {
        let streams = |limit, streams: u64| OpenFiles { limit, needed: RESERVE + streams }.streams();
        assert_eq!(streams(u64::MAX, 4096), 4096);
        assert_eq!(streams(4352, 4096), 4096);
        assert_eq!(streams(1024, 4096), 768);
        assert_eq!(streams(200, 4096), 25);
        assert_eq!(streams(0, 4096), 1);
        assert!(OpenFiles { limit: 4352, needed: 4352 }.suffice());
        assert!(!OpenFiles { limit: 4351, needed: 4352 }.suffice());
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let before = getrlimit(Resource::Nofile);
        raise().unwrap();
        let after = getrlimit(Resource::Nofile);
        assert_eq!((after.current, after.maximum), (before.maximum, before.maximum));
    }
}
