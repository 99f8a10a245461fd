//! What holds of every fact.

use std::fmt::Display;
use std::str::FromStr;

use super::OutOfBounds;
use crate::id::ClusterId;
use crate::signed::Statement;

/// A statement of the cluster's authority about others. All nodes keep it and hand it on.
///
/// Two statements with one id may both be signed: they are merged, and a node that holds the authority key signs the
/// merger as a whole.
pub trait Fact: Statement + PartialEq {
    /// Tells the facts of this kind apart.
    type Id: Copy + Ord + Display + FromStr;
    /// What several of them are called.
    const PLURAL: &'static str;
    /// Most that a node keeps.
    const MOST: usize;
    /// Whether workers announce it in their gossip, as publishers do.
    const BY_WORKERS: bool;

    /// Which cluster it is about.
    fn cluster(&self) -> ClusterId;
    /// Which of its kind it is.
    fn id(&self) -> Self::Id;
    /// Checks what can be checked without knowing anything else.
    ///
    /// # Errors
    /// Names the first field that is out of its bounds.
    fn check_bounds(&self) -> Result<(), OutOfBounds>;
    /// Joins another statement with the same id. Any order and any repetition must give one result.
    fn merge(&mut self, other: &Self);
    /// The time after which it is announced no longer and may be forgotten, in seconds since the Unix epoch.
    fn kept_until(&self) -> u64;
    /// The part of an encoded statement in which two nodes that know the same agree.
    fn content(statement: &[u8]) -> &[u8] {
        statement
    }
}
