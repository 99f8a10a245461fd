//! The machine among honest nodes, in time that the test moves on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rustbalance_gossip::id::NodeId;
use tokio::time::Instant;

use super::lab::Lab;
use crate::wireguard::userspace::machine::Event;
use crate::wireguard::userspace::stack::{Blocked, MOST_STREAMS};
use crate::wireguard::{Desired, EngineError, MOST_PEERS, Peer, PeerProblem, WireguardSecret};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn without_keys_nothing_is_ever_sent() {
    let mut lab = Lab::new(2);
    let peers = BTreeMap::from([(lab.nodes[1].id, lab.nodes[1].peer())]);
    lab.handle(0, Event::Apply(Desired { own: Vec::new(), peers }));
    lab.run(60 * SECOND);
    assert!(lab.sent.is_empty());
}

#[test]
fn a_new_peer_gets_a_handshake_at_once() {
    let mut lab = Lab::new(2);
    lab.apply(0, BTreeMap::from([(lab.nodes[1].id, lab.nodes[1].peer())]));
    let [(_, (_, to, bytes))] = &lab.sent[..] else { panic!("{} datagrams", lab.sent.len()) };
    assert_eq!((*to, bytes.len()), (lab.nodes[1].address, 148));
}

#[test]
fn a_peer_without_endpoint_is_left_to_send_first() {
    let mut lab = Lab::new(2);
    let hidden = Peer { endpoints: Vec::new(), ..lab.nodes[1].peer() };
    lab.apply(0, BTreeMap::from([(lab.nodes[1].id, hidden)]));
    lab.run(10 * SECOND);
    assert!(lab.sent.is_empty());
    assert_eq!(lab.status(0, 1).problem, Some(PeerProblem::NoEndpoint));
    lab.apply(1, BTreeMap::from([(lab.nodes[0].id, lab.nodes[0].peer())]));
    lab.settle();
    let status = lab.status(0, 1);
    assert_eq!((status.endpoint, status.problem), (Some(lab.nodes[1].address), None));
    // The NAT that the peer may be behind never sees 20 s without a datagram.
    let start = lab.now;
    lab.run(300 * SECOND);
    assert!(lab.is_up(0, 1) && lab.is_up(1, 0));
    let times: Vec<Instant> = lab.sent.iter().map(|(at, _)| *at).filter(|at| *at >= start).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] < 20 * SECOND));
    assert!(times.len() <= 2 * (300 / 15 + 1), "{} datagrams while idle", times.len());
}

#[test]
fn handshakes_with_a_silent_peer_become_rare() {
    let mut lab = Lab::new(2);
    lab.apply(0, BTreeMap::from([(lab.nodes[1].id, lab.nodes[1].peer())]));
    lab.run(600 * SECOND);
    let sent = lab.sent.len();
    assert!((60..90).contains(&sent), "{sent} handshakes in 10 minutes");
    assert_eq!(lab.status(0, 1).problem, Some(PeerProblem::NoAnswer { tried: lab.nodes[1].address }));
}

#[test]
fn a_stream_follows_a_node_that_moves_while_it_sends() {
    let mut lab = Lab::introduced(2);
    lab.settle();
    let (near, far) = lab.open(0, 1);
    assert_eq!(lab.say((0, near), (1, far), b"before", SECOND), b"before");
    lab.nodes[0].address = SocketAddr::from(([198, 51, 100, 9], 4000));
    assert_eq!(lab.say((0, near), (1, far), b"after", SECOND), b"after");
    assert_eq!(lab.say((1, far), (0, near), b"answer", SECOND), b"answer");
    assert_eq!(lab.status(1, 0).endpoint, Some(lab.nodes[0].address));
}

#[test]
fn a_session_that_was_cut_is_down_in_seconds_and_comes_back() {
    let mut lab = Lab::introduced(2);
    lab.settle();
    let (near, _) = lab.open(0, 1);
    lab.is_cut = true;
    let mut down = Duration::ZERO;
    while lab.is_up(0, 1) {
        let _ = lab.nodes[0].machine.write(near, b"probe");
        lab.run(SECOND / 10);
        down += SECOND / 10;
    }
    assert!(down <= 5 * SECOND, "{down:?}");
    lab.run(30 * SECOND);
    assert_eq!(lab.nodes[0].machine.read(near, &mut [0]), Err(Blocked::Broken));
    lab.run(60 * SECOND);
    assert!(!lab.is_up(1, 0), "a silent session counts as up");
    lab.is_cut = false;
    let back = lab.run_until("the session is up", |lab| lab.is_up(0, 1) && lab.is_up(1, 0));
    assert!(back <= 8 * SECOND, "{back:?}");
    lab.open(1, 0);
}

#[test]
fn a_session_is_found_again_after_the_other_side_forgot_it() {
    let mut lab = Lab::introduced(2);
    lab.settle();
    // Node 1 drops the session, and its own handshakes cannot reach node 0.
    lab.apply(1, BTreeMap::new());
    let hidden = Peer { endpoints: Vec::new(), ..lab.nodes[0].peer() };
    lab.apply(1, BTreeMap::from([(lab.nodes[0].id, hidden)]));
    let to = lab.nodes[1].id;
    let _ = lab.nodes[0].machine.dial(to).unwrap();
    lab.handle(0, Event::Tick);
    let found = lab.run_until("the session is up", |lab| lab.is_up(1, 0));
    assert!(found <= 6 * SECOND, "{found:?}");
    lab.open(0, 1);
}

#[test]
fn a_dial_that_is_not_answered_fails_and_dials_are_bounded() {
    let mut lab = Lab::introduced(2);
    lab.settle();
    lab.is_cut = true;
    let peer = lab.nodes[1].id;
    let dialled: Vec<_> = (0..MOST_STREAMS).map(|_| lab.nodes[0].machine.dial(peer).unwrap()).collect();
    assert!(matches!(lab.nodes[0].machine.dial(peer), Err(EngineError::TooManyStreams(_))));
    let stranger = NodeId::from_public_key([99; 32]);
    assert!(matches!(lab.nodes[0].machine.dial(stranger), Err(EngineError::UnknownPeer(_))));
    lab.handle(0, Event::Tick);
    lab.run(10 * SECOND);
    for id in &dialled {
        assert!(lab.nodes[0].failed.contains(id));
        lab.nodes[0].machine.release(*id, lab.now);
    }
    lab.handle(0, Event::Tick);
    lab.is_cut = false;
    lab.run(10 * SECOND);
    lab.open(0, 1);
}

#[test]
fn a_stream_that_is_dropped_frees_its_place_at_both_ends() {
    let mut lab = Lab::introduced(2);
    lab.settle();
    for round in 0..3 * MOST_STREAMS {
        let (near, far) = lab.open(0, 1);
        assert_eq!(lab.nodes[0].machine.write(near, b"last bytes"), Ok(10));
        lab.nodes[0].machine.release(near, lab.now);
        lab.handle(0, Event::Tick);
        lab.run(SECOND);
        let mut buffer = [0; 64];
        assert_eq!(lab.nodes[1].machine.read(far, &mut buffer), Ok(10), "round {round}");
        assert_eq!(lab.nodes[1].machine.read(far, &mut buffer), Ok(0));
        lab.nodes[1].machine.release(far, lab.now);
        lab.handle(1, Event::Tick);
        lab.run(SECOND);
    }
}

#[test]
fn what_the_host_does_not_send_is_shown_until_the_peer_is_heard() {
    let mut lab = Lab::introduced(2);
    let to = lab.nodes[1].address;
    lab.handle(0, Event::NotSent { to, error: "Operation not permitted".to_owned() });
    let problem = lab.status(0, 1).problem.unwrap();
    assert_eq!(problem, PeerProblem::NotSent { to, error: "Operation not permitted".to_owned() });
    assert_eq!(problem.to_string(), "this host cannot send to 192.0.2.2:51820: Operation not permitted");
    lab.settle();
    assert_eq!(lab.status(0, 1).problem, None);
}

#[test]
fn peers_that_go_leave_nothing_behind_and_their_number_is_bounded() {
    let mut lab = Lab::new(1);
    let key = || WireguardSecret::generate(&mut rand::rng()).public();
    let node = |at: usize| {
        let mut bytes = [0xee; 32];
        bytes[..8].copy_from_slice(&at.to_be_bytes());
        NodeId::from_public_key(bytes)
    };
    let peers = |count: usize| -> BTreeMap<NodeId, Peer> {
        (0..count).map(|at| (node(at), Peer { keys: vec![key(), key(), key()], endpoints: Vec::new() })).collect()
    };
    lab.apply(0, peers(MOST_PEERS + 10));
    assert_eq!(lab.nodes[0].machine.status(lab.now).len(), MOST_PEERS);
    // Two keys of each peer at most.
    assert_eq!(lab.nodes[0].machine.sizes(), (MOST_PEERS, 2 * MOST_PEERS, 2 * MOST_PEERS));
    lab.apply(0, BTreeMap::new());
    assert_eq!(lab.nodes[0].machine.sizes(), (0, 0, 0));
}
