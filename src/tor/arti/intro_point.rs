//! One introduction point of a service: opens it, watches it, and answers its introductions.
//!
//! Opening builds a circuit to the relay and sends ESTABLISH_INTRO on it. Then a handler in the
//! circuit's reactor queues INTRODUCE2 cells (a full queue drops them), one task per point reads
//! them in order, and each valid one gets its own rendezvous task. The point ends when its handle
//! is dropped, when its circuit closes, or when two consecutive directories lack the relay.
//! Introductions that have arrived by then are still answered, because their relay has acknowledged
//! them. The circuits of clients that were introduced there stay open.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;
use rustbalance_gossip::bytes::{FixedBytes, VarBytes};
use rustbalance_gossip::record::{IntroPoint, RelayId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::DropGuard;
use tor_bytes::Writer;
use tor_cell::relaycell::RelayCmd;
use tor_cell::relaycell::hs::est_intro::{DosParams, EstablishIntroDetails};
use tor_cell::relaycell::msg::{AnyRelayMsg, Introduce2, Unrecognized};
use tor_circmgr::ServiceOnionServiceIntroTunnel;
use tor_hscrypto::pk::{HsIntroPtSessionIdKey, HsIntroPtSessionIdKeypair};
use tor_linkspec::{CircTarget, HasRelayIds, RelayIdSet};
use tor_netdir::{NetDir, Relay};
use tor_proto::{MetaCellDisposition, MsgHandler, TargetHop};
use tor_protover::named::HSINTRO_RATELIM;
use tor_relay_selection::{RelayExclusion, RelaySelector, RelayUsage};

use super::client::{ReadyClient, Shared};
use super::introduction::{IntroductionError, IntroductionReader};
use super::{keys, rendezvous};
use crate::counters::add_one;
use crate::tor::{Incoming, IntroRequest, OpenIntroPoint, Refused, RelayChoice, ServiceGuard, TorError, descriptor};

/// Most attempts: each at another relay, or all at the relay that was asked for.
const ATTEMPTS: u32 = 5;

/// Pause between two attempts: a circuit manager that has just started needs this long to find its
/// first relays.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Time limit for the relay's answer to ESTABLISH_INTRO.
const ESTABLISH_LIMIT: Duration = Duration::from_secs(15);

/// An introduction that has waited this long in the queue is dropped: its client has given up.
const STALE: Duration = Duration::from_secs(30);

/// Opens the point.
pub(super) async fn open(
    shared: Arc<Shared>,
    request: IntroRequest,
    streams: mpsc::Sender<Incoming>,
) -> Result<Box<dyn OpenIntroPoint>, TorError> {
    let live = shared.live()?;
    descriptor::blinded(request.service, live.netdir()?.hs_time_period())?;
    let session = keys::session_keypair(&request.keys.secrets);
    let encryption = keys::encryption_keypair(&request.keys.secrets);
    let reading = IntroductionReader {
        service: request.service,
        session: HsIntroPtSessionIdKey::from(session.as_ref().verifying_key()),
        encryption,
        replays: Arc::clone(&request.keys.replays),
        unwritten: Default::default(),
        cached: Mutex::default(),
    };
    let mut choice = request.relay;
    let mut attempt = 1;
    let (made, queue) = loop {
        let (sender, queue) = mpsc::channel(request.limits.now().introduction_queue.max(1));
        let handler = Handler { established: None, queue: sender, limits: Arc::clone(&request.limits) };
        match establish(&shared, &live, &choice, &session, handler).await {
            Ok(made) => break (made, queue),
            Err((Some(relay), error)) if attempt < ATTEMPTS => {
                tracing::debug!(attempt, %relay, %error, "cannot open an introduction point");
                if let RelayChoice::AnyBut(excluded) = &mut choice {
                    excluded.insert(relay);
                }
            }
            Err((_, error)) => return Err(error),
        }
        sleep(RETRY_PAUSE).await;
        attempt += 1;
    };
    let describe = IntroPoint {
        relay: made.relay,
        link_specifiers: made.link_specifiers,
        onion_key: FixedBytes(made.onion_key),
        session_key: FixedBytes(request.keys.secrets.session_key()),
        encryption_key: FixedBytes(request.keys.secrets.encryption_key()),
    };
    let answering = IntroductionTask {
        shared: Arc::clone(&shared),
        live,
        reading: Arc::new(reading),
        introductions: Arc::default(),
        limits: request.limits,
        streams,
    };
    Ok(Box::new(start(&shared, made.tunnel, describe, answering, queue)))
}

/// An established introduction circuit.
struct EstablishedCircuit {
    tunnel: ServiceOnionServiceIntroTunnel,
    relay: RelayId,
    link_specifiers: Vec<VarBytes>,
    onion_key: [u8; 32],
}

/// Chooses a relay and makes one attempt to establish the point there. The error names the relay if
/// another attempt is worthwhile (at another relay, unless the caller asked for this one); `None`
/// if not.
async fn establish(
    shared: &Shared,
    live: &ReadyClient,
    choice: &RelayChoice,
    session: &HsIntroPtSessionIdKeypair,
    handler: Handler,
) -> Result<EstablishedCircuit, (Option<RelayId>, TorError)> {
    let attempt = shared.attempts.turn().await;
    let netdir = live.netdir().map_err(|error| (None, error))?;
    let relay = choose(&netdir, choice).map_err(|error| (None, error))?;
    let no_ids = || TorError::NoRelay("the chosen relay lacks an identity".into());
    let id = keys::relay_id(&relay).ok_or_else(no_ids).map_err(|error| (None, error))?;
    let again = |error| (Some(id), error);
    let onion_key = relay.ntor_onion_key().to_bytes();
    let link_specifiers = link_specifiers(&relay).map_err(again)?;
    let dos = relay
        .protovers()
        .supports_named_subver(HSINTRO_RATELIM)
        .then_some(handler.limits.now().introductions_per_second);
    let began = Instant::now();
    let launched = live.pool.get_or_launch_svc_intro(&netdir, relay).await;
    if launched.is_ok() {
        handler.limits.refused.service.intro_circuit_time.observe(began.elapsed());
    }
    attempt.ended(&launched);
    shared.note_circuit(launched.as_ref().map(|_| ()));
    let tunnel = launched.map_err(|error| again(unreachable(&id, "no circuit to it", error)))?;
    drop(netdir);
    let message = establish_intro(&tunnel, &id, session, dos.flatten()).await.map_err(again)?;
    greet(&tunnel, &id, message, handler).await.map_err(again)?;
    Ok(EstablishedCircuit { tunnel, relay: id, link_specifiers, onion_key })
}

/// The relay for the next attempt.
fn choose<'d>(netdir: &'d NetDir, choice: &RelayChoice) -> Result<Relay<'d>, TorError> {
    match choice {
        RelayChoice::Exactly(relay) => netdir
            .by_ids(&keys::relay_ids(relay))
            .ok_or_else(|| TorError::NoRelay(format!("{relay} is not in the network's directory"))),
        RelayChoice::AnyBut(excluded) => {
            let selector = RelaySelector::new(
                RelayUsage::new_intro_point(),
                RelayExclusion::exclude_identities(identities(excluded)),
            );
            let (relay, info) = selector.select_relay(&mut rand::rng(), netdir);
            relay.ok_or_else(|| TorError::NoRelay(format!("{} are excluded: {info}", excluded.len())))
        }
    }
}

/// Both identities of each relay: C tor knows relays by the one, Arti by the other.
fn identities(relays: &BTreeSet<RelayId>) -> RelayIdSet {
    let mut all = RelayIdSet::new();
    for relay in relays {
        for id in keys::relay_ids(relay).identities() {
            all.insert(id.to_owned());
        }
    }
    all
}

/// The relay's link specifiers, each encoded.
fn link_specifiers(relay: &Relay<'_>) -> Result<Vec<VarBytes>, TorError> {
    let invalid = |error: tor_bytes::EncodeError| {
        TorError::Invalid("cannot encode a relay's link specifiers".into(), Some(Box::new(error)))
    };
    let encode = |spec: &tor_linkspec::EncodedLinkSpec| {
        let mut bytes = Vec::new();
        bytes.write(spec).map_err(invalid)?;
        Ok(VarBytes(bytes))
    };
    relay.linkspecs().map_err(invalid)?.iter().map(encode).collect()
}

/// The ESTABLISH_INTRO message, signed and bound to this circuit.
async fn establish_intro(
    tunnel: &ServiceOnionServiceIntroTunnel,
    relay: &RelayId,
    session: &HsIntroPtSessionIdKeypair,
    dos: Option<(u32, u32)>,
) -> Result<AnyRelayMsg, TorError> {
    let invalid =
        |error: tor_cell::Error| TorError::Invalid("cannot make ESTABLISH_INTRO".into(), Some(Box::new(error)));
    let mut details = EstablishIntroDetails::new(session.as_ref().verifying_key().into());
    if let Some((rate, burst)) = dos {
        let bounded = |value: u32| Some(i32::try_from(value).unwrap_or(i32::MAX));
        details.set_extension_dos(DosParams::new(bounded(rate), bounded(burst)).map_err(invalid)?);
    }
    let binding = tunnel
        .binding_key(TargetHop::LastHop)
        .await
        .map_err(|error| unreachable(relay, "the circuit closed", error))?
        .ok_or_else(|| TorError::Invalid("the circuit to an introduction point has no binding key".into(), None))?;
    let body = details.sign_and_encode(session.as_ref(), binding.hs_mac()).map_err(invalid)?;
    Ok(AnyRelayMsg::Unrecognized(Unrecognized::new(RelayCmd::ESTABLISH_INTRO, body)))
}

/// Sends ESTABLISH_INTRO and waits for the relay's answer. From then on, `handler` receives the
/// circuit's messages.
async fn greet(
    tunnel: &ServiceOnionServiceIntroTunnel,
    relay: &RelayId,
    message: AnyRelayMsg,
    mut handler: Handler,
) -> Result<(), TorError> {
    let (sender, established) = oneshot::channel();
    handler.established = Some(sender);
    tunnel
        .start_conversation(Some(message), handler, TargetHop::LastHop)
        .await
        .map_err(|error| unreachable(relay, "cannot send ESTABLISH_INTRO", error))?;
    match timeout(ESTABLISH_LIMIT, established).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(TorError::Unreachable {
            to: relay.to_string(),
            why: "it closed the circuit instead of becoming an introduction point".into(),
            source: None,
        }),
        Err(_) => Err(TorError::Timeout { what: format!("ESTABLISH_INTRO at {relay}"), limit: ESTABLISH_LIMIT }),
    }
}

/// The error for a relay that cannot be reached.
fn unreachable(relay: &RelayId, what: &str, error: tor_circmgr::Error) -> TorError {
    TorError::Unreachable { to: relay.to_string(), why: format!("{what}: {error}"), source: Some(Box::new(error)) }
}

/// Receives the messages of one circuit. It runs in the circuit's reactor, so it must neither wait
/// nor do heavy computation.
struct Handler {
    established: Option<oneshot::Sender<()>>,
    queue: mpsc::Sender<(Introduce2, Instant)>,
    limits: Arc<ServiceGuard>,
}

impl MsgHandler for Handler {
    fn handle_msg(&mut self, message: AnyRelayMsg) -> tor_proto::Result<MetaCellDisposition> {
        let violation = |what: &str| tor_proto::Error::CircProto(what.into());
        match (message, self.established.take()) {
            (AnyRelayMsg::IntroEstablished(_), Some(established)) => {
                let wanted = established.send(()).is_ok();
                Ok(if wanted { MetaCellDisposition::Consumed } else { MetaCellDisposition::CloseCirc })
            }
            (AnyRelayMsg::IntroEstablished(_), None) => Err(violation("a second INTRO_ESTABLISHED")),
            (AnyRelayMsg::Introduce2(cell), None) => match self.queue.try_send((cell, Instant::now())) {
                Ok(()) => Ok(MetaCellDisposition::Consumed),
                Err(mpsc::error::TrySendError::Full(_)) => {
                    self.limits.refused.count(Refused::Introduction);
                    Ok(MetaCellDisposition::Consumed)
                }
                Err(mpsc::error::TrySendError::Closed(_)) => Ok(MetaCellDisposition::CloseCirc),
            },
            (AnyRelayMsg::Introduce2(_), Some(_)) => Err(violation("INTRODUCE2 before INTRO_ESTABLISHED")),
            _ => Err(violation("an unexpected message on an introduction circuit")),
        }
    }
}

/// The handle of an open point. Dropping it ends the tasks, which hold the circuit.
struct Point {
    describe: IntroPoint,
    lost: watch::Receiver<Option<String>>,
    introductions: Arc<AtomicU64>,
    _stop: DropGuard,
}

#[async_trait]
impl OpenIntroPoint for Point {
    fn describe(&self) -> IntroPoint {
        self.describe.clone()
    }

    async fn lost(&self) -> String {
        let mut lost = self.lost.clone();
        let why = lost.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        why.unwrap_or_else(|| "the Tor client has stopped".into())
    }

    fn introductions(&self) -> u64 {
        self.introductions.load(Ordering::Relaxed)
    }
}

/// State of the task that answers introductions.
struct IntroductionTask {
    shared: Arc<Shared>,
    live: ReadyClient,
    reading: Arc<IntroductionReader>,
    introductions: Arc<AtomicU64>,
    limits: Arc<ServiceGuard>,
    streams: mpsc::Sender<Incoming>,
}

/// Starts the tasks of a point: one watches the circuit, one answers introductions.
fn start(
    shared: &Arc<Shared>,
    tunnel: ServiceOnionServiceIntroTunnel,
    describe: IntroPoint,
    answering: IntroductionTask,
    queue: mpsc::Receiver<(Introduce2, Instant)>,
) -> Point {
    let stop = shared.shutdown.child_token();
    let (why, lost) = watch::channel(None);
    let introductions = Arc::clone(&answering.introductions);
    let relay = describe.relay;
    let netdir = Arc::clone(&answering.live.netdir);
    // Ends once the circuit has ended and the queue is empty.
    shared.tasks.spawn(shared.shutdown.clone().run_until_cancelled_owned(answering.run(queue)));
    shared.tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
        let reason = tokio::select! {
            () = tunnel.wait_for_close() => "its circuit was closed".to_owned(),
            () = unlisted(netdir, relay) => "its relay is no longer in the network's directory".to_owned(),
        };
        tracing::debug!(%relay, %reason, "lost an introduction point");
        why.send_replace(Some(reason));
    }));
    Point { describe, lost, introductions, _stop: stop.drop_guard() }
}

/// Returns once two consecutive directories lack the relay: a single one may have missed it.
async fn unlisted(netdir: Arc<dyn tor_netdir::NetDirProvider>, relay: RelayId) {
    let ids = keys::relay_ids(&relay);
    let mut events = netdir.events();
    let mut missing = 0;
    while let Some(event) = events.next().await {
        let tor_netdir::DirEvent::NewConsensus = event else { continue };
        let listed = netdir.timely_netdir().ok().and_then(|dir| dir.ids_listed(&ids));
        missing = if listed == Some(false) { missing + 1 } else { 0 };
        if missing == 2 {
            return;
        }
    }
    // The directory manager has ended; the loss is noticed when the circuit closes.
    std::future::pending().await
}

impl IntroductionTask {
    /// Reads introductions one by one and starts a rendezvous task for each valid one, so no client
    /// waits for the rendezvous of another.
    async fn run(self, mut queue: mpsc::Receiver<(Introduce2, Instant)>) {
        while let Some((cell, arrived)) = queue.recv().await {
            if arrived.elapsed() >= STALE {
                self.limits.refused.count(Refused::Introduction);
                continue;
            }
            let introduction = match self.read(cell).await {
                Ok(introduction) => introduction,
                Err(error) => {
                    tracing::debug!(%error, "dropped an introduction");
                    continue;
                }
            };
            let (shared, limits) = (Arc::clone(&self.shared), Arc::clone(&self.limits));
            let at = introduction.waits_at;
            let Some(place) = shared.circuits.introduce(at, limits.circuits(), &limits.refused) else { continue };
            let visit = rendezvous::Visit { introduction, arrived, place };
            let task = rendezvous::answer(Arc::clone(&shared), visit, limits, self.streams.clone());
            // The task outlives the point, and ends with the engine. It is boxed, because
            // `run_until_cancelled_owned` has memory for three copies of what it runs.
            shared.tasks.spawn(shared.shutdown.clone().run_until_cancelled_owned(Box::pin(task)));
        }
    }

    /// Reads one introduction on a blocking thread, because that computes and writes to disk, and
    /// would delay the tasks that move bytes.
    async fn read(&self, cell: Introduce2) -> Result<super::introduction::Introduction, TorError> {
        let netdir = self.live.netdir().inspect_err(|_| self.limits.refused.count(Refused::Introduction))?;
        let reading = Arc::clone(&self.reading);
        let read = tokio::task::spawn_blocking(move || reading.read(&cell, &netdir)).await;
        let read =
            read.map_err(|error| TorError::Invalid("reading an introduction failed".into(), Some(Box::new(error))))?;
        // A cell that does not decrypt costs its sender nothing, so it must not count towards the
        // number of introductions after which the point is replaced.
        if !matches!(read, Err(IntroductionError::Replay | IntroductionError::Handshake(_))) {
            self.introductions.fetch_add(1, Ordering::Relaxed);
        }
        if read.is_ok() {
            add_one(&self.limits.refused.service.introductions);
        }
        read.map_err(|error| {
            let is_replay = matches!(error, IntroductionError::Replay);
            self.limits.refused.count(if is_replay { Refused::Replay } else { Refused::Malformed });
            TorError::Invalid(format!("cannot answer an introduction: {error}"), Some(Box::new(error)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tor::ServiceLimits;
    use tor_bytes::Reader;
    use tor_cell::relaycell::msg::{Body, IntroEstablished};

    fn introduce2() -> AnyRelayMsg {
        let mut bytes = vec![0; 20];
        bytes.extend([2, 0, 32]);
        bytes.extend([7; 32]);
        bytes.push(0);
        bytes.extend([9; 100]);
        Introduce2::decode_from_reader(&mut Reader::from_slice(&bytes)).unwrap().into()
    }

    fn handler(queue: usize) -> (Handler, oneshot::Receiver<()>, mpsc::Receiver<(Introduce2, Instant)>) {
        let limits =
            Arc::new(ServiceGuard::fixed(ServiceLimits { introduction_queue: queue, ..ServiceLimits::default() }));
        let (sender, established) = oneshot::channel();
        let (queue, cells) = mpsc::channel(queue);
        (Handler { established: Some(sender), queue, limits }, established, cells)
    }

    #[test]
    fn a_relay_that_breaks_the_protocol_loses_its_circuit() {
        let (mut handler, _established, _cells) = handler(1);
        assert!(handler.handle_msg(introduce2()).is_err());
        let (mut handler, _established, _cells) = self::handler(1);
        handler.handle_msg(IntroEstablished::new().into()).unwrap();
        assert!(handler.handle_msg(IntroEstablished::new().into()).is_err());
    }

    #[test]
    fn introductions_past_the_queue_are_dropped_and_counted() {
        let (mut handler, mut established, mut cells) = handler(2);
        handler.handle_msg(IntroEstablished::new().into()).unwrap();
        assert!(established.try_recv().is_ok());
        for _ in 0..5 {
            assert!(matches!(handler.handle_msg(introduce2()), Ok(MetaCellDisposition::Consumed)));
        }
        assert_eq!(handler.limits.refused.get(Refused::Introduction), 3);
        assert_eq!(cells.try_recv().unwrap().0.encrypted_body(), [9; 100]);
    }

    #[test]
    fn a_circuit_without_a_listener_is_closed() {
        let (mut handler, established, cells) = handler(1);
        drop(established);
        assert!(matches!(handler.handle_msg(IntroEstablished::new().into()), Ok(MetaCellDisposition::CloseCirc)));
        drop(cells);
        assert!(matches!(handler.handle_msg(introduce2()), Ok(MetaCellDisposition::CloseCirc)));
    }
}
