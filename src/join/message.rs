//! The messages of a join, in order: Hello, Challenge, Redeem, Answer. The publisher may send
//! Refused in place of Challenge or Answer.

use rustbalance_gossip::bytes::{FixedBytes, VarBytes};
use rustbalance_gossip::codec::{self, DecodeError};
use rustbalance_gossip::id::{ClusterId, InvitationId, NodeId};
use rustbalance_gossip::record::Role;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::counters::Counter;
use crate::frame;

/// The version of the join protocol that this build speaks.
pub(super) const VERSION: u16 = 2;

/// The joiner's first message. Nothing in it identifies the joiner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) version: u16,
    /// The cluster of the address that the operator typed.
    pub(super) cluster: ClusterId,
    pub(super) nonce: FixedBytes<32>,
    /// The joiner's X25519 key.
    pub(super) ephemeral: FixedBytes<32>,
}

/// The publisher's first message: asks for proof. Nothing in it identifies the publisher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Challenge {
    pub(super) version: u16,
    pub(super) nonce: FixedBytes<32>,
    /// The publisher's X25519 key.
    pub(super) ephemeral: FixedBytes<32>,
}

/// Proves that the joiner holds the token and the node key. Both signatures cover the transcript so
/// far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Redeem {
    pub(super) node: NodeId,
    pub(super) invitation: InvitationId,
    /// The joiner's clock, in seconds since the Unix epoch.
    pub(super) unix: u64,
    pub(super) token_signature: FixedBytes<64>,
    pub(super) node_signature: FixedBytes<64>,
}

/// Admits the joiner. The content is sealed (see [`super::parcel`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) role: Role,
    pub(super) publisher: NodeId,
    pub(super) sealed: VarBytes,
}

/// Why a joiner was refused. The text says what its operator can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum JoinRefusal {
    /// The invitation is unknown, or the token's signature is wrong. One refusal for both, so that
    /// guessing teaches nothing.
    #[error(
        "the cluster does not know this token: check that it is the right one, wait a minute if it was made just now, \
         or make a new one with `rustbalance invite`"
    )]
    UnknownToken,
    /// The invitation has expired.
    #[error(
        "the token expired {ago} s ago: make a new one with `rustbalance invite` (--expires says how long it lasts)"
    )]
    Expired {
        /// Seconds since it expired.
        ago: u64,
    },
    /// The invitation has been redeemed by the maximum number of nodes.
    #[error(
        "the token is used up ({uses} of {uses} nodes have joined with it): make a new one with `rustbalance invite`"
    )]
    UsedUp {
        /// That maximum.
        uses: u16,
    },
    /// The operator has revoked the invitation.
    #[error("the token was revoked: make a new one with `rustbalance invite`")]
    Revoked,
    /// The joiner asked for another cluster.
    #[error("this is the cluster of {0}, not the one asked for: check the address")]
    OtherCluster(ClusterId),
    /// The clocks are too far apart.
    #[error(
        "the clocks of this node and of the publisher are {} s apart ({}): set this node's clock (compare `date -u` on \
         both) and try again; the token is still good",
        publisher.abs_diff(*joiner), if joiner > publisher { "this node is ahead" } else { "this node is behind" }
    )]
    ClockSkew {
        /// The publisher's clock, in seconds since the Unix epoch.
        publisher: u64,
        /// The joiner's clock as the joiner reports it, in seconds since the Unix epoch.
        joiner: u64,
    },
    /// The answering node is not a publisher.
    #[error("the node that answered is a worker and cannot admit: try again in a minute")]
    NotPublisher,
    /// The answering worker can reach no publisher.
    #[error(
        "no publisher of the cluster can be reached right now: check that one is running and try again in a minute"
    )]
    NoPublisher,
    /// This node key is a member that joined with another token.
    #[error(
        "this node's key has already joined the cluster with another token: run `rustbalance join` again with that \
         one, or start over in an empty directory (--dir)"
    )]
    AlreadyMember,
    /// This node key is revoked.
    #[error(
        "this node's key was evicted from the cluster, for good: start over in an empty directory (--dir) with a new token"
    )]
    Evicted,
    /// The joiner speaks another version of the join protocol.
    #[error("the publisher speaks version {0} of the join, this build {VERSION}: update the older of the two")]
    Version(u16),
    /// Too many joins at the same time, or over the rate limit.
    #[error("the cluster is busy with other joins: try again in a minute")]
    Busy,
    /// The publisher may not know of other publishers' admissions: it has just started, or is
    /// isolated.
    #[error(
        "the publisher that answered has not yet heard from the other publishers since it started, so it cannot tell \
         whether the token was used there: try again in a minute"
    )]
    NotYet,
    /// Another publisher is silent, and may have admitted a node with this token.
    #[error(
        "publisher {0} is silent, so it is not known whether the token was used there: start it, or evict it with \
         `rustbalance evict` if it is lost, and run the same command again"
    )]
    Silent(NodeId),
    /// The publisher could not record the redemption.
    #[error("the publisher could not record the join (see its log): fix the cause and run the same command again")]
    Failed,
    /// The message cannot be decoded.
    #[error("the publisher could not read what this node sent: update the older of the two")]
    Malformed,
}

impl JoinRefusal {
    /// The counter for this refusal.
    pub fn counter(&self) -> Counter {
        match self {
            Self::UnknownToken => Counter::JoinUnknownToken,
            Self::Expired { .. } => Counter::JoinExpired,
            Self::UsedUp { .. } => Counter::JoinUsedUp,
            Self::Revoked => Counter::JoinRevokedToken,
            Self::OtherCluster(_) => Counter::JoinOtherCluster,
            Self::ClockSkew { .. } => Counter::JoinClockSkew,
            Self::NotPublisher => Counter::JoinNotPublisher,
            Self::NoPublisher => Counter::JoinNoPublisher,
            Self::AlreadyMember => Counter::JoinAlreadyMember,
            Self::Evicted => Counter::JoinEvicted,
            Self::Version(_) => Counter::JoinVersion,
            Self::Busy => Counter::JoinBusy,
            Self::NotYet => Counter::JoinNotYet,
            Self::Silent(_) => Counter::JoinPublisherSilent,
            Self::Failed => Counter::JoinFailed,
            Self::Malformed => Counter::JoinMalformed,
        }
    }

    /// True if the same call may succeed in a moment. That includes an unknown token: another
    /// publisher may have made it just now, before this one heard of it.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::UnknownToken
                | Self::NotPublisher
                | Self::NoPublisher
                | Self::Busy
                | Self::NotYet
                | Self::Silent(_)
                | Self::Failed
        )
    }
}

/// A message from the joiner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromJoiner {
    Hello(Hello),
    Redeem(Redeem),
}

/// A message from the publisher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromPublisher {
    Challenge(Challenge),
    Answer(Answer),
    Refused(JoinRefusal),
}

/// Decodes a message of at most `max` bytes, and accepts only its canonical encoding: CBOR can
/// encode one value in several ways, and a change outside the transcript must not go unnoticed.
pub(super) fn read<T: Serialize + DeserializeOwned>(frame: &[u8], max: usize) -> Result<T, DecodeError> {
    let message = codec::decode(frame, max.min(frame::MAX))?;
    if codec::encode(&message)? != frame {
        return Err(DecodeError::Malformed("not encoded as this kind of message is".into()));
    }
    Ok(message)
}

/// The frame of a refusal.
pub(super) fn refusal(refusal: &JoinRefusal) -> Result<Vec<u8>, DecodeError> {
    codec::encode(&FromPublisher::Refused(refusal.clone()))
}
