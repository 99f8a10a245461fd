//! The facts of the services that a cluster is founded with. The founder makes them at its first
//! start, because the virtual ports are not configured earlier.

use std::collections::BTreeMap;

use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::{AnyFact, NodeCard, Service};
use rustbalance_gossip::signed::Verified;

use super::NodeError;
use crate::keys::AuthoritySecret;
use crate::store::Store;

/// Signs and stores the fact of each service that has none on disk, if this node founded the
/// cluster. `ports`: the configured virtual ports; `unix`: seconds since the epoch.
///
/// # Errors
/// The facts cannot be read or stored.
pub(super) fn ensure(store: &Store, ports: &BTreeMap<ServiceId, Vec<u16>>, unix: u64) -> Result<(), NodeError> {
    let founder = store.membership().certificate.invitation.is_none();
    let Some(authority) = store.authority_secret()?.filter(|_| founder) else { return Ok(()) };
    let known = store.facts()?;
    let is_known = |service| known.iter().any(|it| matches!(it, AnyFact::Service(fact) if fact.service == service));
    let missing = store.services()?.into_iter().filter(|service| !is_known(*service));
    let made: Vec<AnyFact> = missing
        .filter_map(|service| fact(store, service, ports.get(&service).cloned().unwrap_or_default(), unix, &authority))
        .collect();
    if made.is_empty() { Ok(()) } else { Ok(store.put_facts(&made, unix)?) }
}

fn fact(
    store: &Store,
    service: ServiceId,
    mut ports: Vec<u16>,
    unix: u64,
    authority: &AuthoritySecret,
) -> Option<AnyFact> {
    ports.sort_unstable();
    ports.dedup();
    ports.truncate(NodeCard::MAX_PORTS);
    let (cluster, settings) = (store.cluster(), BTreeMap::new());
    let fact = Service { cluster, service, seq: 1, issued: unix, removed: false, ports, settings };
    match Verified::sign(fact, authority) {
        Ok(fact) => Some(fact.into()),
        Err(error) => {
            tracing::error!(name: "service_fact_sign_failed", %error, %service, "cannot sign the fact of a service");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rng;

    use super::*;
    use crate::clock::unix_now;
    use crate::join::found_with;
    use crate::keys::IdentitySecret;

    #[test]
    fn a_founder_makes_the_fact_of_each_service_once() {
        let folder = tempfile::tempdir().unwrap();
        let further = IdentitySecret::generate(&mut rng());
        let draft = Store::create(&folder.path().join("state")).unwrap();
        let store = found_with(draft, None, std::slice::from_ref(&further), unix_now(), &mut rng()).unwrap();
        let [first, second] = [store.cluster().first_service(), further.service_id()];
        ensure(&store, &[(first, vec![443, 80, 443]), (second, vec![25])].into(), 7).unwrap();
        ensure(&store, &[(first, vec![22])].into(), 8).unwrap();
        let facts = store.facts().unwrap();
        let seen: BTreeMap<_, _> = facts
            .iter()
            .map(|fact| match fact {
                AnyFact::Service(fact) => (fact.service, (fact.issued, fact.ports.clone())),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(seen, [(first, (7, vec![80, 443])), (second, (7, vec![25]))].into());
    }
}
