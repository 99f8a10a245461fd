//! `[links]`, `[joins]` and `[gossip]`: bounds on what other members, and those who want to be, can make this node do.
//!
//! None of them has to be the same on every node.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::initial::Key;
use super::read::{Section, show};
use super::{Problem, seconds};
use crate::frame;
use crate::join::DoorLimits;
use crate::link::LinkLimits;
use rustbalance_gossip::view::DEFAULT_WAITING;
use rustbalance_mesh::MeshLimits;

/// `[gossip]`: bounds on what is kept of what others say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipConfig {
    /// In the mesh.
    pub mesh: MeshLimits,
    /// Records that wait for their signer's card.
    pub waiting: usize,
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self { mesh: MeshLimits::default(), waiting: DEFAULT_WAITING }
    }
}

/// A section that is asked for counts and times with defaults.
struct Asking<'a>(Section<'a>);

impl Asking<'_> {
    fn count<T: TryFrom<u64> + Copy>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u32>,
        default: T,
    ) -> Result<T, Problem> {
        let number = self.0.number(key, range)?;
        Ok(number.and_then(|number| T::try_from(number.into()).ok()).unwrap_or(default))
    }

    fn time(&mut self, key: &'static str, most: u64, default: Duration) -> Result<Duration, Problem> {
        Ok(self.0.duration(key, Duration::from_millis(100)..=seconds(most))?.unwrap_or(default))
    }
}

pub(super) fn read_links(section: Section<'_>) -> Result<LinkLimits, Problem> {
    let default = LinkLimits::default();
    let mut ask = Asking(section);
    let links = LinkLimits {
        neighbours: ask.count("neighbours", 1..=64, default.neighbours)?,
        links: ask.count("open", 2..=1024, default.links)?,
        handshakes: ask.count("handshakes", 1..=1024, default.handshakes)?,
        accepts_per_second: (
            ask.count("accepts_per_second", 1..=10_000, default.accepts_per_second.0)?,
            ask.count("accepts_burst", 1..=10_000, default.accepts_per_second.1)?,
        ),
        carried: (
            ask.count("carried_joins", 1..=1024, default.carried.0)?,
            ask.count("carried_joins_of_one", 1..=1024, default.carried.1)?,
        ),
        dial: ask.time("dial_timeout", 300, default.dial)?,
        handshake: ask.time("handshake_timeout", 120, default.handshake)?,
        ping: ask.time("ping", 60, default.ping)?,
        silence: ask.time("silence", 300, default.silence)?,
        write: ask.time("write_timeout", 300, default.write)?,
        queue: ask.count("queue", 1..=10_000, default.queue)?,
        bytes_per_second: ask.count("bytes_per_second", 16_384..=1 << 30, default.bytes_per_second)?,
        bytes_burst: ask.count("bytes_burst", 2 * frame::MAX as u32..=1 << 30, default.bytes_burst)?,
        ..default
    };
    let Asking(section) = ask;
    if links.links < 2 * links.neighbours {
        let problem = format!(
            "{} is less than twice the {} neighbours: as many as this node dials may dial it",
            links.links, links.neighbours
        );
        return Err(section.problem("open", problem));
    }
    if links.silence < links.ping * 2 {
        let (silence, ping) = (show(links.silence), show(links.ping));
        return Err(section.problem("silence", format!("{silence} is shorter than 2 pings of {ping}")));
    }
    section.finish();
    Ok(links)
}

pub(super) fn read_joins(section: Section<'_>) -> Result<DoorLimits, Problem> {
    let default = DoorLimits::default();
    let mut ask = Asking(section);
    let joins = DoorLimits {
        at_once: ask.count("at_once", 1..=1024, default.at_once)?,
        burst: ask.count("burst", 1..=10_000, default.burst)?,
        every: ask.time("every", 600, default.every)?,
        patience: ask.time("patience", 300, default.patience)?,
        record: ask.time("record_timeout", 120, default.record)?,
    };
    ask.0.finish();
    Ok(joins)
}

pub(super) fn read_gossip(section: Section<'_>) -> Result<GossipConfig, Problem> {
    let default = GossipConfig::default();
    let mut ask = Asking(section);
    let gossip = GossipConfig {
        mesh: MeshLimits {
            strangers: ask.count("strangers", 1..=256, default.mesh.strangers)?,
            node_bytes: ask.count("node_bytes", 65_536..=1 << 26, default.mesh.node_bytes)?,
        },
        waiting: ask.count("waiting", 1..=100_000, default.waiting)?,
    };
    ask.0.finish();
    Ok(gossip)
}

/// The three tables with their defaults and meanings, for the first file.
pub(super) fn tables() -> [(&'static str, Vec<Key>); 3] {
    let time = |time| format!("\"{}\"", show(time));
    let links = LinkLimits::default();
    let joins = DoorLimits::default();
    let gossip = GossipConfig::default();
    let (accepts, accepts_burst) = links.accepts_per_second;
    let (carried, carried_of_one) = links.carried;
    [
        (
            "[links]",
            vec![
                ("neighbours", links.neighbours.to_string(), "Members this node keeps a link to, 1 to 64."),
                ("open", links.links.to_string(), "Links open at once, those that others dial included."),
                ("handshakes", links.handshakes.to_string(), "Others that are proving who they are, at once."),
                ("accepts_per_second", accepts.to_string(), "Streams for links taken in a second."),
                ("accepts_burst", accepts_burst.to_string(), "And so many at once."),
                ("carried_joins", carried.to_string(), "Joiners that other members pass on to this node, at once."),
                ("carried_joins_of_one", carried_of_one.to_string(), "Of these, by one member."),
                ("dial_timeout", time(links.dial), "How long reaching another member may take."),
                ("handshake_timeout", time(links.handshake), "How long it may take to prove who one is."),
                ("ping", time(links.ping), "Between two pings on a link."),
                ("silence", time(links.silence), "A link on which nothing comes for this long is closed."),
                ("write_timeout", time(links.write), "A link whose other side reads nothing for this long is closed."),
                ("queue", links.queue.to_string(), "Messages that may wait to be sent on one link."),
                ("bytes_per_second", links.bytes_per_second.to_string(), "Bytes of gossip taken from one member."),
                ("bytes_burst", links.bytes_burst.to_string(), "And so many at once."),
            ],
        ),
        (
            "[joins]",
            vec![
                ("at_once", joins.at_once.to_string(), "Joiners at the join port at once."),
                ("burst", joins.burst.to_string(), "Joiners let in at once after a pause."),
                ("every", time(joins.every), "After such a burst, one is let in in this time."),
                ("patience", time(joins.patience), "How long a joiner may take to say the next thing."),
                ("record_timeout", time(joins.record), "How long writing down a new member may take."),
            ],
        ),
        (
            "[gossip]",
            vec![
                ("strangers", gossip.mesh.strangers.to_string(), "Lives of strangers that are listened to."),
                ("node_bytes", gossip.mesh.node_bytes.to_string(), "Bytes kept of one life of a node."),
                ("waiting", gossip.waiting.to_string(), "Records kept until their signer's certificates come."),
            ],
        ),
    ]
}
