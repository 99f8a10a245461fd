//! Every counter of a node: its name, its meaning, and its place in `status` and in the metrics.
//!
//! Code that counts holds a [`Counters`] and names a [`Counter`] where the event happens. To add a
//! counter, add a variant with its doc comment here (the variant gives the name in `status`, the
//! comment the help text), a row in the table "What is counted" of `docs/THREATS.md` (a test
//! compares the two), and the code that counts. `status` and the metrics show all counters.
//!
//! What is counted for each onion address and port is in [`ServiceCounters`].

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustbalance_gossip::id::ServiceId;
use strum::{EnumCount, EnumIter, EnumMessage, EnumProperty, EnumString, IntoEnumIterator, IntoStaticStr};

pub use alerts::{AlertCounts, AlertOutcome, AlertState};
pub use service::{Histogram, HistogramValues, OpenRendezvous, PortCounters, ServiceCounters, add_one};

mod alerts;
mod service;

/// A number that a node counts from its start: what was refused, dropped or closed, and messages of
/// this node that were not sent. `status` has it under `refused`.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    EnumCount,
    EnumIter,
    EnumMessage,
    EnumProperty,
    EnumString,
    IntoStaticStr,
)]
#[strum(serialize_all = "snake_case")]
pub enum Counter {
    /// Client streams for a virtual port without a target.
    StreamsUnknownPort,
    /// Client streams refused because all allowed ones were open and none could be closed.
    StreamsOverLimit,
    /// Client streams refused because most streams were in use and their circuit had its share.
    StreamsOverShare,
    /// Client streams closed to make room for others.
    StreamsEvicted,
    /// Client streams refused because the target could not be reached.
    StreamsTargetDown,
    /// Client streams closed because they carried nothing for the idle time.
    StreamsIdle,
    /// Client streams closed because one side stopped reading.
    StreamsStalled,
    /// Client streams refused because too many were waiting for the proxy.
    StreamsQueueFull,
    /// Client streams refused because their circuit had the most streams that one may have.
    CircuitStreamsOverLimit,
    /// Client streams refused because their circuit opened them too fast.
    CircuitStreamsOverRate,
    /// Client streams slowed down because their circuit carried too many bytes a second.
    CircuitStreamsSlowed,
    /// Client circuits closed to make room for others.
    CircuitsEvicted,
    /// Client circuits closed because too many of their streams were refused.
    CircuitsOverLimit,
    /// Client circuits closed by the operator.
    CircuitsKilled,
    /// Introductions refused as replays.
    #[strum(props(per_service = true))]
    IntroductionsReplayed,
    /// Introductions that cannot be read.
    #[strum(props(per_service = true))]
    IntroductionsMalformed,
    /// Introductions dropped because a queue or all places for circuits were full.
    IntroductionsOverLimit,
    /// Introductions given up in favour of others because their rendezvous point did not answer.
    IntroductionsGivenUp,

    /// Links refused because the peer's certificate does not make it a member of this cluster.
    LinkNotMember,
    /// Links refused because the peer was revoked.
    LinkRevoked,
    /// Links refused because the proof is not from the node that was dialled.
    LinkWrongNode,
    /// Links refused because the peer's certificate has expired.
    LinkExpired,
    /// Links refused because there are too many links.
    LinkBusy,
    /// Links refused because there is already a link with the peer.
    LinkDuplicate,
    /// Links refused because the peer speaks another protocol version.
    LinkVersion,
    /// Link handshakes that cannot be read.
    LinkMalformed,
    /// Incoming links refused because they came too fast or too many handshakes were under way.
    LinkOverRate,
    /// Incoming links whose handshake failed or was not finished in time.
    LinkUnfinished,
    /// Links ended by a frame that cannot be read or is too long.
    LinkBadFrame,
    /// Links ended because the peer stopped reading.
    LinkStuck,
    /// Discovery keys, sent by a member, that the cluster's authority has not signed.
    LinkUnsignedKey,
    /// Messages dropped because the member that sent them exceeded its rate limit.
    LinkFlood,
    /// Messages on links that only a later version of the program knows, and that were skipped.
    LinkUnknown,
    /// Messages of this node that were not sent because there was no link.
    LinkNone,
    /// Messages of this node that were not sent because too many were waiting.
    LinkDropped,
    /// Circuits to the node's own service refused or closed because there were too many.
    LinkCircuitsOverLimit,
    /// Streams to the node's own service refused because there were too many.
    LinkStreamsOverLimit,

    /// Datagrams at the WireGuard port that no peer has made, or that are replays.
    WireguardJunk,
    /// WireGuard handshakes with a key that is not a peer's.
    WireguardUnknownKey,
    /// WireGuard handshakes refused because too many came.
    WireguardOverRate,
    /// Packets through the tunnel that are not for links, or not from the peer's own address.
    WireguardForbidden,
    /// Streams through the tunnel refused because there were too many.
    WireguardStreamsOverLimit,

    /// Joiners that came while there was no invitation.
    JoinClosed,
    /// Joiners turned away because too many were there at once.
    JoinOverLimit,
    /// Joiners that went away or fell silent.
    JoinUnfinished,
    /// Joiners with a token that is not known.
    JoinUnknownToken,
    /// Joiners with a token that has expired.
    JoinExpired,
    /// Joiners with a token that has no use left.
    JoinUsedUp,
    /// Joiners with a token that was revoked.
    JoinRevokedToken,
    /// Joiners that want to join another address.
    JoinOtherCluster,
    /// Joiners whose clock is off.
    JoinClockSkew,
    /// Joiners that were forwarded to a node that is not a publisher.
    JoinNotPublisher,
    /// Joiners for which no publisher could be reached.
    JoinNoPublisher,
    /// Joiners that joined before, with another token.
    JoinAlreadyMember,
    /// Joiners that were evicted.
    JoinEvicted,
    /// Joiners that speak another protocol version.
    JoinVersion,
    /// Joiners refused because the publisher was busy with other joins.
    JoinBusy,
    /// Joiners refused because this publisher has not heard from the others since it started.
    JoinNotYet,
    /// Joiners refused because another publisher is silent.
    JoinPublisherSilent,
    /// Joiners whose admission could not be stored.
    JoinFailed,
    /// Joiners whose messages cannot be read.
    JoinMalformed,

    /// Gossip that cannot be read or is more than a peer may send.
    GossipMalformed,
    /// Mentions of unknown nodes beyond the number that is kept.
    GossipUnknownNodes,
    /// Gossip about one incarnation of a node beyond its quota.
    GossipOverQuota,
    /// Spoofed versions: claims that this node has announced more than it has.
    GossipSpoofed,
    /// Restarts of this node's gossip, mostly because of spoofed versions.
    GossipRestarts,

    /// Records that cannot be read.
    RecordUnreadable,
    /// Records that speak for another node than their signer.
    RecordOrigin,
    /// Records with a bad signature.
    RecordSignature,
    /// Records whose signer's card has not been received yet.
    RecordUnknown,
    /// Records of nodes whose certificates do not make them members.
    RecordChain,
    /// Records of nodes whose certificate has expired.
    RecordExpired,
    /// Records of revoked nodes.
    RecordRevoked,
    /// Records of nodes that joined with a token that others had already used up.
    RecordOverdrawn,
    /// Facts that are not signed by the cluster's authority.
    RecordAuthority,
    /// Records of another cluster.
    RecordCluster,
    /// Records with a sequence number that is not higher than the known one.
    RecordStale,
    /// Records with a sequence number, term or revision too far ahead.
    RecordJump,
    /// Cards with a mesh address that is not the node's.
    RecordAddress,
    /// Leases and publications of nodes that may not publish.
    RecordRole,
    /// Records with a field out of its bounds.
    RecordBounds,
    /// Introduction points that cannot be the node's.
    RecordPoints,
    /// Records beyond the number of nodes and facts that are kept.
    RecordTooMany,
    /// Heartbeats from too long ago.
    RecordOld,
    /// Records of this node that others sent back to it.
    RecordOwn,
}

impl Counter {
    /// All counters, in the order of their declaration.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::iter()
    }

    /// The counter with this name in `status`; `None` if there is none.
    pub fn named(name: &str) -> Option<Self> {
        Self::from_str(name).ok()
    }

    /// Its name in `status`.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Its meaning, in one sentence.
    pub fn help(self) -> &'static str {
        self.get_documentation().unwrap_or_default()
    }

    /// Its Prometheus name; `None` for the sum of a count that the metrics have for each service.
    pub fn metric(self) -> Option<String> {
        let per_service = self.get_bool("per_service").unwrap_or_default();
        (!per_service).then(|| format!("rustbalance_{}_total", self.name()))
    }
}

/// The values of all counters; a clone is a second handle on the same.
#[derive(Debug, Clone, Default)]
pub struct Counters(Arc<Values>);

#[derive(Debug)]
struct Values {
    cells: [AtomicU64; Counter::COUNT],
    services: Mutex<BTreeMap<ServiceId, Arc<ServiceCounters>>>,
    alerts: AlertCounts,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            cells: [const { AtomicU64::new(0) }; Counter::COUNT],
            services: Mutex::default(),
            alerts: AlertCounts::default(),
        }
    }
}

impl Counters {
    fn cell(&self, counter: Counter) -> &AtomicU64 {
        // The array has one element per variant.
        &self.0.cells[counter as usize]
    }

    /// Adds one.
    pub fn count(&self, counter: Counter) {
        add_one(self.cell(counter));
    }

    /// The current value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.cell(counter).load(Ordering::Relaxed)
    }

    /// Overwrites it with a value that is counted elsewhere.
    pub fn set(&self, counter: Counter, value: u64) {
        self.cell(counter).store(value, Ordering::Relaxed);
    }

    /// The counts of an onion address that this node serves. They stay when it is no longer served.
    pub fn service(&self, service: ServiceId) -> Arc<ServiceCounters> {
        Arc::clone(self.0.services.lock().entry(service).or_default())
    }

    /// The counts of alerts.
    pub fn alerts(&self) -> &AlertCounts {
        &self.0.alerts
    }

    /// The counts of all onion addresses.
    pub fn services(&self) -> Vec<(ServiceId, Arc<ServiceCounters>)> {
        self.0.services.lock().iter().map(|(service, counters)| (*service, Arc::clone(counters))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rustbalance_gossip::view::RecordRejection;

    use super::*;

    /// The names in the first column of a row. After a whole name, `_rest` abbreviates a name that
    /// begins with the same part up to its first underscore.
    fn named(row: &str) -> Vec<String> {
        let cell = row.split('|').nth(1).unwrap_or_default();
        let mut names: Vec<String> = Vec::new();
        for name in cell.split('`').skip(1).step_by(2) {
            let first = names.first().and_then(|first| first.split('_').next()).unwrap_or_default();
            names.push(if name.starts_with('_') { format!("{first}{name}") } else { name.to_owned() });
        }
        names
    }

    #[test]
    fn the_table_of_what_is_counted_names_every_counter_once() {
        let text = include_str!("../docs/THREATS.md");
        let section = text.split("\n## What is counted\n").nth(1).unwrap().split("\n## ").next().unwrap();
        let mut documented: Vec<_> = section.lines().filter(|line| line.starts_with("| `")).flat_map(named).collect();
        let mut registered: Vec<_> = Counter::all().map(|counter| counter.name().to_owned()).collect();
        documented.sort();
        registered.sort();
        assert_eq!(documented, registered);
    }

    #[test]
    fn every_counter_has_a_name_and_a_sentence() {
        for counter in Counter::all() {
            assert!(counter.help().ends_with('.') && !counter.help().contains('\n'), "{counter:?}: {}", counter.help());
            assert_eq!(Counter::named(counter.name()), Some(counter));
        }
    }

    #[test]
    fn every_reason_to_refuse_a_record_has_a_counter() {
        let names: BTreeSet<_> = RecordRejection::names().iter().map(|reason| format!("record_{reason}")).collect();
        let counters = Counter::all().map(|counter| counter.name().to_owned());
        assert_eq!(names, counters.filter(|name| name.starts_with("record_")).collect());
    }

    #[test]
    fn a_clone_counts_in_the_same_place() {
        let counters = Counters::default();
        counters.clone().count(Counter::LinkOverRate);
        assert_eq!((counters.get(Counter::LinkOverRate), counters.get(Counter::LinkFlood)), (1, 0));
    }
}
