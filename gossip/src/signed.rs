//! Statements and their signatures.
//!
//! Bytes from the wire become [`Unverified<T>`], which reveals only the claimed signer. Checked
//! with the right key it becomes [`Verified<T>`], which can be read. The signature covers the
//! statement's context string, a zero byte and its encoding, so that a signature over one kind of
//! statement is never valid for another.

use std::marker::PhantomData;
use std::ops::Deref;

use ed25519_dalek::{Signature, VerifyingKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bytes::{FixedBytes, VarBytes};
use crate::codec::{self, DecodeError};

/// A type that can be signed.
pub trait Statement: Serialize + DeserializeOwned + Clone {
    /// The kind and version of the statement; part of the signed bytes.
    const CONTEXT: &'static str;
    /// The largest encoding accepted, in bytes, signature included.
    const MAX_SIZE: usize;
}

/// Signs an encoded statement under a context that no type of this version has, as a later version
/// would.
#[cfg(any(test, feature = "sim"))]
pub fn sign_unknown_kind(context: &str, statement: Vec<u8>, key: &dyn Sign) -> Result<Vec<u8>, DecodeError> {
    let signature = FixedBytes(key.sign_bytes(&in_context(context, &statement)));
    codec::encode(&Envelope { signer: FixedBytes(key.public_key()), statement: VarBytes(statement), signature })
}

/// A signing key. The implementor decides how it is stored.
pub trait Sign {
    /// The Ed25519 public key.
    fn public_key(&self) -> [u8; 32];
    /// An Ed25519 signature over the bytes.
    fn sign_bytes(&self, message: &[u8]) -> [u8; 64];
}

/// Checks one Ed25519 signature. The daemon uses [`Strict`]; the trait lets a simulation of
/// hundreds of nodes in one process cache its checks.
pub trait Check {
    /// True if `signature` over `message` was made by the secret half of `key`.
    fn check(&self, key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool;
}

/// Strict verification (RFC 8032; rejects small-order keys and malleable signatures).
#[derive(Debug, Clone, Copy, Default)]
pub struct Strict;

impl Check for Strict {
    fn check(&self, key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(key)
            .and_then(|key| key.verify_strict(message, &Signature::from_bytes(signature)))
            .is_ok()
    }
}

/// Reason why a signed statement was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The envelope or the statement in it cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The claimed signer is not the expected one.
    #[error("signed by another key than expected")]
    Signer,
    /// The signature does not match.
    #[error("bad signature")]
    Signature,
}

/// The envelope on the wire.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Envelope {
    signer: FixedBytes<32>,
    statement: VarBytes,
    signature: FixedBytes<64>,
}

/// A statement whose signature has not been checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unverified<T> {
    envelope: Envelope,
    kind: PhantomData<fn() -> T>,
}

/// A statement whose signature has been checked. Dereferences to the statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified<T> {
    envelope: Envelope,
    statement: T,
}

/// The bytes that a signature covers.
fn in_context(context: &str, statement: &[u8]) -> Vec<u8> {
    [context.as_bytes(), &[0], statement].concat()
}

impl<T: Statement> Unverified<T> {
    /// Reads an envelope of at most `T::MAX_SIZE` bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(bytes, T::MAX_SIZE).map(|envelope| Self { envelope, kind: PhantomData })
    }

    /// The record that has this signature, which is not checked.
    pub(crate) fn assemble(statement: &T, signer: &[u8; 32], signature: &[u8; 64]) -> Result<Vec<u8>, DecodeError> {
        let statement = VarBytes(codec::encode(statement)?);
        codec::encode(&Envelope { signer: FixedBytes(*signer), statement, signature: FixedBytes(*signature) })
    }

    /// The statement and its signature, which is not checked: to encode the record in another way.
    pub(crate) fn unchecked(&self) -> Result<(T, [u8; 64]), DecodeError> {
        Ok((codec::decode(&self.envelope.statement.0, T::MAX_SIZE)?, self.envelope.signature.0))
    }

    /// The key that the envelope names as its signer. Use it only to choose the key for the check.
    pub fn claimed_signer(&self) -> &[u8; 32] {
        &self.envelope.signer.0
    }

    /// Checks the signature by `key` and reads the statement.
    pub fn verify(self, key: &[u8; 32]) -> Result<Verified<T>, VerifyError> {
        self.verify_with(key, &Strict)
    }

    /// As [`Unverified::verify`], with another implementation of the check.
    pub fn verify_with(self, key: &[u8; 32], check: &dyn Check) -> Result<Verified<T>, VerifyError> {
        if self.claimed_signer() != key {
            return Err(VerifyError::Signer);
        }
        let signed = in_context(T::CONTEXT, &self.envelope.statement.0);
        if !check.check(key, &signed, &self.envelope.signature.0) {
            return Err(VerifyError::Signature);
        }
        let statement = codec::decode(&self.envelope.statement.0, T::MAX_SIZE)?;
        Ok(Verified { envelope: self.envelope, statement })
    }
}

impl<T: Statement> Verified<T> {
    /// Signs a statement of our own.
    pub fn sign(statement: T, key: &dyn Sign) -> Result<Self, DecodeError> {
        let encoded = codec::encode(&statement)?;
        let signature = key.sign_bytes(&in_context(T::CONTEXT, &encoded));
        let envelope = Envelope {
            signer: FixedBytes(key.public_key()),
            statement: VarBytes(encoded),
            signature: FixedBytes(signature),
        };
        Ok(Self { envelope, statement })
    }

    /// The bytes for the wire.
    pub fn to_bytes(&self) -> Result<Vec<u8>, DecodeError> {
        codec::encode(&self.envelope)
    }

    /// True if `other` is the same envelope, byte for byte: then it needs no check.
    pub fn is_same(&self, other: &Unverified<T>) -> bool {
        self.envelope == other.envelope
    }

    /// The signature.
    pub(crate) fn signature(&self) -> &[u8; 64] {
        &self.envelope.signature.0
    }

    /// The statement as it was signed: version byte and CBOR.
    pub(crate) fn encoded(&self) -> &[u8] {
        &self.envelope.statement.0
    }

    /// The public key that signed it.
    pub fn signer(&self) -> &[u8; 32] {
        &self.envelope.signer.0
    }

    /// The envelope without the proof that it was checked, for embedding in another message.
    pub fn unverified(&self) -> Unverified<T> {
        Unverified { envelope: self.envelope.clone(), kind: PhantomData }
    }
}

/// A signed statement of a kind that this version does not know, kept as the bytes that arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownStatement {
    envelope: Envelope,
}

impl UnknownStatement {
    /// Reads an envelope of at most `max` bytes.
    pub(crate) fn from_bytes(bytes: &[u8], max: usize) -> Result<Self, DecodeError> {
        codec::decode(bytes, max).map(|envelope| Self { envelope })
    }

    pub(crate) fn claimed_signer(&self) -> &[u8; 32] {
        &self.envelope.signer.0
    }

    /// Checks the signature by `key` under the context of a kind that this version does not know.
    pub(crate) fn verify(&self, context: &str, key: &[u8; 32], check: &dyn Check) -> Result<(), VerifyError> {
        if self.claimed_signer() != key {
            return Err(VerifyError::Signer);
        }
        let signed = in_context(context, self.encoded());
        if check.check(key, &signed, self.signature()) { Ok(()) } else { Err(VerifyError::Signature) }
    }

    /// Reads those fields of the statement that `T` has.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        codec::decode(self.encoded(), self.encoded().len())
    }

    /// The bytes for the wire.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, DecodeError> {
        codec::encode(&self.envelope)
    }

    /// The signature.
    pub(crate) fn signature(&self) -> &[u8; 64] {
        &self.envelope.signature.0
    }

    /// The statement as it was signed: version byte and CBOR.
    pub(crate) fn encoded(&self) -> &[u8] {
        &self.envelope.statement.0
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.statement
    }
}

impl<T> Serialize for Unverified<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.envelope.serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Unverified<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Envelope::deserialize(deserializer).map(|envelope| Self { envelope, kind: PhantomData })
    }
}

impl Sign for ed25519_dalek::SigningKey {
    fn public_key(&self) -> [u8; 32] {
        self.verifying_key().to_bytes()
    }

    fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
        ed25519_dalek::Signer::sign(self, message).to_bytes()
    }
}
