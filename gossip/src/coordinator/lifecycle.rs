//! The life cycle of this node: joined, draining, leaving or excluded, and whether it is isolated
//! meanwhile.
//!
//! [`LifeCycle::step`] runs after every event. The node joins when its links reach the mesh, when
//! it hears another member, when it knows no other member, or when the time for joining is over
//! while it is not isolated. It is excluded for good when it is no longer a member, or a second
//! process with its key is proven.

use std::time::Duration;

use super::Now;
use super::isolation::{Isolated, Isolation};
use crate::record::{Heartbeat, Phase, Role};
use crate::view::{Standing, View};

/// The state of the cluster on which the life cycle depends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings {
    /// This node's own standing.
    standing: Standing,
    /// True if no other member is known.
    alone: bool,
    /// True if another member is alive.
    hears_others: bool,
    /// True if another member, alive or not, is a publisher.
    others_publish: bool,
    /// Number of revocations known.
    revocations: usize,
}

impl Surroundings {
    pub(super) fn of(view: &View) -> Self {
        let own_role = view.node(&view.me()).map(|own| own.member.role());
        let standing = match view.own_standing() {
            // It renews its certificate itself.
            Standing::Expired if own_role == Some(Role::Publisher) => Standing::Member,
            standing => standing,
        };
        Self {
            standing,
            alone: view.is_alone(),
            hears_others: view.hears_any(),
            others_publish: view.has_other_publisher(),
            revocations: view.revocations().len(),
        }
    }
}

/// A transition of the life cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LifeStep {
    /// The node takes part in the cluster from now on.
    Joined,
    /// The node is no longer part of the cluster, for this reason. No transition follows.
    Excluded(&'static str),
}

/// One node's life cycle.
#[derive(Debug)]
pub(super) struct LifeCycle {
    /// Time to look for other members before the node joins without having reached any.
    joining: Duration,
    started: Duration,
    mesh_reached: bool,
    joined: bool,
    draining: bool,
    leaving: bool,
    excluded: bool,
    /// See [`super::Settings::restored`].
    restored: bool,
    isolation: Isolation,
    /// Why the node was isolated at the last step, and when that may change by time alone.
    isolated: Option<Isolated>,
    isolate_at: Option<Duration>,
}

impl LifeCycle {
    /// The life cycle of a process whose heartbeats contain the random number `instance`.
    /// `restored`: see [`super::Settings::restored`].
    pub(super) fn new(joining: Duration, instance: u64, restored: bool) -> Self {
        Self {
            joining,
            started: Duration::ZERO,
            mesh_reached: false,
            joined: false,
            draining: false,
            leaving: false,
            excluded: false,
            restored,
            isolation: Isolation::new(instance),
            isolated: None,
            isolate_at: None,
        }
    }

    /// To be called at the first event.
    pub(super) fn begin(&mut self, now: Now) {
        self.started = now.mono;
        self.isolation.begin(now);
    }

    /// To be called when the wall clock was set forward: measured by the new time, the recorded
    /// start is too early, and heartbeats of an earlier process could be dated after it.
    pub(super) fn clock_stepped(&mut self, now: Now) {
        self.isolation.begin(now);
    }

    /// To be called once at least one link is up.
    pub(super) fn reach_mesh(&mut self) {
        self.mesh_reached = true;
    }

    pub(super) fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
    }

    pub(super) fn leave(&mut self) {
        self.leaving = true;
    }

    pub(super) fn set_shut_out(&mut self, shut_out: bool) {
        self.isolation.set_shut_out(shut_out);
    }

    pub(super) fn set_clock_off(&mut self, clock_off: bool) {
        self.isolation.set_clock_off(clock_off);
    }

    pub(super) fn set_counted(&mut self, counted: u32) {
        self.isolation.set_counted(counted);
    }

    /// Processes a heartbeat signed with this node's key; `ahead`: its sequence number is above all
    /// that this process has used.
    pub(super) fn on_own_heartbeat(&mut self, beat: &Heartbeat, ahead: bool, now: Now) {
        self.isolation.on_own_heartbeat(beat, ahead, now);
    }

    /// The phase that the node announces.
    pub(super) fn phase(&self) -> Phase {
        if self.leaving || self.excluded {
            Phase::Gone
        } else if !self.joined {
            Phase::Joining
        } else if self.draining {
            Phase::Draining
        } else {
            Phase::Active
        }
    }

    pub(super) fn is_joined(&self) -> bool {
        self.joined
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }

    pub(super) fn is_excluded(&self) -> bool {
        self.excluded
    }

    /// Whether the node was isolated at the last step.
    pub(super) fn is_isolated(&self) -> bool {
        self.isolated.is_some()
    }

    /// The reason why the node is isolated at this moment; `None` if it is not.
    pub(super) fn isolation(&self, around: &Surroundings, mono: Duration) -> Option<Isolated> {
        self.isolation.reason(around.revocations, around.others_publish, mono)
    }

    /// When [`LifeCycle::step`] may return a transition by time alone.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let joining = (!self.joined && self.isolated.is_none()).then_some(self.started + self.joining);
        [joining, self.isolate_at].into_iter().flatten().min()
    }

    /// Evaluates the life cycle and returns its next transition, if there is one.
    pub(super) fn step(&mut self, around: &Surroundings, now: Now) -> Option<LifeStep> {
        if let Some(reason) = self.reason_to_end(around.standing, now.mono) {
            self.excluded = true;
            return Some(LifeStep::Excluded(reason));
        }
        self.isolate(around, now);
        let waited = now.mono >= self.started + self.joining && self.isolated.is_none();
        if !self.joined && (self.mesh_reached || waited || around.alone || around.hears_others) {
            self.joined = true;
            return Some(LifeStep::Joined);
        }
        None
    }

    fn isolate(&mut self, around: &Surroundings, now: Now) {
        self.isolation.compare(around.revocations, now);
        let why = self.isolation(around, now.mono);
        self.isolate_at = self.isolation.next_deadline(now.mono);
        if self.isolated.is_some() != why.is_some() {
            match why {
                // Logged as info, because a node that has just joined is in this state until its
                // first link.
                Some(why @ Isolated::LacksRevocations { .. }) => tracing::info!(
                    name: "revocations_missing",
                    %why,
                    "this node is isolated"
                ),
                Some(why) => tracing::warn!(
                    name: "isolated",
                    %why,
                    "this node is isolated: it does not publish, admit or rotate keys"
                ),
                None => tracing::info!(name: "isolation_ended", "this node is no longer isolated"),
            }
        }
        self.isolated = why;
    }

    fn reason_to_end(&self, standing: Standing, mono: Duration) -> Option<&'static str> {
        match standing {
            Standing::Member if self.restored && self.isolation.is_suspected() => Some(
                "this node was restored from a backup, and the machine that the backup was made on still runs: this process stops, and that machine goes on. Stop that machine's node for good, then start this one; or delete this state directory",
            ),
            Standing::Member if self.isolation.must_end(mono) => Some(
                "this node's key is in use by a second process, most likely on another machine with a copy of this state directory; both stop. Delete all copies but one, and start that one: a state directory may be moved, never run twice",
            ),
            Standing::Member => None,
            Standing::Expired => Some(
                "this node's member certificate has expired: the node was away for too long, or no publisher ran to renew it. Check this machine's clock. If it is right, join again: make a token with `rustbalance invite` on a publisher, move this state directory away, and run `rustbalance join`",
            ),
            Standing::Revoked => Some(
                "this node was evicted from the cluster: it comes back only under a new key, with a new invitation",
            ),
            Standing::Overdrawn => Some(
                "this node joined with an invitation that others had used up at the same time: join again with a new one",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Role;
    use crate::sim::{FOUNDED, Founder};

    /// The surroundings of a member that knows another publisher and hears no other node.
    const LOST: Surroundings = Surroundings {
        standing: Standing::Member,
        alone: false,
        hears_others: false,
        others_publish: true,
        revocations: 0,
    };

    fn at(seconds: u64) -> Now {
        Now { mono: Duration::from_secs(seconds), unix: FOUNDED + seconds }
    }

    fn started() -> LifeCycle {
        let mut life = LifeCycle::new(Duration::from_secs(45), 1, false);
        life.begin(at(0));
        life
    }

    #[test]
    fn a_node_joins_when_it_reaches_others_is_alone_or_has_waited() {
        let mut reaching = started();
        assert_eq!((reaching.step(&LOST, at(1)), reaching.phase()), (None, Phase::Joining));
        reaching.reach_mesh();
        assert_eq!((reaching.step(&LOST, at(2)), reaching.phase()), (Some(LifeStep::Joined), Phase::Active));
        assert_eq!(reaching.step(&LOST, at(3)), None, "it joins once");
        assert_eq!(started().step(&Surroundings { alone: true, ..LOST }, at(1)), Some(LifeStep::Joined));
        assert_eq!(started().step(&Surroundings { hears_others: true, ..LOST }, at(1)), Some(LifeStep::Joined));
        let mut waiting = started();
        assert_eq!(waiting.next_deadline(), Some(at(45).mono));
        assert_eq!((waiting.step(&LOST, at(44)), waiting.step(&LOST, at(45))), (None, Some(LifeStep::Joined)));
    }

    #[test]
    fn an_isolated_node_stays_in_the_joining_phase() {
        let mut life = started();
        life.set_shut_out(true);
        assert_eq!(life.step(&LOST, at(100)), None);
        assert!(life.is_isolated() && life.phase() == Phase::Joining);
        life.set_shut_out(false);
        assert_eq!(life.step(&LOST, at(101)), Some(LifeStep::Joined));
        assert!(!life.is_isolated());
    }

    #[test]
    fn a_node_drains_only_after_it_has_joined_and_leaving_is_final() {
        let mut life = started();
        life.set_draining(true);
        life.step(&LOST, at(1));
        assert_eq!(life.phase(), Phase::Joining);
        life.reach_mesh();
        life.step(&LOST, at(2));
        assert_eq!(life.phase(), Phase::Draining);
        life.set_draining(false);
        assert_eq!(life.phase(), Phase::Active);
        life.leave();
        assert_eq!(life.phase(), Phase::Gone);
    }

    #[test]
    fn a_restored_node_ends_at_the_first_heartbeat_of_its_older_self() {
        let older = |seconds| Heartbeat {
            instance: 2,
            unix: FOUNDED + seconds,
            ..Founder::new(1).node(0, Role::Publisher).beat(seconds, Phase::Active)
        };
        for restored in [true, false] {
            let mut life = LifeCycle::new(Duration::from_secs(45), 1, restored);
            life.begin(at(10));
            life.on_own_heartbeat(&older(9), true, at(11));
            assert_eq!(life.step(&LOST, at(11)), None, "a heartbeat from before the start proves nothing");
            life.on_own_heartbeat(&older(13), true, at(14));
            let step = life.step(&LOST, at(14));
            let has_ended = matches!(step, Some(LifeStep::Excluded(why)) if why.contains("restored from a backup"));
            assert_eq!(has_ended, restored, "{step:?}");
        }
    }

    #[test]
    fn a_node_that_is_not_a_member_any_more_is_excluded_with_the_reason() {
        for (standing, part) in
            [(Standing::Expired, "expired"), (Standing::Revoked, "evicted"), (Standing::Overdrawn, "invitation")]
        {
            let mut life = started();
            let step = life.step(&Surroundings { standing, ..LOST }, at(1));
            assert!(matches!(step, Some(LifeStep::Excluded(why)) if why.contains(part)), "{step:?}");
            assert!(life.is_excluded() && life.phase() == Phase::Gone);
        }
    }
}
