//! The IO around the pool: dials, accepts and runs links.

use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::{Mutex, MutexGuard};
use rand::RngExt;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::{Member, Revocation};
use rustbalance_gossip::signed::Verified;
use rustbalance_mesh::{Carrier, Update};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span};

use super::connection::{Answer, Connection};
use super::frame::MessageError;
use super::handshake::{Dialler, HandshakeError, HandshakeSide, LinkRefusal, Listener, ProvedPeer, Purpose, Refused};
use super::pool::{OpenedLink, Pool};
use super::{
    CarriedJoin, Channel, LinkConfig, LinkError, LinkLimits, LinkOutputs, MemberSet, Reach, Route, RouteError,
    RouteKind,
};
use crate::bucket::{Rate, TokenBucket};
use crate::clock::unix_now;
use crate::counters::{Counter, Counters};
use crate::discovery::{Discovery, Offer};
use crate::frame::{self, FrameError, MAX_UNPROVEN};
use crate::keys::NodeSecret;
use crate::places::{self, Places};
use crate::stream::BoxStream;
use crate::sync::publish;

/// Messages from all links that may wait for the mesh; later ones are dropped.
const INBOX: usize = 256;

/// Discovery keys from all links that may wait to be examined.
const OFFERS: usize = 8;

/// Messages of facts from all links that may wait to be applied. Those dropped are handed over
/// again later.
const FACTS: usize = 16;

/// State shared by all tasks of the links.
pub(super) struct Shared {
    /// The route that reaches every member.
    base: Arc<dyn Route>,
    /// Further routes, best first.
    faster: Vec<Arc<dyn Route>>,
    identity: NodeSecret,
    /// This node's certificates at its start.
    membership: Arc<Member>,
    limits: watch::Receiver<LinkLimits>,
    pub(super) counters: Counters,
    members: watch::Receiver<MemberSet>,
    pool: Mutex<Pool>,
    /// Notified when a link opens: its first probe may be due before all others.
    probing: Notify,
    accepts: Mutex<TokenBucket>,
    handshakes: Places,
    received: mpsc::Sender<(NodeId, Vec<u8>)>,
    joins: mpsc::Sender<CarriedJoin>,
    revoked: mpsc::Sender<Verified<Revocation>>,
    discovery: watch::Receiver<Option<Arc<Discovery>>>,
    offered: mpsc::Sender<Offer>,
    facts: mpsc::Sender<Vec<Update>>,
    pub(super) reach: watch::Sender<Reach>,
    pub(super) unreachable: watch::Sender<BTreeSet<NodeId>>,
    pub(super) stop: CancellationToken,
}

impl Shared {
    pub(super) fn new(config: LinkConfig, members: watch::Receiver<MemberSet>) -> (Arc<Self>, LinkOutputs) {
        let (received, inbox) = mpsc::channel(INBOX);
        let limits = config.limits.borrow().clone();
        let (joins, carried) = mpsc::channel(limits.carried.0.max(1));
        let (revoked, revocation) = mpsc::channel(1);
        let (offered, offers) = mpsc::channel(OFFERS);
        let (facts, handed_over) = mpsc::channel(FACTS);
        let (rate, burst) = limits.accepts_per_second;
        let routes = config.faster.iter().chain([&config.base]).map(|route| route.kind()).collect();
        let shared = Arc::new(Self {
            pool: Mutex::new(Pool::new(config.membership.node(), routes, limits, config.counters.clone())),
            probing: Notify::new(),
            accepts: Mutex::new(TokenBucket::new(Rate::per_second(rate, burst), Instant::now())),
            handshakes: Places::default(),
            base: config.base,
            faster: config.faster,
            identity: config.identity,
            membership: Arc::new(config.membership),
            limits: config.limits,
            counters: config.counters,
            members,
            received,
            joins,
            revoked,
            discovery: config.discovery,
            offered,
            facts,
            reach: watch::Sender::default(),
            unreachable: watch::Sender::default(),
            stop: CancellationToken::new(),
        });
        let sender = Arc::downgrade(&shared);
        let send = move |to, message| {
            if let Some(shared) = sender.upgrade() {
                shared.pool().send(to, message);
            }
        };
        let linked = Arc::downgrade(&shared);
        let links = move || linked.upgrade().map(|shared| shared.pool().peers()).unwrap_or_default();
        let carrier = Carrier { send: Arc::new(send), received: inbox, links: Arc::new(links) };
        (shared, LinkOutputs { carrier, joins: carried, revoked: revocation, offered: offers, facts: handed_over })
    }

    /// The bounds for links and handshakes that start now.
    fn limits(&self) -> LinkLimits {
        self.limits.borrow().clone()
    }

    pub(super) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock()
    }

    /// Publishes how far this node reaches, and which peers do not answer, if that has changed.
    /// Holds the pool's lock, so that the newest value is published last.
    fn show_reach(&self) {
        let mut pool = self.pool();
        publish(&self.reach, pool.reach());
        publish(&self.unreachable, pool.unreachable(Instant::now()));
    }

    /// Notes an answer of a peer on a link.
    fn answered(&self, link: u64, answer: Answer) {
        self.pool().answered(link, answer, Instant::now());
        self.show_reach();
    }

    /// The route of this kind; the base route if this node has none of the kind.
    fn route(&self, kind: RouteKind) -> &Arc<dyn Route> {
        self.faster.iter().find(|route| route.kind() == kind).unwrap_or(&self.base)
    }

    /// This node's newest certificates.
    fn membership(&self) -> Arc<Member> {
        self.members.borrow().own.clone().unwrap_or_else(|| Arc::clone(&self.membership))
    }

    /// This side of a handshake over `channel`, with these certificates of this node.
    fn own<'a>(&'a self, membership: &'a Member, channel: &Channel) -> HandshakeSide<'a> {
        HandshakeSide {
            membership,
            key: &self.identity,
            route: channel.route,
            binding: channel.binding,
            nonce: rand::rng().random(),
        }
    }

    /// Dials a stream that can carry a joiner's bytes, by the route that frames to `to` take. If
    /// that fails, by the base route.
    pub(super) async fn dial_for_join(&self, to: NodeId) -> Result<BoxStream, LinkError> {
        let chosen = self.pool().route_to(to).map_or(&self.base, |kind| self.route(kind));
        let dialled = match self.dial(to, chosen, Purpose::CarryJoin).await {
            Err(LinkError::Dial(_)) if chosen.kind() != self.base.kind() => {
                self.dial(to, &self.base, Purpose::CarryJoin).await
            }
            dialled => dialled,
        };
        dialled.map(|(stream, _)| stream)
    }

    /// Dials, and runs the handshake. Returns the stream, open for `purpose`, and the member at its
    /// other end.
    async fn dial(
        &self,
        to: NodeId,
        route: &Arc<dyn Route>,
        purpose: Purpose,
    ) -> Result<(BoxStream, Member), LinkError> {
        let mut channel = route.dial(to, self.limits().dial).await?;
        let membership = self.membership();
        let dialler = Dialler { own: self.own(&membership, &channel), dialled: to, purpose };
        let stream = &mut channel.stream;
        let broken = |error| LinkError::Broken(to, error);
        let listener_handshake = async {
            let challenge = frame::read(stream, MAX_UNPROVEN).await.map_err(broken)?;
            let (proof, claimed) = dialler.challenge(&challenge)?;
            // The peer may have dialled meanwhile: that link is as good, and this one would only
            // cross it.
            if purpose == Purpose::Mesh && self.pool().has(to, route.kind()) {
                return Err(HandshakeError::Refused(to, LinkRefusal::Duplicate).into());
            }
            frame::write(stream, &proof).await.map_err(broken)?;
            let answer = frame::read(stream, MAX_UNPROVEN).await.map_err(broken)?;
            let revoked = self.members.borrow().revoked.clone();
            claimed.answer(&answer, &revoked, unix_now()).map_err(LinkError::from)
        };
        let member = timeout(self.limits().handshake, listener_handshake).await.map_err(|_| LinkError::Slow(to))??;
        Ok((channel.stream, member))
    }

    /// The dials to start now: peer and route.
    fn due(&self, set: &MemberSet) -> Vec<(NodeId, RouteKind)> {
        let reaches = |peer, kind| self.route(kind).reaches(peer);
        let due = {
            let mut pool = self.pool();
            pool.bound(self.limits());
            pool.reconcile(set, reaches, unix_now(), Instant::now())
        };
        self.show_reach();
        due
    }
}

/// Sends probes when they are due, until the links stop.
pub(super) async fn probe(shared: Arc<Shared>) {
    let stop = shared.stop.clone();
    let work = async {
        loop {
            let opened = shared.probing.notified();
            let next = shared.pool().probe(Instant::now());
            shared.show_reach();
            match next {
                Some(next) => tokio::select! {
                    () = sleep_until(next) => {}
                    () = opened => {}
                },
                None => opened.await,
            }
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Reviews all links when the member set changes and at every tick, until the links stop.
pub(super) async fn reconcile(shared: Arc<Shared>) {
    let mut members = shared.members.clone();
    let mut tick = interval(shared.limits().tick);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stop = shared.stop.clone();
    let work = async {
        loop {
            let set = members.borrow_and_update().clone();
            for (peer, route) in shared.due(&set) {
                let span = info_span!("link", peer = peer.short(), %route);
                tokio::spawn(open(Arc::clone(&shared), peer, route).instrument(span));
            }
            tokio::select! {
                // Without a sender the set stays as it is.
                Ok(()) = members.changed() => {}
                _ = tick.tick() => {}
            }
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Dials a peer, and runs the link if it opens.
async fn open(shared: Arc<Shared>, peer: NodeId, route: RouteKind) {
    let dial = shared.dial(peer, shared.route(route), Purpose::Mesh);
    let dialled = shared.stop.run_until_cancelled(dial).await;
    match dialled {
        Some(Ok((stream, member))) => {
            shared.pool().dial_done(peer, route);
            let proven = ProvenLink { peer, route, outgoing: true, expires: member.certificate.expires };
            run(shared, proven, stream).await;
        }
        Some(Err(error)) => {
            debug!(error = &error as &dyn std::error::Error, "no link to the peer");
            let shut_out = matches!(&error, LinkError::Dial(RouteError::ShutOut(_)));
            shared.pool().dial_failed(peer, route, shut_out, rand::rng().random(), Instant::now());
            shared.show_reach();
            match error {
                LinkError::Handshake(HandshakeError::Revoked(revocation)) => {
                    // The channel holds one revocation, and one is enough.
                    let _ = shared.revoked.try_send(*revocation);
                }
                LinkError::Handshake(HandshakeError::Unproven(_, why)) => shared.counters.count(why.counter()),
                _ => {}
            }
        }
        None => {}
    }
}

/// A link on which both sides have proved their identity.
#[derive(Clone, Copy)]
struct ProvenLink {
    peer: NodeId,
    route: RouteKind,
    outgoing: bool,
    /// End of the peer's certificate, in seconds since the epoch.
    expires: u64,
}

/// Runs a link after its handshake.
async fn run(shared: Arc<Shared>, proven: ProvenLink, stream: BoxStream) {
    let ProvenLink { peer, route, outgoing, expires } = proven;
    if shared.members.borrow().revoked.contains_key(&peer) {
        shared.counters.count(LinkRefusal::Revoked.counter());
        return;
    }
    let opened = Instant::now();
    // Not inside the `match`, which would keep the pool locked while the refusal is noted in it.
    let open = shared.pool().open(peer, route, outgoing, expires, opened);
    let OpenedLink { id, out, counts, close } = match open {
        Ok(opened) => opened,
        Err(refusal) => {
            debug!(%refusal, "link dropped after its handshake");
            match outgoing {
                // Treated like a dial that the peer refused: the next one has to wait.
                true => shared.pool().dial_failed(peer, route, false, rand::rng().random(), opened),
                false => shared.counters.count(refusal.counter()),
            }
            return;
        }
    };
    shared.probing.notify_one();
    let prober = Arc::clone(&shared);
    info!(name: "link_open", outgoing, "link open");
    shared.show_reach();
    let connection = Connection {
        peer,
        out,
        counts,
        received: shared.received.clone(),
        counters: shared.counters.clone(),
        members: shared.members.clone(),
        discovery: shared.discovery.clone(),
        offered: shared.offered.clone(),
        facts: shared.facts.clone(),
        answered: Box::new(move |answer| prober.answered(id, answer)),
        limits: shared.limits(),
    };
    tokio::select! {
        ended = connection.run(stream) => {
            info!(name: "link_ended", reason = &ended as &dyn std::error::Error, "link ended");
            if let Some(counter) = ended.counter() {
                shared.counters.count(counter);
            }
        }
        () = close.cancelled() => info!(name: "link_closed", "link closed: replaced, revoked, expired or not needed"),
        () = shared.stop.cancelled() => {}
    }
    let lasted = opened.elapsed();
    shared.pool().ended(id, (peer, route), lasted, rand::rng().random(), Instant::now());
    shared.show_reach();
}

/// Starts a handshake on the stream, unless too many came at once or too many are in progress.
pub(super) fn accept(shared: &Arc<Shared>, channel: Channel) {
    let LinkLimits { accepts_per_second: (rate, burst), handshakes, .. } = shared.limits();
    let mut accepts = shared.accepts.lock();
    let in_time = accepts.take_at(Rate::per_second(rate, burst), 1, Instant::now());
    drop(accepts);
    let (true, Some(handshake_place)) = (in_time, shared.handshakes.take(handshakes)) else {
        shared.counters.count(Counter::LinkOverRate);
        return;
    };
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let stop = shared.stop.clone();
        stop.run_until_cancelled(listen(shared, channel, handshake_place)).await;
    });
}

/// Runs the listener's handshake, then the link or the joiner's stream.
async fn listen(shared: Arc<Shared>, mut channel: Channel, handshake_place: places::Place) {
    let proved = match timeout(shared.limits().handshake, listener_handshake(&shared, &mut channel)).await {
        Ok(Ok(proved)) => proved,
        Ok(Err(error)) => {
            debug!(error = &error as &dyn std::error::Error, "handshake of a dialler failed");
            shared.counters.count(Counter::LinkUnfinished);
            return;
        }
        Err(_) => {
            shared.counters.count(Counter::LinkUnfinished);
            return;
        }
    };
    drop(handshake_place);
    match proved {
        Ok((proved, None)) => {
            let (peer, expires, route) = (proved.member.node(), proved.member.certificate.expires, channel.route);
            let span = info_span!("link", peer = peer.short(), %route);
            let proven = ProvenLink { peer, route, outgoing: false, expires };
            run(shared, proven, channel.stream).instrument(span).await;
        }
        Ok((proved, Some(place))) => {
            let from = proved.member.node();
            let stream = Box::new(CarriedStream { stream: channel.stream, _place: place });
            if shared.joins.try_send(CarriedJoin { from, stream }).is_err() {
                shared.counters.count(LinkRefusal::Busy.counter());
            }
        }
        Err(refusal) => {
            debug!(refusal = %refusal.why, "link refused");
            shared.counters.count(refusal.why.counter());
        }
    }
}

/// The peer that has proved itself, with a place if it carries a joiner; or the refusal.
type HandshakeOutcome = Result<(ProvedPeer, Option<Place>), Refused>;

/// Sends the challenge, reads the proof, sends the answer. A refusal is sent to the dialler and
/// returned.
async fn listener_handshake(shared: &Arc<Shared>, channel: &mut Channel) -> Result<HandshakeOutcome, MessageError> {
    let membership = shared.membership();
    let (listener, challenge) = Listener::new(shared.own(&membership, channel))?;
    let (route, stream) = (channel.route, &mut channel.stream);
    frame::write(stream, &challenge).await?;
    let judged = match frame::read(stream, MAX_UNPROVEN).await {
        Ok(proof) => {
            let revoked = shared.members.borrow().revoked.clone();
            listener.proof(&proof, &revoked, unix_now()).and_then(|proved| Ok(admit(shared, proved, route)?))
        }
        Err(FrameError::TooLong { .. }) => Err(LinkRefusal::Malformed.into()),
        Err(error) => return Err(error.into()),
    };
    let answer = match &judged {
        Ok((proved, _)) => listener.accept(proved)?,
        Err(refused) => refused.answer()?,
    };
    frame::write(stream, &answer).await?;
    Ok(judged)
}

/// Whether there is space for the peer's purpose.
fn admit(
    shared: &Arc<Shared>,
    proved: ProvedPeer,
    route: RouteKind,
) -> Result<(ProvedPeer, Option<Place>), LinkRefusal> {
    let peer = proved.member.node();
    match proved.purpose {
        Purpose::Mesh => {
            shared.pool().may_open(peer, route, false, Instant::now())?;
            Ok((proved, None))
        }
        Purpose::CarryJoin => {
            if shared.joins.is_closed() || shared.joins.capacity() == 0 {
                return Err(LinkRefusal::Busy);
            }
            shared.pool().take_carried(peer)?;
            Ok((proved, Some(Place { shared: Arc::clone(shared), from: peer })))
        }
    }
}

/// One of the places for joiners' streams; freed when dropped.
struct Place {
    shared: Arc<Shared>,
    from: NodeId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.pool().give_carried(self.from);
    }
}

/// A joiner's stream that holds its place.
struct CarriedStream {
    stream: BoxStream,
    _place: Place,
}

impl AsyncRead for CarriedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for CarriedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
