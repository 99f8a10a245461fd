//! Ids: each is an Ed25519 public key (or the two identities of a relay) in a type of its own, so
//! that one kind is never taken for another. Nodes and services are displayed as onion addresses,
//! and a cluster as the address of its first service.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use sha3::{Digest, Sha3_256};

use crate::bytes::FixedBytes;

/// Reason why a text is not an onion address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The text, and its number of characters before `.onion`, which is not 56.
    #[error("an onion address has 56 characters before .onion, {0:?} has {1}")]
    Length(String, usize),
    /// A character is not in the base32 alphabet.
    #[error("{0:?} is not an onion address: it holds a character outside a-z and 2-7")]
    Alphabet(String),
    /// The built-in checksum does not match.
    #[error("{0:?} is not an onion address: its checksum does not match, so a character of it is mistyped")]
    Checksum(String),
    /// The text and its version of the address format, which is not 3. The checksum matches.
    #[error("{0:?} is an onion address of version {1}, and only version 3 is in use")]
    Version(String, u8),
    /// The address is valid, but not written in its one form: in lower case, with `.onion`.
    #[error("{0:?} is not in the form of an onion address: lower case, with .onion and nothing around it")]
    Form(String),
}

/// A v3 onion address: an Ed25519 public key (rend-spec-v3, section 6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OnionAddress(FixedBytes<32>);

impl OnionAddress {
    /// The address of this public key.
    pub fn from_public_key(key: [u8; 32]) -> Self {
        Self(FixedBytes(key))
    }

    /// The Ed25519 public key that the address encodes.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.0.0
    }
}

/// The version of the address format.
const VERSION: u8 = 3;

/// The two bytes of checksum in an onion address of this version.
fn checksum(key: &[u8; 32], version: u8) -> [u8; 2] {
    let digest = Sha3_256::new().chain_update(b".onion checksum").chain_update(key).chain_update([version]).finalize();
    [digest[0], digest[1]]
}

impl fmt::Display for OnionAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut whole = [0; 35];
        whole[..32].copy_from_slice(self.public_key());
        whole[32..34].copy_from_slice(&checksum(self.public_key(), VERSION));
        whole[34] = VERSION;
        write!(f, "{}.onion", BASE32_NOPAD.encode(&whole).to_ascii_lowercase())
    }
}

impl fmt::Debug for OnionAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Accepts only the form in which it is displayed, because it reads texts from the wire and from
/// disk.
impl FromStr for OnionAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let shown = || text.chars().take(80).collect::<String>();
        let label = text.strip_suffix(".onion").unwrap_or(text);
        if label.chars().count() != 56 {
            return Err(AddressError::Length(shown(), label.chars().count()));
        }
        let whole =
            BASE32_NOPAD.decode(label.to_ascii_uppercase().as_bytes()).map_err(|_| AddressError::Alphabet(shown()))?;
        let (Some(key), Some(sum), Some(version)) = (whole.first_chunk::<32>(), whole.get(32..34), whole.get(34))
        else {
            return Err(AddressError::Alphabet(shown()));
        };
        // The checksum is checked first: the version is encoded in the last character, so most
        // addresses with another version are mistyped ones of version 3.
        if sum != checksum(key, *version) {
            return Err(AddressError::Checksum(shown()));
        }
        if *version != VERSION {
            return Err(AddressError::Version(shown(), *version));
        }
        let address = Self::from_public_key(*key);
        if address.to_string() != text {
            return Err(AddressError::Form(shown()));
        }
        Ok(address)
    }
}

/// Makes a newtype over an onion address.
macro_rules! onion_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(OnionAddress);

        impl $name {
            /// The id with this public key.
            pub fn from_public_key(key: [u8; 32]) -> Self {
                Self(OnionAddress::from_public_key(key))
            }

            /// The Ed25519 public key.
            pub fn public_key(&self) -> &[u8; 32] {
                self.0.public_key()
            }

            /// The first eight characters of the address: enough to distinguish nodes in a log.
            pub fn short(&self) -> String {
                self.0.to_string().chars().take(8).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl From<OnionAddress> for $name {
            fn from(address: OnionAddress) -> Self {
                Self(address)
            }
        }

        impl FromStr for $name {
            type Err = AddressError;
            fn from_str(text: &str) -> Result<Self, AddressError> {
                text.parse().map(Self)
            }
        }
    };
}

onion_id! {
    /// A node. Its Ed25519 key is its id, makes its onion address and signs its records.
    NodeId
}
onion_id! {
    /// A service: the key of an onion service that the cluster serves to clients.
    ServiceId
}
onion_id! {
    /// A cluster: part of every signed statement, and the root of trust of all joins. It has the
    /// bytes of the first service's key; it is a type of its own because further services belong to
    /// the same cluster.
    ClusterId
}

impl NodeId {
    /// The onion address at which it is dialled.
    pub fn address(&self) -> OnionAddress {
        self.0
    }
}

impl ServiceId {
    /// The onion address at which it is dialled.
    pub fn address(&self) -> OnionAddress {
        self.0
    }
}

impl ClusterId {
    /// The cluster whose first service is `first`.
    pub fn named_by(first: ServiceId) -> Self {
        Self(first.0)
    }

    /// The service whose key names the cluster: joiners dial its address.
    pub fn first_service(&self) -> ServiceId {
        ServiceId(self.0)
    }
}

/// Makes a newtype over a public key that is not an onion address.
macro_rules! key_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(FixedBytes<32>);

        impl $name {
            /// The id with this public key.
            pub fn from_public_key(key: [u8; 32]) -> Self {
                Self(FixedBytes(key))
            }

            /// The Ed25519 public key.
            pub fn public_key(&self) -> &[u8; 32] {
                &self.0.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(self.public_key()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), &self.to_string()[..8])
            }
        }

        /// Accepts only the form in which it is displayed.
        impl FromStr for $name {
            type Err = KeyTextError;
            fn from_str(text: &str) -> Result<Self, KeyTextError> {
                let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
                bytes.map(Self::from_public_key).ok_or(KeyTextError)
            }
        }
    };
}

/// The text is not a key: 64 hexadecimal digits in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key is written as 64 hexadecimal digits in lower case")]
pub struct KeyTextError;

key_id! {
    /// The cluster's certificate-signing key.
    AuthorityId
}
key_id! {
    /// An invitation: the public half of its token.
    InvitationId
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUCK: &str = "duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad.onion";

    #[test]
    fn an_address_has_one_form() {
        let address: OnionAddress = DUCK.parse().unwrap();
        assert_eq!(address.to_string(), DUCK);
        let label = DUCK.trim_end_matches(".onion");
        for other in [label.into(), DUCK.to_uppercase(), format!("{}.onion", label.to_uppercase())] {
            assert!(
                matches!(other.parse::<ClusterId>(), Err(AddressError::Form(_) | AddressError::Length(..))),
                "{other}"
            );
        }
        for other in [format!(" {DUCK}"), format!("{DUCK}\n"), format!("{DUCK}."), format!("www.{DUCK}")] {
            assert!(matches!(other.parse::<NodeId>(), Err(AddressError::Length(..))), "{other:?}");
        }
    }

    #[test]
    fn a_mistyped_address_is_distinguished_from_another_version() {
        let label = DUCK.trim_end_matches(".onion");
        for at in 0..label.len() {
            for new in ["a", "2", "x", "c", "e"].into_iter().filter(|new| *new != &label[at..=at]) {
                let mut typed = label.to_owned();
                typed.replace_range(at..=at, new);
                let read = format!("{typed}.onion").parse::<ClusterId>();
                assert!(matches!(read, Err(AddressError::Checksum(_))), "{typed}: {read:?}");
            }
        }
        let key = *DUCK.parse::<OnionAddress>().unwrap().public_key();
        let later = [&key[..], &checksum(&key, 4), &[4]].concat();
        let later = format!("{}.onion", BASE32_NOPAD.encode(&later).to_ascii_lowercase());
        assert!(matches!(later.parse::<ClusterId>(), Err(AddressError::Version(_, 4))));
        assert!(matches!("abc.onion".parse::<NodeId>(), Err(AddressError::Length(_, 3))));
        assert!(matches!(DUCK.replace("duck", "du1k").parse::<NodeId>(), Err(AddressError::Alphabet(_))));
        assert!(matches!("é".repeat(56).parse::<NodeId>(), Err(AddressError::Alphabet(_))));
    }
}
