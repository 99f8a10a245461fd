//! The key that opens the descriptors of the members' own onion services, and its rotation.
//!
//! An evicted member still has the key. So after each revocation the publisher makes a new one.
//! Members pass it on to each other over their links ([`Offer`]), signed by the cluster's authority
//! ([`DiscoveryKey`]). A [`KeyRing`] holds one member's keys: the newest, and older ones with which
//! it still finds members that were away during a rotation.
//!
//! For a while after a rotation a member's service also accepts the previous key, so that members
//! without the new one still reach it. It accepts all keys of its ring while another member rejects
//! every key this node has: the two sides of a partition may each have rotated, and only an older
//! key is common to both.

use std::time::Duration;

use rand::CryptoRng;
use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::codec::DecodeError;
use rustbalance_gossip::id::{AuthorityId, ClusterId};
use rustbalance_gossip::record::DiscoveryKey;
use rustbalance_gossip::signed::{Statement, Unverified, Verified, VerifyError};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::keys::{AuthoritySecret, DiscoveryPublic, DiscoverySecret};

/// How long a member's service accepts the previous key after a rotation: time for all members to
/// receive the new key, and for the directories to receive the service's new descriptor.
pub const OVERLAP: Duration = Duration::from_secs(600);

/// Most keys on a ring; the oldest is dropped.
pub const MAX_KEYS: usize = 8;

/// Why a discovery key was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// Its statement is not signed by the cluster's authority.
    #[error("the discovery key is not signed by the cluster's authority")]
    Signature(#[from] VerifyError),
    /// It is for this other cluster.
    #[error("the discovery key is for the cluster {0}")]
    Cluster(ClusterId),
    /// The secret does not match the public key in the statement.
    #[error("the discovery key is not the one that its signed statement names")]
    Mismatch,
    /// The bytes are not a key ring.
    #[error("its discovery keys cannot be read: {0}")]
    Ring(&'static str),
    /// A statement on the ring cannot be read.
    #[error("the statement of a discovery key in it cannot be read")]
    Unreadable(#[from] DecodeError),
}

/// A discovery key with its signed statement.
#[derive(Debug)]
pub struct Discovery {
    /// The statement about the key, signed by the authority.
    pub key: Verified<DiscoveryKey>,
    /// The key.
    pub secret: DiscoverySecret,
}

/// A key on its way to another member. Not to be trusted before [`Offer::verify`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Offer {
    /// The statement, whose signature is not checked yet.
    pub key: Unverified<DiscoveryKey>,
    /// The key.
    pub secret: DiscoverySecret,
}

impl Offer {
    /// Checks that the authority has named this key for this cluster.
    pub fn verify(self, cluster: ClusterId, authority: AuthorityId) -> Result<Discovery, DiscoveryError> {
        let key = self.key.verify(authority.public_key())?;
        if key.cluster != cluster {
            return Err(DiscoveryError::Cluster(key.cluster));
        }
        if key.public.0 != self.secret.public().0 {
            return Err(DiscoveryError::Mismatch);
        }
        Ok(Discovery { key, secret: self.secret })
    }
}

impl Discovery {
    /// A new key of this generation.
    pub fn generate(
        cluster: ClusterId,
        generation: u32,
        authority: &AuthoritySecret,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, DecodeError> {
        let secret = DiscoverySecret::generate(rng);
        let key = DiscoveryKey { cluster, generation, public: FixedBytes(secret.public().0) };
        Ok(Self { key: Verified::sign(key, authority)?, secret })
    }

    /// The key as it is sent to another member.
    pub fn offer(&self) -> Offer {
        Offer { key: self.key.unverified(), secret: self.secret.duplicate() }
    }

    /// A copy of the key; explicit, because the type is not `Clone`.
    pub fn duplicate(&self) -> Self {
        Self { key: self.key.clone(), secret: self.secret.duplicate() }
    }
}

/// The keys that a member holds, newest first; at least one, at most [`MAX_KEYS`].
#[derive(Debug)]
pub struct KeyRing {
    keys: Vec<Discovery>,
    /// When the newest key replaced the one before, in seconds since the Unix epoch; 0 if it is the
    /// first.
    rotated: u64,
}

impl KeyRing {
    /// A ring with one key.
    pub fn new(first: Discovery) -> Self {
        Self { keys: vec![first], rotated: 0 }
    }

    /// The newest key.
    pub fn newest(&self) -> &Discovery {
        &self.keys[0]
    }

    /// All secrets, newest first: the order in which they are tried to find another member's
    /// service.
    pub fn secrets(&self) -> Vec<&DiscoverySecret> {
        self.keys.iter().map(|discovery| &discovery.secret).collect()
    }

    /// The keys that this member's own service accepts at `unix` (seconds since the Unix epoch).
    /// `refused`: some other member accepts none of this node's keys.
    pub fn accepted(&self, unix: u64, refused: bool) -> Vec<DiscoveryPublic> {
        let overlap =
            self.rotated.checked_add(OVERLAP.as_secs()).is_some_and(|end| (self.rotated..end).contains(&unix));
        let count = match (refused, overlap) {
            (true, _) => MAX_KEYS,
            (false, true) => 2,
            (false, false) => 1,
        };
        self.keys.iter().take(count).map(|discovery| discovery.secret.public()).collect()
    }

    /// The generation of the key to make now that `revoked` members have been revoked; `None` if
    /// the newest key was made after the last revocation.
    pub fn due(&self, revoked: usize) -> Option<u32> {
        u32::try_from(revoked).ok().filter(|due| *due > self.newest().key.generation)
    }

    /// Whether the offered key is on the ring, with the same statement and secret.
    pub fn has(&self, offer: &Offer) -> bool {
        let is_it =
            |known: &Discovery| known.key.is_same(&offer.key) && known.secret.as_bytes() == offer.secret.as_bytes();
        self.keys.iter().any(is_it)
    }

    /// Whether a key is newer than all keys on the ring.
    pub fn is_newer(&self, next: &Discovery) -> bool {
        next.key.rank() > self.newest().key.rank()
    }

    /// Puts a key first if it is newer than all others, and returns whether it is. If publishers
    /// that are cut off from each other make two keys of one generation, all members end up with
    /// the same one.
    pub fn adopt(&mut self, next: Discovery, unix: u64) -> bool {
        if !self.is_newer(&next) {
            return false;
        }
        self.keys.insert(0, next);
        self.keys.truncate(MAX_KEYS);
        self.rotated = unix;
        true
    }

    /// The form on disk: the time of the last rotation (8 bytes, big-endian), then for each key 32
    /// bytes of secret, the length of its statement (2 bytes, big-endian) and the statement.
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, DecodeError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(8 + MAX_KEYS * (34 + DiscoveryKey::MAX_SIZE)));
        bytes.extend_from_slice(&self.rotated.to_be_bytes());
        for Discovery { key, secret } in &self.keys {
            let statement = key.to_bytes()?;
            bytes.extend_from_slice(secret.as_bytes());
            // Bounded by the statement's own size.
            bytes.extend_from_slice(&(statement.len() as u16).to_be_bytes());
            bytes.extend_from_slice(&statement);
        }
        Ok(bytes)
    }

    /// Reads and checks the output of [`KeyRing::to_bytes`].
    pub fn from_bytes(bytes: &[u8], cluster: ClusterId, authority: AuthorityId) -> Result<Self, DiscoveryError> {
        const SHORT: DiscoveryError = DiscoveryError::Ring("the data is cut short");
        let (rotated, mut rest) = bytes.split_first_chunk::<8>().ok_or(SHORT)?;
        let mut keys = Vec::new();
        while !rest.is_empty() {
            if keys.len() == MAX_KEYS {
                return Err(DiscoveryError::Ring("there are too many keys"));
            }
            let (secret, after) = rest.split_first_chunk::<32>().ok_or(SHORT)?;
            let (length, after) = after.split_first_chunk::<2>().ok_or(SHORT)?;
            let (statement, after) = after.split_at_checked(u16::from_be_bytes(*length).into()).ok_or(SHORT)?;
            let offer = Offer {
                key: Unverified::from_bytes(statement)?,
                secret: DiscoverySecret::from_bytes(&Zeroizing::new(*secret)),
            };
            keys.push(offer.verify(cluster, authority)?);
            rest = after;
        }
        if keys.is_empty() {
            return Err(DiscoveryError::Ring("there is no key"));
        }
        Ok(Self { keys, rotated: u64::from_be_bytes(*rotated) })
    }
}

/// Holds a key that counts more revocations than this node knows, until it knows them. On the ring,
/// a key of an absurdly high generation would end the rotation of keys for good.
#[derive(Debug, Default)]
pub struct PendingKey(Option<Discovery>);

impl PendingKey {
    /// Holds a key. Of two, the one that counts fewer revocations is held: they may be known
    /// sooner.
    pub fn hold(&mut self, key: Discovery) {
        if self.0.as_ref().is_none_or(|held| key.key.generation < held.key.generation) {
            self.0 = Some(key);
        }
    }

    /// Returns the key once `revoked`, the revocations that this node knows, are at least those
    /// that the key counts.
    pub fn take(&mut self, revoked: usize) -> Option<Discovery> {
        self.0.take_if(|held| held.key.generation as usize <= revoked)
    }

    /// Revocations that the held key counts; 0 if none is held.
    pub fn counted(&self) -> u32 {
        self.0.as_ref().map_or(0, |held| held.key.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: [u8; 32] = [7; 32];

    fn cluster() -> ClusterId {
        ClusterId::from_public_key(CLUSTER)
    }

    fn make(authority: &AuthoritySecret, generation: u32) -> Discovery {
        Discovery::generate(cluster(), generation, authority, &mut rand::rng()).unwrap()
    }

    #[test]
    fn only_keys_that_the_authority_has_signed_are_accepted() {
        let (authority, other) =
            (AuthoritySecret::generate(&mut rand::rng()), AuthoritySecret::generate(&mut rand::rng()));
        let (good, bad) = (make(&authority, 1), make(&other, 1));
        let verify = |offer: Offer| offer.verify(cluster(), authority.authority_id());
        assert_eq!(verify(good.offer()).unwrap().key, good.key);
        assert!(matches!(verify(bad.offer()), Err(DiscoveryError::Signature(_))));
        // A statement of the authority with the secret of another key.
        let swapped = Offer { key: good.key.unverified(), secret: bad.secret.duplicate() };
        assert_eq!(verify(swapped).unwrap_err(), DiscoveryError::Mismatch);
        let elsewhere = ClusterId::from_public_key([8; 32]);
        let foreign = Discovery::generate(elsewhere, 1, &authority, &mut rand::rng()).unwrap();
        assert_eq!(verify(foreign.offer()).unwrap_err(), DiscoveryError::Cluster(elsewhere));
    }

    #[test]
    fn a_key_waits_for_the_revocations_that_it_counts() {
        let authority = AuthoritySecret::generate(&mut rand::rng());
        let (absurd, next) = (make(&authority, u32::MAX), make(&authority, 2));
        let mut early = PendingKey::default();
        early.hold(absurd.duplicate());
        assert_eq!((early.counted(), early.take(4096).is_some()), (u32::MAX, false));
        early.hold(next.duplicate());
        early.hold(absurd);
        assert_eq!((early.counted(), early.take(1).is_some()), (2, false));
        assert_eq!(early.take(2).map(|key| key.key), Some(next.key));
        assert_eq!((early.counted(), early.take(2).is_some()), (0, false));
    }

    #[test]
    fn all_nodes_choose_the_same_of_two_keys_of_one_generation() {
        let authority = AuthoritySecret::generate(&mut rand::rng());
        let (first, one, other) = (make(&authority, 0), make(&authority, 1), make(&authority, 1));
        let meet = |order: [&Discovery; 2]| {
            let mut ring = KeyRing::new(first.duplicate());
            for key in order {
                ring.adopt(key.duplicate(), 100);
            }
            ring.newest().key.public
        };
        assert_eq!(meet([&one, &other]), meet([&other, &one]));
        let mut ring = KeyRing::new(one.duplicate());
        assert!(!ring.adopt(first, 100), "an older one");
        assert!(!ring.adopt(one, 100), "the same");
    }

    #[test]
    fn a_rotation_is_due_once_for_each_revocation() {
        let authority = AuthoritySecret::generate(&mut rand::rng());
        let mut ring = KeyRing::new(make(&authority, 0));
        assert_eq!((ring.due(0), ring.due(1), ring.due(3)), (None, Some(1), Some(3)));
        ring.adopt(make(&authority, 3), 100);
        assert_eq!((ring.due(2), ring.due(3), ring.due(4)), (None, None, Some(4)));
    }

    #[test]
    fn the_previous_key_is_accepted_for_a_while_and_all_keys_are_tried() {
        let authority = AuthoritySecret::generate(&mut rand::rng());
        let (old, new) = (make(&authority, 0), make(&authority, 1));
        let publics = [new.secret.public(), old.secret.public()];
        let mut ring = KeyRing::new(old);
        assert_eq!(ring.accepted(50, false), publics[1..]);
        ring.adopt(new, 1000);
        assert_eq!(ring.accepted(1000, false), publics);
        assert_eq!(ring.accepted(1000 + OVERLAP.as_secs() - 1, false), publics);
        assert_eq!(ring.accepted(1000 + OVERLAP.as_secs(), false), publics[..1]);
        // A clock that was set back does not bring the old key back.
        assert_eq!(ring.accepted(999, false), publics[..1]);
        assert_eq!(ring.accepted(1000 + OVERLAP.as_secs(), true), publics, "another may have rotated by itself");
        assert_eq!(ring.secrets().len(), 2);
    }

    #[test]
    fn a_ring_is_read_back_whole_or_not_at_all() {
        let authority = AuthoritySecret::generate(&mut rand::rng());
        let mut ring = KeyRing::new(make(&authority, 0));
        for generation in 1..12 {
            ring.adopt(make(&authority, generation), generation.into());
        }
        let bytes = ring.to_bytes().unwrap();
        let read = |bytes: &[u8]| KeyRing::from_bytes(bytes, cluster(), authority.authority_id());
        let again = read(&bytes).unwrap();
        assert_eq!((again.keys.len(), again.rotated, &again.newest().key), (MAX_KEYS, 11, &ring.newest().key));
        let whole = (bytes.len() - 8) / MAX_KEYS;
        for end in 0..bytes.len() {
            // Cut between two keys, the bytes are a shorter ring.
            assert_eq!(read(&bytes[..end]).is_ok(), end > 8 && (end - 8) % whole == 0, "{end} bytes");
        }
        let mut flipped = bytes.to_vec();
        flipped[20] ^= 1;
        assert_eq!(read(&flipped).unwrap_err(), DiscoveryError::Mismatch);
    }
}
