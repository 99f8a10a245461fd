//! A small version of the daemon's tasks around a coordinator: carry out its actions, write the
//! disk, keep introduction points, publish.

use std::time::Duration;

use super::checks::period_at;
use super::faults::Bug;
use super::gossip::AnnouncedValue;
use super::host::{Fate, Pace};
use super::monitor::Invariant;
use super::world::{Directory, ProcessEvent, World};
use super::{point, served};
use crate::coordinator::{Action, Event, Leadership};
use crate::id::{NodeId, ServiceId};
use crate::lease::Claim;
use crate::record::{IntroPoint, Lease, PeriodId, PublishedPeriod, RecordKind, Role};
use crate::signed::Unverified;

/// Introduction points that a node keeps for each service.
pub(super) const POINTS: usize = 4;

impl World {
    pub(super) fn act(&mut self, host: usize, action: Action) {
        let loser_renews = self.scenario.bug == Some(Bug::LoserRenews);
        let Some(process) = &mut self.hosts[host].process else { return };
        match action {
            Action::StoreTerm(term) => self.store_term(host, term),
            Action::Gossip { kind: RecordKind::Lease, bytes } => self.announce_lease(host, bytes),
            Action::Gossip { kind, bytes } => {
                self.announce(host, AnnouncedValue { kind, bytes: Some(bytes), claim: None })
            }
            Action::Retract(kind) => self.announce(host, AnnouncedValue { kind, bytes: None, claim: None }),
            Action::Leadership(Leadership::Publisher { term }) => {
                process.leading = Some(term);
                if self.hosts[host].led.last().is_some_and(|last| *last >= term) {
                    self.broken(Invariant::Terms, host, format!("publishes in term {term} a second time"));
                }
                self.hosts[host].led.insert(term);
            }
            Action::Leadership(Leadership::Follower) => {
                if !loser_renews {
                    process.leading = None;
                }
            }
            // Nothing in the simulation hides records from a node, and no node has WireGuard.
            Action::RestartGossip | Action::EndpointsChanged => {}
            Action::FactsChanged => {
                self.list_members(host);
                self.look_at_target(host);
            }
            Action::MembersChanged => {
                process.witness.recheck = true;
                self.list_members(host);
                self.revoke_overdrawn(host);
            }
            Action::InvitationsChanged => self.sign_merged_facts(host),
            Action::Renew(certificate) => {
                let renewal = self.founder.sign_renewal(certificate);
                self.handle(host, Event::Fact(renewal.into()));
            }
            Action::Excluded(_) => {
                self.hosts[host].fate = Fate::Excluded;
                self.kill(host);
            }
        }
    }

    /// Schedules an upload, as the daemon's publisher does, if after an event the wanted points
    /// have changed or another publisher has used a higher revision.
    pub(super) fn want(&mut self, host: usize) {
        let clock = self.hosts[host].clock(self.now);
        let machine = &mut self.hosts[host];
        let Some(process) = &mut machine.process else { return };
        if process.leading.is_none() {
            process.wanted.clear();
            return;
        }
        let mut due = Vec::new();
        for service in &self.services {
            let key = (*service, period_at(clock.unix));
            let higher = process.coordinator.view().highest_revision(service, &key.1);
            let higher = higher.filter(|revision| machine.disk.revisions.get(&key).is_none_or(|used| revision > used));
            let wanted = (process.coordinator.desired_version(service), higher);
            let before = process.wanted.insert(*service, wanted);
            let points = before.map(|(version, _)| version) != Some(wanted.0);
            if points || (higher.is_some() && before != Some(wanted)) {
                due.push((*service, before.is_none()));
            }
        }
        for (service, first) in due {
            let wait = if first {
                Duration::from_millis(500)
            } else {
                self.rng.between(Duration::from_millis(200), Duration::from_secs(2))
            };
            self.due(host, wait, ProcessEvent::Publish(service));
        }
    }

    pub(super) fn announce(&mut self, host: usize, announced: AnnouncedValue) {
        let boot = self.hosts[host].disk.boot;
        if let Some(process) = &mut self.hosts[host].process {
            process.store.announce(host, boot, announced);
        }
    }

    fn announce_lease(&mut self, host: usize, bytes: Vec<u8>) {
        let me = self.hosts[host].id();
        let lease = Unverified::<Lease>::from_bytes(&bytes).unwrap().verify(me.public_key()).unwrap();
        if self.scenario.bug == Some(Bug::LoserRenews) && lease.ttl_ms == 0 && lease.term > 0 {
            return;
        }
        let claim = (lease.ttl_ms > 0).then(|| Claim::of(&lease));
        self.announce(host, AnnouncedValue { kind: RecordKind::Lease, bytes: Some(bytes), claim });
        let Some(process) = &mut self.hosts[host].process else { return };
        process.witness.lease(me, claim);
        if let Some(claim) = claim {
            self.claims.note(claim);
            if claim.term > self.hosts[host].disk.term {
                self.broken(Invariant::Terms, host, format!("claims term {} before it is on disk", claim.term));
            }
        }
    }

    /// How long a write to disk takes now; `None` if the disk is full.
    fn write(&mut self, host: usize) -> Option<Duration> {
        let most = match self.hosts[host].pace(self.now) {
            Pace::Normal => 0.5,
            Pace::Slow => 40.0,
            Pace::Full => return None,
        };
        let least = if most > 1.0 { 1.0 } else { 0.005 };
        Some(self.rng.between(Duration::from_secs_f64(least), Duration::from_secs_f64(most)))
    }

    fn store_term(&mut self, host: usize, term: u64) {
        if let Some(wait) = self.write(host) {
            if let Some(process) = &mut self.hosts[host].process {
                process.storing += 1;
            }
            self.due(host, wait, ProcessEvent::TermOnDisk(term));
        }
    }

    pub(super) fn term_on_disk(&mut self, host: usize, term: u64) {
        let it = &mut self.hosts[host];
        it.disk.term = it.disk.term.max(term);
        if let Some(process) = &mut it.process {
            process.storing -= 1;
        }
        self.handle(host, Event::TermStored(term));
    }

    fn list_members(&mut self, host: usize) {
        let listing = self.hosts[host].process.as_ref().is_none_or(|process| process.listing);
        if !listing && let Some(wait) = self.write(host) {
            if let Some(process) = &mut self.hosts[host].process {
                process.listing = true;
            }
            self.due(host, wait, ProcessEvent::ListOnDisk);
        }
    }

    pub(super) fn list_on_disk(&mut self, host: usize) {
        let Some(process) = &mut self.hosts[host].process else { return };
        process.listing = false;
        let members = process.coordinator.view().members();
        let members = members.filter_map(|node| self.index.get(&node.node()).copied()).collect();
        let facts = process.coordinator.view().facts().complete_statements();
        let disk = &mut self.hosts[host].disk;
        (disk.members, disk.facts) = (members, facts);
    }

    /// A publisher holds the authority key: it signs merged invitations for which there is no
    /// single signed statement.
    fn sign_merged_facts(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else { return };
        if self.hosts[host].identity.member.role() == Role::Publisher {
            let merged: Vec<_> = process.coordinator.view().invitations().unsigned().cloned().collect();
            for invitation in merged {
                let signed = self.founder.sign_invitation(invitation);
                self.handle(host, Event::Fact(signed.into()));
            }
        }
    }

    /// A publisher also revokes nodes that joined with a token that others had used up.
    fn revoke_overdrawn(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else { return };
        if self.hosts[host].identity.member.role() == Role::Publisher {
            let overdrawn: Vec<NodeId> = process.coordinator.view().overdrawn().collect();
            for node in overdrawn {
                let revocation = self.founder.revoke(node);
                self.handle(host, Event::Fact(revocation.into()));
            }
        }
    }

    /// Whether a machine has a target for this service. All have one for the first service, two of
    /// three for the others.
    pub(super) fn serves(&self, host: usize, service: &ServiceId) -> bool {
        self.services.first() == Some(service) || host % 3 != 1
    }

    /// The services of the cluster that a node knows and has a target for.
    pub(super) fn services_of(&self, host: usize) -> Vec<ServiceId> {
        let Some(process) = &self.hosts[host].process else { return Vec::new() };
        let known = process.coordinator.view().services();
        known.into_iter().filter(|service| self.serves(host, service)).collect()
    }

    /// Keeps [`POINTS`] points for each service, none at a relay that another node uses for it.
    pub(super) fn keep_points(&mut self, host: usize) {
        for service in self.services_of(host) {
            self.keep_points_of(host, service);
        }
        self.due(host, Duration::from_secs(3), ProcessEvent::Points);
    }

    fn keep_points_of(&mut self, host: usize, service: ServiceId) {
        let Some(process) = &self.hosts[host].process else { return };
        let view = process.coordinator.view();
        let leave = view.relays_to_leave(&service);
        let before = self.hosts[host].disk.points.get(&service).cloned().unwrap_or_default();
        if leave.is_empty() && before.len() >= POINTS {
            return;
        }
        let others = view.relays_of_others(&service);
        let mut points = before.clone();
        points.retain(|point| !leave.contains(&point.relay));
        for _ in 0..50 {
            if points.len() >= POINTS {
                break;
            }
            self.hosts[host].rotation += 1;
            let number = (host as u32) << 20 | self.hosts[host].rotation;
            let new = point(self.rng.below(self.relays) as u32, number);
            if !others.contains(&new.relay) && points.iter().all(|point| point.relay != new.relay) {
                points.push(new);
            }
        }
        if points != before {
            self.set_points(host, service, points);
        }
    }

    /// Sets the points at which a machine waits for clients of a service.
    pub(super) fn set_points(&mut self, host: usize, service: ServiceId, points: Vec<IntroPoint>) {
        self.hosts[host].disk.points.insert(service, points.clone());
        self.handle(host, Event::IntroPoints { service, points: points.into_iter().map(served).collect() });
    }

    /// Reports the state of the target, which is the same for all services of a machine.
    pub(super) fn look_at_target(&mut self, host: usize) {
        let ready = self.hosts[host].target_up;
        for service in self.services_of(host) {
            self.handle(host, Event::Ready { service, ready });
        }
    }

    /// The periods and revisions of a service on a machine's disk.
    pub(super) fn published_periods(&self, host: usize, service: ServiceId) -> Vec<PublishedPeriod> {
        let periods = self.hosts[host].disk.revisions.iter().filter(|((of, _), _)| *of == service);
        periods.map(|((_, period), revision)| published(*period, *revision)).collect()
    }

    /// Uploads the descriptor of a service for the current period, and tries again later if the
    /// disk is full or the revision is refused.
    pub(super) fn publish(&mut self, host: usize, service: ServiceId) {
        let clock = self.hosts[host].clock(self.now);
        let Some(process) = &self.hosts[host].process else { return };
        if process.leading.is_none() {
            return;
        }
        if self.hosts[host].pace(self.now) == Pace::Full {
            // A publisher does not use a revision that it cannot store.
            self.due(host, Duration::from_secs(5), ProcessEvent::Publish(service));
            self.handle(host, Event::CannotPublish { service });
            return;
        }
        let points = self.wanted(host, &service).into_owned();
        let period = period_at(clock.unix);
        let key = (service, period);
        let directory = self.directories.entry(key).or_default();
        if points.is_empty() || (directory.points == points && self.calm) {
            return;
        }
        let clocks = clock.unix << 16;
        let known = process.coordinator.view().highest_revision(&service, &period).unwrap_or_default();
        let used = self.hosts[host].disk.revisions.get(&key).copied().unwrap_or_default();
        let asked = if self.refused.remove(&(host, service, period)) { directory.revision } else { 0 };
        let fenced = clocks.max(known + 1).max(used + 1).max(asked + 1);
        let revision = if self.scenario.bug == Some(Bug::ClockRevision) { clocks } else { fenced };
        let before = self.hosts[host].used.get(&key).copied().unwrap_or_default();
        if revision <= known.max(before) {
            let what = format!("offers revision {revision}, knows of {known}, has used {before}");
            self.broken(Invariant::Revisions, host, what);
        }
        self.hosts[host].disk.revisions.insert(key, revision);
        self.hosts[host].used.insert(key, revision.max(before));
        let directory = self.directories.entry(key).or_default();
        if revision <= directory.revision {
            self.refused.insert((host, service, period));
            self.due(host, Duration::from_secs(2), ProcessEvent::Publish(service));
            return;
        }
        *directory = Directory { revision, points };
        let periods = self.published_periods(host, service);
        let newest = periods.len().saturating_sub(8);
        self.handle(host, Event::Published { service, periods: periods[newest..].to_vec() });
        self.check_revisions(host);
    }
}

/// A period with its revision, confirmed by all of eight directories.
fn published(period: PeriodId, revision: u64) -> PublishedPeriod {
    PublishedPeriod { period, revision, confirmed: 8, directories: 8 }
}
