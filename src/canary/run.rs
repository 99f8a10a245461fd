//! One run, through the [`Engine`]. Each transfer and each visit has circuits of its own, as if it
//! were another client's.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{StreamExt, stream};
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::{IntroPoint, PeriodId};
use tokio::time::{Instant, sleep};

use super::findings::{DirectoryFinding, Expectation, Findings, Held, Outcome, PointFinding, PointKey, judge};
use super::plan::{Scope, choose};
use super::task::CanaryHost;
use crate::causes::with_causes;
use crate::tor::descriptor::{self, DescriptorContent};
use crate::tor::{Directory, Engine, Visit};

/// Time limit for one download, including its circuit.
const FETCH_LIMIT: Duration = Duration::from_secs(25);
/// Time limit for one visit, with all attempts.
const VISIT_LIMIT: Duration = Duration::from_secs(45);
/// Time after which a run begins no further visit: the control socket answers within two minutes.
const RUN_LIMIT: Duration = Duration::from_secs(65);
/// Longest time from a change of the wanted points until the publisher has announced the edition
/// with them.
const EDITION: Duration = Duration::from_secs(10);
/// Transfers and visits at once in a run by hand. Other runs make one after the other.
const AT_ONCE: usize = 4;

/// Everything that a run needs.
pub(super) struct Run {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) host: Arc<dyn CanaryHost>,
    pub(super) service: ServiceId,
    pub(super) scope: Scope,
}

impl Run {
    pub(super) async fn findings(self) -> Findings {
        let Some(expected) = self.host.expectation(self.service) else {
            return Findings::none(self.service, "this node does not know the service any more");
        };
        let (period, drawn) = match self.engine.client_directories(self.service).await {
            Ok(found) => found,
            Err(error) => return Findings::none(self.service, with_causes(&error)),
        };
        let began = Instant::now();
        let busy = self.host.busy();
        let (directories, content) = self.ask(&expected, period, drawn).await;
        let problem = content.is_none().then(|| "no directory gives a descriptor that clients can use".to_owned());
        let points = match content {
            Some(content) => self.visit(&expected, period, &content, began).await,
            None => Vec::new(),
        };
        let repeated = matches!(self.scope, Scope::Again { .. });
        let busy = busy || self.host.busy();
        Findings { service: self.service, directories, points, own: expected.own, problem, repeated, busy }
    }

    fn at_once(&self) -> usize {
        if self.scope == Scope::All { AT_ONCE } else { 1 }
    }

    /// Asks directories, and returns the newest descriptor: by hand all that clients ask, else one
    /// after the other until one gives a descriptor.
    async fn ask(
        &self,
        expected: &Expectation,
        period: PeriodId,
        drawn: Vec<Directory>,
    ) -> (Vec<DirectoryFinding>, Option<DescriptorContent>) {
        let (all, asked) = match &self.scope {
            Scope::All => (true, drawn),
            Scope::Turn { .. } => (false, drawn),
            Scope::Again { directories, .. } if directories.is_empty() => (false, drawn),
            Scope::Again { directories, .. } => (true, directories.iter().cloned().collect()),
        };
        let mut answers = stream::iter(asked).map(|it| self.fetch(expected, period, it)).buffered(self.at_once());
        let (mut findings, mut newest) = (Vec::new(), None::<DescriptorContent>);
        while let Some((finding, content)) = answers.next().await {
            findings.push(finding);
            if let Some(content) = content
                && newest.as_ref().is_none_or(|newest| newest.revision < content.revision)
            {
                newest = Some(content);
            }
            if newest.is_some() && !all {
                break;
            }
        }
        (findings, newest)
    }

    async fn fetch(
        &self,
        expected: &Expectation,
        period: PeriodId,
        directory: Directory,
    ) -> (DirectoryFinding, Option<DescriptorContent>) {
        let began = Instant::now();
        let fetched = self.engine.fetch(&directory, self.service, period, FETCH_LIMIT).await;
        let took = began.elapsed();
        let read = |text: String| descriptor::read(&text, self.service, period, SystemTime::now());
        let (held, content) = match fetched.map(|text| text.map(read)) {
            Ok(Some(Ok(content))) => (self.judge(expected, period, &content).await, Some(content)),
            Ok(Some(Err(error))) => (Held::Unreadable(with_causes(&error)), None),
            Ok(None) => (Held::Missing, None),
            Err(error) => (Held::NoAnswer(with_causes(&error)), None),
        };
        (DirectoryFinding { period, directory, held, took }, content)
    }

    /// Judges a descriptor. One that names other points than expected may only wait for the next
    /// edition: that counts if nothing has changed after [`EDITION`].
    async fn judge(&self, expected: &Expectation, period: PeriodId, content: &DescriptorContent) -> Held {
        let held = judge(expected, period, content);
        if !matches!(held, Held::Differs(_)) {
            return held;
        }
        sleep(EDITION).await;
        let same = |now: Expectation| {
            now.settled.get(&period) == expected.settled.get(&period)
                && now.wanted == expected.wanted
                && judge(&now, period, content) == held
        };
        let same = self.host.expectation(self.service).is_some_and(same);
        if same { held } else { Held::Current(content.revision) }
    }

    /// Visits the points that the scope selects, in the order of the descriptor.
    async fn visit(
        &self,
        expected: &Expectation,
        period: PeriodId,
        content: &DescriptorContent,
        began: Instant,
    ) -> Vec<PointFinding> {
        let all: Vec<_> =
            content.points.iter().map(|it| (it.session_key, expected.own.contains(&it.session_key))).collect();
        let chosen: BTreeSet<PointKey> = match &self.scope {
            Scope::All => all.iter().map(|(key, _)| *key).collect(),
            Scope::Turn { tried } => choose(&all, tried).into_iter().collect(),
            Scope::Again { points, .. } => points.clone(),
        };
        let mut points = content.points.clone();
        points.retain(|point| chosen.contains(&point.session_key));
        let visits = stream::iter(points).map(|point| self.visit_one(expected, period, point, began));
        visits.buffered(self.at_once()).collect().await
    }

    async fn visit_one(
        &self,
        expected: &Expectation,
        period: PeriodId,
        point: IntroPoint,
        began: Instant,
    ) -> PointFinding {
        let (key, relay) = (point.session_key, point.relay);
        let owner = expected.owners.get(&key).copied();
        let port = owner.and_then(|owner| expected.ports.get(&owner)).copied();
        let started = Instant::now();
        let outcome = if began.elapsed() > RUN_LIMIT {
            Outcome::NotTried
        } else {
            let visit = Visit { service: self.service, period, point, port };
            match self.engine.visit(visit, VISIT_LIMIT).await {
                Ok(()) => Outcome::Reached,
                Err(error) => Outcome::Failed(error.stage, error.why.to_string()),
            }
        };
        PointFinding { key, relay, owner, own: expected.own.contains(&key), outcome, took: started.elapsed() }
    }
}
