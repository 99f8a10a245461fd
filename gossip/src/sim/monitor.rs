//! What must never happen, checked after every event; written without the code it checks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::{NodeId, ServiceId};
use crate::lease::Claim;
use crate::record::PeriodId;

/// The invariants, each with a test file of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// A term never falls, over restarts too, and is on disk before it is claimed.
    Terms,
    /// In one term one holder is believed, one that really claimed it; whoever knows of a better claim does not publish.
    OneHolder,
    /// A revision never falls, and is above all that are known.
    Revisions,
    /// No point of a node that is long silent is wanted in the descriptor.
    NoDeadPoints,
    /// At most twenty points, one at each relay, each of a member.
    Descriptor,
    /// After the faults end, all agree within the stated time, and go on doing so.
    Converges,
}

/// A broken invariant.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// When, since the start of the run.
    pub at: Duration,
    /// Who saw it and what it was.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} broken at {:.1} s: {}", self.invariant, self.at.as_secs_f64(), self.what)
    }
}

/// What one process has been told and has believed, kept beside it.
#[derive(Debug, Default)]
pub(super) struct Witness {
    /// The highest term on disk when it started.
    pub(super) floor: u64,
    /// The last true claim of each member that it was told of, its own included, unless it was given up.
    pub(super) told: BTreeMap<NodeId, Claim>,
    /// The highest term that each member ever claimed, of what it was told.
    pub(super) claimed: BTreeMap<NodeId, u64>,
    /// Who is a member has changed since the claims above were looked through.
    pub(super) recheck: bool,
    /// Whom it believed last, unless that one has given up or was thrown out.
    pub(super) believed: Option<Claim>,
    /// The highest term it believed.
    pub(super) term: u64,
    /// The highest revisions it knew.
    pub(super) revisions: BTreeMap<(ServiceId, PeriodId), u64>,
    /// The version of what it wants published of each service that was checked last.
    pub(super) versions: BTreeMap<ServiceId, u64>,
    /// When a true new beat of each machine was last delivered to it, on the simulation's clock.
    pub(super) heard: Vec<Duration>,
    /// When it was last woken from a stop, or its clock jumped: then the others have their allowance anew.
    pub(super) woken: Duration,
}

impl Witness {
    /// It was told of a true lease of a member, or said one itself.
    pub(super) fn lease(&mut self, holder: NodeId, claim: Option<Claim>) {
        match claim {
            Some(claim) => {
                self.told.insert(holder, claim);
                let claimed = self.claimed.entry(holder).or_default();
                *claimed = (*claimed).max(claim.term);
            }
            None => self.forget(&holder),
        }
    }

    /// A true new beat of that machine was delivered.
    pub(super) fn beat(&mut self, of: usize, at: Duration) {
        if self.heard.len() <= of {
            self.heard.resize(of + 1, Duration::ZERO);
        }
        self.heard[of] = at;
    }

    /// Since when that machine's silence counts.
    pub(super) fn silent_since(&self, machine: usize) -> Duration {
        self.heard.get(machine).copied().unwrap_or_default().max(self.woken)
    }

    /// That node's claims count no more.
    pub(super) fn forget(&mut self, holder: &NodeId) {
        self.told.remove(holder);
        self.believed = self.believed.filter(|it| it.holder != *holder);
    }

    /// Drops the claims of who is no member. A worker, who cannot claim a higher term itself, also lets go of the terms
    /// that they alone had claimed.
    pub(super) fn drop_claims(&mut self, is_member: impl Fn(&NodeId) -> bool, worker: bool) {
        let out: Vec<NodeId> = self.claimed.keys().filter(|it| !is_member(it)).copied().collect();
        for node in &out {
            self.forget(node);
            self.claimed.remove(node);
        }
        if worker && !out.is_empty() {
            self.term = self.term.min(self.claimed.values().max().copied().unwrap_or_default());
        }
    }

    /// It believes this claim now. Says what is wrong with that.
    pub(super) fn believe(&mut self, claim: Claim) -> Option<(Invariant, String)> {
        let before = self.believed.replace(claim);
        let highest = self.term.max(self.floor);
        self.term = highest.max(claim.term);
        if claim.term < highest {
            Some((Invariant::Terms, format!("believes term {} after {highest}", claim.term)))
        } else if before.is_some_and(|before| claim < before) {
            Some((Invariant::OneHolder, format!("believes {claim:?} after {before:?}")))
        } else {
            None
        }
    }

    /// The best claim of another that it knows to be better than that of `me` to `term`.
    pub(super) fn better(&self, me: NodeId, term: u64) -> Option<&Claim> {
        let own = self.told.get(&me).filter(|own| own.term == term);
        let others = self.told.values().filter(|it| it.holder != me && it.term >= term);
        others.max().filter(|it| it.term > term || Some(*it) > own)
    }
}

/// True claims: what each node has really said.
#[derive(Debug, Default)]
pub(super) struct Claims(BTreeSet<(u64, NodeId)>);

impl Claims {
    pub(super) fn note(&mut self, claim: Claim) {
        self.0.insert((claim.term, claim.holder));
    }

    pub(super) fn is_true(&self, term: u64, holder: NodeId) -> bool {
        self.0.contains(&(term, holder))
    }
}
