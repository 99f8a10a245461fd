//! Nodes with a second route beside Tor: in memory, and with the faults that a test asks for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rustbalance_gossip::id::NodeId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::super::conformance::launch_with;
use super::*;

const FAST: RouteKind = RouteKind::new(200);

/// The network of the second route.
#[derive(Default)]
struct MemoryNet {
    nodes: Mutex<BTreeMap<NodeId, Weak<Links>>>,
    /// While true, no bytes pass and no error is reported, as when a firewall drops packets.
    is_cut: watch::Sender<bool>,
    /// A man in the middle has diverted the dials to itself and relays the bytes.
    has_middle: AtomicBool,
}

/// One node's access to the second route.
struct MemoryRoute(Arc<MemoryNet>);

impl MemoryNet {
    fn join(&self, node: NodeId, links: &Arc<Links>) {
        self.nodes.lock().insert(node, Arc::downgrade(links));
    }

    fn links(&self, node: NodeId) -> Option<Arc<Links>> {
        self.nodes.lock().get(&node).and_then(Weak::upgrade)
    }
}

/// Relays bytes while the network is not cut.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, cut: watch::Receiver<bool>) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        whole(cut.clone()).await;
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

/// Waits until the network is not cut, or is dropped.
async fn whole(mut cut: watch::Receiver<bool>) {
    let _ = cut.wait_for(|cut| !cut).await;
}

#[async_trait]
impl Route for MemoryRoute {
    fn kind(&self) -> RouteKind {
        FAST
    }

    fn reaches(&self, to: NodeId) -> bool {
        self.0.links(to).is_some()
    }

    async fn dial(&self, to: NodeId, limit: Duration) -> Result<Channel, RouteError> {
        let Some(links) = self.0.links(to) else {
            return Err(RouteError::Unreachable { peer: to, route: FAST, source: "no such node".into() });
        };
        let cut = self.0.is_cut.subscribe();
        if timeout(limit, whole(cut.clone())).await.is_err() {
            return Err(RouteError::Timeout { peer: to, route: FAST, limit });
        }
        let ((near, left), (right, far)) = (duplex(1 << 16), duplex(1 << 16));
        let ((left_in, left_out), (right_in, right_out)) = (tokio::io::split(left), tokio::io::split(right));
        tokio::spawn(pass(left_in, right_out, cut.clone()));
        tokio::spawn(pass(right_in, left_out, cut));
        let mine = ChannelBinding(rand::random());
        let theirs = match self.0.has_middle.load(Ordering::Relaxed) {
            true => ChannelBinding(rand::random()),
            false => mine,
        };
        links.accept(Channel { route: FAST, binding: theirs, stream: Box::new(far) });
        Ok(Channel { route: FAST, binding: mine, stream: Box::new(near) })
    }
}

/// Limits under which only the path notices silence: the bounds of the links are far longer.
fn patient() -> LinkLimits {
    let LinkLimits { silence, ping, write, .. } = LinkLimits::default();
    LinkLimits { silence, ping, write, ..limits() }
}

/// Starts one node for each entry of `routes`; true gives the node the second route.
async fn launch_nodes(
    world: &TestCluster,
    net: &FakeNet,
    fast: &Arc<MemoryNet>,
    routes: &[bool],
    limits: LinkLimits,
) -> Vec<(Launched, Arc<FakeEngine>)> {
    let mut nodes = Vec::new();
    for (i, has_route) in routes.iter().enumerate() {
        let engine = net.engine();
        let faster: Vec<Arc<dyn Route>> = match has_route {
            true => vec![Arc::new(MemoryRoute(Arc::clone(fast)))],
            false => Vec::new(),
        };
        let set = world.set(0..routes.len());
        let node = Arc::clone(&engine) as Arc<dyn Engine>;
        let launched = launch_with(world, node, faster, i, set, limits.clone()).await;
        if *has_route {
            fast.join(world.node(i), &launched.links);
        }
        nodes.push((launched, engine));
    }
    nodes
}

/// The route by which frames to `peer` go.
fn carrying(links: &Links, peer: NodeId) -> Option<RouteKind> {
    let carrying: Vec<_> = links.status().into_iter().filter(|link| link.peer == peer && link.carries).collect();
    assert!(carrying.len() <= 1, "frames go two ways at once");
    carrying.first().map(|link| link.route)
}

/// Sends numbered frames, and records how long each took to arrive for the first time.
struct Stream {
    sent: Vec<Instant>,
    took: Vec<Option<Duration>>,
    twice: usize,
}

impl Stream {
    /// Sends one frame every 50 ms for a while.
    async fn run(&mut self, carriers: &mut [Carrier; 2], to: NodeId, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            (carriers[0].send)(to, (self.sent.len() as u32).to_be_bytes().to_vec());
            self.sent.push(Instant::now());
            self.took.push(None);
            sleep(Duration::from_millis(50)).await;
            while let Ok((_, frame)) = carriers[1].received.try_recv() {
                let number = u32::from_be_bytes(frame.try_into().unwrap()) as usize;
                match self.took[number] {
                    Some(_) => self.twice += 1,
                    None => self.took[number] = Some(self.sent[number].elapsed()),
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn frames_move_to_the_faster_route_survive_its_death_and_return() {
    let (world, net, fast) = (TestCluster::new(), net(), Arc::new(MemoryNet::default()));
    let mut nodes = launch_nodes(&world, &net, &fast, &[true, true], patient()).await;
    let links: Vec<_> = nodes.iter().map(|(node, _)| Arc::clone(&node.links)).collect();
    let by = |route| {
        move |links: &[Arc<Links>], world: &TestCluster| {
            carrying(&links[0], world.node(1)) == Some(route) && carrying(&links[1], world.node(0)) == Some(route)
        }
    };
    until("both go by the faster route", || by(FAST)(&links, &world)).await;
    assert!(links.iter().all(|links| links.status().len() == 2), "the link over Tor stays as well");
    let mut stream = Stream { sent: Vec::new(), took: Vec::new(), twice: 0 };
    let (second, first) = (nodes.pop().unwrap().0, nodes.pop().unwrap().0);
    let mut carriers = [first.outputs.carrier, second.outputs.carrier];
    stream.run(&mut carriers, world.node(1), Duration::from_secs(5)).await;
    let over_tor = |links: &Links| {
        let status = links.status();
        status.iter().filter(|link| link.route == RouteKind::TOR).map(|link| link.frames_out).sum::<u64>()
    };
    assert!(over_tor(&links[0]) < 10, "more than pings went over Tor");
    // The route dies silently.
    fast.is_cut.send_replace(true);
    stream.run(&mut carriers, world.node(1), Duration::from_secs(5)).await;
    assert!(by(RouteKind::TOR)(&links, &world));
    assert!(links.iter().all(|links| links.status().len() == 1), "the dead link is still there");
    stream.run(&mut carriers, world.node(1), Duration::from_secs(5)).await;
    // It is back; frames return after enough answers in a row.
    fast.is_cut.send_replace(false);
    stream.run(&mut carriers, world.node(1), Duration::from_secs(2)).await;
    assert!(by(RouteKind::TOR)(&links, &world), "trusted again at once");
    stream.run(&mut carriers, world.node(1), Duration::from_secs(15)).await;
    assert!(by(FAST)(&links, &world));
    let slowest = stream.took.iter().map(|took| took.expect("a frame was lost")).max();
    assert!(slowest < Some(Duration::from_secs(5)), "a frame took {slowest:?}");
    // The frames that the dead route may have delivered were sent again; all others came once.
    assert!(stream.twice < 50, "{} frames came twice", stream.twice);
}

#[tokio::test(start_paused = true)]
async fn a_member_without_the_faster_route_is_linked_over_tor_alone() {
    let (world, net, fast) = (TestCluster::new(), net(), Arc::new(MemoryNet::default()));
    let nodes = launch_nodes(&world, &net, &fast, &[true, true, false], patient()).await;
    let of = |i: usize, peer: usize| carrying(&nodes[i].0.links, world.node(peer));
    until("the two have moved", || of(0, 1) == Some(FAST) && of(1, 0) == Some(FAST)).await;
    until("a full mesh", || (0..2).all(|i| of(i, 2).is_some() && of(2, i).is_some())).await;
    sleep(Duration::from_secs(20)).await;
    assert!((0..2).all(|i| of(i, 2) == Some(RouteKind::TOR) && of(2, i) == Some(RouteKind::TOR)));
    for (node, _) in &nodes {
        let reach = *node.links.reach().borrow();
        assert!(!reach.shut_out && !reach.refused);
    }
}

#[tokio::test(start_paused = true)]
async fn with_tor_cut_off_frames_and_joins_go_by_the_other_route_and_back() {
    let (world, net, fast) = (TestCluster::new(), net(), Arc::new(MemoryNet::default()));
    let mut nodes = launch_nodes(&world, &net, &fast, &[true, true], limits()).await;
    let peer = world.node(1);
    until("both links", || nodes[0].0.links.status().len() == 2).await;
    net.sever(&nodes[0].1, &nodes[1].1);
    let links = Arc::clone(&nodes[0].0.links);
    until("the link over Tor has ended", || links.status().len() == 1).await;
    assert_eq!(carrying(&links, peer), Some(FAST));
    assert!(!links.reach().borrow().shut_out);
    let mut near = links.carry_join(peer).await.unwrap();
    near.write_all(b"hello").await.unwrap();
    let carried = timeout(PATIENCE, nodes[1].0.outputs.joins.recv()).await.unwrap().unwrap();
    assert_eq!(carried.from, world.node(0));
    drop((near, carried));
    net.heal();
    until("Tor again", || links.status().len() == 2).await;
    // A dead route stays chosen until probes notice: the join falls back to Tor.
    fast.is_cut.send_replace(true);
    assert_eq!(carrying(&links, peer), Some(FAST));
    links.carry_join(peer).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_in_the_middle_of_a_route_gets_no_link() {
    let (world, net, fast) = (TestCluster::new(), net(), Arc::new(MemoryNet::default()));
    fast.has_middle.store(true, Ordering::Relaxed);
    let nodes = launch_nodes(&world, &net, &fast, &[true, true], patient()).await;
    let wrong = |i: usize| nodes[i].0.counters.get(Counter::LinkWrongNode);
    until("it was refused", || wrong(0) + wrong(1) > 3).await;
    for (i, peer) in [(0, 1), (1, 0)] {
        assert_eq!(carrying(&nodes[i].0.links, world.node(peer)), Some(RouteKind::TOR));
        assert!(nodes[i].0.links.status().iter().all(|link| link.route == RouteKind::TOR));
    }
}
