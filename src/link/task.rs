//! The shell around the pool: dials, takes, runs links.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use rand::RngExt;
use rustbalance_gossip::id::{ClusterId, NodeId};
use rustbalance_gossip::record::{Member, Revocation};
use rustbalance_gossip::signed::Verified;
use rustbalance_mesh::{Carrier, Update};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span};

use super::bucket::Bucket;
use super::connection::Connection;
use super::frame::MessageError;
use super::handshake::{Dialler, HandshakeError, Listener, Proved, Purpose, Refusal, Refused};
use super::pool::Pool;
use super::{CarriedJoin, LinkConfig, LinkError, LinkLimits, LinkOutputs, MemberSet, Route, RouteError, counted};
use crate::clock::unix_now;
use crate::discovery::{Discovery, Offer};
use crate::frame::{self, FrameError, MAX_UNPROVEN};
use crate::keys::NodeSecret;
use crate::stream::BoxStream;

/// Messages from all links that may wait for the mesh; later ones are dropped.
const INBOX: usize = 256;

/// Discovery keys from all links that may wait to be looked at.
const OFFERS: usize = 8;

/// Messages of facts from all links that may wait to be taken in; those dropped are handed over
/// again later.
const FACTS: usize = 16;

/// What every task of the links has.
pub(super) struct Shared {
    route: Arc<dyn Route>,
    identity: NodeSecret,
    membership: Member,
    cluster: ClusterId,
    limits: LinkLimits,
    members: watch::Receiver<MemberSet>,
    pool: Mutex<Pool>,
    accepts: Mutex<Bucket>,
    handshakes: Arc<Semaphore>,
    received: mpsc::Sender<(NodeId, Vec<u8>)>,
    joins: mpsc::Sender<CarriedJoin>,
    revoked: mpsc::Sender<Verified<Revocation>>,
    discovery: watch::Receiver<Option<Arc<Discovery>>>,
    offered: mpsc::Sender<Offer>,
    facts: mpsc::Sender<Vec<Update>>,
    pub(super) stop: CancellationToken,
}

impl Shared {
    pub(super) fn new(config: LinkConfig, members: watch::Receiver<MemberSet>) -> (Arc<Self>, LinkOutputs) {
        let (received, inbox) = mpsc::channel(INBOX);
        let (joins, carried) = mpsc::channel(config.limits.carried.0.max(1));
        let (revoked, word) = mpsc::channel(1);
        let (offered, offers) = mpsc::channel(OFFERS);
        let (facts, handed_over) = mpsc::channel(FACTS);
        let (rate, burst) = config.limits.accepts_per_second;
        let shared = Arc::new(Self {
            pool: Mutex::new(Pool::new(config.membership.node(), config.limits.clone())),
            accepts: Mutex::new(Bucket::new(rate, burst, Instant::now())),
            handshakes: Arc::new(Semaphore::new(config.limits.handshakes)),
            route: config.route,
            identity: config.identity,
            membership: config.membership,
            cluster: config.cluster,
            limits: config.limits,
            members,
            received,
            joins,
            revoked,
            discovery: config.discovery,
            offered,
            facts,
            stop: CancellationToken::new(),
        });
        let sender = Arc::downgrade(&shared);
        let send = move |to, message| {
            if let Some(shared) = sender.upgrade() {
                shared.pool().send(to, message);
            }
        };
        let carrier = Carrier { send: Arc::new(send), received: inbox };
        (shared, LinkOutputs { carrier, joins: carried, revoked: word, offered: offers, facts: handed_over })
    }

    pub(super) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Dials and proves who we are. What comes back is open for its purpose.
    pub(super) async fn dial(&self, to: NodeId, purpose: Purpose) -> Result<BoxStream, LinkError> {
        let mut stream = self.route.dial(to, self.limits.dial).await?;
        let dialler =
            Dialler { membership: &self.membership, key: &self.identity, cluster: self.cluster, dialled: to, purpose };
        let broken = |error| LinkError::Broken(to, error);
        let shake = async {
            let challenge = frame::read(&mut stream, MAX_UNPROVEN).await.map_err(broken)?;
            let proof = dialler.challenge(&challenge)?;
            // The other may have dialled meanwhile: then that link is as good, and this one would only cross it.
            if purpose == Purpose::Mesh && self.pool().has(to) {
                return Err(HandshakeError::Refused(to, Refusal::Duplicate).into());
            }
            frame::write(&mut stream, &proof).await.map_err(broken)?;
            let answer = frame::read(&mut stream, MAX_UNPROVEN).await.map_err(broken)?;
            dialler.answer(&answer).map_err(LinkError::from)
        };
        timeout(self.limits.handshake, shake).await.map_err(|_| LinkError::Slow(to))??;
        Ok(stream)
    }
}

/// Looks at the whole whenever the member set changes and at every tick.
pub(super) async fn reconcile(shared: Arc<Shared>) {
    let mut members = shared.members.clone();
    let mut tick = interval(shared.limits.tick);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stop = shared.stop.clone();
    let work = async {
        loop {
            let set = members.borrow_and_update().clone();
            let due = shared.pool().reconcile(&set, unix_now(), Instant::now());
            for peer in due {
                tokio::spawn(open(Arc::clone(&shared), peer).instrument(info_span!("link", peer = peer.short())));
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

/// Opens a link and runs it.
async fn open(shared: Arc<Shared>, peer: NodeId) {
    let dialled = shared.stop.run_until_cancelled(shared.dial(peer, Purpose::Mesh)).await;
    match dialled {
        Some(Ok(stream)) => {
            shared.pool().dial_done(peer);
            // The peer's certificate is checked where it speaks; what it may not do any more, the member set says.
            run(shared, peer, true, u64::MAX, stream).await;
        }
        Some(Err(error)) => {
            debug!(error = &error as &dyn std::error::Error, "no link");
            let shut_out = matches!(&error, LinkError::Dial(RouteError::ShutOut(_)));
            shared.pool().dial_failed(peer, shut_out, rand::rng().random(), Instant::now());
            if let LinkError::Handshake(HandshakeError::Revoked(revocation)) = error {
                // Once is enough.
                let _ = shared.revoked.try_send(*revocation);
            }
        }
        None => {}
    }
}

/// Runs a link from the moment that both sides know who they are.
async fn run(shared: Arc<Shared>, peer: NodeId, outgoing: bool, expires: u64, stream: BoxStream) {
    if shared.members.borrow().revoked.contains_key(&peer) {
        shared.pool().count(Refusal::Revoked.name());
        return;
    }
    let opened = Instant::now();
    // In a statement of its own: in the match the pool would stay locked, and a refusal has to be noted in it.
    let open = shared.pool().open(peer, outgoing, expires, opened);
    let (id, out, counts, close) = match open {
        Ok(parts) => parts,
        Err(refusal) => {
            debug!(%refusal, "link not kept");
            match outgoing {
                // No better than a dial that was refused over there: the next one has to wait.
                true => shared.pool().dial_failed(peer, false, rand::rng().random(), opened),
                false => shared.pool().count(refusal.name()),
            }
            return;
        }
    };
    info!(outgoing, "link open");
    let connection = Connection {
        peer,
        out,
        counts,
        received: shared.received.clone(),
        flood: Arc::clone(&shared.pool().flood),
        members: shared.members.clone(),
        discovery: shared.discovery.clone(),
        offered: shared.offered.clone(),
        facts: shared.facts.clone(),
        limits: shared.limits.clone(),
    };
    tokio::select! {
        ended = connection.run(stream) => {
            info!(reason = &ended as &dyn std::error::Error, "link ended");
            if let Some(name) = ended.counted() {
                shared.pool().count(name);
            }
        }
        () = close.cancelled() => info!("link closed: replaced, revoked, expired or not needed"),
        () = shared.stop.cancelled() => {}
    }
    let lasted = opened.elapsed();
    shared.pool().ended(id, peer, lasted, rand::rng().random(), Instant::now());
}

/// Takes a stream, if there is room for another handshake.
pub(super) fn accept(shared: &Arc<Shared>, stream: BoxStream) {
    let in_time = shared.accepts.lock().unwrap_or_else(PoisonError::into_inner).take(1, Instant::now());
    let room = Arc::clone(&shared.handshakes).try_acquire_owned();
    let (true, Ok(room)) = (in_time, room) else {
        shared.pool().count(counted::CROWD);
        return;
    };
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let stop = shared.stop.clone();
        stop.run_until_cancelled(listen(shared, stream, room)).await;
    });
}

/// Finds out who has dialled, and runs what was dialled for.
async fn listen(shared: Arc<Shared>, mut stream: BoxStream, room: OwnedSemaphorePermit) {
    let proved = match timeout(shared.limits.handshake, shake(&shared, &mut stream)).await {
        Ok(Ok(proved)) => proved,
        Ok(Err(error)) => {
            debug!(error = &error as &dyn std::error::Error, "no handshake");
            shared.pool().count(counted::UNFINISHED);
            return;
        }
        Err(_) => {
            shared.pool().count(counted::UNFINISHED);
            return;
        }
    };
    drop(room);
    match proved {
        Ok((proved, None)) => {
            let (peer, expires) = (proved.member.node(), proved.member.certificate.expires);
            run(shared, peer, false, expires, stream).instrument(info_span!("link", peer = peer.short())).await;
        }
        Ok((proved, Some(place))) => {
            let from = proved.member.node();
            let stream = Box::new(CarriedStream { stream, _place: place });
            if shared.joins.try_send(CarriedJoin { from, stream }).is_err() {
                shared.pool().count(Refusal::Busy.name());
            }
        }
        Err(refusal) => {
            debug!(refusal = %refusal.why, "link refused");
            shared.pool().count(refusal.why.name());
        }
    }
}

/// Who has proved itself, with a place if it passes a joiner on; or why not.
type Judged = Result<(Proved, Option<Place>), Refused>;

/// Challenge, proof, answer. A refusal is told to the dialler and returned.
async fn shake(shared: &Arc<Shared>, stream: &mut BoxStream) -> Result<Judged, MessageError> {
    let (listener, challenge) = Listener::new(&shared.membership, rand::rng().random())?;
    frame::write(stream, &challenge).await?;
    let judged = match frame::read(stream, MAX_UNPROVEN).await {
        Ok(proof) => {
            let revoked = shared.members.borrow().revoked.clone();
            listener.proof(&proof, &revoked, unix_now()).and_then(|proved| Ok(admit(shared, proved)?))
        }
        Err(FrameError::TooLong { .. }) => Err(Refusal::Malformed.into()),
        Err(error) => return Err(error.into()),
    };
    frame::write(stream, &Listener::answer(judged.as_ref().err().cloned())?).await?;
    Ok(judged)
}

/// Whether there is room for what a member wants.
fn admit(shared: &Arc<Shared>, proved: Proved) -> Result<(Proved, Option<Place>), Refusal> {
    let peer = proved.member.node();
    match proved.purpose {
        Purpose::Mesh => {
            shared.pool().may_open(peer, false, Instant::now())?;
            Ok((proved, None))
        }
        Purpose::CarryJoin => {
            if shared.joins.is_closed() || shared.joins.capacity() == 0 {
                return Err(Refusal::Busy);
            }
            shared.pool().take_carried(peer)?;
            Ok((proved, Some(Place { shared: Arc::clone(shared), from: peer })))
        }
    }
}

/// One of the places for joiners' streams; dropped, it is free again.
struct Place {
    shared: Arc<Shared>,
    from: NodeId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.pool().give_carried(self.from);
    }
}

/// A joiner's stream with its place.
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
