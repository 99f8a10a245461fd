//! Used-up tokens at publishers that may not know it yet, and crowds of strangers at the join port.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustbalance::clock::unix_now;
use rustbalance::config::JOIN_PORT;
use rustbalance::control::{InvitationState, Request, Response};
use rustbalance::join::{JoinError, JoinRefusal, Joined, Token, redeem};
use rustbalance::keys::NodeSecret;
use rustbalance::link::handshake::Purpose;
use rustbalance::tor::Engine;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::Role;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::member::Member;
use crate::test_cluster::{TestCluster, until};

fn key() -> NodeSecret {
    NodeSecret::generate(&mut rand::rng())
}

/// Redeems a token at this publisher; a member carries the join there.
async fn redeem_at(
    test_cluster: &TestCluster,
    carrier: &Member,
    at: NodeId,
    token: &Token,
    key: &NodeSecret,
) -> Result<Joined> {
    let stream = carrier.link(at, Purpose::CarryJoin).await?;
    Ok(redeem(stream, token, key, test_cluster.cluster, unix_now).await?)
}

/// The refusal that the thief received; an error if it had no answer.
fn refusal(joined: Result<Joined>) -> Result<JoinRefusal> {
    match joined {
        Ok(joined) => panic!("the thief was admitted as a {}", joined.member.role()),
        Err(error) => match error.downcast::<JoinError>()? {
            JoinError::Refused(refusal) => Ok(refusal),
            other => Err(other.into()),
        },
    }
}

/// A publisher comes back without a path to the others: it knows of the token only what is on its
/// disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_token_stays_used_at_a_publisher_that_was_away() {
    let mut test_cluster = TestCluster::start("").await;
    let carrier = Member::join(&test_cluster, Role::Worker).await;
    let tokens = [test_cluster.invite(Role::Publisher, 1).await, test_cluster.invite(Role::Worker, 1).await];
    let (alpha, beta, thief) = (test_cluster.named("alpha").id, test_cluster.named("beta").id, key());
    test_cluster.named_mut("beta").stop().await;
    for token in &tokens {
        let honest = key();
        until("an honest node joins", async || redeem_at(&test_cluster, &carrier, alpha, token, &honest).await).await;
    }
    let net = test_cluster.net.clone();
    test_cluster.named_mut("beta").run(&net);
    for name in ["alpha", "gamma"] {
        test_cluster.net.sever(&test_cluster.named("beta").engine, &test_cluster.named(name).engine);
    }
    for token in &tokens {
        let mut answers = 0;
        while answers < 5 {
            match refusal(redeem_at(&test_cluster, &carrier, beta, token, &thief).await) {
                Ok(refusal) => {
                    assert_eq!(refusal, JoinRefusal::NotYet);
                    answers += 1;
                }
                // The daemon is not ready yet.
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }
    until("each refusal is counted", async || {
        let counted = test_cluster.named("beta").refused("join_not_yet").await;
        ensure!(counted == 10, "{counted} are counted");
        Ok(())
    })
    .await;
    test_cluster.net.heal();
    for token in &tokens {
        until("beta knows that the token is used up", async || {
            match refusal(redeem_at(&test_cluster, &carrier, beta, token, &thief).await)? {
                JoinRefusal::UsedUp { uses: 1 } => Ok(()),
                other => bail!("{other}"),
            }
        })
        .await;
    }
}

/// No path is cut, but all have the same latency: the thief reaches the returning publisher as fast
/// as the members do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thief_cannot_use_a_used_token_at_a_publisher_that_starts() {
    let mut test_cluster = TestCluster::start("").await;
    let carrier = Member::join(&test_cluster, Role::Worker).await;
    let token = test_cluster.invite(Role::Publisher, 1).await;
    let (alpha, beta, thief, honest) = (test_cluster.named("alpha").id, test_cluster.named("beta").id, key(), key());
    test_cluster.named_mut("beta").stop().await;
    until("an honest node joins", async || redeem_at(&test_cluster, &carrier, alpha, &token, &honest).await).await;
    test_cluster.net.latency(Duration::from_millis(150));
    let net = test_cluster.net.clone();
    test_cluster.named_mut("beta").run(&net);
    until("beta knows that the token is used up", async || {
        let tries = (0..8).map(|_| redeem_at(&test_cluster, &carrier, beta, &token, &thief));
        let answers = futures::future::join_all(tries).await;
        let refusals: Vec<_> = answers.into_iter().filter_map(|joined| refusal(joined).ok()).collect();
        let used_up = refusals.iter().filter(|refusal| matches!(refusal, JoinRefusal::UsedUp { .. })).count();
        ensure!(used_up > 0, "it refuses with {refusals:?}");
        Ok(())
    })
    .await;
}

/// A silent publisher may have admitted a node with the same token, so no further publisher is
/// admitted meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_publisher_is_admitted_while_another_is_silent() {
    let mut test_cluster = TestCluster::start("").await;
    let tokens = [test_cluster.invite(Role::Publisher, 1).await, test_cluster.invite(Role::Worker, 1).await];
    let (beta, joiner) = (test_cluster.named("beta").id, key());
    test_cluster.named_mut("beta").kill().await;
    until("alpha refuses a publisher", async || {
        match test_cluster.redeem(&tokens[0], &joiner).await.err().context("the publisher was admitted")?.downcast()? {
            JoinError::Refused(JoinRefusal::Silent(node)) if node == beta => Ok(()),
            other => bail!(other),
        }
    })
    .await;
    until("a worker joins", async || test_cluster.redeem(&tokens[1], &key()).await).await;
    let net = test_cluster.net.clone();
    test_cluster.named_mut("beta").run(&net);
    until("the publisher joins", async || test_cluster.redeem(&tokens[0], &joiner).await).await;
}

/// For each join that it carries, a worker dials a publisher, which accepts a bounded number of
/// links.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_at_a_workers_join_port_do_not_crowd_the_publishers_links() {
    let test_cluster = TestCluster::start("").await;
    let _open = test_cluster.invite(Role::Worker, 1).await;
    let publishers = async || {
        test_cluster.named("alpha").refused("link_over_rate").await
            + test_cluster.named("beta").refused("link_over_rate").await
    };
    let before = publishers().await;
    let mut strangers = JoinSet::new();
    for _ in 0..40 {
        let (net, cluster) = (test_cluster.net.clone(), test_cluster.cluster);
        strangers.spawn(async move {
            loop {
                let engine = net.engine();
                let stream =
                    Engine::dial(&*engine, cluster.first_service().address(), JOIN_PORT, Duration::from_secs(5)).await;
                drop(stream);
                sleep(Duration::from_millis(20)).await;
            }
        });
    }
    // Counted instead of timed: how long it takes depends on the machine.
    until("the worker refuses strangers", async || {
        let turned_away = test_cluster.named("gamma").refused("join_over_limit").await;
        ensure!(turned_away > 100, "it has refused {turned_away}");
        Ok(())
    })
    .await;
    strangers.shutdown().await;
    assert_eq!(publishers().await, before, "publishers have refused links because of their limit");
    test_cluster.healthy().await;
}

/// Two publishers without a path between them each admit a node with the same token. Both nodes
/// then have the service's identity key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publishers_token_that_two_nodes_used_is_an_alarm_until_it_is_acknowledged() {
    let mut test_cluster = TestCluster::start("").await;
    let carrier = Member::join(&test_cluster, Role::Worker).await;
    let token = test_cluster.invite(Role::Publisher, 1).await;
    let keys = [key(), key()];
    // The streams are opened before the paths are cut, so neither publisher takes the other for
    // silent yet.
    let mut streams = Vec::new();
    for daemon in &test_cluster.daemons[..2] {
        streams.push(carrier.link(daemon.id, Purpose::CarryJoin).await.unwrap());
    }
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        test_cluster.net.sever(&test_cluster.daemons[one].engine, &test_cluster.daemons[other].engine);
    }
    let joins =
        streams.into_iter().zip(&keys).map(|(stream, key)| redeem(stream, &token, key, test_cluster.cluster, unix_now));
    for joined in futures::future::join_all(joins).await {
        assert!(joined.unwrap().secrets.is_some());
    }
    test_cluster.net.heal();
    let id = token.invitation_id().to_string();
    let warned = async |test_cluster: &TestCluster, name: &str| -> Result<bool> {
        let alarms = test_cluster.named(name).status().await?.alarms;
        let both = |nodes: &[String]| keys.iter().all(|key| nodes.contains(&key.node_id().to_string()));
        Ok(alarms.iter().any(|alarm| alarm.invitation == id && alarm.uses == 1 && both(&alarm.nodes)))
    };
    for name in ["alpha", "beta", "gamma"] {
        until("every node warns", async || {
            ensure!(warned(&test_cluster, name).await?, "{name} does not warn");
            Ok(())
        })
        .await;
        let shown = test_cluster.named(name).shown();
        assert!(shown.contains("the key of the address has been given to 2 nodes"), "{name} shows {shown}");
    }
    // The alarm survives a restart, and so does its acknowledgement.
    let net = test_cluster.net.clone();
    let acknowledge = || Request::Acknowledge { invitation: id[..8].parse().unwrap() };
    for (acknowledged, name) in [(false, "gamma"), (true, "gamma")] {
        if acknowledged {
            let answer = test_cluster.named(name).call(acknowledge()).await.unwrap();
            assert!(matches!(answer, Response::Done { .. }), "{answer:?}");
        }
        test_cluster.named_mut(name).stop().await;
        test_cluster.named_mut(name).run(&net);
        until("the restarted node knows the invitation", async || {
            ensure!(
                test_cluster.named(name).status().await?.invitations.iter().any(|invitation| invitation.id == id),
                "the status does not list it"
            );
            Ok(())
        })
        .await;
        assert_eq!(warned(&test_cluster, name).await.unwrap(), !acknowledged);
    }
    // A thief with the key could sign for the cluster, so an acknowledgement counts only on its own
    // node.
    assert!(warned(&test_cluster, "alpha").await.unwrap());
    let again = test_cluster.named("gamma").call(acknowledge()).await.unwrap();
    assert!(matches!(again, Response::Refused { .. }), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_was_taken_back_admits_no_node_anywhere() {
    let test_cluster = TestCluster::start("").await;
    let token = test_cluster.invite(Role::Worker, 3).await;
    let early = key();
    until("a node joins", async || test_cluster.redeem(&token, &early).await).await;
    let id = token.invitation_id().to_string();
    let revoke = |beginning: &str| Request::RevokeInvitation { invitation: beginning.parse().unwrap() };
    let at_worker = test_cluster.named("gamma").call(revoke(&id[..6])).await.unwrap();
    assert!(matches!(&at_worker, Response::Refused { message } if message.contains("worker")), "{at_worker:?}");
    until("beta knows that a node has joined", async || {
        let known = test_cluster.named("beta").status().await?.invitations;
        ensure!(
            known.iter().any(|invitation| invitation.id == id && invitation.redeemed == 1),
            "beta does not know it"
        );
        Ok(())
    })
    .await;
    let answer = test_cluster.named("beta").call(revoke(&id[..6])).await.unwrap();
    let Response::Done { message } = answer else { panic!("{answer:?}") };
    assert!(message.contains(&early.node_id().short()), "the answer must name the node that has joined: {message}");
    until("every node knows that the token is revoked", async || {
        for daemon in test_cluster.running() {
            let known = daemon.status().await?.invitations;
            let state = known.iter().find(|invitation| invitation.id == id).map(|invitation| invitation.state);
            ensure!(state == Some(InvitationState::Revoked), "{} lists it as {state:?}", daemon.name);
        }
        Ok(())
    })
    .await;
    for _ in 0..4 {
        until("the late joiner is refused", async || match refusal(test_cluster.redeem(&token, &key()).await)? {
            JoinRefusal::Revoked => Ok(()),
            other => bail!("{other}"),
        })
        .await;
    }
    let unknown = test_cluster.named("beta").call(revoke("0000")).await.unwrap();
    assert!(matches!(unknown, Response::Refused { .. }), "{unknown:?}");
}
