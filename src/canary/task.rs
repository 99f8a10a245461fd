//! The shell of [`CanaryPlan`]: it runs the canary, and passes repairs on to the parts of the node.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::time::Now;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Interval;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::findings::{Expectation, Findings, Held, Outcome};
use super::plan::{Action, CanaryPlan, CanarySettings, Event, Repair, Scope, Summary};
use super::run::Run;
use crate::clock::Clock;
use crate::drive::{Driver, JobPanicked, Jobs, Shell};
use crate::sync::publish;
use crate::tor::Engine;

/// Interval at which the services and the publisher are looked up.
const LOOK: Duration = Duration::from_secs(20);

/// The node around the canary.
pub trait CanaryHost: Send + Sync + 'static {
    /// The services that clients may use.
    fn services(&self) -> Vec<ServiceId>;
    /// Whether this node is the publisher.
    fn publishes(&self) -> bool;
    /// What is known of a service now; `None` if it is none of the cluster.
    fn expectation(&self, service: ServiceId) -> Option<Expectation>;
    /// Whether this node has no room for more clients.
    fn busy(&self) -> bool;
    /// Has this repaired. [`Repair::RenewTor`] and [`Repair::Exit`] are not among them: they end
    /// [`Canary::run`].
    fn repair(&self, repair: &Repair);
}

/// An operator who waits for the findings of a run at all services.
pub type Asker = oneshot::Sender<Vec<Findings>>;

/// The task, with everything it needs.
pub struct Canary {
    /// The Tor client that it uses as clients use theirs.
    pub engine: Arc<dyn Engine>,
    /// The node around it.
    pub host: Arc<dyn CanaryHost>,
    /// Whether that client has taken the place of another one in this process.
    pub renewed: bool,
    /// `[canary]`: whether and how often it runs.
    pub settings: watch::Receiver<CanarySettings>,
    /// Operators who ask for a run.
    pub askers: mpsc::Receiver<Asker>,
    /// What has been found and repaired, written by the task.
    pub summary: watch::Sender<Summary>,
}

/// An input of the shell.
enum Input {
    Settings(CanarySettings),
    Look,
    Asked(Asker),
    Ran(Findings),
    RanByHand(Vec<Findings>, Asker),
}

struct CanaryShell {
    canary: Canary,
    look: Interval,
    /// Why the Tor client cannot stay.
    end: Option<End>,
}

/// The last repair: another Tor client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The node should start again in this process. Contains the reason.
    Renew(String),
    /// The daemon should end. Contains the reason.
    Exit(String),
}

impl Canary {
    /// Runs until `stop` (then returns `None`), or until another Tor client is needed.
    ///
    /// # Errors
    /// If a run panics.
    pub async fn run(self, stop: CancellationToken) -> Result<Option<End>, JobPanicked> {
        let plan = CanaryPlan::new(self.settings.borrow().clone(), self.renewed, rand::random());
        let shell = CanaryShell { canary: self, look: tokio::time::interval(LOOK), end: None };
        let mut driver = Driver::new(plan, shell, Clock::start());
        driver.run(&stop).await?;
        Ok(driver.into_shell().end)
    }
}

impl Shell<CanaryPlan> for CanaryShell {
    type Input = Input;

    async fn next(&mut self) -> Option<Input> {
        if self.end.is_some() {
            return None;
        }
        let Canary { settings, askers, .. } = &mut self.canary;
        tokio::select! {
            // Without a sender the settings do not change any further.
            Ok(()) = settings.changed() => Some(Input::Settings(settings.borrow_and_update().clone())),
            Some(asker) = askers.recv() => Some(Input::Asked(asker)),
            _ = self.look.tick() => Some(Input::Look),
        }
    }

    fn take(&mut self, input: Input, jobs: &mut Jobs<Input>) -> Vec<Event> {
        match input {
            Input::Settings(settings) => vec![Event::Settings(settings)],
            Input::Look => vec![self.look()],
            Input::Asked(asker) => {
                info!(name: "canary_run_by_operator", "the operator has the canary run");
                let runs: Vec<_> =
                    self.canary.host.services().into_iter().map(|service| self.run(service, Scope::All)).collect();
                jobs.spawn(async move { Input::RanByHand(join_all(runs.into_iter().map(Run::findings)).await, asker) });
                vec![self.look()]
            }
            Input::Ran(findings) => {
                log(&findings);
                vec![Event::Finished { findings, by_hand: false, jitter: rand::random() }]
            }
            Input::RanByHand(all, asker) => {
                all.iter().for_each(log);
                // The operator may have given up waiting.
                let _ = asker.send(all.clone());
                let event = |findings| Event::Finished { findings, by_hand: true, jitter: rand::random() };
                all.into_iter().map(event).collect()
            }
        }
    }

    fn act(&mut self, action: Action, jobs: &mut Jobs<Input>) {
        match action {
            Action::Run { service, scope } => {
                let run = self.run(service, scope);
                jobs.spawn(async move { Input::Ran(run.findings().await) });
            }
            Action::Repair { repair: Repair::Exit, why } => {
                warn!(
                    name: "canary_ends_daemon",
                    why,
                    "the canary ends the daemon, so that it starts as a new process"
                );
                self.end = Some(End::Exit(why));
            }
            Action::Repair { repair: Repair::RenewTor, why } => {
                warn!(name: "canary_renews_tor", why, "the canary has the node start again with a new Tor client");
                self.end = Some(End::Renew(why));
            }
            Action::Repair { repair, why } => {
                warn!(name: "canary_repair", repair = repair.kind().name(), why, "the canary has something repaired");
                self.canary.host.repair(&repair);
            }
        }
    }

    /// Updates the summary.
    fn settle(&mut self, plan: &CanaryPlan, _: Now) -> Vec<Event> {
        publish(&self.canary.summary, plan.summary().clone());
        Vec::new()
    }
}

impl CanaryShell {
    fn look(&self) -> Event {
        let host = &self.canary.host;
        Event::Services { all: host.services(), publishes: host.publishes() }
    }

    fn run(&self, service: ServiceId, scope: Scope) -> Run {
        let (engine, host) = (Arc::clone(&self.canary.engine), Arc::clone(&self.canary.host));
        Run { engine, host, service, scope }
    }
}

/// Logs the findings: each fault in a line.
fn log(findings: &Findings) {
    let service = findings.service.short();
    if let Some(problem) = &findings.problem {
        warn!(name: "canary_not_run", %service, problem, "the canary could not run");
    }
    for it in &findings.directories {
        let Held::Current(revision) = it.held else {
            warn!(
                name: "canary_directory_fault",
                %service, directory = %it.directory.relay, found = ?it.held,
                "the canary found a directory at fault"
            );
            continue;
        };
        debug!(%service, directory = %it.directory.relay, revision, "the canary found the descriptor");
    }
    for it in &findings.points {
        if let Outcome::Failed(stage, why) = &it.outcome {
            let node = it.owner.map(|node| node.short()).unwrap_or_default();
            warn!(
                name: "canary_point_fault",
                %service, relay = %it.relay, node, ?stage, why,
                "the canary did not get through at an introduction point"
            );
        }
    }
    if findings.all_well() {
        debug!(%service, points = findings.points.len(), "the canary found all well");
    }
}

#[cfg(test)]
mod tests;
