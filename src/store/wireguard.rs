//! The node's WireGuard keys, as bytes: `wireguard` is on a higher floor.

use zeroize::Zeroizing;

use super::kind::Kind;
use super::{Store, StoreError, read_payload, write};

impl Store {
    /// The node's WireGuard keys, as [`crate::wireguard::OwnKeys`] encodes them; `None` before
    /// WireGuard was first switched on.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    pub fn wireguard_keys(&self) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        read_payload(&self.home(), Kind::WireguardKey)
    }

    /// Replaces the node's WireGuard keys.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put_wireguard_keys(&self, keys: &[u8]) -> Result<(), StoreError> {
        let _changing = self.change();
        write(&self.home(), Kind::WireguardKey, keys)
    }
}
