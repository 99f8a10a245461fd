//! The client side of an introduction at a chosen point: what Arti's own client does with a point
//! that it has drawn, in the same order and with the same kinds of circuits. Arti's client has no
//! way to choose the point (docs/DECISIONS.md, "The canary introduces itself").

use std::time::Duration;

use rustbalance_gossip::record::IntroPoint;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tor_bytes::{Reader, Writeable};
use tor_cell::relaycell::extend::CcRequest;
use tor_cell::relaycell::hs::AuthKeyType;
use tor_cell::relaycell::hs::intro_payload::{IntroduceHandshakePayload, OnionKey};
use tor_cell::relaycell::msg::{AnyRelayMsg, Body, EstablishRendezvous, Introduce1};
use tor_circmgr::ClientOnionServiceDataTunnel;
use tor_circmgr::build::onion_circparams_from_netparams;
use tor_hscrypto::RendCookie;
use tor_hscrypto::pk::{HsIntroPtSessionIdKey, HsSvcNtorKey};
use tor_linkspec::{CircTarget, EncodedLinkSpec};
use tor_llcrypto::pk::{curve25519, ed25519};
use tor_netdir::{NetDir, Relay};
use tor_proto::client::circuit::handshake::hs_ntor::{HsNtorClientState, HsNtorServiceInfo};
use tor_proto::client::circuit::handshake::{HandshakeRole, RelayProtocol};
use tor_proto::{MetaCellDisposition, MsgHandler, TargetHop};
use tor_protover::Protocols;
use tor_protover::named::FLOWCTRL_CC;

use super::client::{ReadyClient, Shared};
use crate::tor::VisitStage::{Introduction, Network, Port, Rendezvous};
use crate::tor::{TorError, Visit, VisitError, VisitStage, descriptor};

/// Most attempts of one visit, and the pause between two: circuits fail by chance, and a client
/// tries again, too.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);
/// Time limit for a circuit, and for one answer of a relay.
const STEP: Duration = Duration::from_secs(12);
/// Time limit from the acknowledged introduction until the service has come: three attempts of the
/// service at a circuit. Clients wait about as long.
const MEETING: Duration = Duration::from_secs(20);

/// See [`crate::tor::Engine::visit`].
pub(super) async fn visit(shared: &Shared, visit: Visit, limit: Duration) -> Result<(), VisitError> {
    let deadline = Instant::now() + limit;
    let mut attempts = 1;
    loop {
        let result = Box::pin(attempt(shared, &visit, deadline)).await;
        let Err(error) = &result else { return result };
        // The relay's refusal and the service's are answers.
        let answered = matches!(error.why, TorError::Declined { .. });
        if answered || attempts == ATTEMPTS || Instant::now() + PAUSE >= deadline {
            return result;
        }
        tracing::debug!(relay = %visit.point.relay, stage = ?error.stage, %error, "a visit failed, will try again");
        attempts += 1;
        sleep(PAUSE).await;
    }
}

async fn attempt(shared: &Shared, visit: &Visit, deadline: Instant) -> Result<(), VisitError> {
    let live = shared.live().map_err(|error| Network.failed(error))?;
    let netdir = live.netdir().map_err(|error| Network.failed(error))?;
    let step = |stage, what| Step { stage, what, deadline };
    let mut meeting = step(Network, "establishing a rendezvous point")
        .within(STEP, MeetingPoint::establish(shared, &live, &netdir))
        .await?;
    let handshake =
        step(Introduction, "the introduction").within(STEP, introduce(shared, &live, &netdir, visit, &meeting)).await?;
    step(Rendezvous, "waiting for the service at the rendezvous point")
        .within(MEETING, meeting.complete(&netdir, handshake))
        .await?;
    let Some(port) = visit.port else { return Ok(()) };
    let connect = async {
        let stream = meeting.tunnel.begin_stream("", port, None).await;
        stream.map(drop).map_err(|error| TorError::Declined { by: format!("port {port}"), why: error.to_string() })
    };
    let connected = step(Port, "connecting to the port").within(STEP, connect).await;
    meeting.tunnel.terminate();
    connected
}

/// A step of a visit, with the end of the time for all steps.
struct Step {
    stage: VisitStage,
    what: &'static str,
    deadline: Instant,
}

impl Step {
    async fn within<T>(
        self,
        limit: Duration,
        work: impl Future<Output = Result<T, TorError>>,
    ) -> Result<T, VisitError> {
        let late = || TorError::Timeout { what: self.what.into(), limit };
        let until = (Instant::now() + limit).min(self.deadline);
        let result = timeout_at(until, work).await.unwrap_or_else(|_| Err(late()));
        result.map_err(|error| self.stage.failed(error))
    }
}

/// A rendezvous point that waits for the service.
struct MeetingPoint<'a> {
    tunnel: ClientOnionServiceDataTunnel,
    relay: Relay<'a>,
    cookie: RendCookie,
    answers: mpsc::UnboundedReceiver<AnyRelayMsg>,
}

impl<'a> MeetingPoint<'a> {
    async fn establish(shared: &Shared, live: &ReadyClient, netdir: &'a NetDir) -> Result<Self, TorError> {
        let attempt = shared.attempts.turn().await;
        let made = live.pool.get_or_launch_client_rend(netdir).await;
        attempt.ended(&made);
        let (tunnel, relay) = made.map_err(|error| unreachable("a rendezvous point", "no circuit", error))?;
        let cookie = RendCookie::from(rand::random::<[u8; 20]>());
        let (sender, mut answers) = mpsc::unbounded_channel();
        tunnel
            .start_conversation(
                Some(EstablishRendezvous::new(cookie).into()),
                Answers::then(2, sender),
                TargetHop::LastHop,
            )
            .await
            .map_err(|error| unreachable("a rendezvous point", "cannot ask it", error))?;
        match answers.recv().await {
            Some(AnyRelayMsg::RendezvousEstablished(_)) => Ok(Self { tunnel, relay, cookie, answers }),
            _ => Err(unanswered("a rendezvous point", "it closed the circuit")),
        }
    }

    /// Waits for the service, and adds it to the circuit.
    async fn complete(&mut self, netdir: &NetDir, handshake: HsNtorClientState) -> Result<(), TorError> {
        let the_service = "the service at the rendezvous point";
        let Some(AnyRelayMsg::Rendezvous2(answer)) = self.answers.recv().await else {
            return Err(unanswered(the_service, "the circuit ended before it came"));
        };
        let keys = handshake
            .client_receive_rend(answer.handshake_info())
            .map_err(|error| unreachable(the_service, "its handshake is not valid", error))?;
        let params = onion_circparams_from_netparams(netdir.params())
            .map_err(|error| unreachable(the_service, "the network's parameters make no circuit", error))?;
        self.tunnel
            .extend_virtual(RelayProtocol::HsV3, HandshakeRole::Initiator, keys, params, &congestion_control())
            .await
            .map_err(|error| unreachable(the_service, "cannot add it to the circuit", error))
    }
}

/// The capability that clients request of every descriptor of ours on a network that has it.
fn congestion_control() -> Protocols {
    let supported = tor_proto::supported_client_protocols().supports_named_subver(FLOWCTRL_CC);
    supported.then_some(FLOWCTRL_CC).into_iter().collect()
}

/// Sends the introduction and waits until the relay has acknowledged it. Returns the handshake that
/// the service will complete.
async fn introduce(
    shared: &Shared,
    live: &ReadyClient,
    netdir: &NetDir,
    visit: &Visit,
    meeting: &MeetingPoint<'_>,
) -> Result<HsNtorClientState, TorError> {
    let point = &visit.point;
    let name = format!("introduction point {}", point.relay);
    let specifiers = point.link_specifiers.iter().map(|encoded| {
        let specifier = Reader::from_slice(&encoded.0).extract::<EncodedLinkSpec>();
        specifier.map_err(|error| unreachable(&name, "its link specifiers cannot be read", error))
    });
    let target = netdir
        .circ_target_from_verbatim_linkspecs(&specifiers.collect::<Result<Vec<_>, _>>()?, &point.onion_key.0.into())
        .map_err(|error| unreachable(&name, "its link specifiers cannot be used", error))?;
    let attempt = shared.attempts.turn().await;
    let made = live.pool.get_or_launch_client_intro(netdir, target).await;
    attempt.ended(&made);
    let tunnel = made.map_err(|error| unreachable(&name, "no circuit", error))?;
    let (message, handshake) = introduction(visit, meeting)?;
    let (sender, mut answers) = mpsc::unbounded_channel();
    tunnel
        .start_conversation(Some(message.into()), Answers::then(1, sender), TargetHop::LastHop)
        .await
        .map_err(|error| unreachable(&name, "cannot send the introduction", error))?;
    match answers.recv().await {
        Some(AnyRelayMsg::IntroduceAck(answer)) => match answer.success() {
            Ok(_) => Ok(handshake),
            Err(status) => Err(TorError::Declined { by: name, why: format!("INTRODUCE_ACK {status}") }),
        },
        _ => Err(unanswered(&name, "it closed the circuit")),
    }
}

/// The INTRODUCE1 message, and the handshake that it begins.
fn introduction(visit: &Visit, meeting: &MeetingPoint<'_>) -> Result<(Introduce1, HsNtorClientState), TorError> {
    let IntroPoint { session_key, encryption_key, relay, .. } = &visit.point;
    let name = format!("introduction point {relay}");
    let session = ed25519::PublicKey::from_bytes(&session_key.0)
        .map_err(|error| unreachable(&name, "its session key is not valid", error))?;
    let session = HsIntroPtSessionIdKey::from(session);
    let message =
        |body: Vec<u8>| Introduce1::new(AuthKeyType::ED25519_SHA3_256, session.as_ref().as_bytes().to_vec(), body);
    let unmade = |error| unreachable(&name, "cannot encode the introduction", error);
    let mut header = Vec::new();
    message(Vec::new()).encode_onto(&mut header).map_err(unmade)?;
    let specifiers = meeting
        .relay
        .linkspecs()
        .map_err(|error| unreachable("a rendezvous point", "it has no link specifiers", error))?;
    let key = OnionKey::NtorOnionKey(*meeting.relay.ntor_onion_key());
    let mut payload = IntroduceHandshakePayload::new(meeting.cookie, key, specifiers, None);
    if congestion_control().supports_named_subver(FLOWCTRL_CC) {
        payload.add_extension(CcRequest::default().into());
    }
    let mut plain = Vec::new();
    payload.write_onto(&mut plain).map_err(unmade)?;
    let (_, subcredential) = descriptor::blinded(visit.service, descriptor::time_period(visit.period)?)?;
    let encryption = HsSvcNtorKey::from(curve25519::PublicKey::from(encryption_key.0));
    let service = HsNtorServiceInfo::new(encryption, session.clone(), subcredential);
    let handshake = HsNtorClientState::new(&mut rand::rng(), service);
    let body = handshake
        .client_send_intro(&header, &plain)
        .map_err(|error| unreachable(&name, "cannot begin the handshake", error))?;
    Ok((message(body), handshake))
}

/// Passes on the messages of a conversation, which ends with the last of those expected.
struct Answers {
    expected: usize,
    to: mpsc::UnboundedSender<AnyRelayMsg>,
}

impl Answers {
    fn then(expected: usize, to: mpsc::UnboundedSender<AnyRelayMsg>) -> Self {
        Self { expected, to }
    }
}

impl MsgHandler for Answers {
    fn handle_msg(&mut self, message: AnyRelayMsg) -> tor_proto::Result<MetaCellDisposition> {
        self.expected = self.expected.saturating_sub(1);
        Ok(match (self.to.send(message), self.expected) {
            (Err(_), _) => MetaCellDisposition::CloseCirc,
            (Ok(()), 0) => MetaCellDisposition::ConversationFinished,
            (Ok(()), _) => MetaCellDisposition::Consumed,
        })
    }
}

fn unreachable(to: &str, what: &str, source: impl std::error::Error + Send + Sync + 'static) -> TorError {
    TorError::Unreachable { to: to.into(), why: format!("{what}: {source}"), source: Some(source.into()) }
}

fn unanswered(to: &str, why: &str) -> TorError {
    TorError::Unreachable { to: to.into(), why: why.into(), source: None }
}
