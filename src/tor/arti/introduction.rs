//! From an INTRODUCE2 cell to what is needed to meet the client.
//!
//! The master's *public* key is enough: the handshake wants the node's own keys of the introduction point and the
//! subcredential of the time period whose descriptor the client has read. Which period that was the cell doesn't say,
//! so all that can be are tried: the previous, the current and the next one, and all that the directory names.

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
use tor_protover::{Protocols, named::FLOWCTRL_CC};

use crate::tor::circuits::RendezvousPoint;
use crate::tor::{ReplayLog, descriptor};

/// What a point needs to read its introductions.
pub(super) struct Reading {
    /// Whose clients come.
    pub(super) service: ServiceId,
    /// `KP_hs_ipt_sid`.
    pub(super) session: HsIntroPtSessionIdKey,
    /// `KS_hss_ntor`.
    pub(super) encryption: HsSvcNtorKeypair,
    /// What was seen before.
    pub(super) replays: Arc<ReplayLog>,
    /// Complaints that introductions cannot be remembered on disk.
    pub(super) unwritten: OnceAMinute,
    /// The subcredentials of the periods they were computed for.
    pub(super) cached: Mutex<(Vec<TimePeriod>, Arc<Vec<Subcredential>>)>,
}

/// An introduction that could be read.
pub(super) struct Introduction {
    /// How to get to where the client waits.
    pub(super) rendezvous_point: VerbatimLinkSpecCircTarget<OwnedCircTarget>,
    /// Where that is.
    pub(super) waits_at: RendezvousPoint,
    /// What to send there.
    pub(super) answer: Rendezvous1,
    /// The keys shared with the client.
    pub(super) keys: HsNtorHkdfKeyGenerator,
    /// What the client asks for and we grant.
    pub(super) capabilities: Protocols,
}

/// Why there is nothing to answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswerable {
    /// Seen before.
    #[error("a replay")]
    Replay,
    /// For another service, for a period long past, or garbage.
    #[error("it does not decrypt")]
    Handshake(#[source] Box<tor_proto::Error>),
    /// Decrypts to garbage.
    #[error("its payload cannot be parsed")]
    Payload(#[source] tor_bytes::Error),
    /// A kind of key we don't know, or a capability we never offered.
    #[error("it asks for something we do not offer")]
    Unsupported,
    /// Names no relay that one could extend to.
    #[error("its rendezvous point is invalid")]
    RendezvousPoint(#[source] tor_netdir::VerbatimCircTargetDecodeError),
}

/// What a client asks for, as it stands in the decrypted part of its cell.
#[derive(Debug)]
pub struct Asked {
    payload: IntroduceHandshakePayload,
    /// Of the rendezvous point, ntor.
    onion_key: curve25519::PublicKey,
    /// What we grant.
    capabilities: Protocols,
}

impl Asked {
    /// Reads it. Whether its rendezvous point is a relay is for the network's directory to say.
    pub fn read(plain: &[u8]) -> Result<Self, Unanswerable> {
        // Not required to be exhausted: the rest is padding.
        let payload: IntroduceHandshakePayload = Reader::from_slice(plain).extract().map_err(Unanswerable::Payload)?;
        let OnionKey::NtorOnionKey(onion_key) = *payload.onion_key() else {
            return Err(Unanswerable::Unsupported);
        };
        let capabilities = granted(&payload).ok_or(Unanswerable::Unsupported)?;
        Ok(Self { payload, onion_key, capabilities })
    }
}

impl Reading {
    /// Reads one cell. Computes and writes to the replay log: not for the reactor.
    pub(super) fn read(&self, cell: &Introduce2, netdir: &NetDir) -> Result<Introduction, Unanswerable> {
        if self.replays.has_seen(cell.encrypted_body()) {
            return Err(Unanswerable::Replay);
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
        .map_err(|error| Unanswerable::Handshake(Box::new(error)))?;
        // Only what decrypts is remembered: anyone can make up any number of others.
        match self.replays.is_new(cell.encrypted_body()) {
            Ok(true) => {}
            Ok(false) => return Err(Unanswerable::Replay),
            // Remembered in memory; a full disk is no reason to turn clients away.
            Err(error) => self.unwritten.complain(Instant::now(), |times| {
                tracing::warn!(%error, times, "cannot write to the replay log of an introduction point");
            }),
        }
        let Asked { payload, onion_key, capabilities } = Asked::read(&plain)?;
        let rendezvous_point = netdir
            .circ_target_from_verbatim_linkspecs(payload.link_specifiers(), &onion_key)
            .map_err(Unanswerable::RendezvousPoint)?;
        let waits_at = waits_at(&rendezvous_point, &onion_key, netdir);
        let answer = Rendezvous1::new(*payload.cookie(), answer);
        Ok(Introduction { rendezvous_point, waits_at, answer, keys, capabilities })
    }

    /// The subcredentials of all periods that a client may be in.
    fn subcredentials(&self, netdir: &NetDir) -> Arc<Vec<Subcredential>> {
        let periods = periods(netdir);
        let mut cached = self.cached.lock();
        if cached.0 != periods {
            // A key that cannot be blinded for a period has no descriptor in it, so no client comes with it.
            let of = |period: &TimePeriod| descriptor::blinded(self.service, *period).ok().map(|(_, sub)| sub);
            let subcredentials = periods.iter().filter_map(of).collect();
            *cached = (periods, Arc::new(subcredentials));
        }
        Arc::clone(&cached.1)
    }
}

/// The relay, and whether it is in the directory just so. A client can make up any number of relays
/// that do not exist, or lead to where nothing answers: these it cannot have by the thousand.
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

/// The current period, its neighbours, and all that the directory names. Each once.
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

/// Something that strangers can repeat at will, logged once a minute with how often it happened.
#[derive(Default)]
pub(super) struct OnceAMinute(Mutex<(Option<Instant>, u64)>);

impl OnceAMinute {
    /// It happened: logs how often since the last time, unless that is less than a minute ago.
    fn complain(&self, now: Instant, log: impl FnOnce(u64)) {
        let mut state = self.0.lock();
        let (last, times) = &mut *state;
        *times += 1;
        if last.is_none_or(|last| now.saturating_duration_since(last) >= Duration::from_secs(60)) {
            *last = Some(now);
            log(std::mem::take(times));
        }
    }
}

/// What the client asks for, if we have offered all of it (only congestion control is ever offered in a descriptor).
fn granted(payload: &IntroduceHandshakePayload) -> Option<Protocols> {
    if payload.subprotocol_request_extension().is_some_and(|asked| !asked.contains_only(&Protocols::new())) {
        return None;
    }
    Some(payload.cc_request_extension().map(|_| FLOWCTRL_CC).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tor_cell::relaycell::extend::{CcRequest, CircRequestExt, SubprotocolRequest};
    use tor_protover::named::{RELAY_CRYPT_CGO, RELAY_NTORV3};

    #[test]
    fn what_strangers_repeat_is_logged_once_a_minute_with_its_count() {
        let (complaint, start) = (OnceAMinute::default(), Instant::now());
        let mut logged = Vec::new();
        for second in 0..150 {
            complaint.complain(start + Duration::from_secs(second), |times| logged.push((second, times)));
        }
        assert_eq!(logged, [(0, 1), (60, 60), (120, 60)]);
    }

    fn payload(extensions: impl IntoIterator<Item = CircRequestExt>) -> IntroduceHandshakePayload {
        let key = OnionKey::NtorOnionKey([1; 32].into());
        let mut payload = IntroduceHandshakePayload::new([2; 20].into(), key, vec![], None);
        extensions.into_iter().for_each(|extension| payload.add_extension(extension));
        payload
    }

    #[test]
    fn congestion_control_is_granted_where_asked_for() {
        assert_eq!(granted(&payload([])), Some(Protocols::new()));
        let asked = payload([CcRequest::default().into()]);
        assert_eq!(granted(&asked), Some([FLOWCTRL_CC].into_iter().collect()));
    }

    #[test]
    fn what_was_never_offered_is_not_granted() {
        let asked: SubprotocolRequest = [RELAY_CRYPT_CGO, RELAY_NTORV3].into_iter().collect();
        assert_eq!(granted(&payload([CcRequest::default().into(), asked.into()])), None);
        let nothing: SubprotocolRequest = std::iter::empty::<tor_protover::NamedSubver>().collect();
        assert_eq!(granted(&payload([nothing.into()])), Some(Protocols::new()));
    }
}
