//! Hides outages of single nodes from observers of the descriptor.
//!
//! An observer that knows the address and fetches its descriptor twice a minute sees which
//! introduction points appear and disappear together, and thus when each machine is down. With
//! `hide_outages` the points of a silent node stay published for a random time, while publishers
//! stand in at them. The points of a node that was evicted or has said goodbye leave at once: an
//! evicted node must no longer be named, and a leaving node may stay away.

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

/// Shortest and longest time from a node's last heartbeat until its points leave the descriptor.
pub const HIDDEN_TIME: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(3600));

/// The secret from which these times are drawn. All publishers have it, so they draw the same
/// times; no other node has it, so no observer can predict them.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct OutageSecret([u8; 32]);

impl OutageSecret {
    /// The secret with these bytes, which only publishers may know.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Time for which the points of `node` stay after its last heartbeat. `heard` is the sequence
    /// number of that heartbeat, so each outage has its own time and all publishers draw the same
    /// one.
    fn hidden_for(&self, node: NodeId, heard: u64) -> Duration {
        let digest = labelled(Label::HiddenOutage, &[&self.0, node.public_key(), &heard.to_be_bytes()]);
        let bits = digest.iter().take(4).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        let span = (HIDDEN_TIME.1 - HIDDEN_TIME.0).as_millis() as u64;
        HIDDEN_TIME.0 + Duration::from_millis((bits * span) >> 32)
    }
}

impl fmt::Debug for OutageSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OutageSecret(redacted)")
    }
}

/// The points of silent nodes that stay in the descriptor.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// By node, the points that were chosen before and at which a healthy publisher stands in.
    pub points: BTreeMap<NodeId, Vec<IntroPoint>>,
    /// Monotonic time at which the first of these nodes leaves the descriptor; `None` if none is
    /// hidden.
    pub until: Option<Duration>,
}

/// The points in `before` that stay published for this service although their nodes are silent.
pub fn hidden(view: &View, service: &ServiceId, secret: &OutageSecret, before: &Choice, mono: Duration) -> Hidden {
    let chosen: BTreeSet<FixedBytes<32>> = before.points.iter().map(|(_, point)| point.session_key).collect();
    let mut hidden = Hidden::default();
    for unattended in
        stand_in::points_stood_in_for(view, mono).into_iter().filter(|unattended| unattended.service == *service)
    {
        let point = unattended.served.point;
        let leaves = view.member(&unattended.node).and_then(|node| leaves_at(node, secret));
        let Some(leaves) = leaves.filter(|at| *at > mono && chosen.contains(&point.session_key)) else { continue };
        hidden.points.entry(unattended.node).or_default().push(point);
        hidden.until = Some(hidden.until.map_or(leaves, |until| until.min(leaves)));
    }
    hidden
}

/// Monotonic time at which a silent member's points leave; `None` if it is alive, joining, or has
/// said goodbye.
fn leaves_at(node: &MemberView, secret: &OutageSecret) -> Option<Duration> {
    let beat = node.heartbeat().filter(|_| !node.alive)?;
    let serving = !matches!(node.phase(), Phase::Gone | Phase::Joining);
    serving.then_some(node.last_heard? + secret.hidden_for(node.node(), beat.seq))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_times_are_spread_over_the_whole_span_and_differ_by_node_outage_and_cluster() {
        let (least, most) = HIDDEN_TIME;
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
