//! Reads an INTRODUCE2 cell: decrypts it, and completes the handshake with the client.
//!
//! This needs only the service's *public* key: the handshake uses the keys of the introduction
//! point, which are this node's own, and the subcredential of the time period whose descriptor the
//! client has read. The cell does not name that period, so all possible ones are tried: the
//! previous, the current and the next, and all periods of the network's directory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustbalance_gossip::id::ServiceId;
use tor_bytes::Reader;
use tor_cell::relaycell::hs::intro_payload::{IntroduceHandshakePayload, OnionKey};
use tor_cell::relaycell::msg::{Introduce2, Rendezvous1};
use tor_hscrypto::Subcredential;
use tor_hscrypto::pk::{HsIntroPtSessionIdKey, HsSvcNtorKeypair};
use tor_hscrypto::time::TimePeriod;
use tor_linkspec::verbatim::VerbatimLinkSpecCircTarget;
use tor_linkspec::{CircTarget, HasAddrs, HasRelayIds, OwnedCircTarget};
use tor_llcrypto::pk::curve25519;
use tor_netdir::NetDir;
use tor_proto::client::circuit::handshake::hs_ntor::{self, HsNtorHkdfKeyGenerator};
use tor_protover::Protocols;

use crate::tor::circuits::RendezvousPoint;
use crate::tor::{ReplayLog, descriptor, subprotocols};

/// Keys and state with which a point reads its introductions.
pub(super) struct IntroductionReader {
    /// The service whose clients are introduced here.
    pub(super) service: ServiceId,
    /// The point's session key, `KP_hs_ipt_sid`.
    pub(super) session: HsIntroPtSessionIdKey,
    /// The point's encryption key, `KS_hss_ntor`.
    pub(super) encryption: HsSvcNtorKeypair,
    /// The introductions received before.
    pub(super) replays: Arc<ReplayLog>,
    /// Limits the warnings that the replay log cannot be written to disk.
    pub(super) unwritten: WarningLimit,
    /// Subcredentials, and the periods for which they were computed.
    pub(super) cached: Mutex<(Vec<TimePeriod>, Arc<Vec<Subcredential>>)>,
}

/// A valid introduction: all that is needed to meet the client.
pub(super) struct Introduction {
    /// The relay to extend the circuit to.
    pub(super) rendezvous_point: VerbatimLinkSpecCircTarget<OwnedCircTarget>,
    /// The same relay, as the bounds on circuits count it.
    pub(super) waits_at: RendezvousPoint,
    /// The message to send to that relay.
    pub(super) answer: Rendezvous1,
    /// The keys shared with the client.
    pub(super) keys: HsNtorHkdfKeyGenerator,
    /// The capabilities that the client requested and gets.
    pub(super) capabilities: Protocols,
}

/// Why an introduction cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum IntroductionError {
    /// The same cell was received before.
    #[error("it is a replay")]
    Replay,
    /// The cell is for another service or a period long past, or is garbage.
    #[error("it cannot be decrypted with this point's keys and the current time periods")]
    Handshake(#[source] Box<tor_proto::Error>),
    /// The cell decrypts to garbage.
    #[error("its payload cannot be parsed")]
    Payload(#[source] tor_bytes::Error),
    /// The onion key is of an unknown type, or the client requests a capability that this node does
    /// not grant.
    #[error("it uses an onion key type, or requests a capability of the protocol, that this node does not support")]
    Unsupported,
    /// The link specifiers do not lead to a relay.
    #[error("its rendezvous point is invalid")]
    RendezvousPoint(#[source] tor_netdir::VerbatimCircTargetDecodeError),
}

/// A client's request, from the decrypted part of its cell.
#[derive(Debug)]
pub struct ClientRequest {
    payload: IntroduceHandshakePayload,
    /// The ntor key of the rendezvous point.
    onion_key: curve25519::PublicKey,
    /// The capabilities that the client requested and gets.
    capabilities: Protocols,
}

impl ClientRequest {
    /// Parses the decrypted bytes. Does not check that the rendezvous point is a relay, which takes
    /// the network's directory.
    ///
    /// # Errors
    /// If the bytes cannot be parsed, or the client requests what is not offered.
    pub fn read(plain: &[u8]) -> Result<Self, IntroductionError> {
        // The reader need not be exhausted: the rest is padding.
        let payload: IntroduceHandshakePayload =
            Reader::from_slice(plain).extract().map_err(IntroductionError::Payload)?;
        let OnionKey::NtorOnionKey(onion_key) = *payload.onion_key() else {
            return Err(IntroductionError::Unsupported);
        };
        let capabilities = subprotocols::requested(&payload).ok_or(IntroductionError::Unsupported)?;
        Ok(Self { payload, onion_key, capabilities })
    }
}

impl IntroductionReader {
    /// Reads one cell. Does heavy computation and writes to the replay log, so it must not run in
    /// the reactor.
    pub(super) fn read(&self, cell: &Introduce2, netdir: &NetDir) -> Result<Introduction, IntroductionError> {
        if self.replays.has_seen(cell.encrypted_body()) {
            return Err(IntroductionError::Replay);
        }
        let subcredentials = self.subcredentials(netdir);
        let (keys, answer, plain) = hs_ntor::server_receive_intro(
            &mut rand::rng(),
            &self.encryption,
            &self.session,
            &subcredentials,
            cell.encoded_header(),
            cell.encrypted_body(),
        )
        .map_err(|error| IntroductionError::Handshake(Box::new(error)))?;
        // Only cells that decrypt are remembered: anyone can produce any number of other cells.
        match self.replays.is_new(cell.encrypted_body()) {
            Ok(true) => {}
            Ok(false) => return Err(IntroductionError::Replay),
            // The cell is remembered in memory. A full disk must not keep clients out.
            Err(error) => self.unwritten.log_limited(Instant::now(), |times| {
                tracing::warn!(
                    name: "replay_log_write_failed",
                    %error, times,
                    "cannot write to the replay log of an introduction point"
                );
            }),
        }
        let ClientRequest { payload, onion_key, capabilities } = ClientRequest::read(&plain)?;
        let rendezvous_point = netdir
            .circ_target_from_verbatim_linkspecs(payload.link_specifiers(), &onion_key)
            .map_err(IntroductionError::RendezvousPoint)?;
        let waits_at = waits_at(&rendezvous_point, &onion_key, netdir);
        let answer = Rendezvous1::new(*payload.cookie(), answer);
        Ok(Introduction { rendezvous_point, waits_at, answer, keys, capabilities })
    }

    /// The subcredentials of all periods whose descriptor a client may have read.
    fn subcredentials(&self, netdir: &NetDir) -> Arc<Vec<Subcredential>> {
        let periods = periods(netdir);
        let mut cached = self.cached.lock();
        if cached.0 != periods {
            // A period for which the key cannot be blinded has no descriptor, and so no clients.
            let of = |period: &TimePeriod| {
                descriptor::blinded(self.service, *period).ok().map(|(_, subcredential)| subcredential)
            };
            let subcredentials = periods.iter().filter_map(of).collect();
            *cached = (periods, Arc::new(subcredentials));
        }
        Arc::clone(&cached.1)
    }
}

/// The relay's identity, and whether the directory lists it with the same onion key and addresses.
/// A client can invent any number of relays that do not exist or never answer, but not of listed
/// ones, so the bounds on circuits prefer those.
fn waits_at(
    target: &VerbatimLinkSpecCircTarget<OwnedCircTarget>,
    onion_key: &curve25519::PublicKey,
    netdir: &NetDir,
) -> RendezvousPoint {
    let listed = netdir.by_ids(target).is_some_and(|relay| {
        let addresses: Vec<_> = relay.addrs().collect();
        relay.ntor_onion_key() == onion_key && target.addrs().all(|address| addresses.contains(&address))
    });
    RendezvousPoint { relay: target.rsa_identity().map_or([0; 20], |id| id.to_bytes()), listed }
}

/// The current period, its neighbours, and all periods of the network's directory; each once.
fn periods(netdir: &NetDir) -> Vec<TimePeriod> {
    let current = netdir.hs_time_period();
    let mut all = vec![current];
    let named = netdir.hs_all_time_periods().into_iter().map(|params| params.time_period());
    for period in current.next().into_iter().chain(current.prev()).chain(named) {
        if !all.contains(&period) {
            all.push(period);
        }
    }
    all
}

/// Limits the log of an event that strangers can cause at will to one line a minute, which contains
/// the number of events.
#[derive(Default)]
pub(super) struct WarningLimit(Mutex<(Option<Instant>, u64)>);

impl WarningLimit {
    /// Counts an event, and calls `log` with the number of events since the last line, unless that
    /// line is less than a minute old.
    fn log_limited(&self, now: Instant, log: impl FnOnce(u64)) {
        let mut state = self.0.lock();
        let (last, times) = &mut *state;
        *times += 1;
        if last.is_none_or(|last| now.saturating_duration_since(last) >= Duration::from_secs(60)) {
            *last = Some(now);
            log(std::mem::take(times));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_complaint_is_logged_once_a_minute_with_its_count() {
        let (complaint, start) = (WarningLimit::default(), Instant::now());
        let mut logged = Vec::new();
        for second in 0..150 {
            complaint.log_limited(start + Duration::from_secs(second), |times| logged.push((second, times)));
        }
        assert_eq!(logged, [(0, 1), (60, 60), (120, 60)]);
    }
}
