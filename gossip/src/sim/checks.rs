//! The checks of a run: for a node after each of its events, for all nodes every second, and at the
//! end.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use super::faults::Bug;
use super::host::Fate;
use super::monitor::Invariant;
use super::world::World;
use crate::id::{NodeId, ServiceId};
use crate::liveness::Patience;
use crate::plan::{Choice, choose};
use crate::record::{IntroPoint, PeriodId, Role};
use crate::source::{Candidate, Source};
use crate::stand_in::UnattendedPoint;
use crate::view::{Condition, MemberView};

/// Longest time for which a node may keep a silent node's points in its plan for the descriptor,
/// counted from the last heartbeat that it received or from the end of a stop of its own. It is the
/// longest allowance in a cluster of this size, one heartbeat interval (a node that does not
/// publish plans only with its own heartbeat) and 3 s of margin: 45 s up to a hundred nodes.
pub fn longest_silence(nodes: usize) -> Duration {
    let patience = Patience::default().among(nodes);
    patience.most + patience.interval + Duration::from_secs(3)
}

/// The time period at a Unix time in seconds. Simulated periods last eight hours.
pub(super) fn period_at(unix: u64) -> PeriodId {
    PeriodId { number: unix / 28_800, length_minutes: 480, offset_seconds: 0 }
}

impl World {
    /// Checks a node after each of its events.
    pub(super) fn check(&mut self, host: usize) {
        let (clock, me) = (self.hosts[host].clock(self.now), self.hosts[host].id());
        let worker = self.hosts[host].identity.member.role() != Role::Publisher;
        let Some(process) = &mut self.hosts[host].process else { return };
        let mut broken = Vec::new();
        let view = process.coordinator.view();
        if std::mem::take(&mut process.witness.recheck) {
            process.witness.drop_claims(|node| view.is_member(node), worker);
        }
        let news = view.best_claim().filter(|claim| process.witness.believed != Some(*claim));
        if let Some(claim) = news.filter(|_| view.holder(clock).is_some()) {
            if !self.claims.is_true(claim.term, claim.holder) {
                let what = format!("believes {} of term {}, never claimed", claim.holder.short(), claim.term);
                broken.push((Invariant::OneHolder, what));
            }
            broken.extend(process.witness.believe(claim));
        }
        if let Some(term) = process.leading
            && let Some(better) = process.witness.better(me, term)
        {
            broken.push((Invariant::OneHolder, format!("publishes in term {term} knowing {better:?}")));
        }
        for (invariant, what) in broken {
            self.broken(invariant, host, what);
        }
        self.check_desired(host);
    }

    /// Checks, after every publication that a node receives or makes, that no revision it knows has
    /// fallen.
    pub(super) fn check_revisions(&mut self, host: usize) {
        for service in self.services.clone() {
            let known = self.directories.keys().rev().filter(|(of, _)| *of == service);
            let periods: Vec<_> = known.map(|(_, period)| *period).take(2).collect();
            for period in periods {
                let Some(process) = &mut self.hosts[host].process else { return };
                let known = process.coordinator.view().highest_revision(&service, &period).unwrap_or_default();
                let before = process.witness.revisions.insert((service, period), known).unwrap_or_default();
                if known < before {
                    self.broken(Invariant::Revisions, host, format!("knew revision {before}, now {known}"));
                }
            }
        }
    }

    fn check_desired(&mut self, host: usize) {
        for service in self.services.clone() {
            let Some(process) = &mut self.hosts[host].process else { return };
            let version = process.coordinator.desired_version(&service);
            if process.witness.versions.insert(service, version) != Some(version) {
                self.check_points(host, &service);
            }
        }
    }

    fn check_points(&mut self, host: usize, service: &ServiceId) {
        let points = self.wanted(host, service);
        let relays: BTreeSet<_> = points.iter().map(|(_, point)| point.relay).collect();
        let Some(process) = &self.hosts[host].process else { return };
        let view = process.coordinator.view();
        let is_member = |source: &Source| source.node().is_some_and(|node| view.is_member(&node));
        let stranger = points.iter().find(|(source, _)| !is_member(source)).map(|(source, _)| source.to_string());
        let points = points.len();
        if points > 20 || relays.len() != points {
            self.broken(Invariant::Descriptor, host, format!("wants {points} points at {} relays", relays.len()));
        } else if let Some(stranger) = stranger {
            self.broken(Invariant::Descriptor, host, format!("wants a point of {stranger}, which is not a member"));
        }
    }

    /// The points that a node wants published for a service. With [`Bug::KeepsDead`] the harness
    /// replaces them with those of a plan that includes dead nodes.
    pub(super) fn wanted(&self, host: usize, service: &ServiceId) -> Cow<'_, [(Source, IntroPoint)]> {
        let Some(process) = &self.hosts[host].process else { return Cow::Borrowed(&[]) };
        if self.scenario.bug != Some(Bug::KeepsDead) {
            return Cow::Borrowed(process.coordinator.desired_points(service));
        }
        let members = process.coordinator.view().members();
        let candidates: Vec<Candidate<'_>> =
            members.filter_map(|node| Some(node.candidate(service, &node.intro_points(service)?.points))).collect();
        Cow::Owned(choose(&candidates, &Choice::default(), 20, 0).points)
    }

    /// Checks, every second, that no node wants points of a node that has been silent too long.
    pub(super) fn probe(&mut self) {
        let allowed = longest_silence(self.hosts.len());
        for host in 0..self.hosts.len() {
            let Some(process) = self.hosts[host].process.as_ref().filter(|_| !self.hosts[host].frozen) else {
                continue;
            };
            let silent = |node: NodeId| {
                let machine = self.index[&node];
                machine != host && self.now > process.witness.silent_since(machine) + allowed
            };
            let wanted = self.services.iter().flat_map(|service| self.wanted(host, service).into_owned());
            let long_silent = wanted.filter_map(|(source, _)| source.node()).find(|node| silent(*node));
            if let Some(node) = long_silent {
                let what = format!("wants a point of {}, long silent", node.short());
                self.broken(Invariant::NoDeadPoints, host, what);
            }
        }
    }

    /// Why the cluster has not settled. `None` once it has: all believe one publisher, all have one
    /// view, and the complete descriptor is on the directories.
    pub fn unsettled(&self) -> Option<String> {
        let running: Vec<usize> = (0..self.hosts.len()).filter(|host| self.hosts[*host].runs()).collect();
        let ids: BTreeSet<NodeId> = running.iter().map(|host| self.hosts[*host].id()).collect();
        let leaders: Vec<(usize, u64)> =
            running.iter().filter_map(|host| Some((*host, self.hosts[*host].process.as_ref()?.leading?))).collect();
        let [(leader, term)] = leaders[..] else { return Some(format!("publishers: {leaders:?}")) };
        let holder = Some((self.hosts[leader].id(), term));
        let mut members: Option<BTreeSet<NodeId>> = None;
        for host in &running {
            let process = self.hosts[*host].process.as_ref()?;
            let view = process.coordinator.view();
            let believed = view.holder(self.hosts[*host].clock(self.now));
            if believed != holder {
                let known: Vec<_> = running
                    .iter()
                    .map(|host| {
                        let process = self.hosts[*host].process.as_ref();
                        let view = process.map(|process| process.coordinator.view());
                        (
                            *host,
                            self.hosts[*host].disk.term,
                            view.and_then(|view| view.best_claim().map(|claim| (claim.term, claim.holder))),
                            view.map(|view| view.highest_term()),
                        )
                    })
                    .collect();
                let best = view.best_claim();
                return Some(format!(
                    "node {host} believes {believed:?}, not {holder:?}; its best is {best:?}: {known:?}"
                ));
            }
            let alive: BTreeSet<NodeId> = view.members().filter(|node| node.alive).map(|node| node.node()).collect();
            if alive != ids {
                let diff: Vec<_> = alive
                    .symmetric_difference(&ids)
                    .map(|id| {
                        let host = self.index.get(id).copied().unwrap_or_default();
                        (
                            host,
                            self.hosts[host].fate,
                            view.node(id).map(|node| (node.standing, node.phase(), node.last_heard)),
                        )
                    })
                    .collect();
                return Some(format!(
                    "node {host} is wrong about which of these are alive: {diff:?}; refused {:?}",
                    view.refused()
                ));
            }
            // Not all need to remember a node that left: if it comes back, it brings its
            // certificates.
            let left = |node: &NodeId| self.index.get(node).is_some_and(|host| self.hosts[*host].fate == Fate::Left);
            let seen = view.members().map(|node| node.node()).filter(|node| !left(node));
            let seen: BTreeSet<NodeId> = seen.collect();
            let first = members.get_or_insert_with(|| seen.clone());
            if let Some(odd) = first.symmetric_difference(&seen).next() {
                return Some(self.disputed(*odd, &running));
            }
        }
        self.services.iter().find_map(|service| self.incomplete(service, leader, &running))
    }

    fn disputed(&self, node: NodeId, running: &[usize]) -> String {
        let standing = |host: &usize| {
            let process = self.hosts[*host].process.as_ref()?;
            Some((*host, process.coordinator.view().node(&node)?.standing))
        };
        let standings: Vec<_> = running.iter().filter_map(standing).collect();
        let index = self.index.get(&node).copied().unwrap_or_default();
        format!("node {index} ({:?}) has different standings, {standings:?}, among {running:?}", self.hosts[index].fate)
    }

    fn incomplete(&self, service: &ServiceId, leader: usize, running: &[usize]) -> Option<String> {
        let wanted = self.wanted(leader, service);
        let present: BTreeSet<Source> = wanted.iter().map(|(source, _)| *source).collect();
        let condition =
            |host: &usize| self.hosts[*host].process.as_ref().map(|process| process.coordinator.condition());
        let is_healthy = |host: &&usize| condition(host) == Some(Condition::Healthy);
        let healthy = running.iter().filter(is_healthy).filter(|host| self.serves(**host, service)).count();
        if present.len() != healthy.min(20) || wanted.len() != (healthy * 4).min(20) {
            let process = self.hosts[leader].process.as_ref()?;
            let seen = |host: &usize| {
                let node = process.coordinator.view().node(&self.hosts[*host].id())?;
                let points = node.intro_points(service).map(|record| record.points.len());
                Some((*host, node.condition(), condition(host), node.alive, points))
            };
            let seen: Vec<_> = running.iter().map(seen).collect();
            let present = present.len();
            return Some(format!("node {leader} wants {} points of {present} nodes and sees {seen:?}", wanted.len()));
        }
        if !running.iter().all(|host| is_healthy(&host)) {
            return Some(format!("not all of {} are healthy", running.len()));
        }
        let unix = self.hosts[leader].clock(self.now).unix;
        match self.directories.get(&(*service, period_at(unix))) {
            Some(directory) if directory.points == *wanted => None,
            _ => Some(format!("the directories do not hold the points that are wanted for {}", service.short())),
        }
    }

    /// The machine of the publisher; `None` unless exactly one publishes.
    pub(super) fn publisher_now(&self) -> Option<usize> {
        let leads = |host: &usize| {
            let host = &self.hosts[*host];
            host.runs() && host.process.as_ref().is_some_and(|process| process.leading.is_some())
        };
        let mut leading = (0..self.hosts.len()).filter(leads);
        leading.next().filter(|_| leading.next().is_none())
    }

    /// For each introduction point of machine `of` that the publisher knows, of any service: the
    /// number of running nodes that stand in at it.
    pub(super) fn stand_ins(&self, of: usize) -> Vec<usize> {
        let id = self.hosts[of].id();
        let running = || self.hosts.iter().filter(|host| host.runs());
        let coordinators =
            || running().filter_map(|host| Some((host.clock(self.now), &host.process.as_ref()?.coordinator)));
        let taken: Vec<UnattendedPoint> =
            coordinators().flat_map(|(clock, coordinator)| coordinator.stand_ins(clock)).collect();
        let publisher = self.publisher_now().and_then(|host| self.hosts[host].process.as_ref());
        let node = publisher.and_then(|process| process.coordinator.view().node(&id));
        let records = node.into_iter().flat_map(MemberView::all_intro_points);
        let count =
            |key| taken.iter().filter(|point| point.node == id && point.served.point.session_key == key).count();
        records.flat_map(|record| &record.points).map(|point| count(point.session_key)).collect()
    }

    /// True if this machine takes part in the cluster, running or not.
    pub(super) fn is_here(&self, host: usize) -> bool {
        self.hosts[host].fate == Fate::Here
    }
}
