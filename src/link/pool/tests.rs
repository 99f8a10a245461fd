//! Pools at one end and at both ends of their links.

use futures::FutureExt;
use rustbalance_gossip::record::Revocation;
use rustbalance_gossip::signed::Verified;

use super::super::Frame;
use super::*;

const TOR: RouteKind = RouteKind::TOR;
const FAST: RouteKind = RouteKind::new(200);

fn node(i: u8) -> NodeId {
    NodeId::from_public_key([i; 32])
}

fn set(members: impl IntoIterator<Item = u8>, revoked: &[u8]) -> MemberSet {
    let authority = crate::keys::AuthoritySecret::generate(&mut rand::rng());
    let revoke = |i: &u8| {
        let cluster = rustbalance_gossip::id::ClusterId::from_public_key([0; 32]);
        let revocation = Revocation { cluster, node: node(*i), revoked: 9 };
        (node(*i), Verified::sign(revocation, &authority).unwrap())
    };
    MemberSet {
        members: members.into_iter().map(node).collect(),
        revoked: revoked.iter().map(revoke).collect(),
        ..MemberSet::default()
    }
}

fn pool(me: u8) -> Pool {
    Pool::new(node(me), [TOR].into(), LinkLimits { links: 3, ..LinkLimits::default() }, Counters::default())
}

/// A pool that has a better route than Tor.
fn two_routes(me: u8) -> Pool {
    Pool::new(node(me), [FAST, TOR].into(), LinkLimits { links: 3, ..LinkLimits::default() }, Counters::default())
}

fn everywhere(_: NodeId, _: RouteKind) -> bool {
    true
}

/// Takes the frames that would be written on a link, and answers its probes if `answers`.
fn write(pool: &mut Pool, link: &OpenedLink, answers: bool, now: Instant) -> Vec<Vec<u8>> {
    let mut written = Vec::new();
    while let Some(frame) = link.out.next().now_or_never() {
        match frame {
            Frame::Gossip(message) => written.push(message.0),
            Frame::Probe { number, .. } if answers => {
                link.out.confirm(number);
                pool.answered(link.id, Answer::Probe(number), now);
            }
            _ => {}
        }
    }
    written
}

fn peers(pool: &Pool, now: Instant) -> Vec<(NodeId, bool)> {
    pool.status(now).iter().map(|link| (link.peer, link.outgoing)).collect()
}

#[test]
fn both_ends_keep_the_link_of_the_smaller_id_if_two_links_cross() {
    let now = Instant::now();
    for first_outgoing in [true, false] {
        // Node 1 dials node 2 while node 2 dials node 1; either may open first, at either end.
        let (mut one, mut two) = (pool(1), pool(2));
        for outgoing in [first_outgoing, !first_outgoing] {
            let _ = one.open(node(2), TOR, outgoing, 99, now);
        }
        for outgoing in [first_outgoing, !first_outgoing] {
            let _ = two.open(node(1), TOR, outgoing, 99, now);
        }
        assert_eq!(peers(&one, now), [(node(2), true)]);
        assert_eq!(peers(&two, now), [(node(1), false)]);
    }
}

#[test]
fn the_newer_link_of_one_dialler_is_kept_and_a_forgotten_link_gives_way() {
    let now = Instant::now();
    let mut pool = pool(1);
    let first = pool.open(node(2), TOR, true, 99, now).unwrap();
    let link = pool.open(node(2), TOR, true, 99, now).unwrap();
    assert!(first.close.is_cancelled());
    assert_eq!(pool.open(node(2), TOR, false, 99, now).err(), Some(LinkRefusal::Duplicate));
    // Node 2 has restarted, knows of no link, and dials.
    assert!(pool.open(node(2), TOR, false, 99, now + CROSSED_LINK_AGE).is_ok());
    assert_eq!(peers(&pool, now), [(node(2), false)]);
    // The end of the replaced link leaves the new one alone.
    pool.ended(link.id, (node(2), TOR), CROSSED_LINK_AGE, 0.0, now);
    assert!(pool.has(node(2), TOR));
}

#[test]
fn links_are_bounded() {
    let now = Instant::now();
    let mut pool = pool(1);
    for peer in 2..5 {
        pool.open(node(peer), TOR, false, 99, now).unwrap();
    }
    assert_eq!(pool.open(node(5), TOR, false, 99, now).err(), Some(LinkRefusal::Busy));
    assert!(pool.open(node(4), TOR, false, 99, now).is_ok());
    let (all, of_one) = LinkLimits::default().carried;
    assert_eq!((0..all).filter(|_| pool.take_carried(node(2)).is_ok()).count(), of_one);
    assert_eq!((0..200).filter(|i| pool.take_carried(node(3 + i % 50)).is_ok()).count(), all - of_one);
    pool.give_carried(node(2));
    assert!(pool.take_carried(node(2)).is_ok());
}

#[test]
fn a_node_without_links_whose_keys_a_member_rejects_is_shut_out() {
    let (mut pool, now) = (pool(1), Instant::now());
    pool.dial_failed(node(2), TOR, false, 0.0, now);
    assert!(!pool.is_shut_out(), "the node may be dead");
    pool.dial_failed(node(3), TOR, true, 0.0, now);
    assert!(pool.is_shut_out() && pool.is_refused());
    let link = pool.open(node(2), TOR, false, 99, now).unwrap();
    assert!(!pool.is_shut_out(), "a link with another member is open");
    assert!(pool.is_refused(), "node 3 still accepts none of the keys");
    pool.ended(link.id, (node(2), TOR), SUCCESSFUL_LINK_AGE, 0.0, now);
    assert!(pool.is_shut_out());
    let link = pool.open(node(3), TOR, false, 99, now).unwrap();
    assert!(!pool.is_refused());
    pool.ended(link.id, (node(3), TOR), SUCCESSFUL_LINK_AGE, 0.0, now);
    pool.dial_failed(node(3), TOR, false, 0.0, now);
    assert!(!pool.is_shut_out());
}

#[test]
fn a_link_with_a_worker_does_not_hide_that_publishers_refuse_this_node() {
    let (mut pool, now) = (pool(1), Instant::now());
    let members = MemberSet { publishers: [node(1), node(2)].into(), ..set(1..5, &[]) };
    pool.reconcile(&members, everywhere, 1, now);
    pool.open(node(3), TOR, false, 99, now).unwrap();
    pool.dial_failed(node(4), TOR, true, 0.0, now);
    assert!(!pool.is_shut_out(), "a worker that rejects the keys stopped a node that others accept");
    pool.dial_failed(node(2), TOR, true, 0.0, now);
    assert!(pool.is_shut_out(), "the worker with the link may have been evicted itself");
    pool.open(node(2), TOR, false, 99, now).unwrap();
    assert!(!pool.is_shut_out());
}

#[test]
fn a_link_lasts_as_long_as_the_renewed_certificate_of_its_peer() {
    let (mut pool, now) = (pool(1), Instant::now());
    let close = pool.open(node(2), TOR, false, 99, now).unwrap().close;
    let members = MemberSet { ends: [(node(2), 200)].into(), ..set(1..3, &[]) };
    pool.reconcile(&members, everywhere, 150, now);
    assert!(!close.is_cancelled());
    pool.reconcile(&members, everywhere, 201, now);
    assert!(close.is_cancelled());
}

#[test]
fn the_revoked_and_the_expired_are_closed_and_not_dialled() {
    let now = Instant::now();
    let mut pool = pool(1);
    let revoked = pool.open(node(2), TOR, false, 99, now).unwrap().close;
    let expired = pool.open(node(3), TOR, false, 50, now).unwrap().close;
    let good = pool.open(node(4), TOR, false, 99, now).unwrap().close;
    let due = pool.reconcile(&set(1..6, &[2]), everywhere, 51, now);
    assert!(revoked.is_cancelled() && expired.is_cancelled() && !good.is_cancelled());
    assert_eq!(due, [(node(3), TOR), (node(5), TOR)]);
}

#[test]
fn dials_wait_longer_and_longer_up_to_a_bound_and_one_at_a_time() {
    let mut now = Instant::now();
    let mut pool = pool(1);
    let members = set([1, 2], &[]);
    let mut pauses = Vec::new();
    for _ in 0..9 {
        assert_eq!(pool.reconcile(&members, everywhere, 0, now), [(node(2), TOR)]);
        assert!(
            pool.reconcile(&members, everywhere, 0, now + Duration::from_secs(3600)).is_empty(),
            "two dials at once"
        );
        pool.dial_failed(node(2), TOR, false, 1.0, now);
        let failed = now;
        while pool.reconcile(&members, everywhere, 0, now).is_empty() {
            now += Duration::from_millis(500);
        }
        pool.dial_failed(node(2), TOR, false, 1.0, now);
        pool.dials.get_mut(&(node(2), TOR)).unwrap().failures -= 1;
        pool.dials.get_mut(&(node(2), TOR)).unwrap().not_before = None;
        pauses.push((now - failed).as_secs());
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    // A link that lasted resets the backoff.
    let link = pool.open(node(2), TOR, true, 99, now).unwrap();
    pool.ended(link.id, (node(2), TOR), SUCCESSFUL_LINK_AGE, 0.0, now);
    assert_eq!(pool.reconcile(&members, everywhere, 0, now + Duration::from_secs(1)), [(node(2), TOR)]);
}

#[test]
fn links_that_are_not_needed_any_more_are_closed_after_a_while() {
    let now = Instant::now();
    let mut pool =
        Pool::new(node(1), [TOR].into(), LinkLimits { neighbours: 1, ..LinkLimits::default() }, Counters::default());
    let close = pool.open(node(3), TOR, true, 99, now).unwrap().close;
    pool.reconcile(&set([1, 2, 3], &[]), everywhere, 0, now);
    pool.reconcile(&set([1, 2, 3], &[]), everywhere, 0, now + CLOSE_UNNEEDED_AFTER / 2);
    assert!(!close.is_cancelled());
    pool.reconcile(&set([1, 2, 3], &[]), everywhere, 0, now + CLOSE_UNNEEDED_AFTER);
    assert!(close.is_cancelled());
}

#[test]
fn messages_for_a_node_without_a_link_go_to_each_peer_in_turn() {
    let now = Instant::now();
    let mut pool = pool(1);
    pool.send(node(9), vec![1]);
    assert_eq!(pool.counters.get(Counter::LinkNone), 1);
    let queues: Vec<_> = (2..5).map(|peer| pool.open(node(peer), TOR, false, 99, now).unwrap().out).collect();
    for _ in 0..30 {
        pool.send(node(9), vec![1]);
    }
    for queue in &queues {
        assert_eq!((0..20).filter(|_| !queue.push(vec![])).count(), 20, "the messages were not shared evenly");
    }
    for _ in 0..100 {
        pool.send(node(2), vec![2]);
    }
    assert!(pool.status(now)[0].dropped > 0);
}

#[test]
fn each_route_to_a_peer_has_a_link_a_bound_and_a_pause_of_its_own() {
    let now = Instant::now();
    let (mut pool, members) = (two_routes(1), set(1..3, &[]));
    // Node 2 shows no address for the fast route yet.
    let over_tor = |_: NodeId, route: RouteKind| route == TOR;
    assert_eq!(pool.reconcile(&members, over_tor, 0, now), [(node(2), TOR)]);
    assert_eq!(pool.reconcile(&members, everywhere, 0, now), [(node(2), FAST)]);
    pool.dial_failed(node(2), FAST, false, 0.0, now);
    pool.dial_done(node(2), TOR);
    let tor = pool.open(node(2), TOR, true, 99, now).unwrap();
    assert!(pool.reconcile(&members, everywhere, 0, now).is_empty(), "dials again without a pause");
    let later = now + Duration::from_secs(1);
    assert_eq!(pool.reconcile(&members, everywhere, 0, later), [(node(2), FAST)]);
    let fast = pool.open(node(2), FAST, false, 99, later).unwrap();
    assert!(!tor.close.is_cancelled(), "the link over one route replaced that over the other");
    assert_eq!(pool.status(later).iter().map(|link| link.route).collect::<Vec<_>>(), [TOR, FAST]);
    // Links over the other route do not count towards the bound on links over Tor.
    for peer in 3..5 {
        pool.open(node(peer), TOR, false, 99, later).unwrap();
    }
    assert_eq!(pool.open(node(5), TOR, false, 99, later).err(), Some(LinkRefusal::Busy));
    assert!(pool.open(node(5), FAST, false, 99, later).is_ok());
    // A revocation closes the links over every route.
    pool.reconcile(&set(1..3, &[2]), everywhere, 0, later);
    assert!(tor.close.is_cancelled() && fast.close.is_cancelled());
}

#[test]
fn frames_take_the_proven_route_and_unconfirmed_ones_move_to_the_other() {
    let mut now = Instant::now();
    let mut pool = two_routes(1);
    let tor = pool.open(node(2), TOR, true, 99, now).unwrap();
    pool.send(node(2), vec![1]);
    let fast = pool.open(node(2), FAST, true, 99, now).unwrap();
    pool.send(node(2), vec![2]);
    assert_eq!(pool.route_to(node(2)), Some(TOR));
    // The first answer proves the route, and the frames that waited on Tor move to it.
    assert_eq!(write(&mut pool, &fast, true, now), [[1], [2]]);
    assert_eq!(pool.route_to(node(2)), Some(FAST));
    assert!(write(&mut pool, &tor, true, now).is_empty());
    now += Duration::from_secs(1);
    pool.probe(now);
    write(&mut pool, &fast, true, now);
    // The peer falls silent: these frames are written, and never read.
    pool.send(node(2), vec![3]);
    write(&mut pool, &fast, false, now);
    pool.send(node(2), vec![4]);
    let died = now;
    while let Some(next) = pool.probe(now) {
        now = next;
        write(&mut pool, &fast, false, now);
    }
    assert!(!pool.has(node(2), FAST));
    assert!(fast.close.is_cancelled() && now <= died + Duration::from_secs(5));
    assert_eq!(write(&mut pool, &tor, true, now), [[3], [4]]);
    pool.send(node(2), vec![5]);
    assert_eq!(write(&mut pool, &tor, true, now), [[5]]);
    pool.ended(fast.id, (node(2), FAST), SUCCESSFUL_LINK_AGE, 0.0, now);
    assert!(Counter::all().all(|counter| pool.counters.get(counter) == 0), "{:?}", pool.counters);
}

#[test]
fn only_tor_shows_that_a_node_is_shut_out_and_any_link_with_a_publisher_refutes_it() {
    let (mut pool, now) = (two_routes(1), Instant::now());
    let members = MemberSet { publishers: [node(1), node(2)].into(), ..set(1..4, &[]) };
    pool.reconcile(&members, everywhere, 1, now);
    pool.dial_failed(node(2), FAST, false, 0.0, now);
    pool.dial_failed(node(3), FAST, false, 0.0, now);
    assert!(!pool.is_shut_out() && !pool.is_refused());
    pool.dial_failed(node(2), TOR, true, 0.0, now);
    pool.open(node(3), FAST, true, 99, now).unwrap();
    assert!(pool.is_shut_out(), "a worker may have been evicted itself");
    pool.open(node(2), FAST, true, 99, now).unwrap();
    assert!(!pool.is_shut_out());
    assert!(pool.is_refused(), "over Tor the publisher still accepts none of our keys");
}

#[test]
fn a_peer_that_answers_no_probe_is_asked_over_tor_and_unreachable_without_an_answer() {
    let mut now = Instant::now();
    let mut pool = two_routes(1);
    let peers = [2, 3].map(|peer| {
        let tor = pool.open(node(peer), TOR, true, 99, now).unwrap();
        let fast = pool.open(node(peer), FAST, true, 99, now).unwrap();
        pool.answered(tor.id, Answer::Ping(Duration::from_millis(300)), now);
        (tor, fast)
    });
    let [(tor, _), _] = &peers;
    let mut pass = |pool: &mut Pool, answers: [bool; 2]| {
        pool.probe(now);
        for ((_, fast), answers) in peers.iter().zip(answers) {
            write(pool, fast, answers, now);
        }
        now += Duration::from_secs(1);
        now
    };
    let watched = |pool: &Pool| pool.contacts.is_watched(&node(2));
    pass(&mut pool, [true, true]);
    assert!(watched(&pool) && tor.out.next().now_or_never().is_none());
    pass(&mut pool, [false, true]);
    pass(&mut pool, [false, true]);
    assert!(matches!(tor.out.next().now_or_never(), Some(Frame::Ping(_))), "it is not asked");
    assert_eq!(pool.peers(), BTreeSet::from([node(3)]), "its heartbeats are expected from it alone");
    let now = pass(&mut pool, [false, true]);
    assert_eq!(pool.unreachable(now), BTreeSet::from([node(2)]));
    assert!(tor.out.next().now_or_never().is_none(), "it is asked again");
    pool.answered(tor.id, Answer::Ping(Duration::from_millis(300)), now);
    assert_eq!((pool.unreachable(now), watched(&pool), pool.peers().len()), (BTreeSet::new(), false, 2));
    // A peer whose links this node has closed, because it is evicted, is not unreachable.
    pool.reconcile(&set(1..4, &[3]), everywhere, 0, now);
    assert!(pool.unreachable(now + Duration::from_secs(9)).is_empty());
}
