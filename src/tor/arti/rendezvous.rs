//! From an introduction to a circuit on which the client can ask for streams.
//!
//! The circuit to the client's rendezvous point is tried several times within a bound; then the virtual hop is added,
//! requests are allowed, and only then RENDEZVOUS1 is sent: a client's first BEGIN may follow on its heels. The circuit
//! is served for as long as it is used, whatever becomes of the introduction point it came by.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tor_cell::relaycell::RelayCmd;
use tor_cell::relaycell::msg::{End, EndReason};
use tor_circmgr::ServiceOnionServiceDataTunnel;
use tor_circmgr::build::onion_circparams_from_netparams;
use tor_netdir::{NetDir, Timeliness};
use tor_proto::circuit::CircHopSyncView;
use tor_proto::client::circuit::handshake::{HandshakeRole, RelayProtocol};
use tor_proto::stream::{IncomingStreamRequestContext, IncomingStreamRequestDisposition, IncomingStreamRequestFilter};

use super::client::Shared;
use super::introduction::Introduction;
use super::slots::Slot;
use super::stream;
use crate::tor::{Incoming, ServiceLimits, TorError};

/// From the introduction to RENDEZVOUS1. A client that has waited this long has gone.
const RENDEZVOUS_LIMIT: Duration = Duration::from_secs(30);

/// How often a circuit to the rendezvous point is tried.
const ATTEMPTS: u32 = 6;

/// Between two of those, times the number of the attempt. Some failures (a guard that was only guessed at) are over at
/// once.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A client to be met.
pub(super) struct Visit {
    /// What it said.
    pub(super) introduction: Introduction,
    /// When it said so.
    pub(super) arrived: Instant,
    /// The place of a rendezvous in the making.
    pub(super) pending: Slot,
    /// The place of an open circuit.
    pub(super) open: Slot,
}

/// Meets one client and serves its circuit to the end.
pub(super) async fn answer(
    shared: Arc<Shared>,
    visit: Visit,
    limits: Arc<ServiceLimits>,
    streams: mpsc::Sender<Incoming>,
) {
    let Visit { introduction, arrived, pending, open } = visit;
    let per_circuit = StreamCap { limits: Arc::clone(&limits) };
    let made = match timeout(RENDEZVOUS_LIMIT, meet(&shared, introduction, per_circuit)).await {
        Ok(made) => made,
        Err(_) => Err(TorError::Timeout { what: "meeting a client".into(), limit: RENDEZVOUS_LIMIT }),
    };
    drop(pending);
    match made {
        Ok((tunnel, requests)) => {
            tracing::debug!(after = ?arrived.elapsed(), "met a client");
            let _ends_with_us = Terminating(tunnel);
            stream::serve(requests, &streams, |_| true, &limits.refused).await;
        }
        Err(e) => tracing::debug!("could not meet a client at its rendezvous point: {e}"),
    }
    drop(open);
}

/// Closes the circuit with all streams on it, also where the task is aborted.
struct Terminating(ServiceOnionServiceDataTunnel);

impl Drop for Terminating {
    fn drop(&mut self) {
        self.0.terminate();
    }
}

/// Builds the circuit and sends RENDEZVOUS1.
async fn meet(
    shared: &Shared,
    introduction: Introduction,
    filter: StreamCap,
) -> Result<(ServiceOnionServiceDataTunnel, impl futures::Stream<Item = tor_proto::stream::IncomingStream>), TorError> {
    let live = shared.live()?;
    let failed = |why: &str, e: tor_circmgr::Error| TorError::Unreachable {
        to: "a client's rendezvous point".into(),
        why: format!("{why}: {e}"),
        source: Some(Box::new(e)),
    };
    let netdir = live.netdir()?;
    let tunnel = circuit(shared, &live, &introduction).await?;
    let last_real_hop = tunnel.last_hop().map_err(|e| failed("the circuit has no last hop", e))?;
    let params = onion_circparams_from_netparams(netdir.params())
        .map_err(|e| failed("the network's parameters make no circuit", e))?;
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
        .map_err(|e| failed("cannot add the client's hop", e))?;
    let client_hop = tunnel.last_hop().map_err(|e| failed("the circuit has no client's hop", e))?;
    let requests = tunnel
        .allow_stream_requests(&[RelayCmd::BEGIN], client_hop, filter)
        .await
        .map_err(|e| failed("cannot allow streams", e))?;
    tunnel
        .send_raw_msg(introduction.answer.into(), last_real_hop)
        .await
        .map_err(|e| failed("cannot send RENDEZVOUS1", e))?;
    Ok((tunnel, requests))
}

/// A circuit to the rendezvous point, within [`ATTEMPTS`].
async fn circuit(
    shared: &Shared,
    live: &super::client::Live,
    introduction: &Introduction,
) -> Result<ServiceOnionServiceDataTunnel, TorError> {
    let mut attempt = 1;
    loop {
        let netdir: Arc<NetDir> = live
            .netdir
            .netdir(Timeliness::Timely)
            .map_err(|e| TorError::NotReady(format!("the network's directory has expired: {e}")))?;
        match live.pool.get_or_launch_svc_rend(&netdir, introduction.rendezvous_point.clone()).await {
            Ok(tunnel) => {
                shared.note_circuit(Ok(()));
                return Ok(tunnel);
            }
            Err(e) => {
                shared.note_circuit(Err(&e));
                tracing::trace!(attempt, "no circuit to a rendezvous point: {e}");
                if attempt == ATTEMPTS {
                    return Err(TorError::Unreachable {
                        to: "a client's rendezvous point".into(),
                        why: format!("no circuit in {ATTEMPTS} attempts, the last one: {e}"),
                        source: Some(Box::new(e)),
                    });
                }
            }
        }
        sleep(RETRY_PAUSE * attempt).await;
        attempt += 1;
    }
}

/// Refuses what is more than one circuit may have, in the reactor, before anything is allocated for it.
struct StreamCap {
    limits: Arc<ServiceLimits>,
}

impl IncomingStreamRequestFilter for StreamCap {
    fn disposition(
        &mut self,
        _request: &IncomingStreamRequestContext<'_>,
        circuit: &CircHopSyncView<'_>,
    ) -> tor_proto::Result<IncomingStreamRequestDisposition> {
        if circuit.n_open_streams() < self.limits.streams_per_circuit {
            return Ok(IncomingStreamRequestDisposition::Accept);
        }
        self.limits.refused.streams.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let end = End::new_with_reason(EndReason::RESOURCELIMIT);
        Ok(IncomingStreamRequestDisposition::RejectRequest(end))
    }
}
