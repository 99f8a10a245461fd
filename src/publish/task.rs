//! The shell of [`PublishPlan`] that publishes the descriptor, through the [`Engine`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::{PeriodId, PublishedPeriod};
use rustbalance_gossip::time::Now;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::plan::{Action, DesiredContent, DirectoryReport, Event, OtherPublisher, Outcome, PublishPlan, Reading};
use crate::clock::Clock;
use crate::drive::{Driver, JobPanicked, Jobs, Shell};
use crate::sync::publish;
use crate::tor::descriptor::{self, DescriptorContent, PeriodCredentials, PublicReading};
use crate::tor::{Directory, Engine, Period, TorError};

/// Time limit for one upload, including the circuit that may have to be built and the directory's
/// answer.
const UPLOAD_LIMIT: Duration = Duration::from_secs(25);
/// Time limit for one read-back.
const FETCH_LIMIT: Duration = Duration::from_secs(25);
/// Pause before the periods are asked for again if Tor had no directory.
const NOT_READY_PAUSE: Duration = Duration::from_secs(2);
/// Minimum time between two logged warnings about another publisher.
const OTHER_PUBLISHER_PAUSE: Duration = Duration::from_secs(3600);
/// Interval at which the periods are asked for without a notification: a change of period is a
/// matter of time alone.
const PERIODS_PAUSE: Duration = Duration::from_secs(30);

/// The source of the credentials for a period: today the service key on this node.
pub trait CredentialSource: Send + Sync {
    /// The credentials for `period`, valid from `now` on.
    fn credentials(&self, period: PeriodId, now: SystemTime) -> Result<PeriodCredentials, TorError>;
}

/// The revisions in use, kept across restarts.
pub trait RevisionLog: Send + Sync {
    /// The highest used for `period`, 0 if none.
    fn highest(&self, period: PeriodId) -> u64;
    /// Records that `revision` is about to be used; the record is on disk when this returns.
    fn advance(&self, period: PeriodId, revision: u64) -> Result<(), String>;
}

/// The cluster's requirements for this node as a publisher.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedPublication {
    /// The term in which this node holds the lease; `None` while another node holds it.
    pub term: Option<u64>,
    /// What the descriptor should tell clients.
    pub content: DesiredContent,
    /// The highest revisions known from gossip.
    pub floors: BTreeMap<PeriodId, u64>,
    /// Of these, those that other members have announced.
    pub of_others: BTreeMap<PeriodId, u64>,
    /// Whether another publisher of the cluster is not heard now: then a descriptor on a directory
    /// may be its own.
    pub unheard: bool,
}

/// A sighting of a publisher of this address outside the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherPublisherSeen {
    /// When a directory last held its descriptor in place of ours.
    pub at: Instant,
    /// False if only authorized clients can read its descriptor.
    pub readable: bool,
}

/// The task, with everything it needs.
pub struct Publisher {
    /// The Tor client that uploads and reads back.
    pub engine: Arc<dyn Engine>,
    /// The service that is published.
    pub service: ServiceId,
    /// The source of the keys that sign and encrypt.
    pub credentials: Arc<dyn CredentialSource>,
    /// The log that keeps revisions rising across restarts.
    pub revisions: Arc<dyn RevisionLog>,
    /// The current requirements of the cluster.
    pub wanted: watch::Receiver<WantedPublication>,
    /// Directories from which the canary did not get the current descriptor.
    pub doubts: mpsc::Receiver<(PeriodId, Directory)>,
    /// The published revisions and how many directories hold them, written by the task.
    pub report: watch::Sender<Vec<PublishedPeriod>>,
    /// What each directory has confirmed, written by the task.
    pub directories: watch::Sender<Vec<DirectoryReport>>,
    /// Notified each time this node cannot publish because its disk does not store the revision: a
    /// revision that is not on disk is not used.
    pub cannot_publish: watch::Sender<()>,
    /// The last sighting of a publisher outside the cluster, written by the task.
    pub other_publisher: watch::Sender<Option<OtherPublisherSeen>>,
    /// The age at which an unchanged descriptor is published again.
    pub refresh: Duration,
}

/// An input of the shell.
enum Input {
    WantedPublication(WantedPublication),
    /// The periods and their directories may have changed.
    PeriodsDue,
    Periods(Result<Vec<Period>, TorError>),
    Edition(PeriodId, Result<(u64, Arc<str>), Unbuilt>),
    Doubted(PeriodId, Directory),
    /// A directory has answered.
    Answered(Event),
}

/// Why an edition could not be built.
#[derive(Debug, thiserror::Error)]
enum Unbuilt {
    #[error("cannot store its revision: {0}")]
    Unstored(String),
    #[error("{0}")]
    Unmade(String),
}

struct PublisherShell {
    publisher: Publisher,
    network: watch::Receiver<u64>,
    periods_due: PeriodsDue,
    /// The periods that Tor named last, and when it did.
    periods: BTreeMap<PeriodId, (Instant, Period)>,
    editions: BTreeMap<PeriodId, (u64, Arc<str>)>,
    /// When the last warning about another publisher was logged.
    warned: Option<Instant>,
    /// [`WantedPublication::unheard`], as of the last input.
    unheard: bool,
}

/// When to ask Tor for the periods.
enum PeriodsDue {
    At(Instant),
    /// A question is under way. With `again` the network has changed since, and Tor is asked once
    /// more.
    Asking {
        again: bool,
    },
}

impl Publisher {
    /// Runs until `stop`.
    ///
    /// # Errors
    /// If a job panics.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), JobPanicked> {
        self.wanted.mark_changed();
        let plan = PublishPlan::new(self.refresh);
        let shell = PublisherShell {
            network: self.engine.network_changes(),
            publisher: self,
            periods_due: PeriodsDue::At(Instant::now()),
            periods: BTreeMap::new(),
            editions: BTreeMap::new(),
            warned: None,
            unheard: false,
        };
        Driver::new(plan, shell, Clock::start()).run(&stop).await
    }
}

impl PeriodsDue {
    async fn wait(&self) {
        match self {
            Self::At(due) => tokio::time::sleep_until(*due).await,
            Self::Asking { .. } => std::future::pending().await,
        }
    }
}

impl Shell<PublishPlan> for PublisherShell {
    type Input = Input;

    async fn next(&mut self) -> Option<Input> {
        let Publisher { wanted, doubts, .. } = &mut self.publisher;
        tokio::select! {
            Some((period, directory)) = doubts.recv() => Some(Input::Doubted(period, directory)),
            changed = wanted.changed() => changed.ok().map(|()| Input::WantedPublication(wanted.borrow_and_update().clone())),
            changed = self.network.changed() => changed.ok().map(|()| Input::PeriodsDue),
            () = self.periods_due.wait() => Some(Input::PeriodsDue),
        }
    }

    fn take(&mut self, input: Input, jobs: &mut Jobs<Input>) -> Vec<Event> {
        match input {
            Input::WantedPublication(wanted) => self.want(wanted),
            Input::PeriodsDue => {
                self.ask_for_periods(jobs);
                Vec::new()
            }
            Input::Periods(periods) => self.learn_periods(periods),
            Input::Edition(period, built) => vec![self.built(period, built)],
            Input::Doubted(period, directory) => vec![Event::Doubted(period, directory)],
            Input::Answered(event) => vec![event],
        }
    }

    fn act(&mut self, action: Action, jobs: &mut Jobs<Input>) {
        match action {
            Action::Build { period, content, floor } => self.build(period, content, floor, jobs),
            Action::Upload { period, directory, revision } => self.upload(period, directory, revision, jobs),
            Action::ReadBack { period, directory } => self.read_back(period, directory, jobs),
            Action::OtherPublisher(other_publisher) => self.meet(&other_publisher),
            Action::Report(periods) => self.report(periods),
        }
    }

    /// Updates what `status` shows of each directory.
    fn settle(&mut self, plan: &PublishPlan, _: Now) -> Vec<Event> {
        publish(&self.publisher.directories, plan.directories());
        Vec::new()
    }
}

impl PublisherShell {
    fn want(&mut self, wanted: WantedPublication) -> Vec<Event> {
        self.unheard = wanted.unheard;
        let of_others = wanted.of_others.into_iter().map(|(period, revision)| Event::OfOthers(period, revision));
        let floors = wanted.floors.into_iter().map(|(period, revision)| Event::Floor(period, revision));
        let decisions = [Event::Desired(wanted.content), Event::Lead(wanted.term)];
        of_others.chain(floors).chain(decisions).collect()
    }

    /// Asks Tor for the periods and their directories, unless it is being asked already.
    fn ask_for_periods(&mut self, jobs: &mut Jobs<Input>) {
        match &mut self.periods_due {
            PeriodsDue::Asking { again } => *again = true,
            due @ PeriodsDue::At(_) => {
                *due = PeriodsDue::Asking { again: false };
                let (engine, service) = (Arc::clone(&self.publisher.engine), self.publisher.service);
                jobs.spawn(async move { Input::Periods(engine.publication(service).await) });
            }
        }
    }

    fn learn_periods(&mut self, answer: Result<Vec<Period>, TorError>) -> Vec<Event> {
        let changed = matches!(self.periods_due, PeriodsDue::Asking { again: true });
        let pause = if answer.is_ok() { PERIODS_PAUSE } else { NOT_READY_PAUSE };
        let now = Instant::now();
        self.periods_due = PeriodsDue::At(if changed { now } else { now + pause });
        match answer {
            Ok(periods) => {
                self.periods = periods.iter().map(|period| (period.id, (now, period.clone()))).collect();
                self.editions.retain(|period, _| self.periods.contains_key(period));
                let highest = |period: &Period| Event::Floor(period.id, self.publisher.revisions.highest(period.id));
                let mut events: Vec<_> = periods.iter().map(highest).collect();
                events.push(Event::Periods(periods));
                events
            }
            Err(error) => {
                debug!(%error, "no directories to publish at yet");
                Vec::new()
            }
        }
    }

    fn built(&mut self, period: PeriodId, built: Result<(u64, Arc<str>), Unbuilt>) -> Event {
        match built {
            Ok((revision, text)) => {
                self.editions.insert(period, (revision, text));
                Event::Built(period, Ok(revision))
            }
            Err(error) => {
                warn!(name: "descriptor_build_failed", period = period.number, %error, "cannot build the descriptor");
                // Another publisher's disk may work; an error in the descriptor itself would occur
                // everywhere.
                if matches!(error, Unbuilt::Unstored(_)) {
                    self.publisher.cannot_publish.send_replace(());
                }
                Event::Built(period, Err(error.to_string()))
            }
        }
    }

    fn report(&mut self, periods: Vec<PublishedPeriod>) {
        let before = self.publisher.report.borrow().clone();
        let complete = |period: &&PublishedPeriod| period.confirmed == period.directories && !before.contains(period);
        for period in periods.iter().filter(complete) {
            info!(
                name: "descriptor_published",
                period = period.period.number, revision = period.revision, directories = period.directories,
                "descriptor is on every directory"
            );
        }
        self.publisher.report.send_replace(periods);
    }

    /// Logs a warning at once and then at most every [`OTHER_PUBLISHER_PAUSE`]; passes every
    /// sighting on to `status`. Does neither while the descriptor may be from a publisher of the
    /// cluster that is not heard.
    fn meet(&mut self, other_publisher: &OtherPublisher) {
        if self.unheard {
            return;
        }
        let now = Instant::now();
        if self.warned.is_none_or(|at| now.duration_since(at) >= OTHER_PUBLISHER_PAUSE) {
            self.warned = Some(now);
            warn!(
                name: "other_publisher",
                period = other_publisher.period.number,
                revision = other_publisher.revision,
                readable = other_publisher.readable,
                "another publisher, which is not a member, publishes this address and takes clients away until this \
                 node publishes again: stop the old service that has this key; if there is none, someone else has the \
                 key, and only a new address is safe"
            );
        }
        self.publisher
            .other_publisher
            .send_replace(Some(OtherPublisherSeen { at: now, readable: other_publisher.readable }));
    }

    fn build(&mut self, period: PeriodId, content: DesiredContent, floor: u64, jobs: &mut Jobs<Input>) {
        let Some((asked, known)) = self.periods.get(&period) else { return };
        let (clock, parameters) = (known.revision_clock + asked.elapsed(), known.parameters);
        let credentials = Arc::clone(&self.publisher.credentials);
        let revisions = Arc::clone(&self.publisher.revisions);
        jobs.spawn_blocking(move || {
            let now = SystemTime::now();
            let unmade = |error: TorError| Unbuilt::Unmade(error.to_string());
            let built = credentials.credentials(period, now).map_err(unmade).and_then(|credentials| {
                let revision = credentials.revision(clock).max(floor + 1);
                revisions.advance(period, revision).map_err(Unbuilt::Unstored)?;
                let DesiredContent { points, subprotocols } = content;
                let content = DescriptorContent { revision, points, subprotocols };
                let text = descriptor::build(&credentials, &content, parameters, now).map_err(unmade)?;
                debug!(
                    period = period.number,
                    revision,
                    points = content.points.len(),
                    subprotocols = ?content.subprotocols,
                    bytes = text.len(),
                    "descriptor built"
                );
                Ok((revision, Arc::from(text)))
            });
            Input::Edition(period, built)
        });
    }

    fn upload(&mut self, period: PeriodId, directory: Directory, revision: u64, jobs: &mut Jobs<Input>) {
        let text =
            self.editions.get(&period).filter(|edition| edition.0 == revision).map(|edition| Arc::clone(&edition.1));
        let engine = Arc::clone(&self.publisher.engine);
        jobs.spawn(async move {
            let outcome = match text {
                None => Outcome::Failed,
                Some(text) => match engine.upload(&directory, period, &text, UPLOAD_LIMIT).await {
                    Ok(()) => {
                        debug!(period = period.number, revision, directory = %directory.relay, "upload accepted");
                        Outcome::Accepted
                    }
                    Err(error @ TorError::Refused { .. }) => {
                        warn!(name: "upload_refused", period = period.number, revision, %error, "upload refused");
                        Outcome::Refused
                    }
                    Err(error) => {
                        info!(
                            name: "upload_failed",
                            period = period.number, directory = %directory.relay, %error,
                            "upload failed, will try again"
                        );
                        Outcome::Failed
                    }
                },
            };
            Input::Answered(Event::Uploaded { period, directory, revision, outcome })
        });
    }

    fn read_back(&mut self, period: PeriodId, directory: Directory, jobs: &mut Jobs<Input>) {
        let ours = self.editions.get(&period).map(|edition| Arc::clone(&edition.1));
        let engine = Arc::clone(&self.publisher.engine);
        let service = self.publisher.service;
        jobs.spawn(async move {
            let reading = match engine.fetch(&directory, service, period, FETCH_LIMIT).await {
                Ok(None) => Ok(None),
                Ok(Some(text)) => reading(&text, service, period, ours.as_deref() == Some(text.as_str())).map(Some),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = &reading {
                debug!(period = period.number, directory = %directory.relay, %error, "cannot read the descriptor back");
            }
            Input::Answered(Event::ReadBackAnswered { period, directory, reading })
        });
    }
}

/// Reads a descriptor that a directory returned.
fn reading(text: &str, service: ServiceId, period: PeriodId, ours: bool) -> Result<Reading, String> {
    let PublicReading { revision, points } =
        descriptor::read_public(text, service, period, SystemTime::now()).map_err(|error| error.to_string())?;
    let points = points.map(|points| points.iter().map(|point| point.session_key).collect());
    Ok(Reading { revision, ours, points })
}

#[cfg(test)]
mod tests;
