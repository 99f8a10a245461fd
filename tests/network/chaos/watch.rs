//! Observes the nodes' status, the directories and the load of the machine during the chaos, and
//! records lost state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use parking_lot::{Mutex, MutexGuard};
use rustbalance::store::Store;
use rustbalance_gossip::record::PeriodId;
use rustbalance_testnet::Relay;
use rustbalance_testnet::chaos::{Fault, Report, Sample, Withdrawal};
use rustbalance_testnet::cluster::{Node, Status};

use super::EventLog;
use crate::secrets::opened_copy;
use crate::support::DescriptorReader;

/// Interval between two status requests to a node.
const NODE_PAUSE: Duration = Duration::from_secs(2);
/// Interval between two reads of the directories while the removal of a node's points is watched.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Interval between two reads of the directories otherwise.
const IDLE_LOOK_PAUSE: Duration = Duration::from_secs(10);
/// Interval between two samples of the machine's load.
const MACHINE_PAUSE: Duration = Duration::from_secs(5);
/// Number of directories in four that must answer for a read to count. Directories that do not
/// answer cannot serve clients either.
const QUORUM: usize = 3;

/// The state of a node that must not be lost, as last read from its state directory.
struct StoredState {
    node: String,
    cluster: String,
    role: String,
    term: u64,
    revisions: BTreeMap<PeriodId, u64>,
    members: usize,
}

impl StoredState {
    fn of(store: &Store) -> Result<Self> {
        Ok(Self {
            node: store.node_id().to_string(),
            cluster: store.cluster().to_string(),
            role: format!("{:?}", store.membership().role()),
            term: store.term()?,
            revisions: store.revisions(store.cluster().first_service())?.into_iter().collect(),
            members: store.members()?.len(),
        })
    }

    /// Describes every value that changed or fell since this one.
    fn lost(&self, now: &Self) -> Vec<String> {
        let mut lost = Vec::new();
        for (what, was, is) in [
            ("node id", &self.node, &now.node),
            ("address", &self.cluster, &now.cluster),
            ("role", &self.role, &now.role),
        ] {
            if was != is {
                lost.push(format!("its {what} was {was} and is {is}"));
            }
        }
        if now.term < self.term {
            lost.push(format!("its term fell from {} to {}", self.term, now.term));
        }
        if now.members < self.members {
            lost.push(format!("it knew {} members and knows {}", self.members, now.members));
        }
        for (period, was) in &self.revisions {
            if let Some(is) = now.revisions.get(period).filter(|is| *is < was) {
                lost.push(format!("its revision in period {} fell from {was} to {is}", period.number));
            }
        }
        lost
    }
}

/// The last observation of a node.
struct NodeObservation {
    status: Option<(Instant, Status)>,
    /// The process id, and the term in its latest status.
    term: (i32, u64),
    fault: Option<Fault>,
    /// The end of the last fault; `None` once the node has recovered.
    relieved: Option<Instant>,
    departing: Option<WatchedRemoval>,
    kept: Option<StoredState>,
}

impl NodeObservation {
    /// Whether the node has no fault and has recovered from the last one.
    fn is_sound(&self) -> bool {
        self.fault.is_none() && self.relieved.is_none()
    }

    /// The last status, if it was requested after this moment.
    fn since(&self, moment: Instant) -> Option<&Status> {
        let (asked, status) = self.status.as_ref()?;
        (*asked > moment).then_some(status)
    }
}

/// A failed node; the removal of its introduction points from the directories is watched.
struct WatchedRemoval {
    at: Instant,
    fault: Fault,
    publisher: bool,
    keys: BTreeSet<String>,
    out: Option<Duration>,
}

#[derive(Default)]
struct State {
    nodes: Vec<NodeObservation>,
    departures: Vec<Withdrawal>,
    samples: Vec<Sample>,
    loads: Vec<f64>,
    periods: BTreeSet<u64>,
    terms: BTreeSet<u64>,
    /// Highest revision seen, by time period and directory.
    revisions: BTreeMap<(u64, String), u64>,
    lost: BTreeSet<String>,
}

/// The observers, which run on several threads until [`Watch::end`].
pub(super) struct Watch<'a> {
    nodes: &'a [Arc<Node>],
    onion: &'a str,
    eye: &'a DescriptorReader,
    event_log: &'a EventLog,
    /// The addresses and roles of the members.
    members: BTreeSet<(String, String)>,
    /// The addresses of the nodes, in their order.
    ids: Vec<String>,
    state: Mutex<State>,
    ended: AtomicBool,
}

impl<'a> Watch<'a> {
    /// Begins with nodes that all run without a fault.
    pub(super) fn new(
        nodes: &'a [Arc<Node>],
        onion: &'a str,
        eye: &'a DescriptorReader,
        event_log: &'a EventLog,
    ) -> Result<Self> {
        let statuses = nodes.iter().map(|node| node.status()).collect::<Result<Vec<_>>>()?;
        let members = statuses.iter().map(|status| (status.node.clone(), status.role.clone())).collect();
        let ids = statuses.iter().map(|status| status.node.clone()).collect();
        let seen = |status| NodeObservation {
            status: Some((Instant::now(), status)),
            term: (0, 0),
            fault: None,
            relieved: None,
            departing: None,
            kept: None,
        };
        let state = Mutex::new(State { nodes: statuses.into_iter().map(seen).collect(), ..State::default() });
        Ok(Self { nodes, onion, eye, event_log, members, ids, state, ended: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Stops all observers.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Sleeps; false once the watch has ended.
    fn goes_on_after(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.ended.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(100));
        }
        !self.ended.load(Ordering::SeqCst)
    }

    /// Notes that a fault begins at a node and watches the removal of its points. Returns whether
    /// the node publishes.
    pub(super) fn begin_fault(&self, index: usize, fault: Fault) -> bool {
        let mut state = self.lock();
        let seen = &mut state.nodes[index];
        let status = seen.status.as_ref().map(|(_, status)| status);
        let publisher = status.and_then(|status| status.publisher.as_ref()).is_some_and(|publisher| publisher.me);
        let keys: BTreeSet<String> =
            status.iter().flat_map(|status| &status.intro_points).map(|point| point.session_key.clone()).collect();
        seen.departing = (matches!(fault, Fault::Kill | Fault::Freeze | Fault::Cut) && !keys.is_empty())
            .then(|| WatchedRemoval { at: Instant::now(), fault, publisher, keys, out: None });
        seen.fault = Some(fault);
        seen.relieved = None;
        publisher
    }

    /// Notes that the node's fault has ended.
    pub(super) fn end_fault(&self, index: usize) {
        let mut state = self.lock();
        let seen = &mut state.nodes[index];
        seen.fault = None;
        seen.relieved = Some(Instant::now());
        if let Some(departing) = seen.departing.take() {
            let WatchedRemoval { at, fault, publisher, out, .. } = departing;
            state.departures.push(Withdrawal {
                node: self.nodes[index].name().to_owned(),
                fault: fault.name(),
                publisher,
                at: at.saturating_duration_since(self.event_log.started),
                out,
                watched: at.elapsed(),
            });
        }
    }

    /// The nodes that have recovered since the last call.
    pub(super) fn whole(&self) -> Vec<usize> {
        let mut state = self.lock();
        let mut whole = Vec::new();
        for index in 0..self.nodes.len() {
            let Some(relieved) = state.nodes[index].relieved else { continue };
            // A node that was cut off may believe that it is the publisher, so the other nodes must
            // confirm it.
            let others = state.nodes.iter().enumerate().filter(|(other, seen)| *other == index || seen.is_sound());
            let statuses: Option<Vec<&Status>> = others.map(|(_, seen)| seen.since(relieved)).collect();
            let Some(statuses) = statuses else { continue };
            let own = statuses.iter().find(|status| status.node == self.ids[index]);
            let mut publishers =
                statuses.iter().filter(|status| status.publisher.as_ref().is_some_and(|publisher| publisher.me));
            let published = match (publishers.next(), publishers.next()) {
                (Some(only), None) => only.published_of(&self.ids[index]) > 0,
                _ => false,
            };
            if own.is_some_and(|status| status.phase == "healthy") && published {
                whole.push(index);
            }
        }
        for index in &whole {
            state.nodes[*index].relieved = None;
        }
        drop(state);
        for index in &whole {
            self.event_log.report(format_args!("{}: recovered", self.nodes[*index].name()));
        }
        whole
    }

    /// Observes a node until the watch ends.
    pub(super) fn node(&self, index: usize) {
        let node = &self.nodes[index];
        while self.goes_on_after(NODE_PAUSE) {
            let Some(vitals) = node.vitals() else { continue };
            let fault = {
                let mut state = self.lock();
                let at = self.event_log.started.elapsed();
                state.samples.push(Sample { at, node: node.name().to_owned(), vitals });
                state.nodes[index].fault
            };
            // The process is stopped or absent, so it does not answer.
            if matches!(fault, Some(Fault::Freeze | Fault::Kill | Fault::Restart)) {
                continue;
            }
            let asked = Instant::now();
            // The process may have just died.
            let Ok(status) = node.status() else { continue };
            self.examine(index, vitals.pid, &status);
            self.lock().nodes[index].status = Some((asked, status));
        }
    }

    /// Looks for lost state in a node's status.
    fn examine(&self, index: usize, pid: i32, status: &Status) {
        let name = self.nodes[index].name();
        let mut state = self.lock();
        if status.node != self.ids[index] {
            state.lost.insert(format!("{name} was {} and is {}", self.ids[index], status.node));
        }
        if status.cluster != self.onion {
            state.lost.insert(format!("{name} serves {}", status.cluster));
        }
        // A node that is not healthy yet may not have received all members.
        if status.phase == "healthy" {
            let listed: BTreeSet<_> = status.members.iter().map(|it| (it.node.clone(), it.role.clone())).collect();
            if listed != self.members {
                state.lost.insert(format!("{name} knows {} members, not {}", listed.len(), self.members.len()));
            }
        }
        if let Some(publisher) = &status.publisher {
            state.terms.insert(publisher.term);
            let (of, highest) = state.nodes[index].term;
            if of == pid && publisher.term < highest {
                state.lost.insert(format!("{name} reported term {highest}, then {}", publisher.term));
            }
            state.nodes[index].term = (pid, publisher.term);
        }
        if let Some(publication) = &status.publication {
            state.periods.extend(publication.periods.iter().map(|period| period.number));
        }
    }

    /// Observes the directories until the watch ends.
    pub(super) fn directories(&self) {
        let mut last = Instant::now();
        while self.goes_on_after(LOOK_PAUSE) {
            let watched =
                self.lock().nodes.iter().any(|seen| seen.departing.as_ref().is_some_and(|it| it.out.is_none()));
            if !watched && last.elapsed() < IDLE_LOOK_PAUSE {
                continue;
            }
            last = Instant::now();
            // The reader's own Tor client also suffers from dead relays.
            let Ok((held, silent)) = self.eye.glance(self.onion) else { continue };
            let mut state = self.lock();
            for one in &held {
                let Some(content) = &one.content else { continue };
                let place = (one.period.number, one.directory.relay.to_string());
                let known = state.revisions.entry(place).or_insert(0);
                if content.revision < *known {
                    let lost = format!("{} fell from revision {known} to {}", one.directory.relay, content.revision);
                    state.lost.insert(lost);
                } else {
                    *known = content.revision;
                }
            }
            if held.len() * 4 < (held.len() + silent) * QUORUM {
                continue;
            }
            let keys: BTreeSet<String> = held.iter().flat_map(|one| one.keys()).collect();
            for (seen, node) in state.nodes.iter_mut().zip(self.nodes) {
                let Some(departing) = seen.departing.as_mut().filter(|it| it.out.is_none() && it.at < last) else {
                    continue;
                };
                if departing.keys.is_disjoint(&keys) {
                    departing.out = Some(departing.at.elapsed());
                    let took = departing.at.elapsed().as_secs_f64();
                    self.event_log.report(format_args!("{}: out of every directory after {took:.1} s", node.name()));
                }
            }
        }
    }

    /// Forgets the revisions of a restarted directory, which has lost its descriptors and accepts
    /// any revision.
    pub(super) fn forget_directory(&self, relay: &Relay) {
        self.lock().revisions.retain(|(_, known), _| !known.contains(&relay.rsa_fingerprint));
    }

    /// Samples the machine's load until the watch ends.
    pub(super) fn machine(&self) {
        while self.goes_on_after(MACHINE_PAUSE) {
            let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
            let load: Option<f64> = load.split(' ').next().and_then(|load| load.parse().ok());
            self.lock().loads.extend(load);
        }
    }

    /// Compares a node's state directory with its earlier state. The node may be running.
    pub(super) fn check_store(&self, index: usize) {
        let name = self.nodes[index].name();
        let now = opened_copy(&self.nodes[index])
            .and_then(|copy| StoredState::of(&copy.store))
            .context("its state is damaged");
        let mut state = self.lock();
        match now {
            Err(error) => _ = state.lost.insert(format!("{name}: {error:#}")),
            Ok(now) => {
                let lost = state.nodes[index].kept.as_ref().map_or_else(Vec::new, |kept| kept.lost(&now));
                state.lost.extend(lost.into_iter().map(|lost| format!("{name}: {lost}")));
                state.nodes[index].kept = Some(now);
            }
        }
    }

    /// Adds all observations to a report.
    pub(super) fn fill(&self, report: &mut Report) {
        for index in 0..self.nodes.len() {
            self.check_store(index);
        }
        let mut state = self.lock();
        report.departures = std::mem::take(&mut state.departures);
        report.samples = std::mem::take(&mut state.samples);
        report.periods = state.periods.iter().copied().collect();
        report.terms = state.terms.iter().copied().collect();
        report.lost = state.lost.iter().cloned().collect();
        let mut loads = std::mem::take(&mut state.loads);
        loads.sort_by(f64::total_cmp);
        if let (Some(least), Some(most)) = (loads.first(), loads.last()) {
            report.load = (*least, loads[loads.len() / 2], *most);
        }
    }
}
