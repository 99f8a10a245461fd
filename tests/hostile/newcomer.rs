//! What a node that joins is given. Nobody is hostile here but the operator's hand in the configuration.

use rustbalance::keys::NodeSecret;
use rustbalance_gossip::record::Role;
use tokio::net::TcpListener;

use crate::town::{Town, until};

/// A port that was added after `init` is among those that a new node begins with; and what is handed out is what the
/// publisher works with, not what it would have to fetch from the disk while it decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_is_given_the_ports_that_are_served() {
    let mail = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = format!("[[port]]\nvirtual = 25\ntarget = \"{}\"\n", mail.local_addr().unwrap());
    tokio::spawn(async move { while mail.accept().await.is_ok() {} });
    let town = Town::start(&port).await;
    let token = town.invite(Role::Worker, 1).await;
    for publisher in ["alpha", "beta"] {
        std::fs::remove_file(town.named(publisher).dir().join("discovery.key")).unwrap();
    }
    let key = NodeSecret::generate(&mut rand::rng());
    let joined = until("somebody joins", async || town.redeem(&token, &key).await).await;
    assert_eq!(joined.ports, [80, 25]);
}
