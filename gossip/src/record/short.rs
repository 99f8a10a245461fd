//! A heartbeat's record without what its reader knows.
//!
//! Every heartbeat of every node crosses a link to every other node, so its size decides what a
//! large cluster costs at rest. The reader of a push knows the cluster and the node; field names
//! and lengths are the same in every record.

use super::{Heartbeat, Phase};
use crate::id::{ClusterId, NodeId};
use crate::signed::Unverified;

/// The parts of a heartbeat's record that differ from one to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShortHeartbeat {
    /// As in the record, [`Heartbeat::seq`].
    pub seq: u64,
    /// As in the record, [`Heartbeat::phase`].
    pub phase: Phase,
    /// As in the record, [`Heartbeat::hears`].
    pub hears: u16,
    /// As in the record, [`Heartbeat::unix`].
    pub unix: u64,
    /// As in the record, [`Heartbeat::instance`].
    pub instance: u64,
    /// The signature of the record.
    pub signature: [u8; 64],
}

impl ShortHeartbeat {
    /// The short form of a record of this node; `None` if the record cannot be restored from it
    /// byte for byte, such as one with a field of a later version. The signature is not checked.
    pub fn of(record: &[u8], cluster: ClusterId, node: NodeId) -> Option<Self> {
        let (heartbeat, signature) = Unverified::<Heartbeat>::from_bytes(record).ok()?.unchecked().ok()?;
        let Heartbeat { seq, phase, hears, unix, instance, .. } = heartbeat;
        let short = Self { seq, phase, hears, unix, instance, signature };
        (short.record(cluster, node)? == record).then_some(short)
    }

    /// The record of this node; `None` if it cannot be encoded, which does not happen.
    pub fn record(&self, cluster: ClusterId, node: NodeId) -> Option<Vec<u8>> {
        let Self { seq, phase, hears, unix, instance, signature } = *self;
        let heartbeat = Heartbeat { cluster, node, seq, phase, hears, unix, instance };
        Unverified::assemble(&heartbeat, node.public_key(), &signature).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Lease, Role};
    use crate::signed::Verified;
    use crate::sim::Founder;

    #[test]
    fn a_heartbeat_is_restored_from_its_short_form_and_its_signature_holds() {
        let own = Founder::new(1).node(0, Role::Publisher);
        for phase in [Phase::Joining, Phase::Active, Phase::Draining, Phase::Gone] {
            let heartbeat = Heartbeat { hears: 199, instance: u64::MAX, ..own.beat(7 << 32 | 9, phase) };
            let record = Verified::sign(heartbeat.clone(), &own.key).unwrap().to_bytes().unwrap();
            let short = ShortHeartbeat::of(&record, own.cluster(), own.node()).unwrap();
            let restored = short.record(own.cluster(), own.node()).unwrap();
            let verified = Unverified::<Heartbeat>::from_bytes(&restored).unwrap().verify(own.node().public_key());
            assert_eq!(*verified.unwrap(), heartbeat);
        }
    }

    #[test]
    fn what_is_not_exactly_a_heartbeat_of_the_node_has_no_short_form() {
        let founder = Founder::new(1);
        let (own, other) = (founder.node(0, Role::Publisher), founder.node(1, Role::Worker));
        let record = Verified::sign(own.beat(9, Phase::Active), &own.key).unwrap().to_bytes().unwrap();
        let short = |record: &[u8], node| ShortHeartbeat::of(record, own.cluster(), node);
        assert!(short(&record, own.node()).is_some());
        assert_eq!(short(&record, other.node()), None);
        assert_eq!(short(&record[..record.len() - 1], own.node()), None);
        assert_eq!(short(&[&record[..], &[0]].concat(), own.node()), None);
        let foreign = Verified::sign(own.beat(9, Phase::Active), &other.key).unwrap().to_bytes().unwrap();
        assert_eq!(short(&foreign, own.node()), None, "signed by another node");
        let lease = Lease { cluster: own.cluster(), holder: own.node(), seq: 9, term: 1, priority: 1, ttl_ms: 1 };
        let lease = Verified::sign(lease, &own.key).unwrap().to_bytes().unwrap();
        assert_eq!(short(&lease, own.node()), None);
    }
}
