//! Conversions between our key types and Arti's.

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::id::OnionAddress;
use rustbalance_gossip::record::RelayId;
use tor_hscrypto::pk::{
    HsClientDescEncKey, HsClientDescEncSecretKey, HsId, HsIdKeypair, HsIntroPtSessionIdKeypair, HsSvcNtorKeypair,
};
use tor_linkspec::{HasRelayIds, RelayIds, RelayIdsBuilder};
use tor_llcrypto::pk::{curve25519, ed25519, rsa};

use crate::keys::{DiscoveryPublic, DiscoverySecret, IntroPointSecrets, NodeSecret};

/// `KP_hs_id` and `KS_hs_id` of the node's own onion service.
pub(super) fn node_keypair(secret: &NodeSecret) -> HsIdKeypair {
    let pair = ed25519::Keypair::from_bytes(secret.seed());
    ed25519::ExpandedKeypair::from(&pair).into()
}

/// Arti's type for an onion address.
pub(super) fn service_id(address: OnionAddress) -> HsId {
    HsId::from(*address.public_key())
}

/// The session key of an introduction point, `KS_hs_ipt_sid`.
pub(super) fn session_keypair(secrets: &IntroPointSecrets) -> HsIntroPtSessionIdKeypair {
    ed25519::Keypair::from_bytes(&secrets.session).into()
}

/// The encryption key of an introduction point, `KS_hss_ntor`.
pub(super) fn encryption_keypair(secrets: &IntroPointSecrets) -> HsSvcNtorKeypair {
    let secret = curve25519::StaticSecret::from(secrets.encryption);
    let public = curve25519::PublicKey::from(&secret);
    curve25519::StaticKeypair { secret, public }.into()
}

/// The secret discovery key of a client, `KS_hsc_desc_enc`.
pub(super) fn discovery_secret(secret: &DiscoverySecret) -> HsClientDescEncSecretKey {
    curve25519::StaticSecret::from(*secret.as_bytes()).into()
}

/// The public discovery key of a client, `KP_hsc_desc_enc`.
pub(super) fn discovery_public(public: &DiscoveryPublic) -> HsClientDescEncKey {
    curve25519::PublicKey::from(public.0).into()
}

/// Both identities of a relay; `None` if it lacks one, which no usable relay does.
pub(super) fn relay_id(relay: &impl HasRelayIds) -> Option<RelayId> {
    let rsa = HasRelayIds::rsa_identity(relay)?;
    let ed25519 = HasRelayIds::ed_identity(relay)?;
    Some(RelayId { rsa: FixedBytes(rsa.to_bytes()), ed25519: FixedBytes((*ed25519).into()) })
}

/// The reverse of [`relay_id`], for Arti's look-ups.
pub(super) fn relay_ids(relay: &RelayId) -> RelayIds {
    let ids = RelayIdsBuilder::default()
        .ed_identity(ed25519::Ed25519Identity::new(relay.ed25519.0))
        .rsa_identity(rsa::RsaIdentity::from(relay.rsa.0))
        .build();
    // Cannot fail, as all fields are set. An empty set would match no relay.
    ids.unwrap_or_else(|_| RelayIds::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tor_hscrypto::pk::HsIdKey;

    #[test]
    fn a_node_has_the_address_of_its_key() {
        let secret = NodeSecret::generate(&mut rand::rng());
        let key = HsIdKey::from(&node_keypair(&secret));
        assert_eq!(key.id(), service_id(secret.node_id().address()));
    }

    #[test]
    fn a_discovery_secret_opens_for_its_public_half() {
        let secret = DiscoverySecret::generate(&mut rand::rng());
        assert!(HsClientDescEncKey::from(&discovery_secret(&secret)) == discovery_public(&secret.public()));
    }
}
