//! Reports changes in other parts to the cluster's task, systemd and the log.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustbalance_gossip::coordinator::Event;
use rustbalance_gossip::record::Revocation;
use rustbalance_gossip::signed::Verified;
use rustbalance_gossip::view::Condition;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tracing::{info, warn};

use super::cluster::Cluster;
use super::control::Daemon;
use super::supervisor::PartResult;
use crate::link::Reach;
use crate::systemd;

/// Pause between two looks for problems of this node: the others see them within seconds.
const PROBLEMS_PAUSE: Duration = Duration::from_secs(3);

/// Sends each new value of a watch to the cluster's task as an event; the initial value is skipped.
/// Ends when either side ends.
pub(super) async fn report<T: Clone>(
    mut watch: watch::Receiver<T>,
    cluster: Cluster,
    event: impl Fn(T) -> Event,
) -> PartResult {
    while watch.changed().await.is_ok() {
        let value = watch.borrow_and_update().clone();
        if cluster.send_event(event(value)).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Reports the problems of this node itself to the cluster's task, for the `status` of all nodes.
/// Ends with the cluster's task.
pub(super) async fn report_problems(daemon: Arc<Daemon>, cluster: Cluster) -> PartResult {
    let mut before = BTreeSet::new();
    loop {
        let problems = daemon.status().own_problem_codes();
        if problems != before && cluster.send_event(Event::Problems(problems.clone())).await.is_err() {
            return Ok(());
        }
        before = problems;
        sleep(PROBLEMS_PAUSE).await;
    }
}

/// Reports this node's eviction to the cluster's task. Peers prove it with the signed revocation
/// when they refuse a link.
pub(super) async fn report_eviction(mut revoked: mpsc::Receiver<Verified<Revocation>>, cluster: Cluster) -> PartResult {
    while let Some(revocation) = revoked.recv().await {
        if cluster.send_event(Event::Fact(revocation.into())).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Reports to the cluster's task the first link, and each time that this node starts or stops to be
/// shut out.
pub(super) async fn report_reach(mut reach: watch::Receiver<Reach>, cluster: Cluster) -> PartResult {
    let mut before = Reach::default();
    loop {
        let now = *reach.borrow_and_update();
        if now.linked && !before.linked && cluster.send_event(Event::MeshReached).await.is_err() {
            return Ok(());
        }
        if now.shut_out && !before.shut_out {
            warn!(
                name: "discovery_refused",
                "the other members accept none of this node's discovery keys: it was evicted, or missed a change of \
                 keys. It will not publish before one of them reaches it; if none does within minutes, check with \
                 `rustbalance status` on another node whether this one is still a member"
            );
        }
        if now.shut_out != before.shut_out && cluster.send_event(Event::ShutOut(now.shut_out)).await.is_err() {
            return Ok(());
        }
        // The mesh counts as reached from the first link on.
        before = Reach { linked: before.linked || now.linked, ..now };
        if reach.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Shows each change of the node's condition in the log and in `systemctl status`.
pub(super) async fn show_phase(mut phase: watch::Receiver<Condition>) -> PartResult {
    loop {
        let now = *phase.borrow_and_update();
        info!(name: "phase", phase = %now, "phase");
        match now {
            Condition::Healthy => systemd::status("serving clients"),
            other => systemd::status(&other.to_string()),
        }
        if phase.changed().await.is_err() {
            return Ok(());
        }
    }
}
