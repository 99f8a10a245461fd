//! Arti's key files: OpenSSH's format with an algorithm of Tor's own
//! (spec.torproject.org/ssh-protocols).

use ssh_key::PrivateKey;
use zeroize::Zeroizing;

/// The algorithm name of an onion service's identity key.
const EXPANDED: &str = "ed25519-expanded@spec.torproject.org";

/// Why a text is not the identity key of an onion service in Arti's format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeystoreError {
    /// Not in OpenSSH's format, or truncated.
    #[error("is not a whole OpenSSH key: {0}")]
    Format(String),
    /// A key of another algorithm.
    #[error("is an OpenSSH key of another kind ({0}): the key of an address is in ks_hs_id.ed25519_expanded_private")]
    Kind(String),
    /// The public key does not belong to the secret key, or one of them has the wrong length.
    #[error("is damaged: its two halves do not belong together")]
    Halves,
}

/// The expanded secret key and the public key in the text of a
/// `ks_hs_id.ed25519_expanded_private`.
pub fn read_identity_key(text: &str) -> Result<(Zeroizing<[u8; 64]>, [u8; 32]), KeystoreError> {
    // `ssh_key` does not zeroize what it decodes. It is dropped when this call returns, and only
    // commands that end soon call this.
    let key = PrivateKey::from_openssh(text).map_err(|error| KeystoreError::Format(error.to_string()))?;
    let kind = key.algorithm();
    let Some(pair) = key.key_data().other().filter(|_| kind.as_str() == EXPANDED) else {
        return Err(KeystoreError::Kind(kind.as_str().into()));
    };
    let (secret, public) = (pair.private.as_ref().try_into(), pair.public.as_ref().try_into());
    Ok((Zeroizing::new(secret.map_err(|_| KeystoreError::Halves)?), public.map_err(|_| KeystoreError::Halves)?))
}

/// The text of the key file as Arti would write it.
#[cfg(test)]
pub(crate) fn write_identity_key(secret: &[u8; 64], public: &[u8; 32]) -> String {
    use ssh_key::private::{KeypairData, OpaqueKeypair};
    use ssh_key::public::OpaquePublicKey;
    let algorithm = ssh_key::Algorithm::new(EXPANDED).unwrap();
    let public = OpaquePublicKey::new(public.to_vec(), algorithm);
    let pair = KeypairData::Other(OpaqueKeypair::new(secret.to_vec(), public));
    PrivateKey::new(pair, "").unwrap().to_openssh(ssh_key::LineEnding::LF).unwrap().to_string()
}
