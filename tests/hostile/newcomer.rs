//! The data that a joining node receives, and the bound on open invitations. There is no hostile
//! peer.

use anyhow::{bail, ensure};
use rustbalance::clock::unix_now;
use rustbalance::control::{Request, Response};
use rustbalance::join::{JoinedService, Terms, invite};
use rustbalance::keys::NodeSecret;
use rustbalance::store::Store;
use rustbalance_gossip::record::{Fact, Invitation, Role};
use tokio::net::TcpListener;

use crate::test_cluster::{TestCluster, until};

/// A new node also receives a port that was added after `init`. The publisher answers from memory:
/// the discovery key on its disk is removed before the join.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_is_given_the_ports_that_are_served() {
    let mail = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = format!("[[port]]\nvirtual = 25\ntarget = \"{}\"\n", mail.local_addr().unwrap());
    tokio::spawn(async move { while mail.accept().await.is_ok() {} });
    let test_cluster = TestCluster::start(&port).await;
    let token = test_cluster.invite(Role::Worker, 1).await;
    for publisher in ["alpha", "beta"] {
        std::fs::remove_file(test_cluster.named(publisher).dir().join("discovery.key")).unwrap();
    }
    let key = NodeSecret::generate(&mut rand::rng());
    let joined = until("a node joins", async || test_cluster.redeem(&token, &key).await).await;
    assert_eq!(joined.services, [JoinedService { service: test_cluster.service(), ports: vec![80, 25] }]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_invitation_too_many_is_refused_with_the_way_out() {
    let mut test_cluster = TestCluster::start("").await;
    test_cluster.named_mut("alpha").kill().await;
    let store = Store::open(test_cluster.named("alpha").dir()).unwrap();
    let authority = store.authority_secret().unwrap().unwrap();
    let one = || invite(test_cluster.cluster, &authority, Terms::default(), unix_now(), &mut rand::rng()).unwrap().1;
    // Two more invitations exist already: those of beta and gamma.
    let more: Vec<_> = (2..Invitation::MAX_KEPT).map(|_| one()).collect();
    store.put_invitations(&more, unix_now()).unwrap();
    drop(store);
    let net = test_cluster.net.clone();
    test_cluster.named_mut("alpha").run(&net);
    let refusal = until("alpha refuses a further invitation", async || {
        let request = Request::Invite { role: Role::Worker, expires_seconds: 60, uses: 1 };
        match test_cluster.named("alpha").call(request).await? {
            Response::Refused { message } if message.contains("invitations") => Ok(message),
            other => bail!("{other:?}"),
        }
    })
    .await;
    assert!(refusal.contains("--uses") && refusal.contains("--expires"), "{refusal}");
}

/// A client may reach any node, so `status` on every node names a node that lacks a port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lacks_a_port_is_shown_everywhere() {
    let mail = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = format!("[[port]]\nvirtual = 25\ntarget = \"{}\"\n", mail.local_addr().unwrap());
    tokio::spawn(async move { while mail.accept().await.is_ok() {} });
    let mut test_cluster = TestCluster::start(&port).await;
    let shows =
        |test_cluster: &TestCluster, name: &str| test_cluster.named(name).shown().contains("port 25 is served by");
    for name in ["alpha", "beta", "gamma"] {
        assert!(!shows(&test_cluster, name), "{name} reports a missing port although all nodes have all ports");
    }
    let (file, gamma) =
        (test_cluster.named("gamma").dir().join("rustbalance.toml"), test_cluster.named("gamma").id.short());
    let config = std::fs::read_to_string(&file).unwrap().replace(&port, "");
    std::fs::write(&file, config).unwrap();
    test_cluster.named_mut("gamma").stop().await;
    let net = test_cluster.net.clone();
    test_cluster.named_mut("gamma").run(&net);
    for name in ["alpha", "beta", "gamma"] {
        until("status names the node", async || {
            ensure!(shows(&test_cluster, name), "{name} does not name it");
            Ok(())
        })
        .await;
        let shown = test_cluster.named(name).shown();
        assert!(shown.contains(&format!("and not by {gamma}")), "{name} shows {shown}");
    }
}
