//! Meets a client: from its introduction to a circuit on which it can request streams.
//!
//! Building the circuit to the client's rendezvous point is tried several times within a time
//! limit. Then the virtual hop is added and stream requests are allowed. Only then RENDEZVOUS1 is
//! sent, because the client's first BEGIN may follow at once. The circuit is served as long as it
//! is used, even if the introduction point is lost.

use std::sync::{Arc, Weak};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tor_cell::relaycell::RelayCmd;
use tor_cell::relaycell::msg::{End, EndReason};
use tor_circmgr::ServiceOnionServiceDataTunnel;
use tor_circmgr::build::onion_circparams_from_netparams;
use tor_netdir::{NetDir, Timeliness};
use tor_proto::circuit::CircHopSyncView;
use tor_proto::client::circuit::handshake::{HandshakeRole, RelayProtocol};
use tor_proto::stream::{
    IncomingStream, IncomingStreamRequestContext, IncomingStreamRequestDisposition, IncomingStreamRequestFilter,
};

use super::client::Shared;
use super::introduction::Introduction;
use super::stream;
use crate::counters::{ServiceCounters, add_one};
use crate::tor::circuits::{ATTEMPT_LIMIT, MEETING_LIMIT, Place};
use crate::tor::{Incoming, Refused, ServiceGuard, TorError};

/// A client to meet.
pub(super) struct Visit {
    pub(super) introduction: Introduction,
    /// When the introduction arrived.
    pub(super) arrived: Instant,
    /// The place of the circuit to the client.
    pub(super) place: Place,
}

/// Meets one client and serves its circuit to the end.
pub(super) fn answer(
    shared: Arc<Shared>,
    visit: Visit,
    limits: Arc<ServiceGuard>,
    streams: mpsc::Sender<Incoming>,
) -> impl Future<Output = ()> + Send {
    let Visit { introduction, arrived, place } = visit;
    let place = Arc::new(place);
    // In memory of its own, which is freed once the client is met: a task keeps the size of its
    // largest step, and most of a circuit's time is spent waiting for requests.
    let meeting = Box::pin(meet_in_time(shared, introduction, Arc::clone(&limits), Arc::clone(&place)));
    async move {
        let Some((tunnel, requests)) = meeting.await else { return };
        let _ends_with_us = Terminating(tunnel);
        if !place.met() {
            return tracing::debug!("met a client, but there is no room for its circuit");
        }
        let after = arrived.elapsed();
        limits.refused.service.rendezvous_time.observe(after);
        tracing::debug!(?after, "met a client");
        stream::serve(requests, &streams, |_| true, &limits.refused, &place).await;
    }
}

/// Meets the client within the time limit, unless another client takes the place. Logs why if it
/// fails.
async fn meet_in_time(
    shared: Arc<Shared>,
    introduction: Introduction,
    limits: Arc<ServiceGuard>,
    place: Arc<Place>,
) -> Option<(ServiceOnionServiceDataTunnel, impl futures::Stream<Item = IncomingStream> + use<>)> {
    let counters = Arc::clone(&limits.refused.service);
    let filter = StreamCap { limits, place: Arc::downgrade(&place) };
    let made = tokio::select! {
        () = place.closed().cancelled() => {
            tracing::debug!("gave up a client before it was met, to make room for another");
            return None;
        }
        made = timeout(MEETING_LIMIT, meet(&shared, introduction, filter, &place)) => made,
    };
    let made =
        made.unwrap_or_else(|_| Err(TorError::Timeout { what: "meeting a client".into(), limit: MEETING_LIMIT }));
    made.inspect_err(|error| {
        add_one(&counters.rendezvous_failed);
        tracing::debug!(%error, "cannot meet a client at its rendezvous point");
    })
    .ok()
}

/// Closes the circuit and all its streams when dropped, so also if the task is aborted.
struct Terminating(ServiceOnionServiceDataTunnel);

impl Drop for Terminating {
    fn drop(&mut self) {
        self.0.terminate();
    }
}

/// Builds the circuit and sends RENDEZVOUS1. Returns the circuit and its stream requests.
async fn meet(
    shared: &Shared,
    introduction: Introduction,
    filter: StreamCap,
    place: &Place,
) -> Result<(ServiceOnionServiceDataTunnel, impl futures::Stream<Item = IncomingStream> + use<>), TorError> {
    let live = shared.live()?;
    let failed = |why: &str, error: tor_circmgr::Error| TorError::Unreachable {
        to: "a client's rendezvous point".into(),
        why: format!("{why}: {error}"),
        source: Some(Box::new(error)),
    };
    let netdir = live.netdir()?;
    let tunnel = circuit(shared, &live, &introduction, place, &filter.limits.refused.service).await?;
    let last_real_hop = tunnel.last_hop().map_err(|error| failed("the circuit has no last hop", error))?;
    let params = onion_circparams_from_netparams(netdir.params())
        .map_err(|error| failed("the network's parameters make no circuit", error))?;
    drop(netdir);
    tunnel
        .extend_virtual(
            RelayProtocol::HsV3,
            HandshakeRole::Responder,
            introduction.keys,
            params,
            &introduction.capabilities,
        )
        .await
        .map_err(|error| failed("cannot add the client's hop", error))?;
    let client_hop = tunnel.last_hop().map_err(|error| failed("the circuit has no client's hop", error))?;
    let requests = tunnel
        .allow_stream_requests(&[RelayCmd::BEGIN], client_hop, filter)
        .await
        .map_err(|error| failed("cannot allow streams", error))?;
    tunnel
        .send_raw_msg(introduction.answer.into(), last_real_hop)
        .await
        .map_err(|error| failed("cannot send RENDEZVOUS1", error))?;
    Ok((tunnel, requests))
}

/// Builds a circuit to the rendezvous point. The place of the circuit bounds the attempts.
async fn circuit(
    shared: &Shared,
    live: &super::client::ReadyClient,
    introduction: &Introduction,
    place: &Place,
    counters: &ServiceCounters,
) -> Result<ServiceOnionServiceDataTunnel, TorError> {
    loop {
        let netdir: Arc<NetDir> = live
            .netdir
            .netdir(Timeliness::Timely)
            .map_err(|error| TorError::NotReady(format!("the network's directory has expired: {error}")))?;
        let started = Instant::now();
        let launched = async {
            let attempt = shared.attempts.turn().await;
            let began = Instant::now();
            let launched = live.pool.get_or_launch_svc_rend(&netdir, introduction.rendezvous_point.clone()).await;
            if launched.is_ok() {
                counters.rendezvous_circuit_time.observe(began.elapsed());
            }
            attempt.ended(&launched);
            launched
        };
        let error = match timeout(ATTEMPT_LIMIT, launched).await {
            Ok(Ok(tunnel)) => {
                shared.note_circuit(Ok(()));
                return Ok(tunnel);
            }
            Ok(Err(error)) => {
                shared.note_circuit(Err(&error));
                TorError::Unreachable {
                    to: "a client's rendezvous point".into(),
                    why: format!("no circuit to it: {error}"),
                    source: Some(Box::new(error)),
                }
            }
            Err(_) => {
                TorError::Timeout { what: "a circuit to a client's rendezvous point".into(), limit: ATTEMPT_LIMIT }
            }
        };
        tracing::trace!(%error, "an attempt to meet a client failed");
        match place.failed(started.elapsed()) {
            Some(pause) => sleep(pause).await,
            None => return Err(error),
        }
    }
}

/// Refuses streams above the limit of a circuit. It runs in the reactor, before anything is
/// allocated for the stream.
struct StreamCap {
    limits: Arc<ServiceGuard>,
    /// Weak, because the circuit holds the filter, and its place must not outlive its task.
    place: Weak<Place>,
}

impl IncomingStreamRequestFilter for StreamCap {
    fn disposition(
        &mut self,
        _request: &IncomingStreamRequestContext<'_>,
        circuit: &CircHopSyncView<'_>,
    ) -> tor_proto::Result<IncomingStreamRequestDisposition> {
        if circuit.n_open_streams() < self.limits.now().streams_per_circuit {
            return Ok(IncomingStreamRequestDisposition::Accept);
        }
        self.limits.refused.count(Refused::Stream);
        if let Some(place) = self.place.upgrade() {
            place.exceeded();
        }
        let end = End::new_with_reason(EndReason::DONE);
        Ok(IncomingStreamRequestDisposition::RejectRequest(end))
    }
}
