//! An old service on a stock C tor continues to publish the address whose key a cluster has
//! imported.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustbalance_testnet::cluster::{Cluster, Node, OtherPublisher, Period, Status};
use rustbalance_testnet::{OnionService, Site};

use crate::support::{Progress, network, with_cluster};

/// Longest duration of the scenario. No time period may change meanwhile, because both sides would
/// publish again. Nor may the clock of revisions begin again, because the revisions of one
/// side could then be below those of the other.
const AHEAD: Duration = Duration::from_secs(100);
/// From the upload of a descriptor until it is first read back.
const READ_BACK: Duration = Duration::from_secs(20);
/// From the upload of the old service's descriptor for one time period until directories hold that
/// of the other, for which tor first builds circuits to other introduction points.
const UPLOADING: Duration = Duration::from_secs(60);
/// From the first reading until the node has published a higher revision: its limits for one fetch
/// and one upload, and one failed upload before.
const OVERTAKING: Duration = Duration::from_secs(80);
/// Introduction points that a node keeps by default; with fewer, it soon publishes again by itself.
const POINTS: usize = 3;
/// Longer than one step of the revision, which follows the clock on both sides: directories refuse
/// an equal revision.
const STEP: Duration = Duration::from_secs(2);
/// Most attempts at the whole scenario. On a busy machine, uploads of the old service may be under
/// way while the node publishes. Directories then refuse them, and tor does not upload that time
/// period again for some time.
const ATTEMPTS: usize = 3;
/// Delay until `status` shows a changed count of directories.
const LAG: Duration = Duration::from_secs(1);

#[test]
fn an_old_service_that_goes_on_publishing_is_reported_and_its_revision_exceeded() {
    let mut is_done = false;
    for _ in 0..ATTEMPTS {
        with_cluster("twin", |progress, cluster| {
            is_done = twin(progress, cluster)?;
            Ok(())
        });
        if is_done {
            return;
        }
    }
    panic!("directories have refused the old service {ATTEMPTS} times");
}

/// False if directories have refused what the old service published after the node, so that it
/// replaced nothing.
fn twin(progress: &mut Progress, cluster: &Cluster<'_>) -> Result<bool> {
    network().await_steady_revisions(AHEAD);
    progress.report(format_args!("the time period and the clock of revisions are steady"));
    let site = Site::start("old")?;
    let old = network().onion_service("old", 80, site.addr())?;
    // Until then, what the node publishes might replace nothing.
    cluster.wait_until("directories hold the old service's descriptor", UPLOADING, || {
        let held = network().published(old.hostname())?.len();
        ensure!(held > 0, "none does");
        Ok(())
    })?;
    let node = cluster.import("alpha", &old.service_folder())?;
    ensure!(cluster.onion()? == old.hostname(), "the imported key is of {}", cluster.onion()?);
    progress.report(format_args!("the old service is published, and the node has imported its key"));
    node.run()?;
    cluster.await_served(std::slice::from_ref(&node))?;
    progress.report(format_args!("the node is published"));
    let other_publisher = node.status()?.other_publisher;
    ensure!(other_publisher.is_none(), "a descriptor older than the node's first one is reported: {other_publisher:?}");

    // First a descriptor that only authorized clients can read, then one that every client can.
    for restricted in [true, false] {
        if !is_overtaken(progress, cluster, &node, &old, restricted)? {
            return Ok(false);
        }
    }
    let warnings = node.log().matches("another publisher, which is not a member, publishes this address").count();
    ensure!(warnings == 1, "the log warns {warnings} times of the other publisher, not once an hour");
    Ok(true)
}

/// The old service publishes again and replaces the node's descriptor; the node must publish a
/// higher revision. False if directories refuse the old service.
fn is_overtaken(
    progress: &mut Progress,
    cluster: &Cluster<'_>,
    node: &Arc<Node>,
    old: &OnionService,
    restricted: bool,
) -> Result<bool> {
    let Some(replacement) = replace(progress, cluster, node, old, restricted)? else { return Ok(false) };
    let Replacement { before, started, replaced } = replacement;
    let theirs = *replaced.values().max().context("no descriptor was replaced")?;
    let is_seen = |status: &Status| {
        let is_new = |other_publisher: OtherPublisher| {
            other_publisher.readable != restricted
                && Duration::from_secs(other_publisher.seen_seconds) <= started.elapsed()
        };
        status.other_publisher.is_some_and(is_new)
    };
    ensure!(
        !is_seen(&node.status()?),
        "the node has read back too soon: the directories may have held its own descriptor"
    );

    let mut samples: Vec<(Instant, Status)> = Vec::new();
    cluster.wait_until(
        "the node has noticed the old service and published a higher revision",
        READ_BACK + OVERTAKING,
        || {
            let status = node.status()?;
            samples.push((Instant::now(), status.clone()));
            ensure!(is_seen(&status), "status shows this other publisher: {:?}", status.other_publisher);
            ensure!(status.is_confirmed(), "the newest descriptor is not on every directory");
            // Only the directories that were replaced are checked: a relay that was responsible in
            // an earlier consensus may keep an old descriptor.
            let held: BTreeMap<_, _> =
                network().published(&cluster.onion()?)?.into_iter().map(|held| (held.relay, held.revision)).collect();
            for relay in replaced.keys() {
                let revision = *held.get(relay).with_context(|| format!("{relay} holds no descriptor"))?;
                let ours = periods(&status).any(|period| period.revision == revision);
                ensure!(ours && revision > theirs, "{relay} holds the revision {revision}");
            }
            Ok(())
        },
    )?;
    let (seen, _) = samples.iter().find(|(_, status)| is_seen(status)).context("the old service was never seen")?;
    progress.report(format_args!(
        "the node has seen it after {:.1} s, and published a higher revision after {:.1} s",
        seen.duration_since(started).as_secs_f64(),
        started.elapsed().as_secs_f64()
    ));
    for (at, status) in samples.iter().filter(|(at, _)| *at > *seen + LAG) {
        let as_before = |period: &Period| {
            let same = periods(&before).any(|old| (old.number, old.revision) == (period.number, period.revision));
            same && period.confirmed == period.directories
        };
        ensure!(
            !periods(status).all(as_before),
            "{:?} after it has seen the other descriptor, the node still counts its own on every directory",
            at.duration_since(*seen)
        );
    }

    let text = node.command(&["status"], "", OVERTAKING)?.ok("status")?;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let whose = if restricted { "only clients that it has authorized reach it" } else { "clients reach it" };
    for part in ["a publisher that is not a member has published this address", whose] {
        ensure!(text.contains(part), "status does not say {part:?}: {text}");
    }
    let (name, elapsed) = cluster.fetch()?;
    ensure!(name == node.name(), "a fresh client reaches {name}");
    progress.report(format_args!("a fresh client reaches the node's site in {:.1} s", elapsed.as_secs_f64()));
    ensure!(old.client().is_running(), "the old service has ended");
    Ok(true)
}

/// The moment in which the old service's descriptor replaced the node's.
struct Replacement {
    /// The node's status before.
    before: Status,
    /// When the old service began to publish.
    started: Instant,
    /// The directories that hold its descriptor, with the revision.
    replaced: BTreeMap<String, u64>,
}

/// Waits until the node is published, and publishes the old service again. `None` if directories
/// refuse it.
fn replace(
    progress: &mut Progress,
    cluster: &Cluster<'_>,
    node: &Arc<Node>,
    old: &OnionService,
    restricted: bool,
) -> Result<Option<Replacement>> {
    cluster.wait_until("all introduction points of the node are published", OVERTAKING, || {
        let status = node.status()?;
        let published = status.published_of(&status.node);
        ensure!(status.is_confirmed() && published == POINTS, "{published} points are published");
        Ok(())
    })?;
    std::thread::sleep(STEP);
    let before = node.status()?;
    let started = Instant::now();
    let uploads = old.restrict(restricted)?;
    let published = started.elapsed();
    let is_theirs = |revision: u64| periods(&before).all(|period| period.revision != revision);
    // Tor uploads one time period after the other, and only that of the network's own client is
    // seen here: the other one may be the first to be complete.
    let (held, replaced) = cluster.wait_until("a directory has the old service's descriptor", UPLOADING, || {
        let held: BTreeMap<String, u64> =
            network().published(&cluster.onion()?)?.into_iter().map(|held| (held.relay, held.revision)).collect();
        let replaced: BTreeMap<_, _> = held.clone().into_iter().filter(|(_, revision)| is_theirs(*revision)).collect();
        ensure!(!replaced.is_empty() || uploads.were_refused(), "{uploads}; they hold {held:?}");
        Ok((held, replaced))
    })?;
    if replaced.is_empty() {
        progress.report(format_args!(
            "directories have refused the old service: {uploads}; they hold {held:?}, by the node's {:?}",
            before.publication
        ));
        return Ok(None);
    }
    progress.report(format_args!(
        "the old service is published again after {:.1} s; {} of {} directories hold its descriptor after {:.1} s",
        published.as_secs_f64(),
        replaced.len(),
        held.len(),
        started.elapsed().as_secs_f64()
    ));
    Ok(Some(Replacement { before, started, replaced }))
}

fn periods(status: &Status) -> impl Iterator<Item = &Period> {
    status.publication.iter().flat_map(|publication| &publication.periods)
}
