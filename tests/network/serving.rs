//! A cluster without faults: clients reach every node through the service's address, the
//! directories hold the published descriptor, and outsiders learn nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustbalance::tor::Engine;
use rustbalance_gossip::id::OnionAddress;
use rustbalance_testnet::cluster::{Cluster, Node};
use rustbalance_testnet::{Warmth, decrypt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::secrets::opened_copy;
use crate::support::{Arti, Nodes, Progress, look, network, scenario};

/// The virtual port for links at a node's own address.
const LINK_PORT: u16 = 7440;
/// Most fetches until every node has served. With three nodes, fewer than one run in a million
/// needs more.
const DRAWS: usize = 40;
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn clients_reach_every_node_and_outsiders_learn_nothing() {
    scenario("serving", &["alpha", "beta", "gamma"], |progress, cluster, nodes| {
        // Two nodes that choose the same relay at the same time detect it, and one of them moves.
        cluster.wait_until("no two nodes use the same relay", LIMIT, || relays_differ(nodes))?;
        progress.report(format_args!("no two nodes use the same relay"));
        stock_clients_reach_all(progress, cluster, nodes)?;
        arti_clients_are_served(cluster, nodes)?;
        progress.report(format_args!("an Arti client was served"));
        bodies_arrive_whole(cluster)?;
        progress.report(format_args!("large bodies arrive whole, both ways"));
        the_canary_reaches_every_point(cluster, nodes)?;
        progress.report(format_args!("the canary of each node has reached every point"));
        directories_hold_what_status_says(cluster, nodes)?;
        progress.report(format_args!("python3-stem reads the same introduction points as `status` shows"));
        strangers_learn_nothing(cluster, nodes)?;
        progress.report(format_args!("outsiders learn nothing"));
        garbage_on_a_link_changes_nothing(cluster, nodes)?;
        the_canary_names_a_dead_node(cluster, nodes)
    });
}

/// Fails if two introduction points use the same relay: stock clients can use only one of them.
fn relays_differ(nodes: &Nodes) -> Result<()> {
    let mut seen = BTreeSet::new();
    for node in &nodes.0 {
        let points = node.status()?.intro_points;
        ensure!(!points.is_empty(), "{} has no introduction point", node.name());
        for point in points {
            ensure!(
                seen.insert(point.relay.clone()),
                "{} uses the relay {}, which another introduction point uses",
                node.name(),
                point.relay
            );
        }
    }
    Ok(())
}

/// Fresh clients are served, and together they reach every node.
fn stock_clients_reach_all(progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    let wanted: BTreeSet<String> = nodes.0.iter().map(|node| node.name().to_owned()).collect();
    let mut seen = BTreeSet::new();
    for draw in 1..=DRAWS {
        // The first client has no directory of the network either.
        let warmth = if draw == 1 { Warmth::Fresh } else { Warmth::Warm };
        let (name, _) = cluster.fetch_as(warmth).with_context(|| format!("fetch {draw}\n{}", cluster.diagnosis()))?;
        seen.insert(name);
        if seen == wanted {
            progress.report(format_args!("{draw} fresh stock clients have reached all nodes"));
            return Ok(());
        }
    }
    anyhow::bail!("{DRAWS} fresh clients reached only {seen:?}")
}

fn arti_clients_are_served(cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    let arti = Arti::start("visitor")?;
    let master = cluster.onion()?.parse()?;
    for _ in 0..3 {
        let answer = arti.runtime.block_on(async {
            let mut stream = arti.reach(master, 80).await?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n").await?;
            stream.flush().await?;
            let mut answer = Vec::new();
            // Arti reports the end of the stream as an error, after all of its data.
            let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await?;
            ensure!(read.is_ok() || !answer.is_empty(), "nothing was read: {read:?}");
            Ok(String::from_utf8_lossy(&answer).into_owned())
        })?;
        let name = answer.rsplit("\r\n").next().unwrap_or_default();
        ensure!(nodes.named(name).is_ok(), "an Arti client received {answer:?}");
    }
    Ok(())
}

fn bodies_arrive_whole(cluster: &Cluster<'_>) -> Result<()> {
    let client = network().client("carrier", Warmth::Warm)?;
    let onion = cluster.onion()?;
    let answer = client.get(&format!("http://{onion}/bytes/3000000"), LIMIT * 2)?;
    ensure!(answer.body.len() == 3_000_000 && answer.body.iter().all(|byte| *byte == b'x'), "a body was changed");
    let body: Vec<u8> = (0..1_000_000_u32).map(|index| (index % 251) as u8).collect();
    let answer = client.post(&format!("http://{onion}/echo"), &body, LIMIT * 2)?;
    ensure!(answer.body == body, "a body of {} bytes came back as {}", body.len(), answer.body.len());
    Ok(())
}

/// The findings of `rustbalance canary` on a node, and its exit code.
fn canary(node: &Node) -> Result<(serde_json::Value, Option<i32>)> {
    let output = node.command(&["canary", "--json"], "", Duration::from_secs(130))?;
    let findings = serde_json::from_str(&output.output).with_context(|| format!("{}: {output:?}", node.name()))?;
    Ok((findings, output.code))
}

/// Each node, as a client through the relays of this network, reaches every introduction point in
/// the descriptor, and finds the descriptor at every directory.
fn the_canary_reaches_every_point(cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    for node in &nodes.0 {
        cluster.wait_until("the canary finds all well", LIMIT * 4, || {
            let (findings, code) = canary(node)?;
            ensure!(code == Some(0) && findings["well"] == true, "{code:?}: {findings}");
            let run = &findings["services"][0];
            let published = node.status()?.publication.context("the status shows no publication")?.intro_points.len();
            let reached = run["points"].as_array().map_or(0, Vec::len);
            ensure!(reached == published, "{reached} of {published} points were visited: {findings}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A client that draws a point of a node that has just died does not get through, and the canary
/// says so.
fn the_canary_names_a_dead_node(cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    let (dead, watcher) = (nodes.named("gamma")?, nodes.named("alpha")?);
    let address = dead.status()?.node;
    dead.kill9()?;
    let (findings, code) = canary(watcher)?;
    let points = findings["services"][0]["points"].as_array().context("no point was visited")?;
    let failed: Vec<_> = points.iter().filter(|point| point["state"] != "reached").collect();
    ensure!(code == Some(1) && !failed.is_empty(), "{code:?}: {findings}\n{}", cluster.diagnosis());
    ensure!(failed.iter().all(|point| point["node"] == address.as_str()), "{findings}");
    Ok(())
}

/// python3-stem, an independent program, decrypts the descriptor of each responsible directory. It
/// must list the introduction points that `status --json` shows as published.
fn directories_hold_what_status_says(cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    let onion = cluster.onion()?;
    // Retried, because an upload may be in progress.
    cluster.wait_until("the directories hold the descriptor that `status` shows", Duration::from_secs(60), || {
        // Matched by revision too: a relay that is responsible in one period may hold an old
        // descriptor of the other.
        let responsible: BTreeSet<(String, u64)> = look(&onion)?
            .into_iter()
            .filter_map(|held| Some((held.directory.relay.to_string(), held.content?.revision)))
            .collect();
        let known = nodes.0.iter().map(|node| Ok(node.status()?.directories)).collect::<Result<Vec<_>>>()?;
        let known = known.into_iter().flatten().filter_map(|it| Some((it.relay, it.revision?)));
        ensure!(known.collect::<BTreeSet<_>>() == responsible, "`status` shows other directories than {responsible:?}");
        let published = network().published(&onion)?;
        let texts: BTreeSet<String> = published
            .into_iter()
            .filter(|held| responsible.contains(&(format!("${}", held.relay), held.revision)))
            .map(|held| held.text)
            .collect();
        ensure!(!texts.is_empty(), "no responsible directory has a descriptor");
        for text in texts {
            let content = decrypt(&onion, &text)?;
            let read: BTreeSet<(String, String)> = content
                .intro_points
                .iter()
                .map(|point| {
                    (format!("${}", point.rsa_fingerprint.clone().unwrap_or_default()), point.auth_key.clone())
                })
                .collect();
            let relays: BTreeSet<_> = read.iter().map(|(relay, _)| relay).collect();
            ensure!(relays.len() == content.intro_points.len(), "two points of the descriptor use the same relay");
            ensure!(read.len() <= 20, "{} points in one descriptor", read.len());
            for node in &nodes.0 {
                let status = node.status()?;
                let publication = status.publication.context("the status shows no publication")?;
                let known: BTreeSet<_> = publication
                    .intro_points
                    .iter()
                    .map(|point| (point.relay.clone(), point.session_key.clone()))
                    .collect();
                ensure!(read == known, "the descriptor lists {read:?}, but {} shows {known:?}", node.name());
                let own = publication.intro_points.iter().filter(|point| point.node == status.node).count();
                ensure!(own > 0, "{} is not in the descriptor", node.name());
            }
        }
        Ok(())
    })
}

/// A client that knows only a node's own address can neither read its descriptor nor connect.
fn strangers_learn_nothing(cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    let address = nodes.named("gamma")?.status()?.node;
    let client = network().client("stranger", Warmth::Warm)?;
    let answered = cluster.wait_until("a stock client fails for missing client authorization", LIMIT * 3, || {
        match client.get(&format!("http://{address}:{LINK_PORT}/"), LIMIT) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if format!("{error:#}").contains("0xf4") => Ok(None),
            Err(error) => Err(error),
        }
    })?;
    ensure!(answered.is_none(), "an unauthorized client was answered: {answered:?}");
    let held = cluster.wait_until("the node's own descriptor is published", LIMIT, || {
        let held = network().published(&address)?;
        ensure!(!held.is_empty(), "no directory has it");
        Ok(held)
    })?;
    for held in held {
        ensure!(
            decrypt(&address, &held.text).is_err(),
            "the descriptor of a node's own service can be read without authorization"
        );
    }
    let arti = Arti::start("stranger")?;
    let dialled = arti.runtime.block_on(arti.engine.dial(address.parse()?, LINK_PORT, LIMIT));
    ensure!(dialled.is_err(), "an Arti client without the discovery key was connected");
    Ok(())
}

/// An attacker with a stolen discovery key can connect, but can do nothing without a member's
/// certificate.
fn garbage_on_a_link_changes_nothing(cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    let victim = nodes.named("gamma")?;
    let before = victim.status()?;
    let stolen = opened_copy(victim)?.store.discovery()?;
    let arti = Arti::start("thief")?;
    arti.engine.trust_discovery(before.node.parse()?, &stolen.secrets())?;
    let address = before.node.parse()?;
    send_garbage(&arti, address, LINK_PORT)?;
    ensure!(victim.status()?.uptime_seconds >= before.uptime_seconds, "garbage ended the daemon");
    cluster.wait_until("the state is the same as before the garbage", LIMIT, || {
        let after = victim.status()?;
        let (alive, were) = (after.alive(), before.alive());
        ensure!(alive == were, "garbage changed the members from {were:?} to {alive:?}");
        ensure!(after.publisher == before.publisher, "garbage changed the publisher");
        ensure!(after.invitations == before.invitations, "garbage changed the invitations");
        Ok(())
    })?;
    cluster.await_served(&nodes.0)
}

/// Opens a stream for each piece of garbage and sends it. The node must close the stream.
pub(crate) fn send_garbage(arti: &Arti, to: OnionAddress, port: u16) -> Result<()> {
    for garbage in garbage() {
        arti.runtime.block_on(async {
            let mut stream = arti.reach(to, port).await.context("cannot send garbage")?;
            // The node may close the stream at any moment.
            let _ = stream.write_all(&garbage).await;
            let _ = stream.flush().await;
            let mut answer = Vec::new();
            let ended = tokio::time::timeout(LIMIT * 2, stream.read_to_end(&mut answer)).await;
            ensure!(ended.is_ok(), "after {} bytes of garbage the node keeps the stream open", garbage.len());
            ensure!(answer.len() < 4096, "{} bytes of garbage were answered with {}", garbage.len(), answer.len());
            Ok(())
        })?;
    }
    Ok(())
}

/// Inputs that no peer sends: noise, a frame with an absurd length, and frames of the right length
/// with noise in them.
fn garbage() -> Vec<Vec<u8>> {
    let noise: Vec<u8> = (0..20_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let framed = |payload: &[u8]| {
        let mut frame = (payload.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(payload);
        frame
    };
    vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        noise.clone(),
        vec![0xff; 64],
        framed(&[]),
        framed(&noise[..100]),
        framed(&[1, 0xa0]),
        // Version 1, then an array of 2^32 - 1 arrays.
        framed(&[1, 0x9a, 0xff, 0xff, 0xff, 0xff, 0x9a, 0xff, 0xff, 0xff, 0xff]),
        framed(&[1; 4000]).into_iter().cycle().take(40_000).collect(),
    ]
}
