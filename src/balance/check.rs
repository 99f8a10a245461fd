//! Whether an introduction point that a member announces can be its own, and can be in a
//! descriptor.
//!
//! Enter with [`point_check`], which the view calls before it accepts a member's points. A
//! publisher derives the keys that a member's points must have. So no member can announce a point
//! with another member's session key: clients count failures by that key, and would avoid the true
//! point after they failed at the copy. A worker cannot derive the keys, but publishes nothing.

use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::ServedPoint;
use rustbalance_gossip::view::PointCheck;

use crate::keys::{AuthoritySecret, PointSeed};
use crate::tor::descriptor;

/// The check that the view applies to points that members announce. With the authority key it
/// covers their keys; without it (on a worker) only whether a descriptor can hold the point.
pub fn point_check(authority: Option<AuthoritySecret>) -> PointCheck {
    Box::new(move |node: NodeId, served: &ServedPoint| {
        let given = |authority: &AuthoritySecret| {
            PointSeed::derive(authority, node).secrets(served.nonce).are_of(&served.point)
        };
        descriptor::check_point(&served.point).is_ok() && authority.as_ref().is_none_or(given)
    })
}

#[cfg(test)]
mod tests {
    use rustbalance_gossip::bytes::{FixedBytes, VarBytes};
    use rustbalance_gossip::id::ServiceId;
    use rustbalance_gossip::record::PointNonce;
    use tokio::sync::mpsc;
    use zeroize::Zeroizing;

    use super::*;
    use crate::keys::NodeSecret;
    use crate::tor::fake::FakeNet;
    use crate::tor::fake::tests::{limits, new_keys};
    use crate::tor::{Engine, IntroPointKeys, IntroRequest, RelayChoice};

    fn authority() -> AuthoritySecret {
        AuthoritySecret::from_seed(&Zeroizing::new([1; 32]))
    }

    fn node(n: u8) -> NodeId {
        NodeSecret::from_seed(&Zeroizing::new([n; 32])).node_id()
    }

    /// A point that `node(2)` has opened with keys from its own seed.
    async fn honest() -> ServedPoint {
        let (seed, nonce) = (PointSeed::derive(&authority(), node(2)), PointNonce(FixedBytes([3; 16])));
        let keys = IntroPointKeys { secrets: seed.secrets(nonce), ..new_keys() };
        let service = ServiceId::from_public_key(*node(4).public_key());
        let relay = RelayChoice::AnyBut(Default::default());
        let request = IntroRequest { service, keys, relay, limits: limits() };
        let opened = FakeNet::new(5, 12).engine().open_intro_point(request, mpsc::channel(1).0).await.unwrap();
        ServedPoint { point: opened.describe(), nonce }
    }

    #[tokio::test]
    async fn a_publisher_accepts_points_of_a_member_only_with_the_keys_of_that_member() {
        let (publisher, worker) = (point_check(Some(authority())), point_check(None));
        let honest = honest().await;
        assert!(publisher(node(2), &honest) && worker(node(2), &honest));
        let renamed = ServedPoint { nonce: PointNonce(FixedBytes([5; 16])), ..honest.clone() };
        assert!(!publisher(node(2), &renamed));
        // Another node's session key, which every member sees.
        assert!(!publisher(node(3), &honest));
    }

    #[tokio::test]
    async fn a_point_that_no_descriptor_can_hold_is_not_believed() {
        for check in [point_check(Some(authority())), point_check(None)] {
            let mut elsewhere = honest().await;
            elsewhere.point.relay.ed25519 = FixedBytes([7; 32]);
            assert!(!check(node(2), &elsewhere));
            let mut unreadable = honest().await;
            unreadable.point.link_specifiers = vec![VarBytes(vec![0; 8])];
            assert!(!check(node(2), &unreadable));
        }
    }
}
