//! Plans what the descriptor of one service should list: gathers the candidates and runs
//! [`crate::plan`] and [`crate::outage`] on them. Every node has one planner for each service of
//! the cluster, because it must be ready to publish all of them.

use std::time::Duration;

use super::Now;
use super::settings::Settings;
use crate::id::ServiceId;
use crate::outage::{self, Hidden};
use crate::plan::{Choice, choose};
use crate::source::Candidate;
use crate::view::View;

/// The planner of one service.
#[derive(Debug)]
pub(super) struct Planner {
    service: ServiceId,
    choice: Choice,
    /// True if the input has changed since the last choice.
    stale: bool,
    /// When the hidden points of a silent node must leave the descriptor; `None` if none are
    /// hidden.
    hidden_until: Option<Duration>,
    /// Time in units of [`Settings::rotation`]: selects the sources when there are more of them
    /// than places.
    rotation_epoch: u64,
    version: u64,
}

impl Planner {
    pub(super) fn new(service: ServiceId) -> Self {
        let choice = Choice::default();
        Self { service, choice, stale: true, hidden_until: None, rotation_epoch: 0, version: 0 }
    }

    /// What the descriptor should list, as the last [`Planner::step`] that chose has decided.
    pub(super) fn choice(&self) -> &Choice {
        &self.choice
    }

    /// A number that rises with every change of the chosen points and subprotocols.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// When the hidden points of a silent node must leave the descriptor; `None` if none are
    /// hidden.
    pub(super) fn hidden_until(&self) -> Option<Duration> {
        self.hidden_until
    }

    /// Chooses again if the input has changed since the last choice (`changed`: it has since the
    /// last call) and this node plans now (`plans_now`). A large cluster changes many times a
    /// second, and a choice costs more than processing a record, so `plans_now` is always true for
    /// the publisher but only at each heartbeat for other nodes.
    pub(super) fn step(&mut self, view: &View, settings: &Settings, changed: bool, plans_now: bool, now: Now) {
        let rotation_epoch = now.unix / settings.rotation.max(1);
        let over = self.hidden_until.is_some_and(|at| now.mono >= at);
        self.stale |= changed || rotation_epoch != self.rotation_epoch || over;
        if !self.stale || !plans_now {
            return;
        }
        (self.stale, self.rotation_epoch) = (false, rotation_epoch);
        let choice = self.choose(view, settings, now);
        let same = (&choice.points, &choice.subprotocols) == (&self.choice.points, &self.choice.subprotocols);
        self.version += u64::from(!same);
        self.choice = choice;
    }

    fn choose(&mut self, view: &View, settings: &Settings, now: Now) -> Choice {
        let secret = settings.preferences.hide_outages.as_ref();
        let hidden = secret.map(|secret| outage::hidden(view, &self.service, secret, &self.choice, now.mono));
        let Hidden { points: hidden, until } = hidden.unwrap_or_default();
        self.hidden_until = until;
        let silent =
            hidden.iter().filter_map(|(node, points)| Some(view.member(node)?.candidate(&self.service, points)));
        let candidates: Vec<Candidate<'_>> = view.candidates(&self.service).chain(silent).collect();
        choose(&candidates, &self.choice, settings.intro_points, self.rotation_epoch)
    }
}
