//! The part of `rustbalance status --json` that tests and the demo read. These types are
//! independent of the product's own, so that a change of the format is noticed.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The state of a node and its view of the cluster.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// The onion address that the cluster serves.
    pub cluster: String,
    /// The node's own address.
    pub node: String,
    /// `publisher` or `worker`.
    pub role: String,
    /// The phase of the node's life cycle, such as `healthy`.
    pub phase: String,
    /// Seconds since the daemon's start.
    pub uptime_seconds: u64,
    /// The node that publishes, as far as this node knows.
    pub publisher: Option<Publisher>,
    /// The members, including this node.
    pub members: Vec<Member>,
    /// The node's own introduction points.
    pub intro_points: Vec<IntroPoint>,
    /// The introduction points of silent nodes at which this node stands in.
    pub stand_ins: Vec<StandIn>,
    /// What is published, as far as the node knows.
    pub publication: Option<Publication>,
    /// Another publisher of the address that is not a member; `None` if the node has not seen one
    /// in the last hours.
    pub other_publisher: Option<OtherPublisher>,
    /// The directories of the descriptor; empty unless the node publishes.
    pub directories: Vec<KnownDirectory>,
    /// The links to other members.
    pub links: Vec<Link>,
    /// The invitations that the node knows.
    pub invitations: Vec<Invitation>,
    /// How often the node has refused something since its start, by the name of the counter.
    pub refused: BTreeMap<String, u64>,
    /// How often the discovery key has been changed.
    pub discovery_generation: u32,
    /// The faster route to other members.
    pub wireguard: Wireguard,
}

/// The node that publishes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Publisher {
    /// Its onion address.
    pub node: String,
    /// The term of its lease.
    pub term: u64,
    /// Whether it is the node that reports the status.
    pub me: bool,
}

/// A member.
#[derive(Clone, Debug, Deserialize)]
pub struct Member {
    /// Its onion address.
    pub node: String,
    /// `publisher` or `worker`.
    pub role: String,
    /// The phase that the member has announced; `None` if none was heard.
    pub phase: Option<String>,
    /// Whether the reporting node considers it alive.
    pub alive: bool,
    /// Whether it is the node that reports the status.
    pub me: bool,
    /// How many introduction points it announces.
    pub intro_points: usize,
    /// How many of them are in the descriptor.
    pub published: usize,
}

/// An introduction point of the reporting node.
#[derive(Clone, Debug, Deserialize)]
pub struct IntroPoint {
    /// The relay, as `$FINGERPRINT`.
    pub relay: String,
    /// The key that identifies the introduction point to its relay, in hexadecimal digits.
    pub session_key: String,
}

/// An introduction point of a silent node, at which the reporting node stands in.
#[derive(Clone, Debug, Deserialize)]
pub struct StandIn {
    /// The silent node.
    pub node: String,
    /// The relay, as `$FINGERPRINT`.
    pub relay: String,
    /// Introductions that arrived there while the reporting node stood in.
    pub introductions: u64,
}

/// The descriptors that the publisher wants published.
#[derive(Clone, Debug, Deserialize)]
pub struct Publication {
    /// The publisher.
    pub node: String,
    /// The term of its lease.
    pub term: u64,
    /// The time periods for which it publishes.
    pub periods: Vec<Period>,
    /// The introduction points in the descriptor.
    pub intro_points: Vec<Published>,
}

/// A directory, as the publisher knows it.
#[derive(Clone, Debug, Deserialize)]
pub struct KnownDirectory {
    /// The relay, as `$FINGERPRINT`.
    pub relay: String,
    /// The revision that it has confirmed last.
    pub revision: Option<u64>,
}

/// A publisher of the address that is not a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct OtherPublisher {
    /// Seconds since a directory last held its descriptor in place of the node's.
    pub seen_seconds: u64,
    /// Whether every client can read its descriptor.
    pub readable: bool,
}

/// A time period.
#[derive(Clone, Debug, Deserialize)]
pub struct Period {
    /// Its number.
    pub number: u64,
    /// The highest revision used in it.
    pub revision: u64,
    /// How many directories are responsible for it.
    pub directories: u16,
    /// How many of them hold the newest descriptor.
    pub confirmed: u16,
}

/// An introduction point in the descriptor.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Published {
    /// The node that the introduction point belongs to.
    pub node: String,
    /// The relay, as `$FINGERPRINT`.
    pub relay: String,
    /// The key that identifies the introduction point to its relay, in hexadecimal digits.
    pub session_key: String,
}

/// A link to another member.
#[derive(Clone, Debug, Deserialize)]
pub struct Link {
    /// The onion address of the other member.
    pub peer: String,
    /// `tor` or `wireguard`.
    pub route: String,
    /// Whether messages to the other member go over it.
    pub carries: bool,
    /// Frames read.
    pub frames_in: u64,
    /// Frames written.
    pub frames_out: u64,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// The last measured round trip, in milliseconds; `None` before the first answer.
    pub round_trip_ms: Option<u64>,
}

/// WireGuard on the reporting node.
#[derive(Clone, Debug, Deserialize)]
pub struct Wireguard {
    /// `off`, `starting`, `failed` or `on`.
    pub state: String,
    /// Where it listens.
    pub listens: Vec<String>,
    /// The other members.
    pub peers: Vec<WireguardPeer>,
}

/// Another member, as WireGuard sees it.
#[derive(Clone, Debug, Deserialize)]
pub struct WireguardPeer {
    /// Its onion address.
    pub node: String,
    /// The route of the messages to it: `wireguard`, `tor`, or `None` without a link.
    pub route: Option<String>,
    /// Why WireGuard is not proven; `None` if it is.
    pub reason: Option<String>,
    /// Where packets to it go.
    pub endpoint: Option<String>,
}

/// An invitation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Invitation {
    /// The public half of its token, in hexadecimal digits.
    pub id: String,
    /// How many nodes may join with it in all.
    pub uses: u16,
    /// How many nodes have joined with it.
    pub redeemed: u16,
}

impl Status {
    /// The members that are believed alive, sorted.
    pub fn alive(&self) -> Vec<&str> {
        let mut alive: Vec<_> =
            self.members.iter().filter(|member| member.alive).map(|member| member.node.as_str()).collect();
        alive.sort_unstable();
        alive
    }

    /// Whether the newest descriptor is known to be on every directory of every period.
    pub fn is_confirmed(&self) -> bool {
        self.publication.as_ref().is_some_and(|publication| {
            !publication.periods.is_empty()
                && publication
                    .periods
                    .iter()
                    .all(|period| period.directories > 0 && period.confirmed == period.directories)
        })
    }

    /// How many of `node`'s introduction points are in the descriptor.
    pub fn published_of(&self, node: &str) -> usize {
        self.publication
            .iter()
            .flat_map(|publication| &publication.intro_points)
            .filter(|point| point.node == node)
            .count()
    }

    /// A summary in one line, for people.
    pub fn summary(&self) -> String {
        let short = |node: &str| node.chars().take(6).collect::<String>();
        let members: Vec<_> = self
            .members
            .iter()
            .map(|member| {
                format!(
                    "{}{} {} {} points, {} published",
                    short(&member.node),
                    if member.me { " (itself)" } else { "" },
                    match (&member.phase, member.alive) {
                        (_, false) => "dead",
                        (Some(phase), true) => phase.as_str(),
                        (None, true) => "unheard",
                    },
                    member.intro_points,
                    member.published
                )
            })
            .collect();
        let publisher = self.publisher.as_ref().map_or_else(
            || "no node".into(),
            |publisher| format!("{} in term {}", short(&publisher.node), publisher.term),
        );
        let periods: Vec<_> = self
            .publication
            .iter()
            .flat_map(|publication| &publication.periods)
            .map(|period| {
                format!("{} revision {} on {}/{}", period.number, period.revision, period.confirmed, period.directories)
            })
            .collect();
        format!(
            "{} for {} s, {publisher} publishes [{}]; {} links; members: {}",
            self.phase,
            self.uptime_seconds,
            periods.join("; "),
            self.links.len(),
            members.join("; ")
        )
    }
}
