//! The trait that every kind of fact implements.

use std::fmt::Display;
use std::str::FromStr;

use super::OutOfBounds;
use crate::id::ClusterId;
use crate::signed::Statement;

/// A statement of the cluster's authority about other nodes or the cluster. All nodes keep it and
/// hand it on.
///
/// Two different statements with one id may both be signed. They are merged, and a node that holds
/// the authority key signs the result.
pub trait Fact: Statement + PartialEq {
    /// Distinguishes the facts of this kind.
    type Id: Copy + Ord + Display + FromStr;
    /// The plural of the kind's name, for messages.
    const PLURAL: &'static str;
    /// Maximum number of facts of this kind that a node keeps.
    const MAX_KEPT: usize;
    /// True if workers announce it in their gossip, as publishers do.
    const BY_WORKERS: bool;

    /// The cluster that it is for.
    fn cluster(&self) -> ClusterId;
    /// The id of its subject among facts of this kind.
    fn id(&self) -> Self::Id;
    /// Checks the bounds of all fields that do not depend on other knowledge.
    ///
    /// # Errors
    /// The first field that is out of its bounds.
    fn check_bounds(&self) -> Result<(), OutOfBounds>;
    /// Merges another statement with the same id. Any order and any repetition must give one
    /// result.
    fn merge(&mut self, other: &Self);
    /// The time after which it is no longer announced and may be forgotten, in seconds since the
    /// Unix epoch.
    fn kept_until(&self) -> u64;
    /// The part of an encoded statement that enters the digest by which neighbours compare facts.
    /// It must be equal at two nodes that know the same about the subject, even if they hold
    /// different signed statements.
    fn content(statement: &[u8]) -> &[u8] {
        statement
    }
}
