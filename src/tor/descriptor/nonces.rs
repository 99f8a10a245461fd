//! Tests of the nonces of signatures by the service key and by the keys blinded from it.
//!
//! Two different messages signed with the same key and nonce reveal the key, and so does a nonce
//! that others can compute. Ed25519 hashes a secret prefix and the message to get the nonce.

use rustbalance_gossip::signed::Sign;
use zeroize::Zeroizing;

use super::*;

const PERIOD: PeriodId = PeriodId { number: 20_000, length_minutes: 1440, offset_seconds: 43_200 };

/// One key of each origin: generated, imported from a seed (PEM), imported in C tor's format.
fn masters() -> [IdentitySecret; 3] {
    let created = IdentitySecret::generate(&mut rand::rng());
    let of_seed = IdentitySecret::from_seed(&Zeroizing::new([7; 32]));
    let imported = IdentitySecret::from_expanded(&Zeroizing::new(*created.expanded())).unwrap();
    [created, of_seed, imported]
}

/// The commitment to the nonce: the first half of a signature.
fn commitment(signature: &[u8]) -> [u8; 32] {
    *signature.first_chunk().unwrap()
}

/// The commitment to the nonce when the key blinded for this period signs this message.
fn blinded_commitment(master: &IdentitySecret, period: PeriodId, message: &[u8]) -> [u8; 32] {
    let (public, pair, _) = blinded_pair(master, period).unwrap();
    let signature = ed25519::ExpandedKeypair::from(pair).sign(message);
    let public: ed25519::PublicKey = public.into();
    public.verify(message, &signature).unwrap();
    commitment(&signature.to_bytes())
}

/// The same key with one bit flipped in byte `at`.
fn changed(master: &IdentitySecret, at: usize) -> IdentitySecret {
    let mut bytes = Zeroizing::new(*master.expanded());
    bytes[at] ^= 1;
    IdentitySecret::from_expanded(&bytes).unwrap()
}

#[test]
fn no_two_messages_share_a_nonce() {
    for master in masters() {
        let messages = || (0..50u8).map(|n| [n; 40]);
        let own: BTreeSet<_> = messages().map(|message| commitment(&master.sign_bytes(&message))).collect();
        let blinded: BTreeSet<_> = messages().map(|message| blinded_commitment(&master, PERIOD, &message)).collect();
        assert_eq!((own.len(), blinded.len()), (50, 50));
        assert!(own.is_disjoint(&blinded));
    }
}

/// The nonce prefix of a blinded key is a hash of the service key's prefix, without the period. So
/// a message signed in two periods would have the same nonce twice. Only certificates are signed,
/// and each names its blinded key, so no message occurs twice.
#[test]
fn no_message_is_signed_in_two_periods() {
    let next = PeriodId { number: PERIOD.number + 1, ..PERIOD };
    for master in masters() {
        let message = b"one message";
        assert_eq!(blinded_commitment(&master, PERIOD, message), blinded_commitment(&master, next, message));
        let mut commitments = BTreeSet::new();
        for period in [PERIOD, next] {
            let public: ed25519::PublicKey =
                blinded(master.service_id(), time_period(period).unwrap()).unwrap().0.into();
            for _ in 0..10 {
                let credentials = PeriodCredentials::derive(&master, period, SystemTime::now()).unwrap();
                let (message, signature) = credentials.certificate.as_ref().split_last_chunk::<64>().unwrap();
                assert!(
                    message.windows(32).any(|part| part == public.as_bytes()),
                    "the certificate does not name its signing key"
                );
                assert!(commitments.insert(commitment(signature)));
            }
        }
    }
}

#[test]
fn every_byte_of_the_second_half_of_the_secret_is_in_the_nonce() {
    let message = b"one message";
    for master in masters() {
        let mut seen = BTreeSet::from([commitment(&master.sign_bytes(message))]);
        let mut blinded = BTreeSet::from([blinded_commitment(&master, PERIOD, message)]);
        for at in 32..64 {
            let other = changed(&master, at);
            assert_eq!(other.service_id(), master.service_id(), "the address depends on the first half only");
            assert!(seen.insert(commitment(&other.sign_bytes(message))), "byte {at}");
            assert!(blinded.insert(blinded_commitment(&other, PERIOD, message)), "byte {at}, blinded");
        }
    }
}

#[test]
fn the_second_half_of_the_key_is_an_independent_secret() {
    let [created, of_seed, _] = masters();
    let again = IdentitySecret::generate(&mut rand::rng());
    for (one, other) in [(&created, &of_seed), (&created, &again)] {
        assert_ne!(one.expanded()[32..], other.expanded()[32..]);
    }
    for master in [created, of_seed, again] {
        let second = &master.expanded()[32..];
        assert!(second != &master.expanded()[..32] && second != master.public_key() && second != [0; 32]);
    }
}
