//! The transcript: everything that both sides have seen, as 32 bytes. Both sign it, and it is mixed
//! into the key of the answer. If a byte is changed on the way, neither the signatures nor the key
//! match.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use ed25519_dalek::{Signature, VerifyingKey};
use hkdf::Hkdf;
use rand::{CryptoRng, RngExt};
use rustbalance_gossip::hash::{Label, labelled};
use rustbalance_gossip::id::{InvitationId, NodeId};
use rustbalance_gossip::record::Role;
use rustbalance_gossip::signed::Sign;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// Signed by the token key.
pub(super) const BY_TOKEN: &str = "rustbalance join by token v1";
/// Signed by the joiner's node key.
pub(super) const BY_NODE: &str = "rustbalance join by node v1";
/// Signed by the publisher's node key.
pub(super) const BY_PUBLISHER: &str = "rustbalance join by publisher v1";

/// The random values of one side, made for a single join.
pub struct Fresh {
    pub(super) nonce: [u8; 32],
    pub(super) ephemeral: StaticSecret,
}

impl Fresh {
    /// Draws the values from `rng`.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let seed = Zeroizing::new(rng.random::<[u8; 32]>());
        Self { nonce: rng.random(), ephemeral: StaticSecret::from(*seed) }
    }

    /// The public half of the ephemeral key.
    pub(super) fn public(&self) -> [u8; 32] {
        PublicKey::from(&self.ephemeral).to_bytes()
    }
}

/// The joiner's transcript: Hello and Challenge as they were on the wire, and the fields of Redeem.
/// Both the token key and the node key sign it.
pub fn request(hello: &[u8], challenge: &[u8], node: &NodeId, invitation: &InvitationId, unix: u64) -> [u8; 32] {
    let [hello_length, challenge_length] = [hello, challenge].map(|frame| (frame.len() as u64).to_be_bytes());
    let (node, invitation, unix) = (node.public_key(), invitation.public_key(), unix.to_be_bytes());
    labelled(Label::JoinRequest, &[&hello_length, hello, &challenge_length, challenge, node, invitation, &unix])
}

/// The publisher's transcript: the request, the role and the publisher. The publisher signs it, and
/// the answer is sealed with it.
pub fn answer(request: &[u8; 32], role: Role, publisher: &NodeId) -> [u8; 32] {
    let role = match role {
        Role::Publisher => 1,
        Role::Worker => 2,
    };
    labelled(Label::JoinAnswer, &[request, &[role], publisher.public_key()])
}

fn signed(context: &str, transcript: &[u8; 32]) -> Vec<u8> {
    [context.as_bytes(), &[0], transcript].concat()
}

pub(super) fn sign(context: &str, transcript: &[u8; 32], key: &dyn Sign) -> [u8; 64] {
    key.sign_bytes(&signed(context, transcript))
}

pub(super) fn verify(context: &str, transcript: &[u8; 32], key: &[u8; 32], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(key)
        .and_then(|key| key.verify_strict(&signed(context, transcript), &Signature::from_bytes(signature)))
        .is_ok()
}

/// The key of the answer: 32 bytes of key and 12 of nonce, for a single message. Only the holders
/// of the two ephemeral secrets can derive it, and it depends on the transcript. `None` if the
/// other side's key would make the agreement predictable (RFC 7748, section 6.1).
pub fn answer_key(ours: &StaticSecret, theirs: [u8; 32], transcript: &[u8; 32]) -> Option<Zeroizing<[u8; 44]>> {
    let shared = ours.diffie_hellman(&PublicKey::from(theirs));
    if !shared.was_contributory() {
        return None;
    }
    let mut okm = Zeroizing::new([0; 44]);
    Hkdf::<Sha256>::new(Some(transcript), shared.as_bytes())
        .expand(b"rustbalance join answer key v1", &mut *okm)
        .ok()?;
    Some(okm)
}

fn cipher(ours: &StaticSecret, theirs: [u8; 32], transcript: &[u8; 32]) -> Option<(Aes256Gcm, [u8; 12])> {
    let okm = answer_key(ours, theirs, transcript)?;
    let (key, nonce) = okm.split_first_chunk::<32>()?;
    Some((Aes256Gcm::new_from_slice(key).ok()?, nonce.try_into().ok()?))
}

/// Seals the publisher's answer in place, so that no copy of the plain text stays in memory.
pub(super) fn seal(
    ours: &StaticSecret,
    theirs: [u8; 32],
    transcript: &[u8; 32],
    mut plain: Zeroizing<Vec<u8>>,
) -> Option<Vec<u8>> {
    let (cipher, nonce) = cipher(ours, theirs, transcript)?;
    cipher.encrypt_in_place(&Nonce::from(nonce), transcript, &mut *plain).ok()?;
    Some(std::mem::take(&mut *plain))
}

/// Opens a sealed answer; `None` if it was sealed for another join, or changed.
pub fn open(
    ours: &StaticSecret,
    theirs: [u8; 32],
    transcript: &[u8; 32],
    sealed: Vec<u8>,
) -> Option<Zeroizing<Vec<u8>>> {
    let (cipher, nonce) = cipher(ours, theirs, transcript)?;
    let mut text = Zeroizing::new(sealed);
    cipher.decrypt_in_place(&Nonce::from(nonce), transcript, &mut *text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_sides_of_this_very_join_open_the_answer() {
        let (one, two, third) =
            (Fresh::generate(&mut rand::rng()), Fresh::generate(&mut rand::rng()), Fresh::generate(&mut rand::rng()));
        let plain = || Zeroizing::new(b"secret".to_vec());
        let sealed = seal(&one.ephemeral, two.public(), &[5; 32], plain()).unwrap();
        assert_eq!(open(&two.ephemeral, one.public(), &[5; 32], sealed.clone()), Some(plain()));
        assert_eq!(open(&two.ephemeral, one.public(), &[6; 32], sealed.clone()), None);
        assert_eq!(open(&third.ephemeral, one.public(), &[5; 32], sealed.clone()), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(open(&two.ephemeral, one.public(), &[5; 32], changed), None);
            assert_eq!(open(&two.ephemeral, one.public(), &[5; 32], sealed[..at].to_vec()), None);
        }
    }

    /// The points of small order: with these, every secret agrees on zero.
    #[test]
    fn a_key_that_makes_the_agreement_predictable_is_refused() {
        let fresh = Fresh::generate(&mut rand::rng());
        let mut one = [0; 32];
        one[0] = 1;
        for theirs in [[0; 32], one] {
            assert!(seal(&fresh.ephemeral, theirs, &[5; 32], Zeroizing::new(vec![1])).is_none());
            assert!(open(&fresh.ephemeral, theirs, &[5; 32], vec![1; 40]).is_none());
        }
    }

    #[test]
    fn a_signature_is_good_for_one_purpose_and_one_transcript() {
        let key = crate::keys::NodeSecret::generate(&mut rand::rng());
        let signature = sign(BY_NODE, &[5; 32], &key);
        assert!(verify(BY_NODE, &[5; 32], &key.public_key(), &signature));
        assert!(!verify(BY_TOKEN, &[5; 32], &key.public_key(), &signature));
        assert!(!verify(BY_NODE, &[6; 32], &key.public_key(), &signature));
        assert!(!verify(BY_NODE, &[5; 32], &[0; 32], &signature));
    }
}
