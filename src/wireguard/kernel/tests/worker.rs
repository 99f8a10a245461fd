//! The thread, with an interface in memory.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustbalance_gossip::id::NodeId;

use super::fake::FakeDevice;
use crate::wireguard::conformance::until;
use crate::wireguard::kernel::{KernelError, begin, check_on_thread, common_port};
use crate::wireguard::{Desired, EngineError, Peer, WireguardSecret};

const LIMIT: Duration = Duration::from_secs(10);

fn me() -> NodeId {
    NodeId::from_public_key([1; 32])
}

fn desired(number: u8) -> Desired {
    let key = || WireguardSecret::generate(&mut rand::rng());
    let peer = Peer { keys: vec![key().public()], endpoints: Vec::new() };
    Desired { own: vec![key()], peers: BTreeMap::from([(NodeId::from_public_key([number; 32]), peer)]) }
}

#[tokio::test]
async fn the_thread_does_what_was_decided_and_removes_the_interface_at_the_end() {
    let device = FakeDevice::default();
    let owner = device.owner();
    let (shared, worker) = begin(me(), vec![Ipv4Addr::LOCALHOST.into()], LIMIT, move || Ok(owner)).await.unwrap();
    shared.apply(desired(2));
    worker.wake();
    until("the peer is added", || device.carriers().len() == 1).await;
    let hold = shared.hold(NodeId::from_public_key([2; 32]), true).unwrap();
    shared.apply(desired(3));
    assert!(hold.cut.is_cancelled(), "a stream with a removed peer goes on");
    worker.wake();
    until("it is replaced", || device.0.lock().routes.len() == 1 && device.0.lock().keys_set == 2).await;
    shared.stop();
    drop(worker);
    assert!(device.0.lock().is_removed, "the engine has ended before its interface");
}

#[tokio::test]
async fn an_interface_whose_calls_hang_is_thrown_away() {
    let device = FakeDevice::default();
    let is_stuck = Arc::clone(&device.0.lock().is_stuck);
    is_stuck.store(true, Ordering::Relaxed);
    let owner = device.owner();
    let (shared, worker) = begin(me(), Vec::new(), LIMIT, move || Ok(owner)).await.unwrap();
    shared.apply(desired(2));
    let hold = shared.hold(NodeId::from_public_key([2; 32]), true).unwrap();
    worker.wake();
    let short = Duration::from_millis(50);
    until("the call is overdue", || shared.is_overdue(short)).await;
    check_on_thread(&shared, LIMIT);
    assert!(!shared.has_stopped());
    check_on_thread(&shared, short);
    assert!(shared.has_stopped() && hold.cut.is_cancelled());
    let refused = shared.hold(NodeId::from_public_key([2; 32]), true).map(drop);
    assert!(matches!(refused, Err(EngineError::Stopped)));
    is_stuck.store(false, Ordering::Relaxed);
    drop(worker);
    assert!(device.0.lock().is_removed);
}

#[tokio::test]
async fn an_interface_that_was_removed_ends_the_engine() {
    let device = FakeDevice::default();
    let owner = device.owner();
    let (shared, _worker) = begin(me(), Vec::new(), LIMIT, move || Ok(owner)).await.unwrap();
    device.0.lock().is_gone = true;
    until("the engine stops", || shared.has_stopped()).await;
}

#[tokio::test]
async fn a_start_that_fails_or_hangs_says_so() {
    let refused = begin::<FakeDevice>(me(), Vec::new(), LIMIT, || Err(KernelError::NoModule("rb1".into()))).await;
    assert!(matches!(refused.map(drop), Err(KernelError::NoModule(_))));
    let short = Duration::from_millis(20);
    let (release, waits) = std::sync::mpsc::channel::<()>();
    let slow = begin::<FakeDevice>(me(), Vec::new(), short, move || {
        let _ = waits.recv_timeout(Duration::from_millis(200));
        Ok(FakeDevice::default())
    });
    assert!(matches!(slow.await.map(drop), Err(KernelError::TooSlow(_))));
    drop(release);
}

#[tokio::test]
async fn a_node_opens_a_bounded_number_of_streams_each_way() {
    let device = FakeDevice::default();
    let owner = device.owner();
    let (shared, _worker) = begin(me(), Vec::new(), LIMIT, move || Ok(owner)).await.unwrap();
    shared.apply(desired(2));
    let peer = NodeId::from_public_key([2; 32]);
    let mut held: Vec<_> = (0..8).map(|_| shared.hold(peer, true).unwrap()).collect();
    assert!(matches!(shared.hold(peer, true).map(drop), Err(EngineError::TooManyStreams(_))));
    assert!(shared.hold(peer, false).is_ok(), "the other direction has room of its own");
    held.pop();
    assert!(shared.hold(peer, true).is_ok());
    let stranger = NodeId::from_public_key([9; 32]);
    assert!(matches!(shared.hold(stranger, true).map(drop), Err(EngineError::UnknownPeer(_))));
}

#[test]
fn both_addresses_have_one_port() {
    let port = |addresses: &[&str]| {
        let listens: Vec<_> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        common_port(&listens)
    };
    assert_eq!(port(&["203.0.113.7:7440", "[2001:db8::7]:7440"]).unwrap(), 7440);
    assert!(matches!(port(&[]), Err(EngineError::Addresses(_))));
    let error = port(&["203.0.113.7:7440", "[2001:db8::7]:7441"]).unwrap_err();
    assert!(error.to_string().contains("7440 and 7441"), "{error}");
}
