//! What alerts are about, and an alert as the JSON that leaves the node.

use std::str::FromStr;

use serde::Serialize;
use strum::IntoEnumIterator;

use crate::control::ProblemKind;
use crate::counters::AlertState;
use crate::typed;

/// The subject matter of an alert. Its name never changes, because operators filter by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlertEvent {
    /// A problem that `status` shows.
    Problem(ProblemKind),
    /// Another node publishes now.
    PublisherChanged,
    /// Further alerts wait, because there were enough within an hour.
    MoreAlerts,
    /// The operator tries out the way of alerts.
    Test,
}

/// A name that is not an event's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not an event: {advice}")]
pub struct UnknownEvent {
    name: String,
    advice: String,
}

impl AlertEvent {
    /// The events that an operator can select.
    pub fn selectable() -> impl Iterator<Item = Self> {
        ProblemKind::iter().map(Self::Problem).chain([Self::PublisherChanged])
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Problem(kind) => kind.into(),
            Self::PublisherChanged => "publisher_changed",
            Self::MoreAlerts => "more_alerts",
            Self::Test => "test",
        }
    }

    /// True if every node that notices it means the same by it. All others are about one node.
    fn concerns_cluster(self) -> bool {
        use ProblemKind as Kind;
        match self {
            Self::Problem(kind) => matches!(
                kind,
                Kind::TokenOverdrawn
                    | Kind::DuplicateKey
                    | Kind::OtherPublisher
                    | Kind::NoPublisher
                    | Kind::NotPublished
                    | Kind::DirectoryBehind
                    | Kind::PortsDiffer
                    | Kind::NodeLost
                    | Kind::NoNodeHealthy
                    | Kind::NodeNotPublished
            ),
            Self::PublisherChanged => true,
            Self::MoreAlerts | Self::Test => false,
        }
    }
}

impl FromStr for AlertEvent {
    type Err = UnknownEvent;

    fn from_str(name: &str) -> Result<Self, UnknownEvent> {
        if let Some(event) = Self::selectable().find(|event| event.name() == name) {
            return Ok(event);
        }
        let advice = match typed::meant(name, Self::selectable().map(Self::name)) {
            Some(nearest) => format!("did you mean {nearest:?}?"),
            None => format!("there are {}", Vec::from_iter(Self::selectable().map(Self::name)).join(", ")),
        };
        Err(UnknownEvent { name: name.chars().take(80).collect(), advice })
    }
}

/// The node that alerts come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The cluster's id, the address of its first service.
    pub cluster: String,
    /// The beginning of this node's address, as `status` shows it.
    pub node: String,
}

/// One alert. Fields may be added; those that are there keep their meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// The name of the event. The end of `node_lost` is called `node_back`.
    pub event: &'static str,
    /// Whether it begins or ends.
    pub state: AlertState,
    /// The same for all alerts about one occurrence of the problem.
    pub id: String,
    /// The same for all alerts about this problem, whenever it occurs. If the problem is the
    /// cluster's, all nodes have the same text here.
    pub dedup: String,
    /// The cluster's id, the address of its first service.
    pub cluster: String,
    /// The node that sends the alert.
    pub node: String,
    /// What it is about: a node, a port, a period or an invitation; empty if the event says it all.
    pub subject: String,
    /// The problem and the way out, for a person.
    pub text: String,
    /// When it began, in seconds since the Unix epoch.
    pub since: u64,
    /// When the alert was made, in seconds since the Unix epoch.
    pub time: u64,
    /// How often the alert was repeated because the problem lasts.
    pub repetition: u32,
}

impl Alert {
    /// An alert without repetition. `subject` may be a node's whole address, which is shortened.
    pub(super) fn new(origin: &Origin, event: AlertEvent, state: AlertState, subject: &str, id: String) -> Self {
        let subject = shortened(subject).to_owned();
        let Origin { cluster, node } = origin.clone();
        let name = event.name();
        let dedup = match event.concerns_cluster() {
            true => format!("{cluster}/{name}/{subject}"),
            false => format!("{cluster}/{name}/{node}/{subject}"),
        };
        let event = match (event, state) {
            (AlertEvent::Problem(ProblemKind::NodeLost), AlertState::Resolved) => "node_back",
            _ => name,
        };
        let text = String::new();
        Self { event, state, id, dedup, cluster, node, subject, text, since: 0, time: 0, repetition: 0 }
    }

    /// The alert that tries out the way of alerts. `unix`: now.
    pub fn test(origin: &Origin, unix: u64) -> Self {
        let id = format!("{}-{unix}-test", origin.node);
        Self {
            text: "this is a test: no problem is behind it".into(),
            since: unix,
            time: unix,
            ..Self::new(origin, AlertEvent::Test, AlertState::Notice, "", id)
        }
    }

    /// The alert as one line of JSON.
    pub fn to_json(&self) -> String {
        // Numbers, texts and constants can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A node's whole address is known to members alone, and alerts leave the cluster.
fn shortened(subject: &str) -> &str {
    match subject.ends_with(".onion") {
        true => crate::display::short(subject),
        false => subject,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_names_that_status_has() {
        for kind in ProblemKind::iter() {
            let json = serde_json::to_value(kind).unwrap();
            assert_eq!(json.as_str(), Some(AlertEvent::Problem(kind).name()));
            assert_eq!(AlertEvent::Problem(kind).name().parse(), Ok(AlertEvent::Problem(kind)));
        }
    }

    #[test]
    fn an_unknown_event_is_named_with_the_nearest_or_all() {
        let refused = |name: &str| name.parse::<AlertEvent>().unwrap_err().to_string();
        assert_eq!(refused("target_don"), "\"target_don\" is not an event: did you mean \"target_down\"?");
        let all = refused("x");
        assert!(all.contains("there are token_overdrawn, ") && all.ends_with(", publisher_changed"), "{all}");
        assert!(refused("test").contains("is not an event"), "a test cannot be deselected");
    }

    #[test]
    fn an_alert_says_whose_it_is_without_a_nodes_whole_address() {
        let origin = Origin { cluster: "c".into(), node: "n".into() };
        let address = format!("{}.onion", "a".repeat(56));
        let alert =
            |kind, subject: &str, state| Alert::new(&origin, AlertEvent::Problem(kind), state, subject, "1".into());
        let lost = alert(ProblemKind::NodeLost, &address, AlertState::Firing);
        assert_eq!(
            (lost.event, lost.dedup.as_str(), lost.subject.as_str()),
            ("node_lost", "c/node_lost/aaaaaaaa", "aaaaaaaa")
        );
        let back = alert(ProblemKind::NodeLost, &address, AlertState::Resolved);
        assert_eq!((back.event, back.dedup), ("node_back", lost.dedup));
        let down = alert(ProblemKind::TargetDown, "80", AlertState::Firing);
        assert_eq!(down.dedup, "c/target_down/n/80", "another node's target is another problem");
        let json: serde_json::Value = serde_json::from_str(&Alert::test(&origin, 7).to_json()).unwrap();
        assert_eq!((&json["state"], &json["since"]), (&"notice".into(), &7.into()));
    }
}
