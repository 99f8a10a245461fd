//! Nodes that freeze: their connections stay open, so that no broken circuit shows their failure,
//! but they do not answer.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustbalance_testnet::Warmth;
use rustbalance_testnet::cluster::{Cluster, Node};

use crate::support::{Nodes, Progress, agreed_publisher, all_served, check_directories, scenario, session_keys};

/// From the freeze until no directory has the node's points.
const OUT: Duration = Duration::from_secs(45);
/// From the thaw until all agree on one publisher and the node is published again.
const SETTLED: Duration = Duration::from_secs(60);
/// From the freeze until another node stands in at the frozen nodes' points.
const TAKEN: Duration = Duration::from_secs(30);
/// Number of visits, each on new circuits. It is very unlikely that none of them uses a point of
/// the two frozen nodes.
const VISITS: usize = 12;
/// Time limit of one request.
const VISIT: Duration = Duration::from_secs(40);
/// From the fetch of a descriptor until the last visit that uses it, at most.
const STAND_IN_TIME: Duration = Duration::from_secs(120);
/// From the freeze of a node until it is published again, usually half of this.
const FREEZE_TIME: Duration = Duration::from_secs(60);
/// Time limit of a wait. It exceeds the bounds above, to distinguish a slow event from none.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn points_of_frozen_nodes_leave_the_directories_and_come_back_when_thawed() {
    scenario("freezing", &["alpha", "beta", "gamma"], |progress, cluster, nodes| {
        let (publisher, _) = nodes.publisher()?;
        let follower = nodes.but(publisher).remove(0);
        freeze_and_thaw(progress, cluster, nodes, &follower)?;
        let (publisher, term) = nodes.publisher()?;
        let publisher = publisher.clone();
        freeze_and_thaw(progress, cluster, nodes, &publisher)?;
        let (holder, new_term) = nodes.publisher()?;
        ensure!(
            new_term > term,
            "the frozen publisher was not replaced: {} publishes in term {new_term}",
            holder.name()
        );
        clients_that_know_the_frozen_points_are_served(progress, cluster, nodes)
    });
}

/// All nodes but one freeze. Relays still forward the introductions of clients with the old
/// descriptor to the frozen nodes, which do not answer. The last node stands in at their points,
/// and they take them back afterwards.
fn clients_that_know_the_frozen_points_are_served(
    progress: &mut Progress,
    cluster: &Cluster<'_>,
    nodes: &Nodes,
) -> Result<()> {
    let url = format!("http://{}/", cluster.onion()?);
    let client = cluster.network().client("regular", Warmth::Warm)?;
    // The client discards the descriptor when the time period ends.
    cluster.network().await_steady_period(STAND_IN_TIME);
    client.get_isolated("before", &url, VISIT)?;
    let last = &nodes.0[0];
    let frozen = nodes.but(last);
    for node in &frozen {
        node.stop()?;
    }
    let since = Instant::now();
    let taken = cluster.wait_until("the last node stands in at the points of the frozen nodes", PATIENCE, || {
        let status = last.status()?;
        let taken = status.stand_ins.len();
        let points: usize = status.members.iter().filter(|member| !member.me).map(|member| member.intro_points).sum();
        ensure!(taken > 0 && taken == points, "{taken} of {points} points");
        Ok(since.elapsed())
    });
    let visits: Vec<_> = (0..VISITS)
        .map(|visit| client.get_isolated(&format!("visit{visit}"), &url, VISIT).map(|answer| answer.text()))
        .collect();
    let mut late = 0;
    let brought = cluster.wait_until("clients arrive through the points of the frozen nodes", PATIENCE, || {
        late += 1;
        client.get_isolated(&format!("late{late}"), &url, VISIT)?;
        let brought: u64 = last.status()?.stand_ins.iter().map(|point| point.introductions).sum();
        ensure!(brought > 0, "no client has");
        Ok(brought)
    });
    for node in &frozen {
        node.cont()?;
    }
    let (taken, brought) = (taken?, brought?);
    progress.report(format_args!(
        "all nodes but one were frozen; it stood in at their points after {:.1} s, and {brought} of {VISITS} visits came through these",
        taken.as_secs_f64()
    ));
    for visit in visits {
        ensure!(visit? == last.name(), "a client with the old descriptor was served by a frozen node");
    }
    ensure!(taken <= TAKEN, "the node stood in at the frozen nodes' points after {taken:?}, later than {TAKEN:?}");

    cluster.wait_until("the thawed nodes have their points again", PATIENCE, || {
        let left = last.status()?.stand_ins.len();
        ensure!(left == 0, "another node still stands in at {left} points");
        Ok(())
    })?;
    cluster.await_served(&nodes.0)?;
    for visit in 0..VISITS {
        client.get_isolated(&format!("again{visit}"), &url, VISIT)?;
    }
    Ok(())
}

fn freeze_and_thaw(progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes, victim: &Node) -> Result<()> {
    // A node that is frozen while a time period begins finds no other node until it has a new
    // consensus (KNOWN-ISSUES).
    cluster.network().await_steady_period(FREEZE_TIME);
    let address = cluster.onion()?;
    let gone = session_keys(victim)?;
    let others = nodes.but(victim);
    let there = others.iter().map(|node| session_keys(node)).collect::<Result<Vec<_>>>()?;
    victim.stop()?;
    let frozen = Instant::now();
    let out = cluster.wait_until("a frozen node's points leave every directory", PATIENCE, || {
        check_directories(&address, &there, &gone)?;
        Ok(frozen.elapsed())
    });
    if out.is_err() {
        victim.cont()?;
    }
    let out = out?;
    progress.report(format_args!(
        "{} was frozen; out of every directory after {:.1} s",
        victim.name(),
        out.as_secs_f64()
    ));
    let served = all_served(cluster, 6)?;
    ensure!(!served.contains(victim.name()), "the frozen {} has served: {served:?}", victim.name());
    let (holder, term) = agreed_publisher(&others)?;

    victim.cont()?;
    let thawed = Instant::now();
    let settled = cluster.wait_until("a thawed node is published, by one publisher", PATIENCE, || {
        let own = session_keys(victim)?;
        ensure!(!own.is_empty(), "{} has no points", victim.name());
        let agreed = agreed_publisher(&nodes.0)?;
        ensure!(agreed == (holder.clone(), term), "{agreed:?} publishes, no longer {holder} in term {term}");
        check_directories(&address, &[own], &Default::default())?;
        Ok(thawed.elapsed())
    })?;
    progress.report(format_args!(
        "{} was thawed; published again, with one publisher, after {:.1} s",
        victim.name(),
        settled.as_secs_f64()
    ));
    ensure!(out <= OUT, "the frozen {} stayed in the directories for {out:?}, longer than {OUT:?}", victim.name());
    ensure!(
        settled <= SETTLED,
        "the thawed {} was published again after {settled:?}, later than {SETTLED:?}",
        victim.name()
    );
    // The lease stays with its holder.
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        ensure!(agreed_publisher(&nodes.0)? == (holder.clone(), term), "the lease moved after the thaw");
        std::thread::sleep(Duration::from_secs(1));
    }
    cluster.await_served(&nodes.0)
}
