//! Records of kinds that only a later version knows: they are forwarded without being read.
//!
//! All facts of later versions have in common the fields of [`Header`], and a signature of the
//! authority under [`UnknownKey::context`].

use std::fmt;

use serde::Deserialize;

use super::{Invitation, MAX_RECORD, OpenError};
use crate::codec::DecodeError;
use crate::id::ClusterId;
use crate::signed::{Check, UnknownStatement};

/// Maximum length of a record's key, in bytes.
pub const MAX_KEY: usize = 96;
/// Maximum length of a kind's name, the first part of its keys, in bytes.
const MAX_NAME: usize = 16;

/// The key of a record whose kind is not in the table: a name and, after `/`, its subject.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnknownKey {
    length: u8,
    /// Zero from `length` on.
    bytes: [u8; MAX_KEY],
}

impl UnknownKey {
    /// Parses a key; `None` if it is not a valid key in any version.
    pub(super) fn new(key: &str) -> Option<Self> {
        let length = u8::try_from(key.len()).ok()?;
        let mut bytes = [0; MAX_KEY];
        bytes.get_mut(..key.len())?.copy_from_slice(key.as_bytes());
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let key = Self { length, bytes };
        let name = key.name();
        let named = name.starts_with(|first: char| first.is_ascii_lowercase())
            && name.len() <= MAX_NAME
            && name.bytes().all(plain);
        (named && key.as_str().bytes().all(|byte| plain(byte) || byte == b'/' || byte == b'.')).then_some(key)
    }

    /// The whole key.
    pub fn as_str(&self) -> &str {
        // The bytes are valid UTF-8: they were copied whole from a string.
        self.bytes.get(..self.length.into()).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    /// The name of the kind.
    pub fn name(&self) -> &str {
        let key = self.as_str();
        key.split_once('/').map_or(key, |(name, _)| name)
    }

    /// The context under which records of this kind are signed. Every kind added from version 2 on
    /// uses it.
    pub fn context(&self) -> String {
        format!("rustbalance record {}", self.name())
    }
}

impl fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnknownKey({self})")
    }
}

/// The fields that every fact of a later version has, or may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Header {
    cluster: ClusterId,
    /// Sequence number: of two statements under one key the higher one replaces the other.
    #[serde(default)]
    seq: u64,
    /// When it expires, in seconds since the Unix epoch. Like an invitation it is kept for a week
    /// longer.
    #[serde(default)]
    expires: Option<u64>,
}

/// A fact of a kind that this version does not know, its signature checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownFact {
    key: UnknownKey,
    header: Header,
    statement: UnknownStatement,
}

impl UnknownFact {
    /// Reads the fact announced under a key, which must be signed by the authority's key.
    pub(crate) fn read(
        key: UnknownKey,
        bytes: &[u8],
        authority: &[u8; 32],
        check: &dyn Check,
    ) -> Result<Self, OpenError> {
        let statement = UnknownStatement::from_bytes(bytes, MAX_RECORD)?;
        statement.verify(&key.context(), authority, check)?;
        Ok(Self { key, header: statement.read()?, statement })
    }

    /// The key under which it is announced.
    pub fn key(&self) -> UnknownKey {
        self.key
    }

    /// The cluster that it is for.
    pub(crate) fn cluster(&self) -> ClusterId {
        self.header.cluster
    }

    /// The bytes for the wire, unchanged.
    ///
    /// # Errors
    /// None in practice: it was encoded before.
    pub fn to_bytes(&self) -> Result<Vec<u8>, DecodeError> {
        self.statement.to_bytes()
    }

    /// The statement as it was signed.
    pub(crate) fn encoded(&self) -> &[u8] {
        self.statement.encoded()
    }

    /// The signature.
    pub(crate) fn signature(&self) -> &[u8; 64] {
        self.statement.signature()
    }

    /// Orders statements under one key; the greatest is kept.
    pub(crate) fn rank(&self) -> (u64, &[u8]) {
        (self.header.seq, self.encoded())
    }

    /// See [`super::Fact::kept_until`].
    pub(crate) fn kept_until(&self) -> u64 {
        self.header.expires.map_or(u64::MAX, |expires| expires.saturating_add(Invitation::KEPT_SECONDS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_later_version_is_short_and_plain() {
        let key = UnknownKey::new("ep/x").unwrap();
        assert_eq!((key.as_str(), key.name(), key.context().as_str()), ("ep/x", "ep", "rustbalance record ep"));
        assert_eq!(UnknownKey::new("later").unwrap().name(), "later");
        let (long, longest) = (format!("a/{}", "b".repeat(95)), format!("a/{}", "b".repeat(94)));
        assert!(UnknownKey::new(&longest).is_some());
        for key in ["", "/", "/x", "A", "7", "a b", "a/B", "a\0", "ä", "a.b/c", &"n".repeat(17), &long] {
            assert_eq!(UnknownKey::new(key), None, "{key:?}");
        }
    }
}
