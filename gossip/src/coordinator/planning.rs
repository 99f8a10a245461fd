//! What should stand in the descriptor of one service: gathers the candidates, and asks [`crate::plan`] and
//! [`crate::outage`]. There is one planner for each service of the cluster, on every node: it must be ready to publish
//! all of them.

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
    /// What may stand in the descriptor has changed since it was chosen.
    stale: bool,
    /// When points of a silent node that stay in the descriptor are to leave it.
    hidden_until: Option<Duration>,
    /// The turn of the sources when there are more than places: the time in units of [`Settings::rotation`].
    rotation_epoch: u64,
    version: u64,
}

impl Planner {
    pub(super) fn new(service: ServiceId) -> Self {
        let choice = Choice::default();
        Self { service, choice, stale: true, hidden_until: None, rotation_epoch: 0, version: 0 }
    }

    /// What was chosen last.
    pub(super) fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Rises with every change of the chosen points.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// When points of a silent node that stay in the descriptor are to leave it.
    pub(super) fn hidden_until(&self) -> Option<Duration> {
        self.hidden_until
    }

    /// Chooses again if anything has changed and it is pressing.
    ///
    /// In a large cluster there are many changes a second, and choosing costs more than taking one in: the publisher
    /// plans after every event, the others with each heartbeat.
    pub(super) fn step(&mut self, view: &View, settings: &Settings, changed: bool, pressing: bool, now: Now) {
        let rotation_epoch = now.unix / settings.rotation.max(1);
        let over = self.hidden_until.is_some_and(|at| now.mono >= at);
        self.stale |= changed || rotation_epoch != self.rotation_epoch || over;
        if !self.stale || !pressing {
            return;
        }
        (self.stale, self.rotation_epoch) = (false, rotation_epoch);
        let choice = self.choose(view, settings, now);
        self.version += u64::from(choice.points != self.choice.points);
        self.choice = choice;
    }

    fn choose(&mut self, view: &View, settings: &Settings, now: Now) -> Choice {
        let secret = settings.hide_outages.as_ref();
        let hidden = secret.map(|secret| outage::hidden(view, &self.service, secret, &self.choice, now.mono));
        let Hidden { points: hidden, until } = hidden.unwrap_or_default();
        self.hidden_until = until;
        let silent =
            hidden.iter().filter_map(|(node, points)| Some(view.member(node)?.candidate(&self.service, points)));
        let candidates: Vec<Candidate<'_>> = view.candidates(&self.service).chain(silent).collect();
        choose(&candidates, &self.choice, settings.intro_points, self.rotation_epoch)
    }
}
