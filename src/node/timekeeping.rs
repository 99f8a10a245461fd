//! Compares this machine's clock with what Tor and the members say, and keeps the node from
//! publishing while the clock is wrong.

use std::sync::Arc;
use std::time::Duration;

use rustbalance_gossip::coordinator::{Coordinator, Event};
use rustbalance_gossip::record::Role;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::cluster::Cluster;
use super::supervisor::PartResult;
use crate::clock::{ClockVerdict, ClockWatch, MemberTime, Witness, Witnesses, judge, unix_now};
use crate::control::ClockStatus;
use crate::sync::publish;
use crate::tor::{Engine, NetworkTime};

/// Interval between two looks. The judgement is cheap, and a clock that is set is noticed soon.
const LOOK: Duration = Duration::from_secs(2);

/// Judges the clock by Tor alone, or with the members once this node knows them.
pub(super) fn verdict(engine: &dyn Engine, cluster: Option<&Cluster>) -> ClockVerdict {
    let NetworkTime { valid_after: directory, ahead: relays } = engine.time();
    let (members, publishers) =
        cluster.map(|cluster| cluster.look(|coordinator, _| members(coordinator))).unwrap_or_default();
    judge(&Witnesses { directory, relays, members, publishers }, unix_now())
}

/// The clocks of the other members, and the number of publishers.
fn members(coordinator: &Coordinator) -> (Vec<MemberTime>, usize) {
    let view = coordinator.view();
    let is_publisher = |role| role == Role::Publisher;
    let times = view.members().filter(|member| member.node() != view.me()).filter_map(|member| {
        let (ahead, publisher) = (member.clock_ahead()?, is_publisher(member.member.role()));
        Some(MemberTime { ahead, publisher })
    });
    (times.collect(), view.members().filter(|member| is_publisher(member.member.role())).count())
}

/// Publishes the verdict, tells the cluster's task whether the clock is proven wrong, and logs each
/// change.
pub(super) async fn watch_clock(
    engine: Arc<dyn Engine>,
    cluster: Cluster,
    settled: watch::Sender<ClockVerdict>,
) -> PartResult {
    let (mut before, mut clock) = (ClockVerdict::default(), ClockWatch::default());
    loop {
        let now = clock.observe(verdict(&*engine, Some(&cluster)));
        publish(&settled, now);
        let (warned, warns) = (before.warning().is_some(), now.warning());
        match warns {
            Some((ahead, witness)) if !warned || now.proven != before.proven => {
                warn!(
                    name: "clock_wrong",
                    ahead, %witness, proven = now.proven,
                    "this machine's clock seems to be wrong: set it"
                );
            }
            None if warned => info!(name: "clock_right", "this machine's clock is right again"),
            _ => {}
        }
        if now.proven != before.proven && cluster.send_event(Event::ClockOff(now.proven)).await.is_err() {
            return Ok(());
        }
        before = now;
        sleep(LOOK).await;
    }
}

/// The verdict for `status`.
pub(super) fn status(verdict: ClockVerdict) -> ClockStatus {
    let (ahead, witness) = verdict.off.unzip();
    ClockStatus {
        ahead_seconds: ahead,
        witness: witness.map(|witness: Witness| witness.to_string()),
        proven: verdict.proven,
    }
}
