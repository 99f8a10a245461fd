//! Verifies what directories hold on the network in memory.

use rustbalance_gossip::record::IntroPoint;
use zeroize::Zeroizing;

use super::*;
use crate::keys::IdentitySecret;
use crate::tor::descriptor::{DescriptorContent, PeriodCredentials, build, build_restricted};
use crate::tor::fake::tests::{limits, new_keys};
use crate::tor::fake::{FakeEngine, FakeNet};
use crate::tor::{IntroRequest, RelayChoice};

const LIMIT: Duration = Duration::from_secs(5);

fn identity() -> IdentitySecret {
    let mut bytes = Zeroizing::new([9; 64]);
    (bytes[0], bytes[31]) = (8, 72);
    IdentitySecret::from_expanded(&bytes).unwrap()
}

async fn a_point(engine: &FakeEngine, identity: &IdentitySecret) -> IntroPoint {
    let (streams, _) = tokio::sync::mpsc::channel(1);
    let relay = RelayChoice::AnyBut(Default::default());
    let request = IntroRequest { service: identity.service_id(), keys: new_keys(), relay, limits: limits() };
    engine.open_intro_point(request, streams).await.unwrap().describe()
}

fn credentials(identity: &IdentitySecret, period: &Period) -> PeriodCredentials {
    PeriodCredentials::derive(identity, period.id, SystemTime::now()).unwrap()
}

/// Uploads a descriptor with these points to the given directories of a period.
async fn upload(
    engine: &FakeEngine,
    identity: &IdentitySecret,
    period: &Period,
    to: &[Directory],
    points: &[IntroPoint],
    revision: u64,
) {
    let content = DescriptorContent { revision, points: points.to_vec(), ..Default::default() };
    let text = build(&credentials(identity, period), &content, period.parameters, SystemTime::now()).unwrap();
    for directory in to {
        engine.upload(directory, period.id, &text, LIMIT).await.unwrap();
    }
}

#[tokio::test]
async fn what_each_directory_holds_is_found_by_a_client_that_knows_only_the_address() {
    let (net, identity) = (FakeNet::new(1, 40), identity());
    let (publisher, client) = (net.engine(), net.engine());
    let service = identity.service_id();

    let nothing = verify(&*client, service, LIMIT).await.unwrap();
    assert!(!nothing.is_published() && nothing.periods.len() == 2, "{nothing:?}");
    assert!(nothing.periods.iter().all(|period| period.revision.is_none()));

    let points = [a_point(&publisher, &identity).await, a_point(&publisher, &identity).await];
    let periods = publisher.publication(service).await.unwrap();
    for period in &periods {
        upload(&publisher, &identity, period, &period.directories, &points, 7).await;
    }
    let whole = verify(&*client, service, LIMIT).await.unwrap();
    assert!(whole.is_published(), "{whole:?}");
    assert_eq!(whole.address, service.to_string());
    for (found, period) in whole.periods.iter().zip(&periods) {
        assert_eq!((found.number, found.revision), (period.id.number, Some(7)));
        assert_eq!(found.directories.len(), period.directories.len());
        assert!(found.directories.iter().all(|directory| matches!(
            directory.answer,
            Answer::Descriptor { revision: 7, points: Some(2), bytes } if bytes > 1000
        )));
    }

    // A directory that has missed the newest descriptor misleads clients.
    let (behind, rest) = periods[0].directories.split_first().unwrap();
    upload(&publisher, &identity, &periods[0], rest, &points[..1], 8).await;
    let found = verify(&*client, service, LIMIT).await.unwrap();
    let misleading = found.periods[0].directories.iter().filter(|directory| found.periods[0].misleads(directory));
    assert_eq!(misleading.map(|directory| &*directory.relay).collect::<Vec<_>>(), [behind.relay.to_string()]);
    assert!(!found.is_published());
    upload(&publisher, &identity, &periods[0], std::slice::from_ref(behind), &points[..1], 8).await;
    assert!(verify(&*client, service, LIMIT).await.unwrap().is_published());

    // One that does not answer misleads no client, but proves nothing.
    net.latency(LIMIT);
    let silent = verify(&*client, service, Duration::from_millis(10)).await.unwrap();
    let mut answers = silent.periods.iter().flat_map(|period| &period.directories);
    assert!(answers.all(|directory| matches!(directory.answer, Answer::Silent { .. })), "{silent:?}");
    assert!(!silent.is_published());
}

#[tokio::test]
async fn a_descriptor_for_authorized_clients_counts_and_an_invalid_one_does_not() {
    let (net, identity) = (FakeNet::new(2, 40), identity());
    let engine = net.engine();
    let point = a_point(&engine, &identity).await;
    let period = engine.publication(identity.service_id()).await.unwrap().remove(0);
    let restricted = build_restricted(&credentials(&identity, &period), &[point], 9);
    let answer = read(&restricted, identity.service_id(), period.id);
    assert!(matches!(answer, Answer::Descriptor { revision: 9, points: None, .. }), "{answer:?}");
    let damaged = restricted.replacen("revision-counter 9", "revision-counter 8", 1);
    assert!(matches!(read(&damaged, identity.service_id(), period.id), Answer::Invalid { .. }));
}
