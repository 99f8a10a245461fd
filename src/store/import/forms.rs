//! The formats in which other programs write the secret key of a v3 service. The content of a file
//! determines its format.

use std::str;

use data_encoding::{BASE64_NOPAD, HEXLOWER_PERMISSIVE};
use ed25519_dalek::SigningKey;
use pkcs8::{ObjectIdentifier, PrivateKeyInfo, SecretDocument};
use rustbalance_gossip::signed::Sign;
use zeroize::Zeroizing;

use crate::keys::{IdentitySecret, KeyError};
use crate::tor::keystore::{self, KeystoreError};

/// The beginning of C tor's secret key file.
pub(in crate::store) const SECRET_HEADER: &[u8; 32] = b"== ed25519v1-secret: type0 ==\0\0\0";
/// The beginning of the public key file beside it.
pub(in crate::store) const PUBLIC_HEADER: &[u8; 32] = b"== ed25519v1-public: type0 ==\0\0\0";
/// The accepted formats, for error messages.
const FORMS: &str = "give C tor's hs_ed25519_secret_key or the folder that holds it, mkp224o's output, a PEM file \
    (PKCS#8) such as onionbalance-config writes, Arti's ks_hs_id.ed25519_expanded_private, the 64 bytes of the expanded \
    key in base64, in hex or as ED25519-V3:..., or the identity.key of a publisher";

/// Why a file's content is not the secret key of a v3 onion service. Contains no byte of the file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFormatError {
    /// The content has none of the accepted formats. Holds the file's size in bytes.
    #[error("is not the secret key of a v3 onion service in a known format ({0} bytes): {FORMS}")]
    Unknown(u64),
    /// The file has C tor's header, but this wrong length, in bytes.
    #[error("begins like C tor's hs_ed25519_secret_key, but has {0} bytes instead of 96: it is damaged")]
    Length(u64),
    /// The file holds a public key.
    #[error("is a public key: give the secret key that belongs to it")]
    Public,
    /// The key is encrypted with a passphrase.
    #[error("is encrypted with a passphrase: decrypt a copy with `openssl pkey -in FILE -out COPY` and give that copy")]
    Locked,
    /// PKCS#8 that is damaged or holds a key of another algorithm.
    #[error("is not a complete Ed25519 key in PEM (PKCS#8)")]
    Pem,
    /// OpenSSH's format, but not the identity key of a service.
    #[error(transparent)]
    Keystore(#[from] KeystoreError),
    /// The key of a version 2 service, which Tor no longer supports.
    #[error("is the key of a version 2 onion service, which Tor no longer supports: give a version 3 key")]
    Version2,
    /// The file holds the keys of this number of services.
    #[error("holds the keys of {0} services: give a file with one of them")]
    Several(usize),
    /// The bytes are not a safe signing key.
    #[error("is damaged: {0}")]
    Key(#[from] KeyError),
}

/// A key, and what its file says about it.
pub(super) struct ImportedKey {
    pub(super) secret: IdentitySecret,
    /// The address that the same file names, not verified.
    pub(super) hostname: Option<String>,
    /// True for C tor's own file, which may have `hostname` and a public key beside it.
    pub(super) of_c_tor: bool,
}

impl ImportedKey {
    fn alone(secret: IdentitySecret) -> Self {
        Self { secret, hostname: None, of_c_tor: false }
    }
}

/// Reads the key from a file of `size` bytes. `bytes` is its content, or its beginning if the file
/// is too long.
pub(super) fn read(bytes: &[u8], size: u64) -> Result<ImportedKey, KeyFormatError> {
    if let Some(secret) = c_tor_key(bytes, size)? {
        return Ok(ImportedKey { of_c_tor: true, ..ImportedKey::alone(secret) });
    }
    let text = str::from_utf8(bytes).map_err(|_| KeyFormatError::Unknown(size))?.trim();
    if let Some(at) = text.find("-----BEGIN ") {
        return pem_key(&text[at..], size).map(ImportedKey::alone);
    }
    let yaml = |name| text.lines().filter_map(move |line| line.trim().strip_prefix(name)).map(str::trim);
    match yaml("hs_ed25519_secret_key:").count() {
        0 => {}
        1 => {
            let secret = encoded_key(yaml("hs_ed25519_secret_key:").next().unwrap_or_default(), size)?;
            return Ok(ImportedKey {
                hostname: yaml("hostname:").next().map(str::to_owned),
                ..ImportedKey::alone(secret)
            });
        }
        several => return Err(KeyFormatError::Several(several)),
    }
    if text.starts_with("RSA1024:") {
        return Err(KeyFormatError::Version2);
    }
    if text.starts_with("ssh-") || text.starts_with("ed25519-expanded@") {
        return Err(KeyFormatError::Public);
    }
    encoded_key(text.strip_prefix("ED25519-V3:").unwrap_or(text), size).map(ImportedKey::alone)
}

/// The key in C tor's file, with or without the line end that an editor or a shell has added;
/// `None` if the content is not C tor's.
fn c_tor_key(bytes: &[u8], size: u64) -> Result<Option<IdentitySecret>, KeyFormatError> {
    if bytes.starts_with(PUBLIC_HEADER) {
        return Err(KeyFormatError::Public);
    }
    let Some(key) = bytes.strip_prefix(SECRET_HEADER) else { return Ok(None) };
    match key.split_first_chunk::<64>() {
        Some((key, b"" | b"\n" | b"\r\n")) => expanded_key(key).map(Some),
        _ => Err(KeyFormatError::Length(size)),
    }
}

/// The key in a text that begins with a PEM label.
fn pem_key(text: &str, size: u64) -> Result<IdentitySecret, KeyFormatError> {
    let label = text.trim_start_matches("-----BEGIN ").split("-----").next().unwrap_or_default();
    let end = format!("-----END {label}-----");
    let whole = text.find(&end).map_or(text, |at| &text[..at + end.len()]);
    match label {
        "PRIVATE KEY" => pkcs8_key(whole).ok_or(KeyFormatError::Pem),
        "OPENSSH PRIVATE KEY" => {
            let (key, public) = keystore::read_identity_key(whole)?;
            let secret = expanded_key(&key)?;
            if secret.public_key() == public { Ok(secret) } else { Err(KeystoreError::Halves.into()) }
        }
        "ENCRYPTED PRIVATE KEY" => Err(KeyFormatError::Locked),
        "RSA PRIVATE KEY" => Err(KeyFormatError::Version2),
        "PUBLIC KEY" => Err(KeyFormatError::Public),
        _ => Err(KeyFormatError::Unknown(size)),
    }
}

/// id-Ed25519 (RFC 8410, section 3).
pub(super) const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// The key of the seed in a PKCS#8 document (RFC 8410, section 7).
fn pkcs8_key(pem: &str) -> Option<IdentitySecret> {
    let (_, document) = SecretDocument::from_pem(pem).ok()?;
    let info: PrivateKeyInfo<'_> = document.decode_msg().ok()?;
    // An OCTET STRING of 32 bytes in the octet string.
    let seed = info.private_key.strip_prefix(&[4, 32]).filter(|_| info.algorithm.oid == ED25519)?;
    let secret = IdentitySecret::from_seed(&Zeroizing::new(seed.try_into().ok()?));
    info.public_key.is_none_or(|public| public == secret.public_key()).then_some(secret)
}

/// The key in hex or base64 (either alphabet, padded or not, over any number of lines): 64 bytes,
/// or C tor's 96.
fn encoded_key(text: &str, size: u64) -> Result<IdentitySecret, KeyFormatError> {
    let unknown = || KeyFormatError::Unknown(size);
    let mut plain = Zeroizing::new(Vec::with_capacity(text.len()));
    plain.extend(text.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    let is_hex = matches!(plain.len(), 128 | 192) && plain.iter().all(u8::is_ascii_hexdigit);
    if !is_hex {
        let digits = plain.iter().rposition(|byte| *byte != b'=').map_or(0, |at| at + 1);
        plain.truncate(digits);
        for byte in plain.iter_mut() {
            *byte = match *byte {
                b'-' => b'+',
                b'_' => b'/',
                other => other,
            };
        }
    }
    let encoding = if is_hex { &HEXLOWER_PERMISSIVE } else { &BASE64_NOPAD };
    let length = encoding.decode_len(plain.len()).map_err(|_| unknown())?;
    let mut bytes = Zeroizing::new(vec![0; length]);
    encoding.decode_mut(&plain, &mut bytes).map_err(|_| unknown())?;
    if let Some(secret) = c_tor_key(&bytes, length as u64)? {
        return Ok(secret);
    }
    expanded_key(bytes.as_slice().try_into().map_err(|_| unknown())?)
}

/// The key in 64 bytes: scalar and hash prefix, or seed and public key as libsodium and Go write
/// them.
fn expanded_key(bytes: &[u8; 64]) -> Result<IdentitySecret, KeyFormatError> {
    let (first, second) = bytes.split_at(32);
    let mut seed = Zeroizing::new([0; 32]);
    seed.copy_from_slice(first);
    if SigningKey::from_bytes(&seed).verifying_key().as_bytes() == second {
        return Ok(IdentitySecret::from_seed(&seed));
    }
    let secret = IdentitySecret::from_expanded(&Zeroizing::new(*bytes))?;
    // Signature nonces are derived from the second half. If it is public, a single signature
    // reveals the secret scalar.
    let is_known = second == secret.public_key() || second == [0; 32];
    if is_known { Err(KeyError::PublicPrefix.into()) } else { Ok(secret) }
}
