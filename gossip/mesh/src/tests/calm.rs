//! Clusters in which nothing happens but heartbeats: few messages, and what a push has lost is
//! still found.

use super::*;

/// Time between two heartbeats.
const BEAT: Duration = INTERVAL.saturating_mul(4);

/// Has every node send heartbeats of this number and wait for one interval.
async fn beat(peers: &mut [Peer], number: u32) {
    for peer in peers.iter_mut() {
        peer.mesh.set(RecordKind::Heartbeat, format!("heartbeat {number}").as_bytes()).unwrap();
    }
    sleep(BEAT).await;
    peers.iter_mut().for_each(Peer::drain);
}

/// A cluster that has become calm, after this number of heartbeats.
async fn calm(network: &MemoryNetwork, count: u16) -> (Vec<Peer>, u32) {
    network.set_delay(INTERVAL / 5);
    let mut peers = start(network, count, INTERVAL).await;
    for peer in &peers {
        let members: BTreeSet<NodeId> = (0..count).map(node).collect();
        peer.mesh.set_seeds(members.iter().copied().collect());
        peer.mesh.set_members(members);
    }
    let beats = 20;
    for number in 0..beats {
        beat(&mut peers, number).await;
    }
    (peers, beats)
}

fn all_hear(peers: &[Peer], number: u32) -> bool {
    let heartbeat = format!("heartbeat {number}");
    let count = peers.len() as u16;
    peers
        .iter()
        .all(|peer| (0..count).all(|of| node(of) == peer.id || peer.knows(of, RecordKind::Heartbeat, &heartbeat)))
}

/// The most heartbeats in sequence that a node has missed of another, up to this one. A newcomer
/// has sent them from `first` on.
fn most_missed(peers: &[Peer], first: u32, number: u32) -> u32 {
    let newest = |peer: &Peer, of: &Peer| -> Option<u32> {
        let heartbeat = peer.seen.get(&(of.id, RecordKind::Heartbeat))?;
        std::str::from_utf8(heartbeat).ok()?.strip_prefix("heartbeat ")?.parse().ok()
    };
    let pairs = peers.iter().flat_map(|peer| peers.iter().map(move |of| (peer, of))).filter(|(a, b)| a.id != b.id);
    pairs.map(|(peer, of)| number + 1 - newest(peer, of).map_or(first, |newest| newest + 1)).max().unwrap_or_default()
}

/// In the larger one, most nodes have no link with most others.
#[tokio::test(start_paused = true)]
async fn every_heartbeat_reaches_all_in_time_with_few_messages() {
    for (count, most) in [(3, 2.3), (30, 35.0)] {
        let network = MemoryNetwork::default();
        let (mut peers, first) = calm(&network, count).await;
        let messages = || network.traffic().values().map(|traffic| traffic.messages).sum::<u64>();
        let before = messages();
        for number in first..first + 30 {
            beat(&mut peers, number).await;
            assert!(all_hear(&peers, number), "heartbeat {number} of {count} nodes");
        }
        let each = (messages() - before) as f64 / f64::from(count) / 30.0;
        assert!(each < most, "{each} messages of each of {count} nodes for each heartbeat");
    }
}

/// Calm nodes compare themselves seldom, and busy ones with few others: a rumour that spreads by
/// chance alone leaves out some. The newcomer also moves links, so that some nodes need other
/// suppliers. Five heartbeats that are missed mean death.
#[tokio::test(start_paused = true)]
async fn a_newcomer_is_soon_known_to_every_node_of_a_calm_cluster() {
    let (network, count) = (MemoryNetwork::default(), 30);
    let (mut peers, first) = calm(&network, count).await;
    peers.push(Peer::start(&network, count, 1, INTERVAL).await);
    peers[usize::from(count)].mesh.set_members((0..=count).map(node).collect());
    let took = until(&mut peers, "the newcomer's card", all_cards_everywhere).await;
    assert!(took < INTERVAL * 40, "{took:?}");
    let beats = first..first + 14;
    for number in beats.clone() {
        beat(&mut peers, number).await;
        let missed = most_missed(&peers, first, number);
        assert!(missed < 5, "{missed} heartbeats missed before number {number}");
    }
    assert!(all_hear(&peers, beats.end - 1));
}

#[tokio::test(start_paused = true)]
async fn the_next_heartbeat_shows_a_value_that_was_lost() {
    let network = MemoryNetwork::default();
    let (mut peers, first) = calm(&network, 3).await;
    network.set_side(node(2), 1);
    peers[0].mesh.set(RecordKind::Lease, b"lost on the way").unwrap();
    sleep(INTERVAL).await;
    network.heal();
    beat(&mut peers, first).await;
    let took = until(&mut peers, "the lease", |peers| peers[2].knows(0, RecordKind::Lease, "lost on the way")).await;
    assert!(took < INTERVAL * 2, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_heartbeat_is_pulled() {
    let network = MemoryNetwork::default();
    let (mut peers, first) = calm(&network, 3).await;
    network.set_side(node(0), 1);
    peers[0].mesh.set(RecordKind::Heartbeat, format!("heartbeat {first}").as_bytes()).unwrap();
    sleep(INTERVAL).await;
    network.heal();
    let lost = format!("heartbeat {first}");
    let known = |peers: &[Peer]| peers[1..].iter().all(|peer| peer.knows(0, RecordKind::Heartbeat, &lost));
    let took = until(&mut peers, "the heartbeat", known).await;
    assert!(took < BEAT * 3, "{took:?}");
}

/// A hostile member raises a node's version at another one only. The node learns of it from its
/// next push, not from a comparison, which may be half a minute away.
#[tokio::test(start_paused = true)]
async fn a_version_spoofed_behind_a_nodes_back_is_found_at_its_next_heartbeat() {
    let network = MemoryNetwork::default();
    let (mut peers, first) = calm(&network, 3).await;
    let hostile = network.join(node(66));
    (hostile.send)(node(0), crate::wire::tests::ack(node(1), 1 << 16, &[("junk".into(), "QUJD".into(), 5000)]));
    beat(&mut peers, first).await;
    beat(&mut peers, first + 1).await;
    assert_eq!(peers[1].mesh.counters().spoofed_versions, 1);
    beat(&mut peers, first + 2).await;
    until(&mut peers, "the next heartbeat", |peers| all_hear(peers, first + 2)).await;
}
