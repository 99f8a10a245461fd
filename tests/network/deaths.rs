//! Nodes that die: their introduction points leave every directory, the other nodes continue to
//! serve, and a restarted node is published again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustbalance_testnet::cluster::{Cluster, Node};

use crate::support::{
    Nodes, Progress, agreed_publisher, all_served, check_directories, look, median, scenario, session_keys,
};

/// Bound on the median time from the death of a node that does not publish until no directory has
/// its points.
const OUT: Duration = Duration::from_secs(30);
/// The same for the publisher, which another node must replace first.
const TAKEN_OVER: Duration = Duration::from_secs(45);
/// From the restart of a node until every directory has its points.
const BACK: Duration = Duration::from_secs(30);
/// Time limit of a wait. It exceeds the bounds above, to distinguish a slow event from none.
const PATIENCE: Duration = Duration::from_secs(120);

/// Longest time from a death until the node is published again. No time period may begin meanwhile:
/// a node that starts then is reached by the others only once it has a consensus of that period.
const AHEAD: Duration = Duration::from_secs(75);

#[test]
fn points_of_dead_nodes_leave_the_directories_and_come_back() {
    scenario("deaths", &["alpha", "beta", "gamma"], |progress, cluster, nodes| {
        followers_die(progress, cluster, nodes)?;
        publisher_dies(progress, cluster, nodes)?;
        all_die(progress, cluster, nodes)
    });
}

/// Three times, a node that does not publish is killed and restarted.
fn followers_die(progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    let mut measured = Vec::new();
    for run in 0..3 {
        cluster.network().await_steady_period(AHEAD);
        let (publisher, term) = nodes.publisher()?;
        let followers = nodes.but(publisher);
        let victim = &followers[run % followers.len()];
        let out = kill_and_time(cluster, nodes, victim)?;
        progress.report(format_args!(
            "{} was killed; out of every directory after {:.1} s",
            victim.name(),
            out.as_secs_f64()
        ));
        measured.push(out);
        let served = all_served(cluster, 4)?;
        ensure!(!served.contains(victim.name()), "the dead {} has served: {served:?}", victim.name());

        let back = run_and_time(cluster, nodes, victim)?;
        progress.report(format_args!("{} is back on every directory after {:.1} s", victim.name(), back.as_secs_f64()));
        ensure!(back <= BACK, "{} was back after {back:?}, later than {BACK:?}", victim.name());
        ensure!(nodes.publisher()?.1 == term, "the lease moved although its holder was alive");
    }
    let middle = median(measured.clone());
    ensure!(middle <= OUT, "a dead node's points stayed for {middle:?} (median of {measured:?}), longer than {OUT:?}");
    Ok(())
}

/// The publisher is killed, another node takes over, and the first comes back without the lease.
fn publisher_dies(progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    cluster.network().await_steady_period(AHEAD);
    let (victim, term) = nodes.publisher()?;
    let out = kill_and_time(cluster, nodes, victim)?;
    let survivors = nodes.but(victim);
    let (holder, new_term) =
        cluster.wait_until("the survivors agree on a publisher", PATIENCE, || agreed_publisher(&survivors))?;
    progress.report(format_args!(
        "the publisher {} was killed; {} took over in term {new_term}, and no directory has the dead one after {:.1} s",
        victim.name(),
        nodes.at(&holder)?.name(),
        out.as_secs_f64()
    ));
    ensure!(out <= TAKEN_OVER, "the new publisher's descriptor was on every directory after {out:?} only");
    ensure!(new_term > term, "the term went from {term} to {new_term}");
    let served = all_served(cluster, 4)?;
    ensure!(!served.contains(victim.name()), "the dead {} has served: {served:?}", victim.name());

    let back = run_and_time(cluster, nodes, victim)?;
    progress.report(format_args!("{} is back on every directory after {:.1} s", victim.name(), back.as_secs_f64()));
    ensure!(back <= BACK, "{} was back after {back:?}, later than {BACK:?}", victim.name());
    // Long enough for the restarted node to claim the lease by mistake.
    let until = Instant::now() + Duration::from_secs(15);
    while Instant::now() < until {
        let agreed = agreed_publisher(&nodes.0)?;
        ensure!(agreed == (holder.clone(), new_term), "the lease moved to {agreed:?} although its holder is alive");
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// All nodes are killed and restarted.
fn all_die(progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    let address = cluster.onion()?;
    let (_, term) = nodes.publisher()?;
    let before = look(&address)?;
    let keys = nodes.0.iter().map(|node| session_keys(node)).collect::<Result<Vec<_>>>()?;
    for node in &nodes.0 {
        node.kill9()?;
    }
    for node in &nodes.0 {
        node.run()?;
    }
    let started = Instant::now();
    let new_term = cluster.wait_until("there is one publisher again", PATIENCE, || {
        let (_, term) = agreed_publisher(&nodes.0)?;
        Ok(term)
    })?;
    // The nodes must keep their introduction points, so that clients with an old descriptor are
    // served too.
    let published: BTreeSet<String> = before.iter().flat_map(|held| held.keys()).collect();
    let newest = before.iter().filter_map(|held| Some((held.period, held.content.as_ref()?.revision)));
    let newest: Vec<_> = newest.collect();
    cluster.wait_until("every directory has a newer descriptor with every node in it", PATIENCE, || {
        for held in check_directories(&address, &keys, &BTreeSet::new())? {
            let missed: Vec<_> = published.difference(&held.keys()).cloned().collect();
            ensure!(missed.is_empty(), "{} lacks points from before: {missed:?}", held.directory.relay);
            let revision = held.content.context("a directory has no descriptor")?.revision;
            let old = newest.iter().filter(|(period, _)| *period == held.period).map(|(_, revision)| *revision).max();
            ensure!(old.is_none_or(|old| revision > old), "{} has an old descriptor", held.directory.relay);
        }
        Ok(())
    })?;
    progress.report(format_args!(
        "all nodes were killed and restarted; on every directory after {:.1} s, in term {new_term} after {term}",
        started.elapsed().as_secs_f64()
    ));
    ensure!(new_term >= term, "the term fell from {term} to {new_term}");
    for node in &nodes.0 {
        let served = node.status()?.cluster;
        ensure!(served == address, "{} serves {served} now, not {address}", node.name());
    }
    all_served(cluster, 4)?;
    Ok(())
}

/// Kills a node. Returns the time until every directory has the others' points and none of its own.
fn kill_and_time(cluster: &Cluster<'_>, nodes: &Nodes, victim: &Node) -> Result<Duration> {
    let gone = session_keys(victim)?;
    ensure!(!gone.is_empty(), "{} has no points", victim.name());
    let others = nodes.but(victim);
    let there = others.iter().map(|node| session_keys(node)).collect::<Result<Vec<_>>>()?;
    victim.kill9()?;
    let killed = Instant::now();
    cluster.wait_until("a dead node's points leave every directory", PATIENCE, || {
        check_directories(&cluster.onion()?, &there, &gone)?;
        Ok(killed.elapsed())
    })
}

/// Restarts a node. Returns the time until every directory has its points.
fn run_and_time(cluster: &Cluster<'_>, nodes: &Nodes, node: &Node) -> Result<Duration> {
    let address = cluster.onion()?;
    let started = Instant::now();
    node.run()?;
    let back = cluster.wait_until("a returning node is on every directory", PATIENCE, || {
        let own = session_keys(node)?;
        ensure!(!own.is_empty(), "{} has no points yet", node.name());
        check_directories(&address, &[own], &BTreeSet::new())?;
        Ok(started.elapsed())
    })?;
    cluster.await_served(&nodes.0)?;
    Ok(back)
}
