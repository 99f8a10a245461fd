//! Detects whether this node is isolated: it must not publish, because other members may know
//! something that it does not.
//!
//! There are four signs: the other publishers reject this node's discovery keys; the newest
//! discovery key counts more revocations than this node knows; another process signs with this
//! node's key; this machine's clock is wrong, as the caller finds out. An isolated node does not
//! publish, admit, rotate keys or stand in for others. It continues to serve clients and to gossip,
//! which is how it catches up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Now;
use crate::record::Heartbeat;

/// Delay allowed between a discovery key and the revocations that it counts: a peer sends the
/// revocations first on the link, but another task processes them.
const REVOCATION_DELAY: Duration = Duration::from_secs(5);
/// Time for which a node that lacks revocations stays isolated: 180 s is three times the minute in
/// which neighbours compare facts. After that it assumes that the revocations do not exist (a
/// hostile publisher can make such a key), because a cluster that does not publish is worse.
const LACK_TIMEOUT: Duration = Duration::from_secs(180);
/// Time for which one heartbeat of another process isolates this node if no other follows.
const SUSPICION_TIMEOUT: Duration = Duration::from_secs(120);
/// Time for which a process continues its heartbeats after a second one is proven, so that the
/// other one also hears enough of them to stop.
const EXIT_DELAY: Duration = Duration::from_secs(15);
/// Seconds for which a second process must be heard, and by which the dates of its heartbeats must
/// have advanced meanwhile. Longer than what a stopped process can still cause: its last heartbeats
/// may arrive late, but their dates lie closer together.
const PROOF_SPAN: u64 = 8;
/// Largest difference in seconds from this machine's clock at which a heartbeat shows a second
/// process. At a larger one it may be a replay from an earlier process whose clock was ahead.
const MAX_CLOCK_DISTANCE: u64 = 120;
/// A heartbeat dated this many seconds after this process's start cannot be from an earlier
/// process: dates are whole seconds.
const START_MARGIN: u64 = 2;

/// Reason why a node is isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Isolated {
    /// At least one publisher is up, and those that are accept none of this node's discovery keys.
    #[error("the other publishers accept none of this node's discovery keys")]
    ShutOut,
    /// The node knows fewer revocations than its newest discovery key counts.
    #[error("its newest discovery key counts {counted} revocations, and it knows only {known}")]
    LacksRevocations {
        /// Number of revocations that the node knows.
        known: usize,
        /// Number of revocations that the maker of the key knew.
        counted: u32,
    },
    /// A heartbeat arrived that is signed with this node's key but made by another process.
    #[error("another process signs with its key")]
    SecondProcess,
    /// This machine's clock is off by more than other nodes accept, and with it descriptors would
    /// be for the wrong time.
    #[error("this machine's clock is off by more than half an hour")]
    ClockOff,
}

/// The signs of isolation seen so far.
#[derive(Debug)]
pub(super) struct Isolation {
    /// The random number in this process's heartbeats.
    instance: u64,
    /// When this process started, in seconds since the Unix epoch; `None` before the first event.
    began: Option<u64>,
    shut_out: bool,
    clock_off: bool,
    /// Number of revocations that the newest discovery key counts.
    counted: u32,
    /// When this node began to know fewer than that; `None` if it knows enough.
    lacking: Option<Duration>,
    /// When the first heartbeat of another process arrived, and its date.
    suspected: Option<(Now, u64)>,
    /// When a second running process was proven.
    proven: Option<Duration>,
}

impl Isolation {
    pub(super) fn new(instance: u64) -> Self {
        Self {
            instance,
            began: None,
            shut_out: false,
            clock_off: false,
            counted: 0,
            lacking: None,
            suspected: None,
            proven: None,
        }
    }

    pub(super) fn begin(&mut self, now: Now) {
        self.began = Some(now.unix);
    }

    pub(super) fn set_shut_out(&mut self, shut_out: bool) {
        self.shut_out = shut_out;
    }

    pub(super) fn set_clock_off(&mut self, clock_off: bool) {
        self.clock_off = clock_off;
    }

    pub(super) fn set_counted(&mut self, counted: u32) {
        self.counted = counted;
    }

    /// Updates the signs with the number of revocations known now.
    pub(super) fn compare(&mut self, known: usize, now: Now) {
        let lacks = (known as u64) < u64::from(self.counted);
        self.lacking = if lacks { self.lacking.or(Some(now.mono)) } else { None };
        let lasts = |since: Now| self.proven.is_some() || now.mono < since.mono + SUSPICION_TIMEOUT;
        self.suspected = self.suspected.filter(|(since, _)| lasts(*since));
    }

    /// Processes a heartbeat signed with this node's key; `ahead`: its sequence number is above all
    /// that this process has used. It is from another process if its random number differs, or if
    /// it is `ahead` (a machine that was cloned while it ran keeps the random number). A first such
    /// heartbeat is a suspicion. A later one proves that the other process still runs, if it is
    /// dated after the first one arrived, and if the two are at least `PROOF_SPAN` apart both by
    /// date and by arrival.
    pub(super) fn on_own_heartbeat(&mut self, beat: &Heartbeat, ahead: bool, now: Now) {
        let since_began = self.began.is_some_and(|began| beat.unix >= began + START_MARGIN);
        let foreign = beat.instance != self.instance || ahead;
        if !foreign || !since_began || beat.unix.abs_diff(now.unix) > MAX_CLOCK_DISTANCE {
            return;
        }
        let (first, dated) = *self.suspected.get_or_insert((now, beat.unix));
        let span = now.mono.saturating_sub(first.mono) >= Duration::from_secs(PROOF_SPAN);
        if span && beat.unix >= dated + PROOF_SPAN && beat.unix > first.unix {
            self.proven.get_or_insert(now.mono);
        }
    }

    /// Whether a heartbeat of another process has arrived lately.
    pub(super) fn is_suspected(&self) -> bool {
        self.suspected.is_some()
    }

    /// Whether this process must stop, because another one runs with its key and has had time to
    /// notice it.
    pub(super) fn must_end(&self, mono: Duration) -> bool {
        self.proven.is_some_and(|since| mono >= since + EXIT_DELAY)
    }

    /// Why this node is isolated now; `None` if it is not. If there is no other publisher, rejected
    /// keys and missing revocations prove nothing: only publishers evict and rotate keys, so a
    /// worker that rejects this node's keys must not stop the only publisher.
    pub(super) fn reason(&self, known: usize, others_publish: bool, mono: Duration) -> Option<Isolated> {
        let lacks = self.lacking.is_some_and(|since| (since + REVOCATION_DELAY..since + LACK_TIMEOUT).contains(&mono));
        if self.suspected.is_some() {
            Some(Isolated::SecondProcess)
        } else if self.clock_off {
            Some(Isolated::ClockOff)
        } else if self.shut_out && others_publish {
            Some(Isolated::ShutOut)
        } else if lacks && others_publish {
            Some(Isolated::LacksRevocations { known, counted: self.counted })
        } else {
            None
        }
    }

    /// When [`Isolation::reason`] or [`Isolation::must_end`] may change by time alone.
    pub(super) fn next_deadline(&self, mono: Duration) -> Option<Duration> {
        let lacks = self.lacking.map(|since| [since + REVOCATION_DELAY, since + LACK_TIMEOUT]);
        let suspicion = self.suspected.map(|(since, _)| since.mono + SUSPICION_TIMEOUT);
        let end = self.proven.map(|since| since + EXIT_DELAY);
        lacks.into_iter().flatten().chain(suspicion).chain(end).filter(|at| *at > mono).min()
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
        Heartbeat { instance, unix: FOUNDED + seconds, ..node.beat(seconds, Phase::Active) }
    }

    fn started() -> Isolation {
        let mut isolation = Isolation::new(1);
        isolation.begin(at(0));
        isolation
    }

    #[test]
    fn a_second_process_that_continues_to_send_heartbeats_is_proven() {
        for instance in [1, 2] {
            let (mut isolation, ahead) = (started(), instance == 1);
            isolation.on_own_heartbeat(&beat(1, 10), false, at(10));
            assert_eq!(isolation.reason(0, false, at(10).mono), None, "its own");
            for seconds in [10, 12, 14, 16, 18] {
                isolation.on_own_heartbeat(&beat(instance, seconds), ahead, at(seconds + 2));
                assert_eq!(isolation.reason(0, false, at(20).mono), Some(Isolated::SecondProcess));
            }
            assert_eq!(isolation.proven, Some(at(20).mono));
            assert!(!isolation.must_end(at(34).mono), "the other process must hear this one");
            assert_eq!(isolation.next_deadline(at(34).mono), Some(at(35).mono));
            assert!(isolation.must_end(at(35).mono));
        }
    }

    #[test]
    fn heartbeats_of_an_earlier_process_prove_no_second_process() {
        let mut isolation = started();
        // From the previous process of this node, delivered late.
        isolation.on_own_heartbeat(&beat(2, 0), true, at(30));
        isolation.on_own_heartbeat(&beat(2, 1), true, at(30));
        // From an earlier process whose clock was an hour ahead, replayed for a minute.
        for seconds in 0..60 {
            isolation.on_own_heartbeat(&beat(2, 3600 + seconds), true, at(seconds));
        }
        assert_eq!(isolation.reason(0, false, at(60).mono), None);
        // The last heartbeats of an earlier process whose clock was a minute ahead, some delivered
        // late.
        for (seconds, arrives) in [(60, 1), (62, 1), (64, 20), (66, 40)] {
            isolation.on_own_heartbeat(&beat(2, seconds), true, at(arrives));
        }
        assert_eq!(isolation.proven, None);
    }

    #[test]
    fn a_suspicion_of_a_second_process_ends_without_further_heartbeats() {
        let mut isolation = started();
        isolation.on_own_heartbeat(&beat(2, 10), false, at(10));
        isolation.compare(0, at(129));
        assert!(isolation.reason(0, false, at(129).mono).is_some());
        assert_eq!(isolation.next_deadline(at(129).mono), Some(at(130).mono));
        isolation.compare(0, at(130));
        assert_eq!(isolation.reason(0, false, at(130).mono), None);
    }

    #[test]
    fn a_node_whose_clock_is_off_is_isolated_even_if_it_is_the_only_publisher() {
        let mut isolation = started();
        isolation.set_clock_off(true);
        assert_eq!(isolation.reason(0, false, at(1).mono), Some(Isolated::ClockOff));
        isolation.set_clock_off(false);
        assert_eq!(isolation.reason(0, false, at(2).mono), None);
    }

    #[test]
    fn a_node_without_the_revocations_that_its_key_counts_is_isolated_after_a_delay() {
        let mut isolation = started();
        isolation.set_counted(2);
        isolation.compare(1, at(10));
        assert_eq!(isolation.reason(1, true, at(14).mono), None);
        let lacks = Some(Isolated::LacksRevocations { known: 1, counted: 2 });
        assert_eq!(isolation.reason(1, true, at(15).mono), lacks);
        assert_eq!(isolation.reason(1, false, at(15).mono), None, "only publishers revoke");
        assert_eq!(isolation.reason(1, true, at(190).mono), None, "the revocations do not exist");
        isolation.compare(2, at(16));
        assert_eq!(isolation.reason(2, true, at(99).mono), None);
    }
}
