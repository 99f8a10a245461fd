//! Secrets: one type per role, zeroized on drop, redacted in `Debug`, without `Display` and
//! `Clone`.
//!
//! Only `store` writes them to disk, and only `tor` turns them into Arti's types. A peer receives
//! them from `join`, sealed, and the later discovery keys, which every member holds, over its
//! links.

use curve25519_dalek::Scalar;
use ed25519_dalek::hazmat::{ExpandedSecretKey, raw_sign};
use ed25519_dalek::{SigningKey, VerifyingKey};
use rand::{CryptoRng, RngExt};
use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::hash::{Label, labelled};
use rustbalance_gossip::id::{AuthorityId, InvitationId, NodeId, ServiceId};
use rustbalance_gossip::outage::OutageSecret;
use rustbalance_gossip::record::{IntroPoint, PointNonce};
use rustbalance_gossip::signed::Sign;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha512};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

pub use offset::KeyOffset;
pub use service::{MAX_SERVICES, SecretPurpose, ServiceSecret, ServiceSecrets};

mod offset;
mod service;

/// Why bytes are not a usable secret key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The first half of the expanded key is neither a clamped scalar, as C tor has it, nor a
    /// reduced one, as Arti has it.
    #[error("not an expanded Ed25519 secret key: its scalar is neither clamped nor reduced")]
    Scalar,
    /// The second half of the expanded key is publicly known.
    #[error(
        "its second half, the source of every signature's nonce, is not secret: no signature made with it would be safe"
    )]
    PublicPrefix,
}

/// Implements a `Debug` that shows only the name of the type.
macro_rules! redact {
    ($($name:ident),*) => {
        $(impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        })*
    };
}
pub(crate) use redact;

/// Defines a secret that is a 32-byte Ed25519 seed, whose public half is a `$id`.
macro_rules! seed_secret {
    ($(#[$doc:meta])* $name:ident, $id:ident, $id_fn:ident) => {
        $(#[$doc])*
        #[derive(Zeroize, ZeroizeOnDrop)]
        pub struct $name([u8; 32]);

        impl $name {
            /// A new random secret.
            pub fn generate(rng: &mut impl CryptoRng) -> Self {
                Self(rng.random())
            }

            /// The secret with this seed.
            pub fn from_seed(seed: &Zeroizing<[u8; 32]>) -> Self {
                Self(**seed)
            }

            /// The seed, to be written to a file or sealed for a peer.
            pub fn seed(&self) -> &[u8; 32] {
                &self.0
            }

            /// Its public half.
            pub fn $id_fn(&self) -> $id {
                $id::from_public_key(self.public_key())
            }

            /// A copy of the secret; explicit, because the type is not `Clone`.
            pub fn duplicate(&self) -> Self {
                Self(self.0)
            }
        }

        impl Sign for $name {
            fn public_key(&self) -> [u8; 32] {
                SigningKey::from_bytes(&self.0).verifying_key().to_bytes()
            }

            fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
                SigningKey::from_bytes(&self.0).sign_bytes(message)
            }
        }
    };
}

seed_secret! {
    /// A node's key. Its public half is the node's id and its onion address; it signs the node's
    /// records.
    NodeSecret, NodeId, node_id
}
seed_secret! {
    /// Signs certificates, invitations and revocations. Publishers hold it.
    AuthoritySecret, AuthorityId, authority_id
}
seed_secret! {
    /// The secret in an invitation's token. Its public half is the invitation's id.
    TokenSecret, InvitationId, invitation_id
}

/// The identity key of a service, `KS_hs_id`, in its expanded form (scalar and hash prefix), the
/// only form that C tor keeps. Publishers hold it.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct IdentitySecret([u8; 64]);

impl IdentitySecret {
    /// A new key: a random clamped scalar (RFC 8032, section 5.1.5) and a random hash prefix.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = [0; 64];
        rng.fill(&mut bytes);
        Self::clamp(&mut bytes);
        Self(bytes)
    }

    /// The key with these bytes: 32 of scalar (clamped, or reduced modulo the order of the group),
    /// 32 of hash prefix.
    ///
    /// # Errors
    /// [`KeyError::Scalar`] if the scalar is neither.
    pub fn from_expanded(bytes: &Zeroizing<[u8; 64]>) -> Result<Self, KeyError> {
        let clamped = offset::is_clamped(bytes);
        let scalar = bytes.first_chunk().and_then(|scalar| Scalar::from_canonical_bytes(*scalar).into_option());
        let reduced = scalar.is_some_and(|scalar| scalar != Scalar::ZERO);
        if clamped || reduced { Ok(Self(**bytes)) } else { Err(KeyError::Scalar) }
    }

    /// The key with this seed (RFC 8032, section 5.1.5), the form in PEM files.
    pub fn from_seed(seed: &Zeroizing<[u8; 32]>) -> Self {
        let mut bytes: [u8; 64] = Sha512::digest(**seed).into();
        Self::clamp(&mut bytes);
        let secret = Self(bytes);
        bytes.zeroize();
        secret
    }

    fn clamp(bytes: &mut [u8; 64]) {
        bytes[0] &= 248;
        bytes[31] &= 63;
        bytes[31] |= 64;
    }

    /// The expanded key: 32 bytes of scalar, 32 of hash prefix.
    pub fn expanded(&self) -> &[u8; 64] {
        &self.0
    }

    /// The service whose key this is.
    pub fn service_id(&self) -> ServiceId {
        ServiceId::from_public_key(self.public_key())
    }

    /// The key for signing. Not made by `ExpandedSecretKey::from_bytes`, which clamps: a reduced
    /// scalar would become another one.
    fn signing(&self) -> ExpandedSecretKey {
        let (mut scalar, mut hash_prefix) = (Zeroizing::new([0; 32]), [0; 32]);
        scalar.copy_from_slice(&self.0[..32]);
        hash_prefix.copy_from_slice(&self.0[32..]);
        ExpandedSecretKey { scalar: Scalar::from_bytes_mod_order(*scalar), hash_prefix }
    }

    /// A copy of the secret; explicit, because the type is not `Clone`.
    pub fn duplicate(&self) -> Self {
        Self(self.0)
    }
}

impl Sign for IdentitySecret {
    fn public_key(&self) -> [u8; 32] {
        VerifyingKey::from(&self.signing()).to_bytes()
    }

    fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
        let key = self.signing();
        raw_sign::<Sha512>(&key, message, &VerifyingKey::from(&key)).to_bytes()
    }
}

/// The cluster-wide X25519 key that opens the descriptors of the nodes' own onion services
/// (restricted discovery). Every member holds it.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct DiscoverySecret([u8; 32]);

/// The public half of a [`DiscoverySecret`], as the services list it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DiscoveryPublic(pub [u8; 32]);

impl DiscoverySecret {
    /// A new random secret.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        Self(rng.random())
    }

    /// The secret with these bytes.
    pub fn from_bytes(bytes: &Zeroizing<[u8; 32]>) -> Self {
        Self(**bytes)
    }

    /// The X25519 secret.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its public half.
    pub fn public(&self) -> DiscoveryPublic {
        let secret = x25519_dalek::StaticSecret::from(self.0);
        DiscoveryPublic(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    /// A copy of the secret; explicit, because the type is not `Clone`.
    pub fn duplicate(&self) -> Self {
        Self(self.0)
    }
}

impl Serialize for DiscoverySecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for DiscoverySecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        FixedBytes::deserialize(deserializer).map(|FixedBytes(bytes)| Self::from_bytes(&Zeroizing::new(bytes)))
    }
}

/// The seed from which the keys of all introduction points of one node are derived. That node holds
/// it, and a holder of the authority key can derive it: with it a publisher stands in for a node
/// that has died.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct PointSeed([u8; 32]);

impl PointSeed {
    /// The seed of `node`.
    pub fn derive(authority: &AuthoritySecret, node: NodeId) -> Self {
        Self(labelled(Label::PointSeed, &[authority.seed(), node.public_key()]))
    }

    /// The secret with these bytes.
    pub fn from_bytes(bytes: &Zeroizing<[u8; 32]>) -> Self {
        Self(**bytes)
    }

    /// Its bytes, to be written to a file or sealed for the node.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The keys of a new point, with a random nonce.
    pub fn draw(&self, rng: &mut impl CryptoRng) -> IntroPointSecrets {
        self.secrets(PointNonce(FixedBytes(rng.random())))
    }

    /// The keys of the point with this nonce.
    pub fn secrets(&self, nonce: PointNonce) -> IntroPointSecrets {
        let of = |label| labelled(label, &[&self.0, &nonce.0.0]);
        IntroPointSecrets { nonce, session: of(Label::PointSession), encryption: of(Label::PointEncryption) }
    }
}

/// The secret from which publishers draw how long the points of a silent node stay in the
/// descriptor.
pub fn outage_secret(authority: &AuthoritySecret) -> OutageSecret {
    OutageSecret::from_bytes(labelled(Label::OutageSecret, &[authority.seed()]))
}

/// The two secrets of an introduction point, from [`PointSeed::draw`] or [`PointSeed::secrets`].
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct IntroPointSecrets {
    /// The nonce they were derived from. Public.
    #[zeroize(skip)]
    pub nonce: PointNonce,
    /// Seed of `KS_hs_ipt_sid`, Ed25519: names the point to its relay.
    pub session: [u8; 32],
    /// `KS_hss_ntor`, X25519: opens introductions.
    pub encryption: [u8; 32],
}

impl IntroPointSecrets {
    /// `KP_hs_ipt_sid`, the public half of the session key.
    pub fn session_key(&self) -> [u8; 32] {
        SigningKey::from_bytes(&self.session).verifying_key().to_bytes()
    }

    /// `KP_hss_ntor`, the public half of the encryption key.
    pub fn encryption_key(&self) -> [u8; 32] {
        x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(self.encryption)).to_bytes()
    }

    /// True if they are the secrets of this point.
    pub fn are_of(&self, point: &IntroPoint) -> bool {
        (self.session_key(), self.encryption_key()) == (point.session_key.0, point.encryption_key.0)
    }

    /// A copy of the secrets; explicit, because the type is not `Clone`.
    pub fn duplicate(&self) -> Self {
        Self { nonce: self.nonce, session: self.session, encryption: self.encryption }
    }
}

redact!(NodeSecret, AuthoritySecret, TokenSecret, IdentitySecret, DiscoverySecret, PointSeed, IntroPointSecrets);

#[cfg(test)]
mod tests {
    use super::*;
    use rustbalance_gossip::id::ClusterId;
    use rustbalance_gossip::record::AuthorityCertificate;
    use rustbalance_gossip::signed::Verified;

    #[test]
    fn the_expanded_master_key_signs_for_its_address() {
        let master = IdentitySecret::generate(&mut rand::rng());
        let certificate = AuthorityCertificate {
            cluster: ClusterId::named_by(master.service_id()),
            authority: AuthorityId::from_public_key([1; 32]),
            issued: 7,
        };
        let signed = Verified::sign(certificate, &master).unwrap();
        assert!(signed.unverified().verify(master.service_id().public_key()).is_ok());
        let again = IdentitySecret::from_expanded(&Zeroizing::new(*master.expanded())).unwrap();
        assert_eq!(again.service_id(), master.service_id());
    }

    #[test]
    fn a_scalar_that_is_neither_clamped_nor_reduced_is_refused() {
        let master = IdentitySecret::generate(&mut rand::rng());
        let mut reduced = Zeroizing::new(*master.expanded());
        let scalar = Scalar::from_bytes_mod_order(*reduced.first_chunk().unwrap());
        reduced[..32].copy_from_slice(scalar.as_bytes());
        assert_ne!(*reduced, *master.expanded());
        let of_arti = IdentitySecret::from_expanded(&reduced).unwrap();
        assert_eq!(of_arti.service_id(), master.service_id());
        assert_eq!(of_arti.sign_bytes(b"a message"), master.sign_bytes(b"a message"));
        for wrong in [0xff, 0] {
            assert!(IdentitySecret::from_expanded(&Zeroizing::new([wrong; 64])).is_err());
        }
    }

    #[test]
    fn a_publisher_has_the_keys_of_every_nodes_points() {
        let rng = &mut rand::rng();
        let (authority, node) = (AuthoritySecret::generate(rng), NodeSecret::generate(rng).node_id());
        let given = PointSeed::from_bytes(&Zeroizing::new(*PointSeed::derive(&authority, node).as_bytes()));
        let (one, other) = (given.draw(rng), given.draw(rng));
        let again = PointSeed::derive(&authority, node).secrets(one.nonce);
        assert_eq!((again.session, again.encryption), (one.session, one.encryption));
        assert_ne!(one.session, one.encryption);
        assert_ne!((one.session, one.encryption), (other.session, other.encryption));
        let stranger = PointSeed::derive(&authority, NodeSecret::generate(rng).node_id()).secrets(one.nonce);
        assert_ne!(stranger.session, one.session);
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let secret = NodeSecret::generate(&mut rand::rng());
        assert_eq!(format!("{secret:?}"), "NodeSecret(redacted)");
    }
}
