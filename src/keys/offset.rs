//! Keys at a known distance from another key, as a search for an address finds them.

use curve25519_dalek::edwards::CompressedEdwardsY;
use curve25519_dalek::{EdwardsPoint, Scalar};
use rand::{CryptoRng, RngExt};
use rustbalance_gossip::id::ServiceId;
use zeroize::Zeroizing;

use super::IdentitySecret;

/// The distance between two keys, in multiples of eight base points. It is public: without the
/// secret key at one end it says nothing about the one at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyOffset(u128);

impl KeyOffset {
    /// Bits of the largest distance. Clamped scalars have 251 free bits, so a sum almost never
    /// leaves their range.
    const BITS: u32 = 120;

    /// This multiple of eight base points; `None` if it has more than 120 bits.
    pub fn new(multiple: u128) -> Option<Self> {
        (multiple >> Self::BITS == 0).then_some(Self(multiple))
    }

    /// A random distance of 119 bits: two searches that begin at random distances never meet.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        Self(rng.random::<u128>() >> (u128::BITS - Self::BITS + 1))
    }

    /// The multiple of eight base points.
    pub fn multiple(self) -> u128 {
        self.0
    }

    /// The distance that is larger by this multiple.
    pub fn plus(self, multiple: u64) -> Self {
        Self(self.0 + u128::from(multiple))
    }

    /// The public key at this distance from `origin`; `None` if `origin` is not a point.
    pub fn from_public(self, origin: ServiceId) -> Option<ServiceId> {
        let point = CompressedEdwardsY(*origin.public_key()).decompress()?;
        let sum = point + EdwardsPoint::mul_base(&(Scalar::from(self.0) * Scalar::from(8_u8)));
        Some(ServiceId::from_public_key(sum.compress().to_bytes()))
    }

    /// The secret key at this distance from `origin`. The half from which nonces are derived is new
    /// and random, so that two keys never share it.
    pub fn from_secret(self, origin: &IdentitySecret, rng: &mut impl CryptoRng) -> IdentitySecret {
        let mut sum = Zeroizing::new([0; 64]);
        let (scalar, prefix) = sum.split_at_mut(32);
        let steps = self.0.to_le_bytes();
        let mut carry = 0_u32;
        for (index, byte) in scalar.iter_mut().enumerate() {
            let step = steps.get(index).copied().unwrap_or_default();
            let total = u32::from(origin.0[index]) + 8 * u32::from(step) + carry;
            *byte = total.to_le_bytes()[0];
            carry = total >> 8;
        }
        rng.fill(prefix);
        match (is_clamped(&origin.0), is_clamped(&sum)) {
            (true, true) => IdentitySecret(*sum),
            // A scalar of Arti's, or one at the end of the range.
            _ => {
                let mut scalar = Zeroizing::new([0; 32]);
                scalar.copy_from_slice(&origin.0[..32]);
                let origin = Zeroizing::new(Scalar::from_bytes_mod_order(*scalar));
                let reduced = Zeroizing::new(*origin + Scalar::from(self.0) * Scalar::from(8_u8));
                sum[..32].copy_from_slice(reduced.as_bytes());
                IdentitySecret(*sum)
            }
        }
    }
}

/// True if the scalar of an expanded key has the form of RFC 8032, section 5.1.5.
pub(super) fn is_clamped(expanded: &[u8; 64]) -> bool {
    expanded[0] & 7 == 0 && expanded[31] & 0xc0 == 0x40
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustbalance_gossip::signed::Sign;

    proptest! {
        #[test]
        fn secret_and_public_keys_move_by_the_same_distance(
            expanded in any::<[[u8; 32]; 2]>(),
            multiple in 0..1_u128 << 120,
            end_of_range in any::<bool>(),
        ) {
            let mut expanded: [u8; 64] = expanded.concat().try_into().unwrap();
            if end_of_range {
                expanded[8..32].fill(0xff);
            }
            IdentitySecret::clamp(&mut expanded);
            let clamped = IdentitySecret(expanded);
            let mut reduced = expanded;
            let scalar = Scalar::from_bytes_mod_order(*expanded.first_chunk().unwrap());
            reduced[..32].copy_from_slice(scalar.as_bytes());
            let offset = KeyOffset::new(multiple).unwrap();
            let public = offset.from_public(clamped.service_id()).unwrap();
            for origin in [clamped, IdentitySecret(reduced)] {
                let moved = offset.from_secret(&origin, &mut rand::rng());
                prop_assert_eq!(moved.public_key(), *public.public_key());
                // Another program can read it.
                prop_assert!(IdentitySecret::from_expanded(&Zeroizing::new(*moved.expanded())).is_ok());
                prop_assert_ne!(&moved.expanded()[32..], &origin.expanded()[32..]);
            }
        }
    }

    #[test]
    fn a_distance_has_at_most_120_bits() {
        assert_eq!(KeyOffset::new(1 << 120), None);
        assert_eq!(KeyOffset::new((1 << 120) - 1).map(KeyOffset::multiple), Some((1 << 120) - 1));
        assert!(KeyOffset::random(&mut rand::rng()).plus(u64::MAX).multiple() >> 120 == 0);
    }
}
