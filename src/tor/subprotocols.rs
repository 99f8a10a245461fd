//! The subprotocols that clients may request in an introduction (tor-spec, "Subprotocol
//! versioning"; rend-spec, "SUBPROTO").
//!
//! A descriptor offers them in its `proto` line, for all of its introduction points at once. A
//! client requests those that it knows in the SUBPROTOCOL_REQUEST extension of its introduction;
//! one that does not know the line requests none. A service must refuse a request for anything that
//! it cannot grant, because the client does not learn what was granted.
//!
//! Today there is one: Relay=6, Counter Galois Onion, which encrypts and authenticates the cells
//! between client and service. It needs congestion control, which has an extension of its own.

use std::collections::BTreeSet;

use rustbalance_gossip::record::Subprotocol;
use tor_cell::relaycell::hs::intro_payload::IntroduceHandshakePayload;
use tor_protover::named::{FLOWCTRL_CC, RELAY_CRYPT_CGO, RELAY_NEGOTIATE_SUBPROTO};
use tor_protover::{NamedSubver, NumberedSubver, Protocols};

/// All subprotocols that this node grants.
const GRANTED: [NamedSubver; 1] = [RELAY_CRYPT_CGO];

/// The subprotocols that this node grants, as it announces them to other nodes.
pub fn granted() -> BTreeSet<Subprotocol> {
    GRANTED.into_iter().map(subprotocol).collect()
}

/// The content of a descriptor's `proto` line that offers these subprotocols: those that this node
/// knows, and the ability to negotiate them. Empty if there are none.
pub(super) fn offer(offered: &BTreeSet<Subprotocol>) -> Protocols {
    let known = GRANTED.into_iter().filter(|it| offered.contains(&subprotocol(*it)));
    let negotiation = known.clone().next().map(|_| RELAY_NEGOTIATE_SUBPROTO);
    known.chain(negotiation).collect()
}

/// The subprotocols that clients may request if a descriptor declares `declared`, of those that
/// this node knows.
pub(super) fn offered(declared: &Protocols) -> BTreeSet<Subprotocol> {
    let negotiates = declared.supports_named_subver(RELAY_NEGOTIATE_SUBPROTO);
    let known = GRANTED.into_iter().filter(|it| negotiates && declared.supports_named_subver(*it));
    known.map(subprotocol).collect()
}

/// The capabilities that the client has requested; `None` if this node cannot grant all of them.
pub(super) fn requested(payload: &IntroduceHandshakePayload) -> Option<Protocols> {
    let congestion_control = payload.cc_request_extension().map(|_| FLOWCTRL_CC);
    let Some(request) = payload.subprotocol_request_extension() else {
        return Some(congestion_control.into_iter().collect());
    };
    if !request.contains_only(&GRANTED.into_iter().collect()) {
        return None;
    }
    // The client would encrypt with it although it has not requested what it needs.
    if request.contains(RELAY_CRYPT_CGO) && congestion_control.is_none() {
        return None;
    }
    let granted = GRANTED.into_iter().filter(|it| request.contains(*it));
    Some(granted.chain(congestion_control).collect())
}

fn subprotocol(named: NamedSubver) -> Subprotocol {
    let (kind, version) = NumberedSubver::from(named).into_parts();
    Subprotocol(kind.into(), version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tor_cell::relaycell::extend::{CcRequest, CircRequestExt, SubprotocolRequest};
    use tor_cell::relaycell::hs::intro_payload::OnionKey;
    use tor_protover::named::{RELAY_EXTEND_IPv6, RELAY_NTORV3};

    const CGO: Subprotocol = Subprotocol(2, 6);

    fn payload(extensions: impl IntoIterator<Item = CircRequestExt>) -> IntroduceHandshakePayload {
        let key = OnionKey::NtorOnionKey([1; 32].into());
        let mut payload = IntroduceHandshakePayload::new([2; 20].into(), key, vec![], None);
        extensions.into_iter().for_each(|extension| payload.add_extension(extension));
        payload
    }

    fn request(protocols: impl IntoIterator<Item = NamedSubver>) -> CircRequestExt {
        protocols.into_iter().collect::<SubprotocolRequest>().into()
    }

    fn congestion_control() -> CircRequestExt {
        CcRequest::default().into()
    }

    #[test]
    fn the_offer_is_the_line_of_an_arti_service_that_negotiates() {
        assert_eq!(granted(), [CGO].into());
        assert_eq!(offer(&granted()).to_string(), "Relay=5-6");
        assert!(offer(&BTreeSet::new()).is_empty());
    }

    #[test]
    fn an_offer_names_only_what_this_node_knows() {
        assert!(offer(&[Subprotocol(2, 40), Subprotocol(99, 6)].into()).is_empty());
        assert_eq!(offer(&[CGO, Subprotocol(99, 6)].into()), offer(&granted()));
        assert_eq!(offered(&"Link=1-5 Relay=1-9 Later=3".parse().unwrap()), granted());
        assert_eq!(offered(&offer(&granted())), granted());
        // Without negotiation nothing can be requested.
        for declared in ["", "Relay=6", "Relay=5"] {
            assert!(offered(&declared.parse().unwrap()).is_empty(), "{declared}");
        }
    }

    #[test]
    fn what_is_requested_is_granted_and_nothing_else() {
        let capabilities = |granted: &[NamedSubver]| Some(granted.iter().copied().collect::<Protocols>());
        assert_eq!(requested(&payload([])), capabilities(&[]));
        assert_eq!(requested(&payload([congestion_control()])), capabilities(&[FLOWCTRL_CC]));
        assert_eq!(requested(&payload([request([])])), capabilities(&[]));
        let both = payload([congestion_control(), request([RELAY_CRYPT_CGO])]);
        assert_eq!(requested(&both), capabilities(&[FLOWCTRL_CC, RELAY_CRYPT_CGO]));
    }

    #[test]
    fn a_request_for_what_is_not_granted_is_refused() {
        for other in [RELAY_NTORV3, RELAY_EXTEND_IPv6, RELAY_NEGOTIATE_SUBPROTO, FLOWCTRL_CC] {
            assert_eq!(requested(&payload([congestion_control(), request([other])])), None, "{other:?}");
            let beside = request([RELAY_CRYPT_CGO, other]);
            assert_eq!(requested(&payload([congestion_control(), beside])), None, "{other:?}");
        }
        let without_congestion_control = payload([request([RELAY_CRYPT_CGO])]);
        assert_eq!(requested(&without_congestion_control), None);
    }
}
