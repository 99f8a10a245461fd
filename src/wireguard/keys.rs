//! The X25519 keys of WireGuard.

use std::fmt;

use data_encoding::BASE64;
use rand::{CryptoRng, RngExt};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::keys::redact;

/// A secret key. Its public half goes into the endpoint record.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct WireguardSecret([u8; 32]);

impl WireguardSecret {
    /// A new random key.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        Self(rng.random())
    }

    /// The key with these bytes. Any bytes are a key: X25519 clamps them itself.
    pub fn from_bytes(bytes: &Zeroizing<[u8; 32]>) -> Self {
        Self(**bytes)
    }

    /// The key's bytes, to be written to a file or given to an engine.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its public half.
    pub fn public(&self) -> WireguardKey {
        WireguardKey(x25519_dalek::x25519(self.0, x25519_dalek::X25519_BASEPOINT_BYTES))
    }

    /// A copy of the secret; explicit, because the type is not `Clone`.
    pub fn duplicate(&self) -> Self {
        Self(self.0)
    }
}

redact!(WireguardSecret);

/// The point has a small order, so every shared secret with it is zero and known to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a usable WireGuard key: every shared secret with it would be zero")]
pub struct WeakKey;

/// A public key. Shown in base64, as `wg` shows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireguardKey([u8; 32]);

impl WireguardKey {
    /// The key with these bytes.
    ///
    /// # Errors
    /// [`WeakKey`] if it protects nothing (RFC 7748, section 6.1).
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, WeakKey> {
        // Clamping makes every scalar a multiple of 8, so any of them shows a small order.
        if x25519_dalek::x25519([1; 32], bytes) == [0; 32] { Err(WeakKey) } else { Ok(Self(bytes)) }
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for WireguardKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&BASE64.encode(&self.0))
    }
}

impl fmt::Debug for WireguardKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// RFC 7748, section 5.2: the first iteration.
    #[test]
    fn the_public_half_is_that_of_x25519() {
        let secret = std::array::from_fn(|at| if at == 0 { 9 } else { 0 });
        let public = "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079";
        let shown = HEXLOWER.encode(WireguardSecret::from_bytes(&Zeroizing::new(secret)).public().as_bytes());
        assert_eq!(shown, public);
    }

    #[test]
    fn a_key_of_small_order_is_refused() {
        let one = std::array::from_fn(|at| u8::from(at == 0));
        for weak in [[0; 32], one] {
            assert_eq!(WireguardKey::from_bytes(weak), Err(WeakKey));
        }
        let key = WireguardSecret::generate(&mut rand::rng()).public();
        assert_eq!(WireguardKey::from_bytes(*key.as_bytes()), Ok(key));
        assert_eq!(key.to_string().len(), 44);
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let secret = WireguardSecret::generate(&mut rand::rng());
        assert_eq!(format!("{:?}", secret.duplicate()), "WireguardSecret(redacted)");
    }
}
