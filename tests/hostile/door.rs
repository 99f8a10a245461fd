//! A stranger at the join port guesses tokens, replays captured joins, and uses one token at two
//! nodes at once.

use anyhow::{Context, Result, ensure};
use rustbalance::clock::unix_now;
use rustbalance::control::Status;
use rustbalance::frame::{self, MAX};
use rustbalance::join::{Joined, Token, persist_joined, redeem};
use rustbalance::keys::{NodeSecret, TokenSecret};
use rustbalance::link::handshake::Purpose;
use rustbalance::node::NodeError;
use rustbalance::store::{SetupCommand, Store};
use rustbalance::stream::BoxStream;
use rustbalance_gossip::codec;
use rustbalance_gossip::record::Role;
use tokio::task::JoinSet;

use crate::member::Member;
use crate::test_cluster::{TestCluster, until};

/// The reason in a frame that refuses a join; an error for any other frame.
pub(crate) fn refusal_in(frame: &[u8]) -> Result<String> {
    let value: ciborium::Value = codec::decode(frame, MAX)?;
    let entries = value.as_map().context("the frame is not a map")?;
    let (key, refused) = entries.first().context("the frame is an empty map")?;
    ensure!(key.as_text() == Some("Refused"), "the frame is {key:?} instead of a refusal");
    refused.as_text().map(str::to_owned).with_context(|| format!("{refused:?}"))
}

/// The frames of a joiner, as the node that carries the join sees them.
pub(crate) struct Capture {
    pub(crate) hello: Vec<u8>,
    pub(crate) redeem: Vec<u8>,
}

/// Carries a join and copies its frames. With `keep`, the Redeem frame is not forwarded and the
/// connection is closed.
pub(crate) async fn carried(
    test_cluster: &TestCluster,
    token: &Token,
    key: &NodeSecret,
    keep: bool,
) -> Result<(Capture, Option<Joined>)> {
    let (near, mut joiner) = tokio::io::duplex(1 << 16);
    let (mut cluster, _engine) = test_cluster.dial_join_port().await?;
    let carrying = async {
        let hello = frame::read(&mut joiner, MAX).await?;
        frame::write(&mut cluster, &hello).await?;
        frame::write(&mut joiner, &frame::read(&mut cluster, MAX).await?).await?;
        let redeem = frame::read(&mut joiner, MAX).await?;
        if !keep {
            frame::write(&mut cluster, &redeem).await?;
            frame::write(&mut joiner, &frame::read(&mut cluster, MAX).await?).await?;
        }
        drop(joiner);
        anyhow::Ok(Capture { hello, redeem })
    };
    let near: BoxStream = Box::new(near);
    let (joined, capture) = tokio::join!(redeem(near, token, key, test_cluster.cluster, unix_now), carrying);
    match (capture?, joined) {
        (capture, Ok(joined)) => Ok((capture, Some(joined))),
        (capture, Err(_)) if keep => Ok((capture, None)),
        (_, Err(error)) => Err(error.into()),
    }
}

/// Replays captured frames on a new stream; returns the reason of the refusal.
pub(crate) async fn replayed(mut stream: BoxStream, hello: &[u8], redeem: &[u8]) -> Result<String> {
    frame::write(&mut stream, hello).await?;
    let challenge = frame::read(&mut stream, MAX).await?;
    ensure!(refusal_in(&challenge).is_err(), "refused before the Redeem: {:?}", refusal_in(&challenge));
    frame::write(&mut stream, redeem).await?;
    refusal_in(&frame::read(&mut stream, MAX).await?)
}

/// The number of nodes that have redeemed a token.
fn redeemed(status: &Status, token: &Token) -> u16 {
    let id = token.invitation_id().to_string();
    status.invitations.iter().find(|invitation| invitation.id == id).map_or(0, |invitation| invitation.redeemed)
}

/// The number of members; fails unless all running daemons know the same number.
async fn members(test_cluster: &TestCluster) -> usize {
    let mut counts = Vec::new();
    for daemon in test_cluster.running() {
        counts.push(daemon.status().await.unwrap().members.len());
    }
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    counts[0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessed_tokens_admit_no_node() {
    let test_cluster = TestCluster::start("[joins]\nconcurrent = 6\nburst = 20\ninterval = \"1s\"\n").await;
    let good = test_cluster.invite(Role::Worker, 1).await;
    let visitors = test_cluster.visitors();
    let mut guesses = JoinSet::new();
    for _ in 0..150 {
        let (net, cluster) = (test_cluster.net.clone(), test_cluster.cluster);
        guesses.spawn(async move {
            let engine = net.engine();
            let dial = rustbalance::tor::Engine::dial(
                &*engine,
                cluster.first_service().address(),
                7441,
                std::time::Duration::from_secs(5),
            );
            let Ok(stream) = dial.await else { return };
            let guess = Token::new(TokenSecret::generate(&mut rand::rng()), cluster);
            let key = NodeSecret::generate(&mut rand::rng());
            let joined = redeem(stream, &guess, &key, cluster, unix_now).await;
            assert!(joined.is_err(), "a guessed token was accepted");
        });
    }
    while let Some(guess) = guesses.join_next().await {
        guess.unwrap();
    }
    test_cluster.counts("join_unknown_token", 1).await;
    let turned_away = test_cluster.refused("join_over_limit").await + test_cluster.refused("join_busy").await;
    assert!(turned_away > 10, "only {turned_away} guesses were refused by the rate limit");
    assert_eq!(members(&test_cluster).await, 3);
    // The real token still admits a node.
    drop(test_cluster.join("delta", &good).await);
    test_cluster.healthy().await;
    visitors.all_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_captured_join_is_of_no_use_to_another_node() {
    let test_cluster = TestCluster::start("").await;
    let token = test_cluster.invite(Role::Publisher, 2).await;
    let visitors = test_cluster.visitors();
    let key = NodeSecret::generate(&mut rand::rng());
    let (capture, joined) =
        until("a node joins", async || Box::pin(carried(&test_cluster, &token, &key, false)).await).await;
    assert_eq!(joined.unwrap().member.node(), key.node_id());
    until("every node knows that the token was used", async || {
        for daemon in test_cluster.running() {
            ensure!(redeemed(&daemon.status().await?, &token) == 1, "{} does not know it", daemon.name);
        }
        Ok(())
    })
    .await;
    // The token has a use left, so a node can refuse the replay only because of the proof in the
    // Redeem frame.
    for _ in 0..6 {
        let refused = until("the replay is answered", async || {
            let (stream, _engine) = test_cluster.dial_join_port().await?;
            replayed(stream, &capture.hello, &capture.redeem).await
        })
        .await;
        assert_eq!(refused, "UnknownToken");
    }
    test_cluster.counts("join_unknown_token", 6).await;
    for daemon in test_cluster.running() {
        assert_eq!(redeemed(&daemon.status().await.unwrap(), &token), 1, "{}", daemon.name);
    }
    test_cluster.healthy().await;
    visitors.all_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_raced_at_two_publishers_makes_one_member() {
    let mut test_cluster = TestCluster::start("").await;
    let token = test_cluster.invite(Role::Worker, 1).await;
    // A worker carries the two joins to different publishers, which have no path between them.
    let carrier = Member::join(&test_cluster, Role::Worker).await;
    let visitors = test_cluster.visitors();
    let streams = [
        carrier.link(test_cluster.daemons[0].id, Purpose::CarryJoin).await.unwrap(),
        carrier.link(test_cluster.daemons[1].id, Purpose::CarryJoin).await.unwrap(),
    ];
    let engines: Vec<_> = test_cluster.daemons.iter().map(|daemon| std::sync::Arc::clone(&daemon.engine)).collect();
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        test_cluster.net.sever(&engines[one], &engines[other]);
    }
    let racer = async |name: &str, stream: BoxStream| -> Result<Store> {
        let mut draft = Store::create(&test_cluster.daemons[0].dir().with_file_name(name))?;
        draft.begin(SetupCommand::Join, test_cluster.cluster)?;
        let key = draft.node_secret(|| NodeSecret::generate(&mut rand::rng()))?;
        let joined = redeem(stream, &token, &key, test_cluster.cluster, unix_now).await?;
        Ok(persist_joined(draft, &joined)?)
    };
    let [to_alpha, to_beta] = streams;
    let (one, two) = tokio::join!(racer("one", to_alpha), racer("two", to_beta));
    test_cluster.net.heal();
    for (name, store) in [("one", one.unwrap()), ("two", two.unwrap())] {
        let (id, dir) = (store.node_id(), store.dir().to_owned());
        drop(store);
        test_cluster.add(name, id, dir).await;
    }
    // The cluster detects it, and the loser is notified and ends.
    let loser = until("one of the two nodes ends", async || {
        let ended = ["one", "two"].into_iter().find(|name| test_cluster.named(name).has_ended());
        ended.context("both are running")
    })
    .await;
    let why = test_cluster.named_mut(loser).end().await;
    assert!(matches!(why, NodeError::Excluded(_)), "{loser} ended with {why}");
    until("a refusal of the loser is counted", async || {
        let mut refused = 0;
        for name in ["record_overdrawn", "record_revoked", "link_revoked"] {
            refused += test_cluster.refused(name).await;
        }
        ensure!(refused > 0, "no daemon counts one");
        Ok(())
    })
    .await;
    // In a healthy cluster the winner is a live member and the stopped node is not.
    test_cluster.healthy().await;
    assert_eq!(test_cluster.running().count(), 4);
    let winner = test_cluster.named(if loser == "one" { "two" } else { "one" }).id.to_string();
    let id = token.invitation_id().to_string();
    for daemon in test_cluster.running() {
        let members = daemon.status().await.unwrap().members;
        let with_it = members.iter().filter(|member| member.invitation.as_deref() == Some(&id));
        let with_it: Vec<&str> = with_it.map(|member| member.node.as_str()).collect();
        assert_eq!(with_it, [winner.as_str()], "{} lists other nodes that joined with the token", daemon.name);
    }
    let seen = visitors.end().await;
    assert!(seen.failures.is_empty(), "{seen:?}");
}
