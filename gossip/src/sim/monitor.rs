//! The invariants and the state for checking them, independent of the code that is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::{NodeId, ServiceId};
use crate::lease::Claim;
use crate::record::PeriodId;

/// The invariants. Each has its own test file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// A node's term never falls, not even over restarts, and is on disk before the node claims it.
    Terms,
    /// A node believes only holders that really claimed their term, and never returns to a worse
    /// claim. A node that knows of a better claim than its own does not publish.
    OneHolder,
    /// A publisher's revision never falls, and is above every revision that it knows of.
    Revisions,
    /// No node wants the descriptor to list points of a node that has been silent for longer than
    /// [`super::longest_silence`].
    NoDeadPoints,
    /// A descriptor has at most twenty points, one at each relay, each of a member.
    Descriptor,
    /// After the faults end, all nodes agree within the stated time, and keep agreeing.
    Converges,
}

/// A broken invariant.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The invariant that is broken.
    pub invariant: Invariant,
    /// Time since the start of the run.
    pub at: Duration,
    /// The node concerned and a description, for the report.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} broken at {:.1} s: {}", self.invariant, self.at.as_secs_f64(), self.what)
    }
}

/// What one process has received and believed, kept outside of it by the harness.
#[derive(Debug, Default)]
pub(super) struct Witness {
    /// The highest term on disk when it started.
    pub(super) initial_term: u64,
    /// The last true claim of each member that it has received, its own included, unless it was
    /// given up.
    pub(super) last_claims: BTreeMap<NodeId, Claim>,
    /// The highest term of each member among the true claims that it has received.
    pub(super) claimed: BTreeMap<NodeId, u64>,
    /// True if the membership has changed since the claims above were last checked against it.
    pub(super) recheck: bool,
    /// The claim that it believed last, unless the holder has given it up or is not a member now.
    pub(super) believed: Option<Claim>,
    /// The highest term it believed.
    pub(super) term: u64,
    /// The highest revisions it knew.
    pub(super) revisions: BTreeMap<(ServiceId, PeriodId), u64>,
    /// By service, the version of its wanted points that was checked last.
    pub(super) versions: BTreeMap<ServiceId, u64>,
    /// When a true new heartbeat of each machine was last delivered to it, on the simulation's
    /// clock.
    pub(super) heard: Vec<Duration>,
    /// When it was last woken from a stop, or its clock jumped: the silence of the others counts
    /// from then.
    pub(super) woken: Duration,
}

impl Witness {
    /// Notes a true lease of a member that the process received, or its own. `None`: given up.
    pub(super) fn lease(&mut self, holder: NodeId, claim: Option<Claim>) {
        match claim {
            Some(claim) => {
                self.last_claims.insert(holder, claim);
                let claimed = self.claimed.entry(holder).or_default();
                *claimed = (*claimed).max(claim.term);
            }
            None => self.forget(&holder),
        }
    }

    /// Notes that a true new heartbeat of this machine was delivered.
    pub(super) fn beat(&mut self, of: usize, at: Duration) {
        if self.heard.len() <= of {
            self.heard.resize(of + 1, Duration::ZERO);
        }
        self.heard[of] = at;
    }

    /// When the silence of this machine began, on the simulation's clock.
    pub(super) fn silent_since(&self, machine: usize) -> Duration {
        self.heard.get(machine).copied().unwrap_or_default().max(self.woken)
    }

    /// Drops the claim of this node.
    pub(super) fn forget(&mut self, holder: &NodeId) {
        self.last_claims.remove(holder);
        self.believed = self.believed.filter(|claim| claim.holder != *holder);
    }

    /// Drops the claims of nodes that are not members. A worker, which cannot claim a higher term
    /// itself, also drops the terms that only those nodes had claimed.
    pub(super) fn drop_claims(&mut self, is_member: impl Fn(&NodeId) -> bool, worker: bool) {
        let out: Vec<NodeId> = self.claimed.keys().filter(|node| !is_member(node)).copied().collect();
        for node in &out {
            self.forget(node);
            self.claimed.remove(node);
        }
        if worker && !out.is_empty() {
            self.term = self.term.min(self.claimed.values().max().copied().unwrap_or_default());
        }
    }

    /// Notes that the process believes this claim now. Returns the invariant that this breaks, if
    /// any.
    pub(super) fn believe(&mut self, claim: Claim) -> Option<(Invariant, String)> {
        let before = self.believed.replace(claim);
        let highest = self.term.max(self.initial_term);
        self.term = highest.max(claim.term);
        if claim.term < highest {
            Some((Invariant::Terms, format!("believes term {} after {highest}", claim.term)))
        } else if before.is_some_and(|before| claim < before) {
            Some((Invariant::OneHolder, format!("believes {claim:?} after {before:?}")))
        } else {
            None
        }
    }

    /// The best claim of another node that it knows, if it is better than the claim of `me` to
    /// `term`.
    pub(super) fn better(&self, me: NodeId, term: u64) -> Option<&Claim> {
        let own = self.last_claims.get(&me).filter(|own| own.term == term);
        let others = self.last_claims.values().filter(|claim| claim.holder != me && claim.term >= term);
        others.max().filter(|claim| claim.term > term || Some(*claim) > own)
    }
}

/// The true claims: those that nodes have really signed.
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
