//! Signs this node's own records under rising sequence numbers, and schedules their announcement.

use std::time::Duration;

use crate::id::NodeId;
use crate::record::Phase;
use crate::signed::{Sign, Statement, Verified};

/// Minimum interval between two full re-announcements triggered by receiving our own record with a
/// higher sequence number.
const REANNOUNCE_PAUSE: Duration = Duration::from_secs(10);
/// Interval at which slow-changing records are signed again under a new sequence number. A hostile
/// member can convince a peer that it already has our latest version; the peer then stops asking,
/// and recovers only when a new one appears.
const REPEAT: Duration = Duration::from_secs(300);
/// Number of heartbeats after the start that come at the interval of a small cluster. A node is
/// alive for others from its second one on, and the first ones may be lost: no other node has
/// subscribed to them yet.
const FIRST_HEARTBEATS: u32 = 5;
/// A record of our own that comes back with this sequence number or a higher one is ignored, so
/// that higher numbers always remain for new records.
const MAX_SEQ: u64 = 1 << 62;

/// Signs the node's records, each with a higher sequence number than all before.
pub(super) struct Speaker {
    key: Box<dyn Sign + Send + Sync>,
    node: NodeId,
    next: u64,
}

impl Speaker {
    /// A speaker with the sequence numbers of the `boot`th start.
    pub(super) fn new(key: Box<dyn Sign + Send + Sync>, boot: u64) -> Self {
        let node = NodeId::from_public_key(key.public_key());
        Self { key, node, next: boot.min(MAX_SEQ >> 32) << 32 | 1 }
    }

    /// Signs the record that `record` builds from a new sequence number. `None` only if it cannot
    /// be encoded, which does not happen to a record within its bounds.
    pub(super) fn sign<T: Statement>(&mut self, record: impl FnOnce(u64) -> T) -> Option<(Verified<T>, Vec<u8>)> {
        let seq = self.next;
        self.next += 1;
        let signed = Verified::sign(record(seq), &*self.key).and_then(|record| Ok((record.to_bytes()?, record)));
        match signed {
            Ok((bytes, record)) => Some((record, bytes)),
            Err(error) => {
                tracing::error!(
                    name: "own_record_encode_failed",
                    node = %self.node, %error,
                    "cannot encode a record of our own"
                );
                None
            }
        }
    }

    /// True if a sequence number is above all that this process has used, and not so high that it
    /// is ignored.
    pub(super) fn is_ahead(&self, seq: u64) -> bool {
        seq >= self.next && seq < MAX_SEQ
    }

    /// Processes the sequence number of a record of ours that came back. Returns true if this
    /// process did not make it: then the disk is older than the last announcements, or another
    /// process has our key. All records must then be announced again under higher numbers.
    pub(super) fn adopt_seq(&mut self, seq: u64) -> bool {
        let ahead = self.is_ahead(seq);
        if ahead {
            self.next = seq + 1;
        }
        ahead
    }
}

/// The records that are to be announced now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct DueRecords {
    /// The lease, held or given up.
    pub(super) lease: bool,
    /// The card, intro points and publications.
    pub(super) slow: bool,
    /// The heartbeat.
    pub(super) heartbeat: bool,
}

/// Schedules the repetition of records that have not changed. Changed records are announced at once
/// and not scheduled here.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    next_heartbeat: Duration,
    /// Number of heartbeats announced, up to [`FIRST_HEARTBEATS`].
    heartbeats: u32,
    /// The phase in the last heartbeat.
    phase: Option<Phase>,
    repeat_at: Duration,
    /// When all records were last re-announced, and when they are to be next.
    reannounced: Option<Duration>,
    reannounce_at: Option<Duration>,
}

impl Announcements {
    /// To be called at the first event.
    pub(super) fn begin(&mut self, mono: Duration) {
        self.next_heartbeat = mono;
        self.repeat_at = mono + REPEAT;
    }

    /// To be called when a record of ours came back that this process did not make: schedules a
    /// full re-announcement.
    pub(super) fn schedule_reannouncement(&mut self, mono: Duration) {
        let rested = self.reannounced.map_or(mono, |at| (at + REANNOUNCE_PAUSE).max(mono));
        self.reannounce_at = self.reannounce_at.or(Some(rested));
    }

    /// True once the goodbye has been announced.
    pub(super) fn has_said_goodbye(&self) -> bool {
        self.phase == Some(Phase::Gone)
    }

    /// True until the first heartbeats have been announced, which come at a shorter interval.
    pub(super) fn begins(&self) -> bool {
        self.heartbeats < FIRST_HEARTBEATS
    }

    /// True if the next heartbeat is due by time.
    pub(super) fn is_heartbeat_due(&self, mono: Duration) -> bool {
        mono >= self.next_heartbeat
    }

    /// When a record is due by time alone.
    pub(super) fn next_deadline(&self) -> Duration {
        let regular = self.next_heartbeat.min(self.repeat_at);
        self.reannounce_at.map_or(regular, |at| at.min(regular))
    }

    /// Returns what a node in this phase must announce now if it sends a heartbeat every
    /// `interval`; it counts as announced.
    pub(super) fn step(&mut self, phase: Phase, interval: Duration, mono: Duration) -> DueRecords {
        let everything = self.reannounce_at.is_some_and(|at| mono >= at);
        let slow = everything || mono >= self.repeat_at;
        let heartbeat = everything || self.is_heartbeat_due(mono) || self.phase != Some(phase);
        if everything {
            (self.reannounce_at, self.reannounced) = (None, Some(mono));
        }
        if slow {
            self.repeat_at = mono + REPEAT;
        }
        if heartbeat {
            (self.next_heartbeat, self.phase) = (mono + interval, Some(phase));
            self.heartbeats = FIRST_HEARTBEATS.min(self.heartbeats + 1);
        }
        DueRecords { lease: everything, slow, heartbeat }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Role;
    use crate::sim::Founder;

    const INTERVAL: Duration = Duration::from_secs(2);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn started() -> Announcements {
        let mut announcements = Announcements::default();
        announcements.begin(at(100));
        announcements
    }

    #[test]
    fn sequence_numbers_rise_above_those_of_the_last_start_and_of_returned_records() {
        let own = Founder::new(1).node(0, Role::Publisher);
        let mut speaker = Speaker::new(Box::new(own.key.clone()), 7);
        let mut seq = || speaker.sign(|seq| own.beat(seq, Phase::Active)).unwrap().0.seq;
        assert_eq!((seq(), seq()), (7 << 32 | 1, 7 << 32 | 2));
        assert!(!speaker.adopt_seq(7 << 32 | 2), "its own");
        assert!(speaker.adopt_seq(9 << 32));
        assert!(!speaker.adopt_seq(u64::MAX), "above what is believed");
        assert_eq!(speaker.sign(|seq| own.beat(seq, Phase::Active)).unwrap().0.seq, 9 << 32 | 1);
    }

    #[test]
    fn a_heartbeat_is_due_by_time_and_with_every_new_phase() {
        let mut announcements = started();
        let heartbeat = DueRecords { heartbeat: true, ..DueRecords::default() };
        assert_eq!(announcements.step(Phase::Joining, INTERVAL, at(100)), heartbeat);
        assert_eq!(announcements.step(Phase::Joining, INTERVAL, at(101)), DueRecords::default());
        assert_eq!(announcements.step(Phase::Active, INTERVAL, at(101)), heartbeat);
        assert_eq!(announcements.next_deadline(), at(103));
        assert_eq!(announcements.step(Phase::Gone, INTERVAL, at(102)), heartbeat);
        assert!(announcements.has_said_goodbye());
    }

    #[test]
    fn the_first_five_heartbeats_are_told_from_later_ones() {
        let mut announcements = started();
        let begins = |second: u64| {
            announcements.step(Phase::Active, INTERVAL, at(100 + second));
            announcements.begins()
        };
        assert_eq!((0..12).map(begins).filter(|begins| *begins).count(), 8, "until the fifth, after 8 s");
    }

    #[test]
    fn slow_records_are_repeated_every_five_minutes() {
        let mut announcements = started();
        let repeats = (100..=1000).filter(|second| announcements.step(Phase::Active, INTERVAL, at(*second)).slow);
        assert_eq!(repeats.collect::<Vec<_>>(), [400, 700, 1000]);
    }

    #[test]
    fn all_records_are_announced_again_at_most_every_ten_seconds() {
        let mut announcements = started();
        announcements.step(Phase::Active, INTERVAL, at(100));
        announcements.schedule_reannouncement(at(101));
        let everything = DueRecords { lease: true, slow: true, heartbeat: true };
        assert_eq!(announcements.step(Phase::Active, INTERVAL, at(101)), everything);
        announcements.schedule_reannouncement(at(102));
        announcements.schedule_reannouncement(at(103));
        assert!(!announcements.step(Phase::Active, INTERVAL, at(110)).lease);
        assert_eq!(announcements.step(Phase::Active, INTERVAL, at(111)), everything);
        assert!(!announcements.step(Phase::Active, INTERVAL, at(200)).lease);
    }
}
