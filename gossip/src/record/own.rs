//! The traits of a node's own records, and the bounds of their fields.

use super::{
    Endpoint, Heartbeat, IntroPoint, IntroPoints, Lease, MAX_INTRO_POINTS, MAX_SPECIFIED, MAX_SUBPROTOCOLS, NodeCard,
    NodeReport, PeriodId, Publication,
};
use crate::address::mesh_address;
use crate::id::{ClusterId, NodeId, ServiceId};
use crate::time::CALENDAR_END;

/// Publications with higher revisions are rejected. Revisions that follow the clock are below 2^48.
const MAX_REVISION: u64 = 1 << 57;
/// Maximum number of periods in one publication.
pub(crate) const MAX_PERIODS: usize = 8;
/// Maximum length of the version string in a card, in bytes.
const MAX_VERSION: usize = 64;

/// A value outside the bounds of its field. No signature makes it valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutOfBounds {
    /// The value of this field is outside its bounds.
    #[error("{0} outside its bounds")]
    Field(&'static str),
    /// This number is so high that only malice explains it.
    #[error("a {0} too far ahead")]
    Jump(&'static str),
    /// The mesh address in the card is not the one derived from the node id.
    #[error("the mesh address in the card is not the node's")]
    Address,
}

/// A record that a node announces about itself. The newest of a kind replaces earlier ones.
pub trait NodeRecord {
    /// The cluster that it is for.
    fn cluster(&self) -> ClusterId;
    /// The node that signs it.
    fn node(&self) -> NodeId;
    /// Its sequence number, which rises with every record of the node, also over restarts.
    fn seq(&self) -> u64;
    /// Checks the bounds of all fields that do not depend on other knowledge.
    ///
    /// # Errors
    /// The first field that is out of its bounds.
    fn check_bounds(&self) -> Result<(), OutOfBounds>;
}

/// A record of which a node has one for each value of a key.
pub trait Keyed: NodeRecord {
    /// The type of the second part of its key in the gossiped state.
    type Key;
    /// The value of its key.
    fn about(&self) -> Self::Key;
}

macro_rules! of_a_service {
    ($($Type:ident)*) => {
        $(impl Keyed for $Type {
            type Key = ServiceId;
            fn about(&self) -> ServiceId {
                self.service
            }
        })*
    };
}

of_a_service! { IntroPoints Publication }

macro_rules! node_record {
    ($($Type:ident, $node:ident, |$it:ident| $bounds:expr;)*) => {
        $(impl NodeRecord for $Type {
            fn cluster(&self) -> ClusterId {
                self.cluster
            }
            fn node(&self) -> NodeId {
                self.$node
            }
            fn seq(&self) -> u64 {
                self.seq
            }
            fn check_bounds(&self) -> Result<(), OutOfBounds> {
                let $it = self;
                $bounds
            }
        })*
    };
}

node_record! {
    NodeCard, node, |card| check_card(card);
    Heartbeat, node, |_beat| Ok(());
    IntroPoints, node, |record| {
        within(record.nonces.len() == record.points.len(), "number of nonces")?;
        let rising = record.subprotocols.is_sorted_by(|a, b| a < b);
        within(rising && record.subprotocols.len() <= MAX_SUBPROTOCOLS, "subprotocols")?;
        check_points(&record.points)
    };
    Lease, holder, |_lease| Ok(());
    Publication, node, |publication| check_publication(publication);
    Endpoint, node, |endpoint| within(endpoint.sealed.0.len() <= Endpoint::MAX_SEALED, "sealed endpoint");
    NodeReport, node, |report| {
        let rising = report.problems.is_sorted_by(|a, b| a < b);
        within(rising && report.problems.len() <= NodeReport::MAX_PROBLEMS, "problems")
    };
}

pub(super) fn within(condition: bool, what: &'static str) -> Result<(), OutOfBounds> {
    if condition { Ok(()) } else { Err(OutOfBounds::Field(what)) }
}

fn check_card(card: &NodeCard) -> Result<(), OutOfBounds> {
    if card.address != mesh_address(&card.node) {
        return Err(OutOfBounds::Address);
    }
    within((1..=100).contains(&card.weight), "weight")?;
    within(card.version.len() <= MAX_VERSION && !card.version.chars().any(char::is_control), "version")?;
    let rising = card.ports.is_sorted_by(|a, b| a < b) && !card.ports.contains(&0);
    within(rising && card.ports.len() <= NodeCard::MAX_PORTS, "ports")
}

/// Checks that introduction points may be listed in a descriptor.
pub(crate) fn check_points(points: &[IntroPoint]) -> Result<(), OutOfBounds> {
    within(points.len() <= MAX_INTRO_POINTS, "number of intro points")?;
    let sound = |point: &IntroPoint| {
        (1..=8).contains(&point.link_specifiers.len())
            && point.link_specifiers.iter().all(|specifier| (2..=64).contains(&specifier.0.len()))
            && point.specified() <= MAX_SPECIFIED
    };
    within(points.iter().all(sound), "link specifiers")?;
    let mut keys: Vec<_> = points.iter().map(|point| point.session_key).collect();
    keys.sort_unstable();
    keys.dedup();
    within(keys.len() == points.len(), "session keys")
}

fn check_publication(publication: &Publication) -> Result<(), OutOfBounds> {
    within(publication.periods.len() <= MAX_PERIODS, "number of periods")?;
    let sound = |id: &PeriodId| (1..=PeriodId::MAX_MINUTES).contains(&id.length_minutes) && id.start() < CALENDAR_END;
    within(publication.periods.iter().all(|it| sound(&it.period)), "period")?;
    let sane = publication.periods.iter().all(|period| period.revision <= MAX_REVISION);
    if sane { Ok(()) } else { Err(OutOfBounds::Jump("revision")) }
}
