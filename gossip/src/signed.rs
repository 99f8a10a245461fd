//! Statements and their signatures.
//!
//! Bytes off the wire become [`Unverified<T>`], which can be asked only who claims to have signed it. With the right
//! key it becomes [`Verified<T>`], which can be read. What is signed is the statement's context string, a zero byte
//! and its encoding, so that a signature over one kind of statement is never one over another.

use std::marker::PhantomData;
use std::ops::Deref;

use ed25519_dalek::{Signature, VerifyingKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bytes::{FixedBytes, VarBytes};
use crate::codec::{self, DecodeError};

/// What can be signed.
pub trait Statement: Serialize + DeserializeOwned + Clone {
    /// Names the kind and version of the statement inside what is signed.
    const CONTEXT: &'static str;
    /// The largest encoding accepted, in bytes, signature included.
    const MAX_SIZE: usize;
}

/// Signs an encoded statement in a context that no type here has: what a later version would say.
#[cfg(any(test, feature = "sim"))]
pub fn sign_foreign(context: &str, statement: Vec<u8>, key: &dyn Sign) -> Result<Vec<u8>, DecodeError> {
    let signature = FixedBytes(key.sign_bytes(&in_context(context, &statement)));
    codec::encode(&Envelope { signer: FixedBytes(key.public_key()), statement: VarBytes(statement), signature })
}

/// A signing key in whichever form it is kept.
pub trait Sign {
    /// The Ed25519 public key.
    fn public_key(&self) -> [u8; 32];
    /// An Ed25519 signature over the bytes.
    fn sign_bytes(&self, message: &[u8]) -> [u8; 64];
}

/// Checks one Ed25519 signature. There is one way to do it, [`Strict`]; the seam lets a simulation of hundreds of nodes
/// in one process remember what it has checked already.
pub trait Check {
    /// True if `signature` over `message` was made by the secret half of `key`.
    fn check(&self, key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool;
}

/// Strict verification (RFC 8032, no small-order keys, no malleable signatures).
#[derive(Debug, Clone, Copy, Default)]
pub struct Strict;

impl Check for Strict {
    fn check(&self, key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(key)
            .and_then(|key| key.verify_strict(message, &Signature::from_bytes(signature)))
            .is_ok()
    }
}

/// Why a signed statement was not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The envelope or the statement in it cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Signed by somebody other than expected.
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

/// A statement nobody has checked yet.
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

/// What is signed of a statement.
fn in_context(context: &str, statement: &[u8]) -> Vec<u8> {
    [context.as_bytes(), &[0], statement].concat()
}

impl<T: Statement> Unverified<T> {
    /// Reads an envelope of at most `T::MAX_SIZE` bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(bytes, T::MAX_SIZE).map(|envelope| Self { envelope, kind: PhantomData })
    }

    /// Who claims to have signed it: good for choosing the key to check with, for nothing else.
    pub fn claimed_signer(&self) -> &[u8; 32] {
        &self.envelope.signer.0
    }

    /// Checks the signature by `key` and reads the statement.
    pub fn verify(self, key: &[u8; 32]) -> Result<Verified<T>, VerifyError> {
        self.verify_with(key, &Strict)
    }

    /// The same with another way to check.
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

    /// True if `other` is the same envelope, byte for byte: then it needs no check of its own.
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

    /// Who signed it.
    pub fn signer(&self) -> &[u8; 32] {
        &self.envelope.signer.0
    }

    /// The envelope without the knowledge that it was checked, to stand inside another message.
    pub fn unverified(&self) -> Unverified<T> {
        Unverified { envelope: self.envelope.clone(), kind: PhantomData }
    }
}

/// A signed statement of a kind that this version does not know, kept as the bytes that came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Foreign {
    envelope: Envelope,
}

impl Foreign {
    /// Reads an envelope of at most `max` bytes.
    pub(crate) fn from_bytes(bytes: &[u8], max: usize) -> Result<Self, DecodeError> {
        codec::decode(bytes, max).map(|envelope| Self { envelope })
    }

    /// See [`Unverified::claimed_signer`].
    pub(crate) fn claimed_signer(&self) -> &[u8; 32] {
        &self.envelope.signer.0
    }

    /// Checks the signature by `key` under a context that no type here has.
    pub(crate) fn verify(&self, context: &str, key: &[u8; 32], check: &dyn Check) -> Result<(), VerifyError> {
        if self.claimed_signer() != key {
            return Err(VerifyError::Signer);
        }
        let signed = in_context(context, self.encoded());
        if check.check(key, &signed, self.signature()) { Ok(()) } else { Err(VerifyError::Signature) }
    }

    /// Reads the fields of the statement that `T` has.
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
