//! Seals the content of endpoint records, so that only members read it: under a key derived from
//! the discovery key, which is replaced when a member is evicted (docs/PROTOCOL.md, section 15).

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::hash::{Label, labelled};
use rustbalance_gossip::id::{ClusterId, NodeId};
use zeroize::Zeroizing;

use super::{Announcement, AnnouncementError};
use crate::keys::DiscoverySecret;

/// Length of the nonce in front of the cipher text, in bytes.
const NONCE: usize = 12;

/// Why the content of an endpoint record cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// None of this node's discovery keys opens it: it was sealed under one that this node has not
    /// received yet, or for another node.
    #[error("none of this node's discovery keys opens its announcement yet")]
    Closed,
    /// The content is refused.
    #[error(transparent)]
    Content(#[from] AnnouncementError),
}

fn cipher(discovery: &DiscoverySecret, cluster: ClusterId, node: NodeId) -> Option<Aes256Gcm> {
    let parts: [&[u8]; 3] = [discovery.as_bytes(), cluster.public_key(), node.public_key()];
    let key = Zeroizing::new(labelled(Label::EndpointSeal, &parts));
    Aes256Gcm::new_from_slice(&*key).ok()
}

/// Seals what `node` announces. `nonce` must be random: a second message under the same one would
/// show both. `None` only if the announcement cannot be encoded, which does not happen to one
/// within its bounds.
pub fn seal(
    announcement: &Announcement,
    discovery: &DiscoverySecret,
    cluster: ClusterId,
    node: NodeId,
    nonce: [u8; NONCE],
) -> Option<VarBytes> {
    let mut content = announcement.to_bytes().ok()?;
    cipher(discovery, cluster, node)?.encrypt_in_place(&Nonce::from(nonce), &[], &mut content).ok()?;
    Some(VarBytes([&nonce[..], &content].concat()))
}

/// Opens what `node` has announced with the first of the discovery keys that fits.
///
/// # Errors
/// See [`SealError`].
pub fn open(
    sealed: &VarBytes,
    ring: &[DiscoverySecret],
    cluster: ClusterId,
    node: NodeId,
) -> Result<Announcement, SealError> {
    let (nonce, text) = sealed.0.split_first_chunk::<NONCE>().ok_or(SealError::Closed)?;
    let mut opened = ring.iter().filter_map(|discovery| {
        let mut content = text.to_vec();
        cipher(discovery, cluster, node)?.decrypt_in_place(&Nonce::from(*nonce), &[], &mut content).ok()?;
        Some(content)
    });
    let content = opened.next().ok_or(SealError::Closed)?;
    Ok(Announcement::from_bytes(&content)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::{DatedKey, WireguardSecret};

    fn announcement() -> Announcement {
        let key = WireguardSecret::generate(&mut rand::rng()).public();
        Announcement { keys: vec![DatedKey { key, from: 1 }], endpoints: vec!["203.0.113.7:7440".parse().unwrap()] }
    }

    fn discovery() -> DiscoverySecret {
        DiscoverySecret::generate(&mut rand::rng())
    }

    #[test]
    fn only_a_holder_of_the_discovery_key_reads_an_announcement() {
        let (cluster, node) = (ClusterId::from_public_key([7; 32]), NodeId::from_public_key([8; 32]));
        let (old, new) = (discovery(), discovery());
        let sealed = seal(&announcement(), &new, cluster, node, [5; NONCE]).unwrap();
        assert!(!sealed.0.windows(4).any(|window| window == [203, 0, 113, 7]));
        let ring = [new.duplicate(), old.duplicate()];
        assert!(open(&sealed, &ring, cluster, node).is_ok());
        // An evicted node has the old key only.
        assert_eq!(open(&sealed, &[old.duplicate()], cluster, node), Err(SealError::Closed));
        // A member that rotated sooner still reads what was sealed before.
        let before = seal(&announcement(), &old, cluster, node, [6; NONCE]).unwrap();
        assert!(open(&before, &ring, cluster, node).is_ok());
    }

    #[test]
    fn a_sealed_announcement_is_good_for_its_node_and_cluster_alone() {
        let (cluster, node) = (ClusterId::from_public_key([7; 32]), NodeId::from_public_key([8; 32]));
        let key = [discovery()];
        let sealed = seal(&announcement(), &key[0], cluster, node, [5; NONCE]).unwrap();
        let (elsewhere, other) = (ClusterId::from_public_key([9; 32]), NodeId::from_public_key([9; 32]));
        assert_eq!(open(&sealed, &key, elsewhere, node), Err(SealError::Closed));
        assert_eq!(open(&sealed, &key, cluster, other), Err(SealError::Closed));
        for at in 0..sealed.0.len() {
            let mut changed = sealed.clone();
            changed.0[at] ^= 1;
            assert_eq!(open(&changed, &key, cluster, node), Err(SealError::Closed), "byte {at}");
            assert_eq!(open(&VarBytes(sealed.0[..at].to_vec()), &key, cluster, node), Err(SealError::Closed));
        }
    }

    #[test]
    fn what_is_sealed_well_is_checked_all_the_same() {
        let (cluster, node) = (ClusterId::from_public_key([7; 32]), NodeId::from_public_key([8; 32]));
        let wrong = Announcement { endpoints: vec!["224.0.0.1:7440".parse().unwrap()], ..announcement() };
        let key = [discovery()];
        let sealed = seal(&wrong, &key[0], cluster, node, [5; NONCE]).unwrap();
        assert!(matches!(open(&sealed, &key, cluster, node), Err(SealError::Content(AnnouncementError::Address(_)))));
    }
}
