//! Hostile members against real chitchat: whatever they make up, honest nodes still hear each
//! other.

use std::collections::BTreeSet;

use super::*;
use crate::wire::tests::{ack, bare_version, syn};

#[tokio::test(start_paused = true)]
async fn garbage_and_floods_of_unknown_nodes_change_nothing() {
    let network = MemoryNetwork::default();
    let mut peers = start(&network, 3, INTERVAL).await;
    until(&mut peers, "all cards", all_cards_everywhere).await;
    let hostile = network.join(node(66));
    (hostile.send)(node(0), vec![0xff; 1000]);
    (hostile.send)(node(0), Vec::new());
    for crowd in 0..20u16 {
        let incarnations = (0..200).map(|i| (node(2000 + crowd * 200 + i), 1));
        (hostile.send)(node(0), syn(incarnations, 5, 5));
    }
    // A counter so high that it is refused. The counters above are only higher than the true ones.
    (hostile.send)(node(0), syn([(node(1), 1 << 16)].into_iter(), u64::MAX, 5));
    sleep(INTERVAL * 5).await;
    peers[1].mesh.set(RecordKind::Lease, b"still here").unwrap();
    until(&mut peers, "a change despite it all", |peers| peers[0].knows(1, RecordKind::Lease, "still here")).await;
    let counters = peers[0].mesh.counters();
    assert_eq!(counters.malformed, 3, "{counters:?}");
    assert!(counters.unknown_nodes > 3000, "{counters:?}");
    let known: BTreeSet<_> = peers[2].seen.keys().map(|(origin, _)| *origin).collect();
    assert_eq!(known.len(), 2);
}

/// A member announces more and more values of its own, and its peers forward them. Neither fills
/// the memory of the others.
#[tokio::test(start_paused = true)]
async fn a_member_with_too_many_values_does_not_fill_the_memory_of_others() {
    let network = MemoryNetwork::default();
    let mut peers = start(&network, 3, INTERVAL).await;
    until(&mut peers, "all cards", all_cards_everywhere).await;
    for peer in &peers {
        peer.mesh.set_limits(MeshLimits { node_bytes: 160_000, ..MeshLimits::default() });
        peer.mesh.set_members((0..3).map(node).collect());
    }
    let flooding = &peers[2].mesh;
    for i in 0..50 {
        let token = rustbalance_gossip::id::InvitationId::from_public_key([i; 32]);
        // Not compressible, like signatures.
        let noise: Vec<u8> =
            (0..280u16).flat_map(|n| Sha3_256::digest([&[i][..], &n.to_be_bytes()].concat())).collect();
        flooding.set(RecordKind::Invitation(token), &noise).unwrap();
    }
    let taken = |peer: &Peer| -> usize {
        peer.seen.iter().filter(|((origin, _), _)| *origin == node(2)).map(|(_, value)| value.len()).sum()
    };
    // One after the other, because values that they forward to each other count apart.
    for (filled, away) in [(0, 1), (1, 0)] {
        network.set_down(node(away), true);
        let full = |peers: &[Peer]| peers[filled].mesh.counters().over_quota > 3;
        until(&mut peers, "the quota of the flooding member is used up", full).await;
        let bytes = taken(&peers[filled]);
        assert!(bytes < 160_000, "{bytes} bytes of the flooding member were kept");
        network.set_down(node(away), false);
    }
    peers[1].mesh.set(RecordKind::Lease, b"still here").unwrap();
    until(&mut peers, "a change despite it all", |peers| peers[0].knows(1, RecordKind::Lease, "still here")).await;
    for bytes in peers[..2].iter().map(taken) {
        assert!(bytes < 2 * 160_000, "{bytes} bytes of the flooding member were kept, from itself and others");
    }
}

/// A node whose versions are spoofed is heard again soon, and counts how often that happened.
#[tokio::test(start_paused = true)]
async fn a_spoofed_version_silences_a_living_node_for_seconds_only() {
    let network = MemoryNetwork::default();
    let interval = Duration::from_millis(500);
    let mut peers = start(&network, 3, interval).await;
    until(&mut peers, "all cards", all_cards_everywhere).await;
    let hostile = network.join(node(66));
    for spoofed in 0..3 {
        for to in 0..3 {
            (hostile.send)(node(to), syn([(node(1), (1 << 16) | spoofed)].into_iter(), 50_000, 50_000));
        }
        sleep(Duration::from_secs(8)).await;
        let text = format!("after spoofed version {spoofed}");
        peers[1].mesh.set(RecordKind::Lease, text.as_bytes()).unwrap();
        until(&mut peers, "a value after the spoofed version", |peers| peers[0].knows(1, RecordKind::Lease, &text))
            .await;
    }
    let counters = peers[1].mesh.counters();
    assert_eq!((counters.spoofed_versions, counters.restarts), (3, 3), "{counters:?}");
}

/// Incompressible values of about 20 kB each, of which at most three fit into a message.
fn junk(about: &str, pieces: u64, version: u64) -> Vec<(String, String, u64)> {
    let noise = |i: u64| -> Vec<u8> {
        (0..480u32).flat_map(|n| Sha3_256::digest(format!("{about} {i} {n}"))).collect::<Vec<u8>>()
    };
    let piece = |i| (format!("junk/{about}/{i}"), BASE64.encode(&noise(i)), version + i);
    (0..pieces).map(piece).collect()
}

/// Twelve made-up incarnations of each of four members.
fn made_up(first: u64) -> impl Iterator<Item = (NodeId, u64)> {
    (10..14).flat_map(move |of| (first..first + 12).map(move |incarnation| (node(of), incarnation << 16)))
}

/// Names the made-up incarnations and sends about 60 kB of values of each.
async fn make_up(hostile: &Carrier, to: u16) {
    (hostile.send)(node(to), syn(made_up(1), 5, 0));
    for (of, incarnation) in made_up(1) {
        (hostile.send)(node(to), ack(of, incarnation, &junk(&format!("{of} {incarnation}"), 3, 1)));
        sleep(INTERVAL * 2).await;
    }
}

/// Two nodes whose state is full of values that the other refuses still hear each other.
#[tokio::test(start_paused = true)]
async fn refused_values_do_not_keep_other_values_from_a_node() {
    let network = MemoryNetwork::default();
    let mut peers = start(&network, 2, INTERVAL).await;
    until(&mut peers, "all cards", all_cards_everywhere).await;
    network.set_side(node(1), 1);
    network.set_side(node(67), 1);
    (network.join(node(67)).send)(node(1), syn(made_up(101), 5, 0));
    make_up(&network.join(node(66)), 0).await;
    network.heal();
    sleep(INTERVAL * 20).await;
    for round in 0..5 {
        let text = format!("round {round}");
        peers[0].mesh.set(RecordKind::Lease, text.as_bytes()).unwrap();
        let took = until(&mut peers, "a value", |peers| peers[1].knows(0, RecordKind::Lease, &text)).await;
        assert!(took < INTERVAL * 30, "{took:?}");
    }
    assert!(peers[1].mesh.counters().unknown_nodes > 40, "{:?}", peers[1].mesh.counters());
}

/// The same if the other node has reached the quota of an incarnation.
#[tokio::test(start_paused = true)]
async fn values_beyond_a_quota_do_not_keep_other_values_from_a_node() {
    let network = MemoryNetwork::default();
    let mut peers = start(&network, 2, INTERVAL).await;
    until(&mut peers, "all cards", all_cards_everywhere).await;
    peers[1].mesh.set_limits(MeshLimits { node_bytes: 65_536, ..MeshLimits::default() });
    let hostile = network.join(node(66));
    (hostile.send)(node(0), syn([(node(66), 1 << 16)].into_iter(), 5, 0));
    for piece in 0..8 {
        (hostile.send)(node(0), ack(node(66), 1 << 16, &junk("mine", 3, 1 + piece * 3)));
        sleep(INTERVAL).await;
    }
    for round in 0..5 {
        let text = format!("round {round}");
        peers[0].mesh.set(RecordKind::Lease, text.as_bytes()).unwrap();
        until(&mut peers, "a value", |peers| peers[1].knows(0, RecordKind::Lease, &text)).await;
        sleep(INTERVAL * 10).await;
    }
    let counters = peers[1].mesh.counters();
    assert!((1..20).contains(&counters.over_quota), "{counters:?}");
}

/// chitchat sends made-up values first if they are new to a peer that accepts them. In every third
/// answer the gate leaves them out.
#[tokio::test(start_paused = true)]
async fn values_of_a_member_arrive_among_invented_ones() {
    let network = MemoryNetwork::default();
    let mut peers = start(&network, 2, INTERVAL).await;
    until(&mut peers, "all cards", all_cards_everywhere).await;
    network.set_side(node(1), 1);
    make_up(&network.join(node(66)), 0).await;
    network.heal();
    // Node 1 now asks for all of the made-up values, which takes dozens of rounds.
    sleep(INTERVAL * 3).await;
    peers[0].mesh.set(RecordKind::Lease, b"meanwhile").unwrap();
    let took = until(&mut peers, "a value", |peers| peers[1].knows(0, RecordKind::Lease, "meanwhile")).await;
    assert!(took < INTERVAL * 30, "{took:?}");
}

/// A hostile member names a flood of incarnations, of itself and of all others. A node that
/// restarts is heard all the same.
#[tokio::test(start_paused = true)]
async fn a_node_that_restarts_is_heard_among_invented_incarnations() {
    let network = MemoryNetwork::default();
    let mut peers = start(&network, 2, INTERVAL).await;
    until(&mut peers, "all cards", all_cards_everywhere).await;
    let hostile = network.join(node(66));
    for to in 0..2 {
        (hostile.send)(node(to), syn((0..500).map(|incarnation| (node(66), incarnation)), 5, 5));
        for incarnation in 0..20u64 {
            (hostile.send)(node(to), syn((0..MEMBERS).map(|of| (node(of), (1000 + incarnation) << 16)), 5, 5));
        }
        (hostile.send)(node(to), syn((0..200).map(|i| (node(2000 + i), 1)), 5, 5));
    }
    sleep(INTERVAL * 2).await;
    for generation in 2..20 {
        peers.pop();
        peers.push(Peer::start(&network, 1, generation, INTERVAL).await);
        let text = format!("incarnation {generation}");
        peers[1].mesh.set(RecordKind::Lease, text.as_bytes()).unwrap();
        until(&mut peers, "a value", |peers| peers[0].knows(1, RecordKind::Lease, &text)).await;
    }
}

/// A hostile member sends a starting node versions without values, as if it had nothing more to
/// learn of the others.
#[tokio::test(start_paused = true)]
async fn a_version_without_its_values_hides_no_value() {
    let network = MemoryNetwork::default();
    let mut peers = start(&network, 2, INTERVAL).await;
    until(&mut peers, "all cards", all_cards_everywhere).await;
    network.set_side(node(2), 1);
    network.set_side(node(66), 1);
    let hostile = network.join(node(66));
    peers.push(Peer::start(&network, 2, 1, INTERVAL).await);
    for of in 0..2 {
        (hostile.send)(node(2), syn([(node(of), 1 << 16)].into_iter(), 1, 0));
        (hostile.send)(node(2), bare_version(node(of), 1 << 16, 0, 1));
        (hostile.send)(node(2), bare_version(node(of), 1 << 16, 1, 1));
    }
    sleep(INTERVAL).await;
    network.heal();
    until(&mut peers, "all cards", all_cards_everywhere).await;
    assert_eq!(peers[2].mesh.counters().malformed, 4);
}
