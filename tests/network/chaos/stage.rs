//! Carries out the driver's actions, and restarts daemons that ended by themselves, as systemd
//! would.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::Scope;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use parking_lot::{Mutex, MutexGuard};
use rustbalance_testnet::chaos::{Action, Fault, Report};
use rustbalance_testnet::cluster::Node;
use rustbalance_testnet::{Network, Relay};

use super::EventLog;
use super::watch::Watch;

/// Time limit for a daemon to end after SIGTERM: TimeoutStopSec= of the unit.
const END_LIMIT: Duration = Duration::from_secs(90);
/// Pause before a daemon that ended by itself is restarted: `RestartSec=` of the systemd unit.
const RESTART_PAUSE: Duration = Duration::from_secs(5);

/// A daemon that ends logs the reason within this number of last lines; the messages of its
/// shutdown follow it.
const LAST_LINES: usize = 300;

/// The wanted state of a node's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    /// The process should run.
    Up,
    /// A fault has ended the process, or is about to.
    Down,
    /// The process ended by itself; it is restarted at this time.
    Ended(Instant),
}

/// The nodes and relays, and the actions on them.
pub(super) struct Stage<'a> {
    nodes: &'a [Arc<Node>],
    /// The relays without the authorities, then the authorities.
    relays: [Vec<&'a Relay>; 2],
    watch: &'a Watch<'a>,
    event_log: &'a EventLog,
    state: Mutex<State>,
}

struct State {
    processes: Vec<Process>,
    /// Whether the disk is full now, by node.
    disk_is_full: Vec<bool>,
    /// Whether the disk has been full at any time since the process started, by node.
    disk_was_full: Vec<bool>,
    counts: BTreeMap<&'static str, usize>,
    starts: usize,
    ended: Vec<String>,
    ended_for_disk: usize,
}

impl<'a> Stage<'a> {
    pub(super) fn new(
        network: &'a Network,
        nodes: &'a [Arc<Node>],
        watch: &'a Watch<'a>,
        event_log: &'a EventLog,
    ) -> Self {
        let (authorities, relays) = network.relays().iter().partition(|relay| relay.dir_port.is_some());
        let processes = vec![Process::Up; nodes.len()];
        let (disk_is_full, disk_was_full) = (vec![false; nodes.len()], vec![false; nodes.len()]);
        let (counts, ended) = (BTreeMap::new(), Vec::new());
        let (starts, ended_for_disk) = (nodes.len(), 0);
        let state = State { processes, disk_is_full, disk_was_full, counts, starts, ended, ended_for_disk };
        let state = Mutex::new(state);
        Self { nodes, relays: [relays, authorities], watch, event_log, state }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Adds the faults, starts and ends to a report.
    pub(super) fn fill(&self, report: &mut Report) {
        let state = self.lock();
        report.faults.clone_from(&state.counts);
        report.ended.clone_from(&state.ended);
        (report.starts, report.ended_for_disk) = (state.starts, state.ended_for_disk);
    }

    /// Carries out an action; one that takes long runs on its own thread.
    pub(super) fn carry_out<'s>(&'s self, action: Action, deeds: &'s Scope<'s, '_>) {
        match action {
            Action::Begin(node, fault) => self.begin(node, fault),
            Action::End(node, fault) => _ = deeds.spawn(move || self.end(node, fault)),
            Action::KillRelay(relay) => self.kill_relay(self.relays[0][relay], "relay"),
            Action::KillAuthority(relay) => self.kill_relay(self.relays[1][relay], "authority"),
            Action::ReviveRelay(relay) => _ = deeds.spawn(move || self.revive(self.relays[0][relay])),
            Action::ReviveAuthority(relay) => _ = deeds.spawn(move || self.revive(self.relays[1][relay])),
        }
    }

    fn begin(&self, index: usize, fault: Fault) {
        let node = &self.nodes[index];
        *self.lock().counts.entry(fault.name()).or_default() += 1;
        let publishes = self.watch.begin_fault(index, fault);
        self.event_log.report(format_args!(
            "{}: {}{}",
            node.name(),
            fault.name(),
            if publishes { ", and it publishes" } else { "" }
        ));
        let done = match fault {
            Fault::Kill => self.down(index).and_then(|()| node.kill9()),
            Fault::Restart => self.down(index).and_then(|()| node.term()),
            Fault::Freeze => node.stop(),
            Fault::Cut => node.set_cut(true),
            Fault::FullDisk => self.fill_disk(index),
        };
        // The process may have just ended by itself, which `supervise` notices.
        if let Err(error) = done {
            self.event_log.report(format_args!("{}: {} failed: {error:#}", node.name(), fault.name()));
        }
    }

    fn end(&self, index: usize, fault: Fault) {
        let node = &self.nodes[index];
        let done = match fault {
            Fault::Kill => self.up(index),
            Fault::Restart => self.await_end(index).and_then(|()| self.up(index)),
            Fault::Freeze => node.cont(),
            Fault::Cut => node.set_cut(false),
            Fault::FullDisk => self.free_disk(index),
        };
        if let Err(error) = done {
            self.event_log.report(format_args!("{}: the end of {} failed: {error:#}", node.name(), fault.name()));
        }
        self.watch.end_fault(index);
        self.event_log.report(format_args!("{}: end of {}", node.name(), fault.name()));
    }

    fn down(&self, index: usize) -> Result<()> {
        self.lock().processes[index] = Process::Down;
        Ok(())
    }

    fn fill_disk(&self, index: usize) -> Result<()> {
        let mut state = self.lock();
        (state.disk_is_full[index], state.disk_was_full[index]) = (true, true);
        drop(state);
        self.nodes[index].set_disk_full(true)
    }

    fn free_disk(&self, index: usize) -> Result<()> {
        self.lock().disk_is_full[index] = false;
        self.nodes[index].set_disk_full(false)
    }

    /// Checks the state directory of a stopped node and restarts the node.
    fn up(&self, index: usize) -> Result<()> {
        self.watch.check_store(index);
        self.nodes[index].run()?;
        let mut state = self.lock();
        state.processes[index] = Process::Up;
        state.disk_was_full[index] = state.disk_is_full[index];
        state.starts += 1;
        Ok(())
    }

    fn await_end(&self, index: usize) -> Result<()> {
        let node = &self.nodes[index];
        match node.await_exit(END_LIMIT) {
            Ok(Some(0)) => {}
            Ok(code) => self.lock().ended.push(format!("{} ended with {code:?} after SIGTERM", node.name())),
            Err(error) => {
                self.lock().ended.push(format!("{error:#}"));
                node.kill9()?;
            }
        }
        Ok(())
    }

    /// Restarts daemons that have ended by themselves, after the pause. Returns those that ended
    /// since the last call.
    pub(super) fn supervise(&self) -> Vec<usize> {
        let mut failed = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let process = self.lock().processes[index];
            match process {
                Process::Up if !node.is_running() && node.ended().is_some() => {
                    self.note_end(index);
                    failed.push(index);
                }
                Process::Ended(until) if Instant::now() >= until => {
                    if let Err(error) = self.up(index) {
                        self.event_log.report(format_args!("{} cannot be restarted: {error:#}", node.name()));
                    }
                    self.watch.end_fault(index);
                }
                _ => {}
            }
        }
        failed
    }

    /// Records that a daemon has ended by itself. This is allowed if its disk was full and it gives
    /// that reason.
    fn note_end(&self, index: usize) {
        let node = &self.nodes[index];
        let (code, last_line) = (node.ended().flatten(), node.last_log_line());
        self.event_log.report(format_args!("{} has ended by itself ({code:?}): {last_line}", node.name()));
        let mut state = self.lock();
        let says_why = ["no space left", "No space left", "disk is full"].iter().any(|why| last_line.contains(why))
            || node.log().lines().rev().take(LAST_LINES).any(|line| line.contains("directory is no longer updated"));
        if code == Some(1) && state.disk_was_full[index] && says_why {
            state.ended_for_disk += 1;
        } else {
            state.ended.push(format!("{} ({code:?}): {last_line}", node.name()));
        }
        state.processes[index] = Process::Ended(Instant::now() + RESTART_PAUSE);
    }

    fn kill_relay(&self, relay: &Relay, what: &'static str) {
        *self.lock().counts.entry(what).or_default() += 1;
        let done = relay.kill().with_context(|| format!("cannot kill {}", relay.nickname));
        self.event_log.report(format_args!("{what} {}: kill{}", relay.nickname, describe(&done)));
    }

    fn revive(&self, relay: &Relay) {
        let done = relay.restart();
        self.watch.forget_directory(relay);
        self.event_log.report(format_args!("{}: restarted{}", relay.nickname, describe(&done)));
    }
}

fn describe(done: &Result<()>) -> String {
    done.as_ref().err().map_or_else(String::new, |error| format!(", which failed: {error:#}"))
}
