//! Outages of single nodes, kept from those who watch the descriptor.
//!
//! Whoever knows the address and fetches its descriptor twice a minute sees which introduction
//! points go and come together, and so when each machine is down. With `hide_outages` the points of
//! a silent node stay for a time drawn at random, while publishers stand in at them. A node that
//! was evicted or has said goodbye leaves at once: the one must not be named any longer, and the
//! other closes its points before any publisher stands in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::bytes::FixedBytes;
use crate::hash::{Label, labelled};
use crate::id::{NodeId, ServiceId};
use crate::plan::Choice;
use crate::record::{IntroPoint, Phase};
use crate::stand_in;
use crate::view::{MemberView, View};

/// The shortest and the longest time from the last sign of life of a node until its points leave.
pub const HIDDEN: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(3600));

/// What the times are drawn with. The publishers share it, so that they agree, and no one else has
/// it.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct OutageSecret([u8; 32]);

impl OutageSecret {
    /// A secret from these bytes, which only the publishers know.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// For how long after its last sign of life the points of `node` stay; `heard` is the sequence
    /// number of that heartbeat, so that each outage has a time of its own and every publisher
    /// draws the same.
    fn hidden_for(&self, node: NodeId, heard: u64) -> Duration {
        let digest = labelled(Label::HiddenOutage, &[&self.0, node.public_key(), &heard.to_be_bytes()]);
        let bits = digest.iter().take(4).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        let span = (HIDDEN.1 - HIDDEN.0).as_millis() as u64;
        HIDDEN.0 + Duration::from_millis((bits * span) >> 32)
    }
}

impl fmt::Debug for OutageSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OutageSecret(redacted)")
    }
}

/// What stays of the nodes that are silent.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// The points, of those chosen before, at which a healthy publisher stands in.
    pub points: BTreeMap<NodeId, Vec<IntroPoint>>,
    /// When the first of these nodes leaves, on the monotonic clock; `None` if none is hidden.
    pub until: Option<Duration>,
}

/// The points of this service that stay though their nodes are silent, of those in `before`.
pub fn hidden(view: &View, service: &ServiceId, secret: &OutageSecret, before: &Choice, mono: Duration) -> Hidden {
    let chosen: BTreeSet<FixedBytes<32>> = before.points.iter().map(|(_, point)| point.session_key).collect();
    let mut hidden = Hidden::default();
    for orphan in stand_in::covered(view, mono).into_iter().filter(|orphan| orphan.service == *service) {
        let point = orphan.served.point;
        let leaves = view.member(&orphan.node).and_then(|node| leaves_at(node, secret));
        let Some(leaves) = leaves.filter(|at| *at > mono && chosen.contains(&point.session_key)) else { continue };
        hidden.points.entry(orphan.node).or_default().push(point);
        hidden.until = Some(hidden.until.map_or(leaves, |until| until.min(leaves)));
    }
    hidden
}

/// When a silent member's points leave; `None` if it is not silent, or has said goodbye.
fn leaves_at(node: &MemberView, secret: &OutageSecret) -> Option<Duration> {
    let beat = node.heartbeat().filter(|_| !node.alive)?;
    let serving = !matches!(node.phase(), Phase::Gone | Phase::Joining);
    serving.then_some(node.last_heard? + secret.hidden_for(node.node(), beat.seq))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_spread_over_the_whole_span_and_differ_by_node_outage_and_cluster() {
        let (least, most) = HIDDEN;
        let node = |n| NodeId::from_public_key([n; 32]);
        let secret = OutageSecret::from_bytes([7; 32]);
        let drawn: BTreeSet<_> = (0..200)
            .flat_map(|n| (0..10).map(move |seq| (n, seq)))
            .map(|(n, seq)| secret.hidden_for(node(n), seq))
            .collect();
        assert_eq!(drawn.len(), 2000, "no two alike, to the millisecond");
        assert!(drawn.iter().all(|time| (least..most).contains(time)));
        let quarter = (most - least) / 4;
        for n in 0..4 {
            let within = drawn.range(least + quarter * n..least + quarter * (n + 1)).count();
            assert!((400..600).contains(&within), "{within} of 2000 in quarter {n}");
        }
        assert_eq!(secret.hidden_for(node(1), 5), OutageSecret::from_bytes([7; 32]).hidden_for(node(1), 5));
        assert_ne!(secret.hidden_for(node(1), 5), OutageSecret::from_bytes([8; 32]).hidden_for(node(1), 5));
        assert_eq!(format!("{secret:?}"), "OutageSecret(redacted)");
    }
}
