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
/// How long a node that lacks revocations keeps still: neighbours compare theirs every minute. Then
/// there are none to be had, because a hostile publisher has made the key, and a cluster that does
/// not publish is worse.
const LACKING: Duration = Duration::from_secs(180);
/// How long one heartbeat of another process keeps this node still if none follows.
const SUSPICION: Duration = Duration::from_secs(120);
/// How long a process goes on beating once a second one is proven: that one, too, shall have heard
/// enough to end.
const LINGERING: Duration = Duration::from_secs(15);
/// Seconds for which a second process must be heard, and by which the dates of its heartbeats must
/// have risen meanwhile: the last heartbeats of a process that has ended are closer together,
/// however late they come.
const SPAN: u64 = 8;
/// Largest distance from this machine's clock, in seconds, of a heartbeat that shows a second
/// process: one that is further may be a replay of an earlier process whose clock was ahead.
const FRESH: u64 = 120;
/// Seconds after this process's start from which on no earlier one can have made a heartbeat: dates
/// are whole seconds.
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
    /// When the first heartbeat of another process came, and its date.
    suspected: Option<(Now, u64)>,
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
        let lasts = |since: Now| self.proven.is_some() || now.mono < since.mono + SUSPICION;
        self.suspected = self.suspected.filter(|(since, _)| lasts(*since));
    }

    /// Takes in a heartbeat that this node's key has signed; `ahead` if its number is above all
    /// that this process has used. It was made by another process if it has another process's
    /// number, or one that this process has not used: a machine that was cloned while it ran keeps
    /// the random number. It proves that the other one still runs if it was made after a first one
    /// had come here, and the dates of both are as far apart as their arrivals.
    pub(super) fn hear_own(&mut self, beat: &Heartbeat, ahead: bool, now: Now) {
        let since_began = self.began.is_some_and(|began| beat.unix >= began + LATER);
        let foreign = beat.instance != self.instance || ahead;
        if !foreign || !since_began || beat.unix.abs_diff(now.unix) > FRESH {
            return;
        }
        let (first, dated) = *self.suspected.get_or_insert((now, beat.unix));
        let span = now.mono.saturating_sub(first.mono) >= Duration::from_secs(SPAN);
        if span && beat.unix >= dated + SPAN && beat.unix > first.unix {
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
        let lacks = self.lacking.is_some_and(|since| (since + FOLLOWING..since + LACKING).contains(&mono));
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
        let lacks = self.lacking.map(|since| [since + FOLLOWING, since + LACKING]);
        let suspicion = self.suspected.map(|(since, _)| since.mono + SUSPICION);
        let end = self.proven.map(|since| since + LINGERING);
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
    fn a_process_that_goes_on_after_it_was_first_heard_is_proven() {
        for instance in [1, 2] {
            let (mut isolation, ahead) = (started(), instance == 1);
            isolation.hear_own(&beat(1, 10), false, at(10));
            assert_eq!(isolation.reason(0, false, at(10).mono), None, "its own");
            for seconds in [10, 12, 14, 16, 18] {
                isolation.hear_own(&beat(instance, seconds), ahead, at(seconds + 2));
                assert_eq!(isolation.reason(0, false, at(20).mono), Some(Isolated::SecondProcess));
            }
            assert_eq!(isolation.proven, Some(at(20).mono));
            assert!(!isolation.must_end(at(34).mono), "the other has to hear of this one");
            assert_eq!(isolation.next_deadline(at(34).mono), Some(at(35).mono));
            assert!(isolation.must_end(at(35).mono));
        }
    }

    #[test]
    fn what_an_earlier_process_has_said_proves_nothing() {
        let mut isolation = started();
        // Said by the process before, and brought late.
        isolation.hear_own(&beat(2, 0), true, at(30));
        isolation.hear_own(&beat(2, 1), true, at(30));
        // Said by one whose clock was ahead by an hour, and replayed for as long.
        for seconds in 0..60 {
            isolation.hear_own(&beat(2, 3600 + seconds), true, at(seconds));
        }
        assert_eq!(isolation.reason(0, false, at(60).mono), None);
        // Its last ones, said by one whose clock was ahead by a minute, some of them brought late.
        for (seconds, arrives) in [(60, 1), (62, 1), (64, 20), (66, 40)] {
            isolation.hear_own(&beat(2, seconds), true, at(arrives));
        }
        assert_eq!(isolation.proven, None);
    }

    #[test]
    fn a_suspicion_ends_if_nothing_follows() {
        let mut isolation = started();
        isolation.hear_own(&beat(2, 10), false, at(10));
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
        assert_eq!(isolation.reason(1, true, at(190).mono), None, "there are none to be had");
        isolation.compare(2, at(16));
        assert_eq!(isolation.reason(2, true, at(99).mono), None);
    }
}
