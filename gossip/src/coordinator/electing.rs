//! Connects the election ([`crate::lease`]) to the coordinator: computes its situation and carries
//! out its steps.

use std::time::Duration;

use super::{Action, Coordinator, Leadership, Now};
use crate::lease::{Situation, Step};
use crate::record::Role;
use crate::view::{Changes, View};

/// This node's position in the election.
#[derive(Debug)]
pub(super) struct ElectionState {
    /// The term and this node's place in the queue for it; cleared when a member is added, removed
    /// or changed.
    place: Option<(u64, usize)>,
    /// True once this node has handed the lease over because it drains. It does so once per drain:
    /// a lease that comes back shows that no other node can take it.
    drain_handed_over: bool,
    /// The term in which this node published last.
    last_term: u64,
    elect_at: Option<Duration>,
}

impl ElectionState {
    /// `term` is the highest term on disk.
    pub(super) fn new(term: u64) -> Self {
        Self { place: None, drain_handed_over: false, last_term: term, elect_at: None }
    }

    /// Ends the drain, so that the next one hands over again.
    pub(super) fn resume(&mut self) {
        self.drain_handed_over = false;
    }

    /// The term in which this node published last.
    pub(super) fn last_term(&self) -> u64 {
        self.last_term
    }

    /// When the election must be stepped by time alone; `None`: not by time.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.elect_at
    }

    fn place(&mut self, view: &mut View, term: u64) -> usize {
        let known = self.place.filter(|(of, _)| *of == term);
        let (_, place) = *self.place.insert(known.unwrap_or_else(|| (term, view.place(term))));
        place
    }
}

impl Coordinator {
    /// Steps the election with the current situation.
    pub(super) fn elect(&mut self, changes: &mut Changes, now: Now, out: &mut Vec<Action>) {
        if self.member.role() != Role::Publisher {
            return;
        }
        if changes.members {
            self.queue.place = None;
        }
        let mut steps = Vec::new();
        let mut situation = self.situation(now);
        self.election.step(&situation, now.mono, &mut steps);
        self.queue.drain_handed_over |= situation.hand_over && self.life.is_draining();
        let leading = self.election.leading().is_some();
        self.publishing.values_mut().for_each(|publishing| publishing.cannot_publish &= leading);
        if !steps.is_empty() {
            changes.leases = true;
            self.perform(&steps, now, out);
            situation = self.situation(now);
        }
        self.queue.elect_at = self.election.next_deadline(&situation).filter(|at| *at > now.mono);
    }

    fn situation(&mut self, now: Now) -> Situation {
        let (best, live) = (self.view.best_claim(), self.view.is_best_live(now.mono));
        let highest = self.view.highest_term();
        let leading = self.election.leading().is_some();
        let mut situation = Situation { best, live, highest, ..Situation::default() };
        if live && !leading {
            return situation;
        }
        let willing = self.life.is_joined() && !self.life.is_leaving() && !self.life.is_isolated();
        let may = willing && self.view.may_publish();
        // The publisher needs no place in the queue, so other nodes' ranks are not computed.
        let next = self.election.stored_term().max(highest) + 1;
        situation.place = may.then(|| if leading { 0 } else { self.queue.place(&mut self.view, next) });
        let cannot_publish = self.publishing.values().any(|publishing| publishing.cannot_publish);
        let unwilling = cannot_publish || (self.life.is_draining() && !self.queue.drain_handed_over);
        situation.hand_over = leading && unwilling && self.view.has_successor();
        if !leading {
            situation.alone = self.view.is_alone();
            situation.all_heard = self.election.listening_since().is_some_and(|since| self.view.heard_all_since(since));
            situation.lower_term_live = self.view.is_lower_live(now.mono);
        }
        situation
    }

    /// Carries out the steps of the election.
    pub(super) fn perform(&mut self, steps: &[Step], now: Now, out: &mut Vec<Action>) {
        for step in steps {
            match *step {
                Step::Store(term) => out.push(Action::StoreTerm(term)),
                Step::Renew(term) => self.announce_lease(term, self.settings.timing.ttl, now, out),
                Step::GiveUp(term) => self.announce_lease(term, Duration::ZERO, now, out),
                Step::Lead(term) => {
                    self.queue.last_term = term;
                    out.push(Action::Leadership(Leadership::Publisher { term }));
                }
                Step::Follow => out.push(Action::Leadership(Leadership::Follower)),
            }
        }
    }
}
