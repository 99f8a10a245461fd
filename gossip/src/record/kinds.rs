//! The table of record kinds, and the types generated from it: [`RecordKind`] with its keys and
//! their parser, [`AnyRecord`], [`AnyFact`], [`KINDS`].
//!
//! A new kind needs a file with its statement ([`NodeRecord`] or [`Fact`]) and a line in the table.
//! Code that must know all kinds expands the table, so that none is forgotten: the view, the
//! container of facts, fuzz targets, vectors.

use std::ops::Deref;

use super::{Fact, NodeRecord, UnknownFact, UnknownKey};
use crate::codec::DecodeError;
use crate::id::{ClusterId, NodeId};
use crate::signed::{Check, Statement, Unverified, Verified, VerifyError};

/// Expands `$then!` over every kind of record.
///
/// * `own`: records of which a node has one each. `Variant("name"): Type => fold;`, with the method
///   of [`crate::view::View`] that folds it (`keep` if the view only keeps it).
/// * `keyed`: records of which a node has one for each value of a key. `Variant("name", Key): Type
///   => fold;`
/// * `facts`: statements of the authority. `Variant("name", Id): Type, field => learn;`, with the
///   field of [`crate::facts::AllFacts`] and the method of the view that applies a new fact.
///
/// The name, with `/` and the key or id after it, is the record's key in a node's gossiped state.
#[macro_export]
macro_rules! record_kinds {
    ($then:ident) => {
        $then! {
            own {
                Card("card"): $crate::record::NodeCard => fold_card;
                Heartbeat("beat"): $crate::record::Heartbeat => fold_heartbeat;
                Lease("lease"): $crate::record::Lease => fold_lease;
                Endpoint("endpoint"): $crate::record::Endpoint => fold_endpoint;
                Report("report"): $crate::record::NodeReport => fold_report;
            }
            keyed {
                IntroPoints("ipts", $crate::id::ServiceId): $crate::record::IntroPoints => fold_points;
                Publication("pub", $crate::id::ServiceId): $crate::record::Publication => fold_publication;
            }
            facts {
                Invitation("inv", $crate::id::InvitationId): $crate::record::Invitation, invitations => learn_invitation;
                Revocation("rev", $crate::id::NodeId): $crate::record::Revocation, revocations => learn_revocation;
                Service("svc", $crate::id::ServiceId): $crate::record::Service, services => learn_service;
                Renewal("renewal", $crate::id::NodeId): $crate::record::Renewal, renewals => learn_renewal;
            }
        }
    };
}

/// The signer of the records of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    /// The node in whose gossiped state the record is announced; the record is about this node.
    Node,
    /// The cluster's authority, so any node may forward the record.
    Authority,
    /// The kind is of a later version and may be signed by either.
    Unknown,
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindInfo {
    /// The first part of the kind's keys.
    pub name: &'static str,
    /// [`Statement::CONTEXT`] of its statements.
    pub context: &'static str,
    /// [`Statement::MAX_SIZE`] of its statements, in bytes.
    pub max_size: usize,
    /// The signer of its records.
    pub signer: Signer,
}

/// Reason why a record is not the one that its key names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The record cannot be read, or is not signed by the expected signer.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The record belongs under another key.
    #[error("the record belongs under another key")]
    Key,
}

impl From<DecodeError> for OpenError {
    fn from(error: DecodeError) -> Self {
        Self::Verify(error.into())
    }
}

/// Generates the types that depend on the table.
macro_rules! kinds {
    (
        own { $($Own:ident($own:literal): $OwnType:ty => $own_fold:ident;)* }
        keyed { $($Keyed:ident($keyed:literal, $Key:ty): $KeyedType:ty => $keyed_fold:ident;)* }
        facts { $($Fact:ident($fact:literal, $Id:ty): $FactType:ty, $facts:ident => $learn:ident;)* }
    ) => {
        /// The kinds of record, each under its own key in a node's gossiped state.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum RecordKind {
            $(#[doc = concat!("The record under the key `", $own, "`.")] $Own,)*
            $(#[doc = concat!("The record under `", $keyed, "/` and its subject.")] $Keyed($Key),)*
            $(#[doc = concat!("The fact under `", $fact, "/` and its id.")] $Fact($Id),)*
            /// A record of a later version, which is forwarded without being read.
            Unknown(UnknownKey),
        }

        /// All kinds, in the order of the table.
        pub const KINDS: &[KindInfo] = &[
            $(info::<$OwnType>($own, Signer::Node),)*
            $(info::<$KeyedType>($keyed, Signer::Node),)*
            $(info::<$FactType>($fact, Signer::Authority),)*
        ];

        impl RecordKind {
            /// The key under which the record is announced in a node's gossiped state.
            pub fn key(&self) -> String {
                match self {
                    $(Self::$Own => $own.into(),)*
                    $(Self::$Keyed(about) => format!(concat!($keyed, "/{}"), about),)*
                    $(Self::$Fact(about) => format!(concat!($fact, "/{}"), about),)*
                    Self::Unknown(key) => key.to_string(),
                }
            }

            /// The signer that records of this kind must have.
            pub fn signer(&self) -> Signer {
                match self {
                    $(Self::$Own => Signer::Node,)*
                    $(Self::$Keyed(_) => Signer::Node,)*
                    $(Self::$Fact(_) => Signer::Authority,)*
                    Self::Unknown(_) => Signer::Unknown,
                }
            }

            /// The kind that a key names; `None` if no version has such a key. Only the canonical
            /// form of a key is accepted, or one record could be announced under many keys.
            pub fn from_key(key: &str) -> Option<Self> {
                let kind = match key.split_once('/') {
                    $(None if key == $own => Some(Self::$Own),)*
                    $(Some(($keyed, about)) => about.parse().ok().map(Self::$Keyed),)*
                    $(Some(($fact, about)) => about.parse().ok().map(Self::$Fact),)*
                    _ if KINDS.iter().any(|known| key.split('/').next() == Some(known.name)) => None,
                    _ => UnknownKey::new(key).map(Self::Unknown),
                };
                kind.filter(|kind| kind.key() == key)
            }
        }

        /// A node's own record of any kind, its signature checked.
        #[allow(clippy::large_enum_variant, reason = "each stays where it was put; boxes would only add a step")]
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum AnyRecord {
            $(#[doc = concat!("A record of the kind `", $own, "`.")] $Own(Verified<$OwnType>),)*
            $(#[doc = concat!("A record of the kind `", $keyed, "`.")] $Keyed(Verified<$KeyedType>),)*
        }

        impl AnyRecord {
            /// Its kind, computed from its content.
            pub fn kind(&self) -> RecordKind {
                match self {
                    $(Self::$Own(_) => RecordKind::$Own,)*
                    $(Self::$Keyed(record) => RecordKind::$Keyed($crate::record::Keyed::about(&**record)),)*
                }
            }

            /// The bytes for the wire.
            ///
            /// # Errors
            /// None in practice: it was encoded before.
            pub fn to_bytes(&self) -> Result<Vec<u8>, DecodeError> {
                match self {
                    $(Self::$Own(record) => record.to_bytes(),)*
                    $(Self::$Keyed(record) => record.to_bytes(),)*
                }
            }

            /// Reads a record that is announced under the key of `kind` and must be signed by
            /// `node`. `None` if it equals `known` byte for byte.
            ///
            /// # Errors
            /// The record cannot be read, its signature is bad, or it belongs under another key.
            /// The node and the cluster named in it are not checked.
            pub fn open(
                kind: RecordKind,
                bytes: &[u8],
                node: NodeId,
                known: Option<&Self>,
                check: &dyn Check,
            ) -> Result<Option<Self>, OpenError> {
                let key = node.public_key();
                let record = match kind {
                    $(RecordKind::$Own => {
                        let known = known.and_then(<$OwnType as Listed>::of);
                        open(bytes, key, known, check)?.map(Self::$Own)
                    })*
                    $(RecordKind::$Keyed(_) => {
                        let known = known.and_then(<$KeyedType as Listed>::of);
                        open(bytes, key, known, check)?.map(Self::$Keyed)
                    })*
                    $(RecordKind::$Fact(_) => return Err(OpenError::Key),)*
                    RecordKind::Unknown(_) => return Err(OpenError::Key),
                };
                match record {
                    Some(record) if record.kind() != kind => Err(OpenError::Key),
                    record => Ok(record),
                }
            }
        }

        impl Deref for AnyRecord {
            type Target = dyn NodeRecord;
            fn deref(&self) -> &Self::Target {
                match self {
                    $(Self::$Own(record) => &**record,)*
                    $(Self::$Keyed(record) => &**record,)*
                }
            }
        }

        /// A statement that the table lists as a node's own record.
        pub trait Listed: Statement + NodeRecord {
            /// The record; `None` if it is of another type.
            fn of(record: &AnyRecord) -> Option<&Verified<Self>>;
        }

        $(listed!($Own, $OwnType);)*
        $(listed!($Keyed, $KeyedType);)*

        /// A fact of any kind, its signature checked.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum AnyFact {
            $(#[doc = concat!("A fact of the kind `", $fact, "`.")] $Fact(Verified<$FactType>),)*
            /// A fact of a kind that only a later version knows.
            Unknown(UnknownFact),
        }

        impl AnyFact {
            /// Its kind, computed from its content.
            pub fn kind(&self) -> RecordKind {
                match self {
                    $(Self::$Fact(fact) => RecordKind::$Fact(Fact::id(&**fact)),)*
                    Self::Unknown(fact) => RecordKind::Unknown(fact.key()),
                }
            }

            /// Reads a fact that is announced under the key of `kind` and must be signed by the
            /// authority with this key.
            ///
            /// # Errors
            /// The fact cannot be read, its signature is bad, or it belongs under another key. The
            /// cluster named in it is not checked.
            pub fn read(
                kind: RecordKind,
                bytes: &[u8],
                authority: &[u8; 32],
                check: &dyn Check,
            ) -> Result<Self, OpenError> {
                let fact = match kind {
                    $(RecordKind::$Fact(_) => {
                        let fact = Unverified::<$FactType>::from_bytes(bytes)?;
                        Self::$Fact(fact.verify_with(authority, check)?)
                    })*
                    RecordKind::Unknown(key) => Self::Unknown(UnknownFact::read(key, bytes, authority, check)?),
                    $(RecordKind::$Own => return Err(OpenError::Key),)*
                    $(RecordKind::$Keyed(_) => return Err(OpenError::Key),)*
                };
                if fact.kind() == kind { Ok(fact) } else { Err(OpenError::Key) }
            }

            /// The bytes for the wire.
            ///
            /// # Errors
            /// None in practice: it was encoded before.
            pub fn to_bytes(&self) -> Result<Vec<u8>, DecodeError> {
                match self {
                    $(Self::$Fact(fact) => fact.to_bytes(),)*
                    Self::Unknown(fact) => fact.to_bytes(),
                }
            }

            /// The cluster that it is for.
            pub fn cluster(&self) -> ClusterId {
                match self {
                    $(Self::$Fact(fact) => Fact::cluster(&**fact),)*
                    Self::Unknown(fact) => fact.cluster(),
                }
            }
        }

        $(impl From<Verified<$FactType>> for AnyFact {
            fn from(fact: Verified<$FactType>) -> Self {
                Self::$Fact(fact)
            }
        })*
    };
}

/// Ties one type to its variant of `AnyRecord`.
macro_rules! listed {
    ($Variant:ident, $Type:ty) => {
        impl Listed for $Type {
            fn of(record: &AnyRecord) -> Option<&Verified<Self>> {
                if let AnyRecord::$Variant(record) = record { Some(record) } else { None }
            }
        }

        impl From<Verified<$Type>> for AnyRecord {
            fn from(record: Verified<$Type>) -> Self {
                Self::$Variant(record)
            }
        }
    };
}

record_kinds!(kinds);

/// The maximum size of a record of any kind, in bytes. Later versions must keep to it, because
/// nodes of this version forward nothing larger.
pub const MAX_RECORD: usize = {
    let (mut most, mut at) = (0, 0);
    while at < KINDS.len() {
        if KINDS[at].max_size > most {
            most = KINDS[at].max_size;
        }
        at += 1;
    }
    most
};

const fn info<T: Statement>(name: &'static str, signer: Signer) -> KindInfo {
    KindInfo { name, context: T::CONTEXT, max_size: T::MAX_SIZE, signer }
}

/// Reads and checks a statement; `None` if it equals `known`.
fn open<T: Statement>(
    bytes: &[u8],
    key: &[u8; 32],
    known: Option<&Verified<T>>,
    check: &dyn Check,
) -> Result<Option<Verified<T>>, VerifyError> {
    let envelope = Unverified::from_bytes(bytes)?;
    if known.is_some_and(|known| known.is_same(&envelope)) {
        return Ok(None);
    }
    envelope.verify_with(key, check).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{InvitationId, ServiceId};

    /// The table with an additional kind, of which a node has one record for each invitation.
    mod with_a_key {
        #![allow(dead_code, unreachable_pub)]

        use serde::{Deserialize, Serialize};

        use super::super::super::{Fact, Invitation, Keyed, NodeCard, NodeRecord, OutOfBounds};
        use super::super::*;
        use crate::id::InvitationId;
        use crate::record::Role;
        use crate::signed::Strict;
        use crate::sim::{Founder, sign};

        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Note {
            cluster: ClusterId,
            node: NodeId,
            seq: u64,
            about: InvitationId,
        }

        impl Statement for Note {
            const CONTEXT: &'static str = "rustbalance note";
            const MAX_SIZE: usize = 512;
        }

        impl NodeRecord for Note {
            fn cluster(&self) -> ClusterId {
                self.cluster
            }
            fn node(&self) -> NodeId {
                self.node
            }
            fn seq(&self) -> u64 {
                self.seq
            }
            fn check_bounds(&self) -> Result<(), OutOfBounds> {
                Ok(())
            }
        }

        impl Keyed for Note {
            type Key = InvitationId;
            fn about(&self) -> InvitationId {
                self.about
            }
        }

        kinds! {
            own { Card("card"): NodeCard => keep; }
            keyed { Note("note", InvitationId): Note => keep; }
            facts { Invitation("inv", InvitationId): Invitation, invitations => learn_invitation; }
        }

        #[test]
        fn a_node_has_a_record_for_each_value_of_a_key() {
            let node = Founder::new(1).node(1, Role::Worker);
            let (cluster, about) = (node.cluster(), InvitationId::from_public_key([7; 32]));
            let kind = RecordKind::Note(about);
            assert_eq!(kind.key(), format!("note/{about}"));
            assert_eq!(RecordKind::from_key(&kind.key()), Some(kind));
            assert_eq!((KINDS[1].name, kind.signer()), ("note", Signer::Node));
            let note = sign(Note { cluster, node: node.node(), seq: 1, about }, &node.key);
            let bytes = note.to_bytes().unwrap();
            let read = |kind, known| AnyRecord::open(kind, &bytes, node.node(), known, &Strict);
            let read_note = read(kind, None).unwrap().unwrap();
            assert_eq!((read_note.kind(), Note::of(&read_note)), (kind, Some(&note)));
            assert_eq!(read(kind, Some(&read_note)), Ok(None));
            let other = RecordKind::Note(InvitationId::from_public_key([8; 32]));
            assert_eq!(read(other, None), Err(OpenError::Key));
            assert!(read(RecordKind::Card, None).is_err());
        }
    }

    #[test]
    fn every_kind_has_a_name_a_context_and_one_key() {
        let (token, node) = (InvitationId::from_public_key([7; 32]), NodeId::from_public_key([8; 32]));
        for (at, one) in KINDS.iter().enumerate() {
            assert!(one.name.len() <= 16 && one.name.bytes().all(|byte| byte.is_ascii_lowercase()), "{}", one.name);
            assert!(one.max_size <= MAX_RECORD);
            // Nodes check the signature of a kind they do not know, too, in a context derived from
            // its name.
            let of_version_1 = ["card", "beat", "ipts", "lease", "pub", "inv", "rev"].contains(&one.name);
            assert!(of_version_1 || one.context == format!("rustbalance record {}", one.name), "{}", one.name);
            for other in &KINDS[at + 1..] {
                assert!(one.name != other.name && one.context != other.context, "{} and {}", one.name, other.name);
            }
        }
        let service = ServiceId::from_public_key([9; 32]);
        for kind in [
            RecordKind::Card,
            RecordKind::Heartbeat,
            RecordKind::Lease,
            RecordKind::Endpoint,
            RecordKind::Report,
            RecordKind::IntroPoints(service),
            RecordKind::Publication(service),
            RecordKind::Invitation(token),
            RecordKind::Revocation(node),
            RecordKind::Service(service),
            RecordKind::Renewal(node),
        ] {
            assert_eq!(RecordKind::from_key(&kind.key()), Some(kind));
        }
        let key = RecordKind::Revocation(node).key();
        let others = [key.replace(".onion", ""), key.to_uppercase().replace("REV/", "rev/"), key + " "];
        let others =
            others.into_iter().chain(["card/".into(), "card/1".into(), "rev".into(), "inv/".into(), "A".into()]);
        for other in others {
            assert_eq!(RecordKind::from_key(&other), None, "{other}");
        }
        let later = RecordKind::from_key("later/x").unwrap();
        assert_eq!((later.key().as_str(), later.signer()), ("later/x", Signer::Unknown));
    }
}
