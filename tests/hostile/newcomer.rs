//! What a node that joins is given, and when there is no room to invite another. Nobody is hostile here.

use anyhow::bail;
use rustbalance::clock::unix_now;
use rustbalance::control::{Request, Response};
use rustbalance::join::{Terms, invite};
use rustbalance::keys::NodeSecret;
use rustbalance::store::Store;
use rustbalance_gossip::record::Role;
use rustbalance_gossip::view::MAX_INVITATIONS;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_invitation_too_many_is_refused_with_the_way_out() {
    let mut town = Town::start("").await;
    town.named_mut("alpha").kill().await;
    let store = Store::open(town.named("alpha").dir()).unwrap();
    let authority = store.authority_secret().unwrap().unwrap();
    let one = || invite(town.master, &authority, Terms::default(), unix_now(), &mut rand::rng()).unwrap().1;
    // With the two that made beta and gamma members.
    let more: Vec<_> = (2..MAX_INVITATIONS).map(|_| one()).collect();
    store.put_invitations(&more, unix_now()).unwrap();
    drop(store);
    let net = town.net.clone();
    town.named_mut("alpha").run(&net);
    let told = until("alpha refuses another", async || {
        let request = Request::Invite { role: Role::Worker, expires_seconds: 60, uses: 1 };
        match town.named("alpha").call(request).await? {
            Response::Refused { message } if message.contains("invitations") => Ok(message),
            other => bail!("{other:?}"),
        }
    })
    .await;
    assert!(told.contains("--uses") && told.contains("--expires"), "{told}");
}
