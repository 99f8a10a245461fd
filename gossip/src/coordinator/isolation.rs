//! Whether this node is isolated: it must not publish, because the others may know what it does
//! not.
//!
//! It looks at three signs. The other publishers refuse this node's discovery keys; the newest
//! discovery key counts more revocations than this node knows; another process signs with this
//! node's key. An isolated node does not publish, admit, rotate keys or stand in for others. It
//! goes on serving clients and gossiping, which is how it learns the rest.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Now;
use crate::record::Heartbeat;

/// How long revocations may take to follow the discovery key that counts them: a peer sends them
/// over the link first, and another task takes them in.
const FOLLOWING: Duration = Duration::from_secs(5);
/// How long one heartbeat of another process isolates this node if none follows.
const SUSPICION: Duration = Duration::from_secs(120);
/// Largest distance from this machine's clock, in seconds, of a heartbeat that proves a second
/// process: one that is older may be a replay of an earlier process whose clock was ahead.
const FRESH: u64 = 120;
/// How long a process goes on sending heartbeats once a second one is proven, so that the second
/// one hears enough of them to end, too.
const LINGERING: Duration = Duration::from_secs(15);
/// Seconds between the dates of two heartbeats that cannot have been made at the same time.
const LATER: u64 = 2;

/// Why a node is isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Isolated {
    /// Publishers are there, and accept none of this node's discovery keys.
    #[error("the other publishers accept none of this node's discovery keys")]
    ShutOut,
    /// It knows of fewer revocations than its newest discovery key counts.
    #[error("its discovery key counts {counted} revocations, and it knows {known} of them")]
    LacksRevocations {
        /// Revocations that it knows.
        known: usize,
        /// Revocations that the maker of the key knew.
        counted: u32,
    },
    /// A heartbeat came back that is signed with this node's key and was made by another process.
    #[error("another process signs with its key")]
    SecondProcess,
}

/// The signs seen so far.
#[derive(Debug)]
pub(super) struct Isolation {
    /// The random number in this process's heartbeats.
    instance: u64,
    /// When this process began, in seconds since the Unix epoch; `None` before the first event.
    began: Option<u64>,
    shut_out: bool,
    /// Revocations that the newest discovery key counts.
    counted: u32,
    /// Since when fewer are known.
    lacking: Option<Duration>,
    /// When the first heartbeat of another process came.
    suspected: Option<Now>,
    /// When it was proven that another process runs.
    proven: Option<Duration>,
}

impl Isolation {
    pub(super) fn new(instance: u64) -> Self {
        Self { instance, began: None, shut_out: false, counted: 0, lacking: None, suspected: None, proven: None }
    }

    pub(super) fn begin(&mut self, now: Now) {
        self.began = Some(now.unix);
    }

    pub(super) fn set_shut_out(&mut self, shut_out: bool) {
        self.shut_out = shut_out;
    }

    pub(super) fn set_counted(&mut self, counted: u32) {
        self.counted = counted;
    }

    /// Compares with the number of revocations known now.
    pub(super) fn compare(&mut self, known: usize, now: Now) {
        let lacks = (known as u64) < u64::from(self.counted);
        self.lacking = if lacks { self.lacking.or(Some(now.mono)) } else { None };
        self.suspected = self.suspected.filter(|since| self.proven.is_some() || now.mono < since.mono + SUSPICION);
    }

    /// Takes in a heartbeat that this node's key has signed. It proves that another process runs if
    /// it was made after a first one had come here: then it is no replay of a process that has
    /// ended.
    pub(super) fn hear_own(&mut self, beat: &Heartbeat, now: Now) {
        let since_began = self.began.is_some_and(|began| beat.unix >= began + LATER);
        if beat.instance == self.instance || !since_began || beat.unix.abs_diff(now.unix) > FRESH {
            return;
        }
        let since = *self.suspected.get_or_insert(now);
        if beat.unix >= since.unix + LATER {
            self.proven.get_or_insert(now.mono);
        }
    }

    /// Whether this process must end, because another one runs with its key and has had the time to
    /// notice this one.
    pub(super) fn must_end(&self, mono: Duration) -> bool {
        self.proven.is_some_and(|since| mono >= since + LINGERING)
    }

    /// Why this node is isolated now, if it is. Where there is no other publisher the first two
    /// signs prove nothing: only publishers evict and change keys, so a worker that closes its door
    /// must stop no publisher.
    pub(super) fn reason(&self, known: usize, others_publish: bool, mono: Duration) -> Option<Isolated> {
        let lacks = self.lacking.is_some_and(|since| mono >= since + FOLLOWING);
        if self.suspected.is_some() {
            Some(Isolated::SecondProcess)
        } else if self.shut_out && others_publish {
            Some(Isolated::ShutOut)
        } else if lacks && others_publish {
            Some(Isolated::LacksRevocations { known, counted: self.counted })
        } else {
            None
        }
    }

    /// When the answer may change by time alone.
    pub(super) fn next_deadline(&self, mono: Duration) -> Option<Duration> {
        let lacks = self.lacking.map(|since| since + FOLLOWING);
        let suspicion = self.suspected.map(|since| since.mono + SUSPICION);
        let end = self.proven.map(|since| since + LINGERING);
        [lacks, suspicion, end].into_iter().flatten().filter(|at| *at > mono).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Phase, Role};
    use crate::sim::{FOUNDED, Founder};

    fn at(seconds: u64) -> Now {
        Now { mono: Duration::from_secs(100 + seconds), unix: FOUNDED + seconds }
    }

    fn beat(instance: u64, seconds: u64) -> Heartbeat {
        let node = Founder::new(1).node(0, Role::Publisher);
        Heartbeat { instance, unix: FOUNDED + seconds, ..node.beat(seconds, Phase::Healthy) }
    }

    fn started() -> Isolation {
        let mut isolation = Isolation::new(1);
        isolation.begin(at(0));
        isolation
    }

    #[test]
    fn two_heartbeats_of_another_process_prove_it_if_the_second_was_made_later() {
        let mut isolation = started();
        isolation.hear_own(&beat(1, 10), at(10));
        assert_eq!(isolation.reason(0, false, at(10).mono), None, "its own");
        isolation.hear_own(&beat(2, 10), at(12));
        assert_eq!(isolation.reason(0, false, at(12).mono), Some(Isolated::SecondProcess));
        isolation.hear_own(&beat(2, 12), at(13));
        assert_eq!(isolation.proven, None, "both may have been made before the first came");
        isolation.hear_own(&beat(2, 14), at(15));
        assert!(!isolation.must_end(at(29).mono), "the other has to hear of this one");
        assert_eq!(isolation.next_deadline(at(29).mono), Some(at(30).mono));
        assert!(isolation.must_end(at(30).mono));
    }

    #[test]
    fn what_an_earlier_process_has_said_proves_nothing() {
        let mut isolation = started();
        // Sent by the process before, and brought late.
        isolation.hear_own(&beat(2, 0), at(30));
        isolation.hear_own(&beat(2, 1), at(30));
        // Sent by a process whose clock was ahead by an hour, and replayed for an hour.
        for seconds in 0..60 {
            isolation.hear_own(&beat(2, 3600 + seconds), at(seconds));
        }
        assert_eq!(isolation.reason(0, false, at(60).mono), None);
    }

    #[test]
    fn a_suspicion_ends_if_nothing_follows() {
        let mut isolation = started();
        isolation.hear_own(&beat(2, 10), at(10));
        isolation.compare(0, at(129));
        assert!(isolation.reason(0, false, at(129).mono).is_some());
        assert_eq!(isolation.next_deadline(at(129).mono), Some(at(130).mono));
        isolation.compare(0, at(130));
        assert_eq!(isolation.reason(0, false, at(130).mono), None);
    }

    #[test]
    fn revocations_may_follow_the_key_that_counts_them_but_not_stay_away() {
        let mut isolation = started();
        isolation.set_counted(2);
        isolation.compare(1, at(10));
        assert_eq!(isolation.reason(1, true, at(14).mono), None);
        let lacks = Some(Isolated::LacksRevocations { known: 1, counted: 2 });
        assert_eq!(isolation.reason(1, true, at(15).mono), lacks);
        assert_eq!(isolation.reason(1, false, at(15).mono), None, "only publishers revoke");
        isolation.compare(2, at(16));
        assert_eq!(isolation.reason(2, true, at(99).mono), None);
    }
}
