//! Which process signs with a node's key, as its heartbeats show. Two processes at once mean that
//! one key is on two machines.
//!
//! After a restart one process has ended before the other begins. With two machines, a process goes
//! on after another has begun.

use crate::record::Heartbeat;

/// Largest number of seconds by which the dates of heartbeats may overlap at a restart: a process
/// may begin in the second in which the one before it ended.
const OVERLAP: u64 = 1;

/// The two newest processes that one node's heartbeats have named.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Instances {
    /// The process of the newest heartbeat taken in, and the date of the first heartbeat of that
    /// process, in seconds since the epoch. `None` before the first heartbeat.
    current: Option<(u64, u64)>,
    /// The process before that one.
    previous: Option<u64>,
}

impl Instances {
    /// Takes in a heartbeat that is newer than all before it. True if it shows that two processes
    /// run.
    pub(super) fn take(&mut self, beat: &Heartbeat) -> bool {
        let Some((instance, _)) = self.current.filter(|(instance, _)| *instance != beat.instance) else {
            self.current = self.current.or(Some((beat.instance, beat.unix)));
            return false;
        };
        let duplicate_key_seen = self.previous == Some(beat.instance) && self.runs_beside_current(beat);
        self.previous = Some(instance);
        self.current = Some((beat.instance, beat.unix));
        duplicate_key_seen
    }

    /// Whether a heartbeat was made by another process than the current one, after the current one
    /// had begun. For a heartbeat numbered below those taken in, this shows that two processes run.
    pub(super) fn runs_beside_current(&self, beat: &Heartbeat) -> bool {
        self.current.is_some_and(|(instance, first)| instance != beat.instance && beat.unix > first + OVERLAP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Phase, Role};
    use crate::sim::{FOUNDED, Founder};

    fn beat(instance: u64, seconds: u64) -> Heartbeat {
        let node = Founder::new(1).node(0, Role::Publisher);
        Heartbeat { instance, unix: FOUNDED + seconds, ..node.beat(seconds, Phase::Active) }
    }

    #[test]
    fn a_restart_is_not_a_second_process() {
        let mut instances = Instances::default();
        for (instance, seconds) in [(1, 0), (1, 2), (2, 2), (2, 100), (3, 102), (3, 104)] {
            assert!(!instances.take(&beat(instance, seconds)));
            assert!(!instances.runs_beside_current(&beat(1, 3)), "an old heartbeat that arrives late");
        }
    }

    #[test]
    fn a_process_that_goes_on_after_another_has_begun_is_a_second_one() {
        let mut instances = Instances::default();
        assert!(!instances.take(&beat(1, 0)) && !instances.take(&beat(2, 4)));
        assert!(instances.take(&beat(1, 16)));
        let mut instances = Instances::default();
        assert!(!instances.take(&beat(1, 0)));
        assert!(instances.runs_beside_current(&beat(2, 12)), "a second process with a lower sequence number");
    }
}
