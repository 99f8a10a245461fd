//! Tokens that do not admit a node, and a token that two nodes use at the same time. Each refusal
//! has its own message. A refused node keeps its key if it has shown it to the cluster; otherwise
//! no file is left.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustbalance::control::{InvitationState, InvitationStatus, Request, Response, call};
use rustbalance::join::Token as JoinToken;
use rustbalance::keys::TokenSecret;
use rustbalance::tor::Engine;
use rustbalance_gossip::id::ClusterId;
use rustbalance_gossip::record::Role;
use rustbalance_testnet::cluster::{Cluster, CommandOutput, Node, Token};

use crate::serving::send_garbage;
use crate::support::{Arti, Nodes, Progress, scenario};

/// The virtual port of the service's address at which nodes join.
const JOIN_PORT: u16 = 7441;
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn only_a_good_token_admits_and_only_once() {
    scenario("joining", &["alpha"], |progress, cluster, nodes| {
        the_join_port_is_closed(cluster)?;
        progress.report(format_args!("the join port is closed before the first invitation"));
        let alpha = nodes.named("alpha")?.clone();
        let beta = cluster.add(&alpha, "beta", "publisher")?;
        let gamma = cluster.add(&alpha, "gamma", "worker")?;
        let nodes = &Nodes(vec![alpha, beta, gamma]);
        cluster.await_served(&nodes.0)?;
        // From here on there is always an open invitation, so that the join port is open.
        let spare = nodes.named("beta")?.invite("worker", 1, "1h")?;
        bad_tokens_are_refused(progress, cluster, nodes)?;
        garbage_at_the_join_port_changes_nothing(cluster, nodes)?;
        progress.report(format_args!("garbage at the join port changed nothing"));
        // The spare token still admits a node; then it is used up.
        let other = nodes.named("alpha")?.invite("worker", 1, "1h")?;
        let joined = cluster.join("delta", &spare)?;
        joined.run()?;
        let mut all = nodes.0.clone();
        all.push(joined);
        cluster.await_served(&all)?;
        kept_its_key(&*refused(cluster, "late", &spare, "used up")?)?;
        progress.report(format_args!("a used token is refused"));
        a_race_has_one_winner(progress, cluster, nodes, &other)
    });
}

fn the_join_port_is_closed(cluster: &Cluster<'_>) -> Result<()> {
    let arti = Arti::start("early")?;
    let dialled = arti.runtime.block_on(arti.engine.dial(cluster.onion()?.parse()?, JOIN_PORT, LIMIT));
    ensure!(dialled.is_err(), "the join port is open although there was never an invitation");
    Ok(())
}

fn bad_tokens_are_refused(progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    let named: ClusterId = cluster.onion()?.parse()?;
    let unknown = JoinToken::new(TokenSecret::generate(&mut rand::rng()), named);
    kept_its_key(&*refused(cluster, "wrong", &Token(unknown.text().to_string()), "does not know this token")?)?;

    let elsewhere = ClusterId::from_public_key([7; 32]);
    let foreign = JoinToken::new(TokenSecret::generate(&mut rand::rng()), elsewhere);
    left_nothing(&*refused(cluster, "foreign", &Token(foreign.text().to_string()), "another cluster")?)?;

    let last = unknown.text().pop().context("a token is not empty")?;
    // Any other last character must be refused, although not all of its bits carry data.
    for other in ['a', 'b', 'e', '7'].into_iter().filter(|other| *other != last) {
        let mut mistyped = unknown.text().to_string();
        mistyped.pop();
        mistyped.push(other);
        left_nothing(&*refused(cluster, "mistyped", &Token(mistyped), "mistyped")?)?;
    }

    let expired = short_lived(nodes.named("alpha")?)?;
    std::thread::sleep(Duration::from_secs(2));
    kept_its_key(&*refused(cluster, "expired", &expired, "expired")?)?;
    let revoked = revoked(cluster, nodes)?;
    kept_its_key(&*refused(cluster, "revoked", &revoked, "was revoked")?)?;
    progress.report(format_args!("wrong, foreign, mistyped, expired and revoked tokens are refused"));
    Ok(())
}

/// A revoked token; every node knows the revocation.
fn revoked(cluster: &Cluster<'_>, nodes: &Nodes) -> Result<Token> {
    let alpha = nodes.named("alpha")?;
    let token = alpha.invite("worker", 1, "1h")?;
    let id = JoinToken::parse(&token.0)?.invitation_id().to_string();
    alpha.command(&["invite", "--revoke", &id[..8]], "", LIMIT)?.ok("invite --revoke")?;
    cluster.wait_until("every node knows that the token was revoked", LIMIT, || {
        for node in &nodes.0 {
            let listed = node.command(&["invite", "--list", "--json"], "", LIMIT)?.ok("invite --list")?;
            let invitations: Vec<InvitationStatus> = serde_json::from_str(&listed)?;
            let state = invitations.iter().find(|invitation| invitation.id == id).map(|invitation| invitation.state);
            ensure!(state == Some(InvitationState::Revoked), "{} lists it as {state:?}", node.name());
        }
        Ok(())
    })?;
    Ok(token)
}

/// A token that is valid for one second, which is shorter than the command line allows.
fn short_lived(node: &Node) -> Result<Token> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let request = Request::Invite { role: Role::Worker, expires_seconds: 1, uses: 1 };
    match runtime.block_on(call(&node.state(), &request, LIMIT))? {
        Response::Invited { token, .. } => Ok(Token(token.0.clone())),
        other => bail!("the daemon answers {other:?}"),
    }
}

/// Runs `join`, and repeats it as its message advises if Tor has lost the answer.
fn answered(cluster: &Cluster<'_>, node: &Node, token: &Token) -> Result<CommandOutput> {
    let mut result = cluster.try_join(node, token)?;
    for _ in 0..2 {
        if result.code == Some(0) || !result.errors.contains("run the same command again") {
            break;
        }
        result = cluster.try_join(node, token)?;
    }
    Ok(result)
}

/// Runs a `join` that must fail with this message.
fn refused(cluster: &Cluster<'_>, name: &str, token: &Token, message: &str) -> Result<Arc<Node>> {
    let node = cluster.vacant(name)?;
    let result = answered(cluster, &node, token)?;
    ensure!(result.code == Some(1), "joining with a {name} token ended with {:?}: {}", result.code, result.errors);
    ensure!(result.errors.contains(message), "a {name} token is refused without {message:?}: {}", result.errors);
    ensure!(!result.errors.contains(&token.0), "the refusal shows the token");
    Ok(node)
}

/// Fails unless the node's state directory has its key and no membership.
fn kept_its_key(node: &Node) -> Result<()> {
    let there = |name| node.state().join(name).exists();
    ensure!(there("node.key"), "{} was refused, and has deleted the key that it had shown", node.name());
    ensure!(!there("membership"), "{} was refused, and has a membership", node.name());
    Ok(())
}

/// Fails if there is a file in the node's state directory.
fn left_nothing(node: &Node) -> Result<()> {
    match std::fs::read_dir(node.state()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
        Ok(entries) => {
            let left: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
            ensure!(left.is_empty(), "{} was refused, and left {left:?}", node.name());
            Ok(())
        }
    }
}

fn garbage_at_the_join_port_changes_nothing(cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    let before = nodes.0.iter().map(|node| node.status()).collect::<Result<Vec<_>>>()?;
    let arti = Arti::start("vandal")?;
    let master = cluster.onion()?.parse()?;
    send_garbage(&arti, master, JOIN_PORT)?;
    for (node, before) in nodes.0.iter().zip(before) {
        ensure!(node.status()?.uptime_seconds >= before.uptime_seconds, "garbage ended {}", node.name());
        cluster.wait_until("the state is the same as before the garbage", LIMIT, || {
            let after = node.status()?;
            ensure!(after.alive() == before.alive(), "garbage changed the members that {} knows", node.name());
            ensure!(
                after.invitations == before.invitations,
                "garbage changed the invitations that {} knows",
                node.name()
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Two nodes redeem one token at the same time, perhaps at different publishers: in the end exactly
/// one is a member.
fn a_race_has_one_winner(progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes, token: &Token) -> Result<()> {
    let racers = [cluster.vacant("epsilon")?, cluster.vacant("zeta")?];
    let finished = std::thread::scope(|scope| {
        let threads = racers.each_ref().map(|racer| scope.spawn(|| answered(cluster, racer, token)));
        threads.map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a join panicked"))))
    });
    let mut admitted = Vec::new();
    for (racer, result) in racers.iter().zip(finished) {
        let result = result?;
        if result.code == Some(0) {
            admitted.push(racer);
        } else {
            ensure!(result.errors.contains("used up"), "the loser is refused with: {}", result.errors);
            kept_its_key(racer)?;
        }
    }
    ensure!(!admitted.is_empty(), "no racer was admitted");
    progress.report(format_args!("two nodes raced for one token, and {} were admitted at first", admitted.len()));
    for racer in &admitted {
        racer.run()?;
    }
    // If both were admitted, the cluster detects it, and the loser ends by itself.
    let started = Instant::now();
    let winner = cluster.wait_until("one racer is a member", Duration::from_secs(90), || {
        let running: Vec<_> = admitted.iter().filter(|racer| racer.is_running()).collect();
        ensure!(running.len() == 1, "{} racers are running", running.len());
        let winner = running[0].status()?.node;
        for node in &nodes.0 {
            let status = node.status()?;
            ensure!(status.published_of(&winner) > 0, "{} does not know the winner as published", node.name());
        }
        Ok(winner)
    })?;
    progress.report(format_args!("one racer is a member after {:.1} s", started.elapsed().as_secs_f64()));
    cluster.wait_until("all members know only the winner", LIMIT, || {
        for node in &nodes.0 {
            let members = node.status()?.members;
            ensure!(members.len() == 5, "{} knows {} members, not 5", node.name(), members.len());
            ensure!(members.iter().any(|member| member.node == winner), "{} does not know the winner", node.name());
        }
        Ok(())
    })
}
