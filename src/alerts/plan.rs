//! Decides which alerts are sent, from the problems that the node sees now.
//!
//! [`Plan::observe`] is given all of them every second or so. A problem fires once it has lasted
//! for the time that its kind needs, is repeated while it lasts, and is resolved once it has been
//! gone for a while. Problems that come and go faster make no alert. After the start of the node
//! all alerts are held back for a moment: until the node has found the others, much looks wrong.
//!
//! In any hour at most a given number of alerts is sent. Those beyond it wait, and are sent when
//! there is room again, if the problem still lasts. One alert says how many wait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rustbalance_gossip::time::Now;

use super::event::{Alert, AlertEvent, Origin};
use crate::control::{Problem, ProblemKind};
use crate::counters::AlertState;
use crate::display;

/// The span in which at most [`Rules::per_hour`] alerts are sent.
const HOUR: Duration = Duration::from_secs(3600);
/// After the start, alerts are held back for this number of times [`Rules::after`].
const HELD_BACK: u32 = 2;
/// Most problems that are followed: more than the nodes and ports of a cluster of 200.
const MOST_PROBLEMS: usize = 1024;

/// When alerts are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// How long most problems last before they fire, and are gone before they are resolved.
    pub after: Duration,
    /// After this long an alert is repeated, if the problem lasts; `None` for never.
    pub repeat: Option<Duration>,
    /// Most alerts within an hour.
    pub per_hour: usize,
    /// The events to send; `None` for all.
    pub events: Option<BTreeSet<AlertEvent>>,
}

impl Rules {
    fn select(&self, event: AlertEvent) -> bool {
        self.events.as_ref().is_none_or(|events| events.contains(&event))
    }
}

/// How long a problem must last before it fires, in multiples of [`Rules::after`].
fn patience(kind: ProblemKind) -> u32 {
    match kind {
        // Each minute counts, and none of them passes by itself.
        ProblemKind::TokenOverdrawn | ProblemKind::OtherPublisher | ProblemKind::DuplicateKey => 0,
        // They begin with each change of the descriptor, with each start of a node, or with an
        // operator who works through the nodes, and mostly end by themselves.
        ProblemKind::DirectoryBehind
        | ProblemKind::NodeNotPublished
        | ProblemKind::PortsDiffer
        | ProblemKind::WireguardDown => 10,
        // The operator wants it, but may forget it: an hour, unless configured otherwise.
        ProblemKind::Draining => 120,
        _ => 1,
    }
}

/// What the node sees now.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// All problems, the worst first.
    pub problems: &'a [Problem],
    /// The address of the node that publishes; `None` if none is known.
    pub publisher: Option<&'a str>,
}

/// One problem, from its first sight until it is resolved. Times are on the monotonic clock.
#[derive(Debug)]
struct Episode {
    id: String,
    text: String,
    began: Duration,
    /// `began` in seconds since the Unix epoch.
    since: u64,
    /// When it was no longer seen; `None` while it is.
    gone: Option<Duration>,
    /// When the last alert about it was sent, and how many were sent before.
    sent: Option<(Duration, u32)>,
}

/// The publisher for which there was an alert, and the one that publishes now.
#[derive(Debug, Default)]
struct Succession {
    known: Option<String>,
    /// Another one, and since when: on the monotonic clock, and in Unix time.
    next: Option<(String, Duration, u64)>,
}

/// An alert that should be sent now.
enum Due {
    Firing((ProblemKind, String)),
    Resolved((ProblemKind, String)),
    PublisherChanged,
}

impl Due {
    /// What the alert is about: a node's address, or something else.
    fn subject(&self) -> &str {
        match self {
            Self::Firing((_, subject)) | Self::Resolved((_, subject)) => subject,
            Self::PublisherChanged => "",
        }
    }
}

/// The state of the alerts of one node.
#[derive(Debug)]
pub struct Plan {
    origin: Origin,
    /// When the plan was made, on the monotonic clock.
    started: Duration,
    /// Number of the next problem, for its id.
    serial: u64,
    episodes: BTreeMap<(ProblemKind, String), Episode>,
    succession: Succession,
    /// When the alerts of the last hour were sent, and what each was about.
    sent: VecDeque<(Duration, String)>,
    /// When an alert last said that others wait.
    summarized: Option<Duration>,
}

impl Plan {
    /// A plan that has seen nothing yet.
    pub fn new(origin: Origin, now: Now) -> Self {
        Self {
            origin,
            started: now.mono,
            serial: 0,
            episodes: BTreeMap::new(),
            succession: Succession::default(),
            sent: VecDeque::new(),
            summarized: None,
        }
    }

    /// Takes note of what the node sees, and returns the alerts that are to be sent now.
    pub fn observe(&mut self, seen: Observation<'_>, rules: &Rules, now: Now) -> Vec<Alert> {
        self.note_problems(seen.problems, rules, now);
        self.note_publisher(seen.publisher, rules, now);
        while self.sent.front().is_some_and(|(at, _)| *at + HOUR <= now.mono) {
            self.sent.pop_front();
        }
        if now.mono < self.started + rules.after * HELD_BACK {
            return Vec::new();
        }
        let (due, mut alerts) = (self.due(rules, now), Vec::new());
        for (done, due_now) in due.iter().enumerate() {
            if self.has_had_its_share(due_now.subject(), rules) {
                continue;
            }
            let (room, waiting) = (rules.per_hour.saturating_sub(self.sent.len()), due.len() - done);
            let (alert, subject) = match room {
                0 => break,
                1 if waiting > 1 && self.may_summarize(now) => (self.summary(waiting, rules, now), ""),
                _ => (self.alert(due_now, now), due_now.subject()),
            };
            alerts.extend(alert);
            self.sent.push_back((now.mono, subject.to_owned()));
        }
        alerts
    }

    /// Whether a quarter of what may be sent in an hour was about this node: a member whose
    /// problems come and go must not use up what all others need.
    fn has_had_its_share(&self, subject: &str, rules: &Rules) -> bool {
        let share = (rules.per_hour / 4).max(2);
        subject.ends_with(".onion") && self.sent.iter().filter(|(_, about)| about == subject).count() >= share
    }

    fn note_problems(&mut self, problems: &[Problem], rules: &Rules, now: Now) {
        let selected: BTreeMap<(ProblemKind, &str), &str> = problems
            .iter()
            .filter(|problem| rules.select(AlertEvent::Problem(problem.kind)))
            .map(|problem| ((problem.kind, problem.subject.as_str()), problem.text.as_str()))
            .collect();
        self.episodes.retain(|(kind, subject), episode| {
            let is_seen = selected.contains_key(&(*kind, subject.as_str()));
            episode.gone = if is_seen { None } else { episode.gone.or(Some(now.mono)) };
            is_seen || (episode.sent.is_some() && rules.select(AlertEvent::Problem(*kind)))
        });
        for ((kind, subject), text) in selected {
            let key = (kind, subject.to_owned());
            if self.episodes.len() >= MOST_PROBLEMS && !self.episodes.contains_key(&key) {
                continue;
            }
            let (serial, node) = (&mut self.serial, &self.origin.node);
            let episode = self.episodes.entry(key).or_insert_with(|| {
                *serial += 1;
                let id = format!("{node}-{}-{serial}", now.unix);
                Episode { id, text: String::new(), began: now.mono, since: now.unix, gone: None, sent: None }
            });
            text.clone_into(&mut episode.text);
        }
    }

    fn note_publisher(&mut self, publisher: Option<&str>, rules: &Rules, now: Now) {
        let Some(publisher) = publisher else { return };
        let Succession { known, next } = &mut self.succession;
        let known = known.get_or_insert_with(|| publisher.to_owned());
        match next {
            _ if known == publisher => *next = None,
            Some((name, ..)) if name == publisher => {}
            _ if rules.select(AlertEvent::PublisherChanged) => *next = Some((publisher.to_owned(), now.mono, now.unix)),
            _ => publisher.clone_into(known),
        }
    }

    /// The alerts that should be sent now, the most important first.
    fn due(&self, rules: &Rules, now: Now) -> Vec<Due> {
        let (mut first, mut ended, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
        for (key, episode) in &self.episodes {
            match (episode.gone, episode.sent) {
                (None, None) if now.mono >= episode.began + rules.after * patience(key.0) => {
                    first.push(Due::Firing(key.clone()));
                }
                (None, Some((at, _))) if rules.repeat.is_some_and(|repeat| now.mono >= at + repeat) => {
                    repeated.push(Due::Firing(key.clone()));
                }
                (Some(gone), Some(_)) if now.mono >= gone + rules.after => ended.push(Due::Resolved(key.clone())),
                _ => {}
            }
        }
        let changed = self.succession.next.as_ref().is_some_and(|(_, since, _)| now.mono >= *since + rules.after);
        let changed = changed.then_some(Due::PublisherChanged);
        first.into_iter().chain(ended).chain(changed).chain(repeated).collect()
    }

    fn may_summarize(&self, now: Now) -> bool {
        self.summarized.is_none_or(|at| at + HOUR <= now.mono)
    }

    fn summary(&mut self, waiting: usize, rules: &Rules, now: Now) -> Option<Alert> {
        self.summarized = Some(now.mono);
        let text = format!(
            "{} wait, because there were {} within an hour ([alerts] per_hour): `rustbalance status` shows all problems",
            display::plural(waiting, "more alert"),
            rules.per_hour
        );
        let id = format!("{}-{}-more", self.origin.node, now.unix);
        let alert = Alert::new(&self.origin, AlertEvent::MoreAlerts, AlertState::Notice, "", id);
        Some(Alert { text, since: now.unix, time: now.unix, ..alert })
    }

    fn alert(&mut self, due: &Due, now: Now) -> Option<Alert> {
        match due {
            Due::Firing(key) => {
                let episode = self.episodes.get_mut(key)?;
                let repetition = episode.sent.map_or(0, |(_, before)| before.saturating_add(1));
                episode.sent = Some((now.mono, repetition));
                let alert = about(&self.origin, key, AlertState::Firing, episode, now);
                Some(Alert { repetition, ..alert })
            }
            Due::Resolved(key) => {
                let episode = self.episodes.remove(key)?;
                let alert = about(&self.origin, key, AlertState::Resolved, &episode, now);
                let lasted = episode.gone.unwrap_or(now.mono).saturating_sub(episode.began);
                let text = format!("over after {}: {}", display::time(lasted.as_secs()), alert.text);
                Some(Alert { text, ..alert })
            }
            Due::PublisherChanged => {
                let (name, _, since) = self.succession.next.take()?;
                let before = self.succession.known.replace(name.clone()).unwrap_or_default();
                let text =
                    format!("node {} publishes now, before it was {}", display::short(&name), display::short(&before));
                let id = format!("{}-{since}-publisher", self.origin.node);
                let alert = Alert::new(&self.origin, AlertEvent::PublisherChanged, AlertState::Notice, &name, id);
                Some(Alert { text, since, time: now.unix, ..alert })
            }
        }
    }
}

fn about(origin: &Origin, key: &(ProblemKind, String), state: AlertState, episode: &Episode, now: Now) -> Alert {
    let (kind, subject) = key;
    let alert = Alert::new(origin, AlertEvent::Problem(*kind), state, subject, episode.id.clone());
    Alert { text: episode.text.clone(), since: episode.since, time: now.unix, ..alert }
}

#[cfg(test)]
mod tests;
