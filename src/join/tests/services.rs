//! A join brings every service, and brings publishers all their secrets.

use rustbalance_gossip::bytes::FixedBytes;

use super::*;
use crate::join::parcel::{Facts, Parcel, ParcelError};
use crate::keys::{SecretPurpose, ServiceSecret};
use crate::store::{SetupCommand, Store};

/// A publisher of a cluster with two services; returns the second service, too.
fn host_of_two() -> (TestPublisher, ServiceId) {
    let mut host = TestPublisher::new();
    let second = IdentitySecret::generate(&mut rng());
    let service = second.service_id();
    host.us.services.push(ServiceSecrets::of(second));
    (host, service)
}

#[test]
fn a_join_brings_every_service_and_to_publishers_all_their_secrets() {
    let (host, second) = host_of_two();
    let first = host.cluster().first_service();
    let folder = tempfile::tempdir().unwrap();
    for role in [Role::Worker, Role::Publisher] {
        let mut draft = Store::create(&folder.path().join(role.to_string())).unwrap();
        draft.begin(SetupCommand::Join, host.cluster()).unwrap();
        let joined = host.join(&host.invite(role, 1), &draft.node_secret(node).unwrap()).unwrap();
        let named: Vec<_> = joined.services.iter().map(|joined| (joined.service, joined.ports.clone())).collect();
        assert_eq!(named, [(first, vec![80, 443]), (second, vec![80, 443])]);
        let store = persist_joined(draft, &joined).unwrap();
        assert_eq!(store.services().unwrap(), [first, second]);
        for of in &host.us.services {
            let expected = of.identity().filter(|_| role == Role::Publisher).map(|key| *key.expanded());
            let stored = store.identity_secret(of.service).unwrap().map(|key| *key.expanded());
            assert_eq!(stored, expected, "{role}");
        }
    }
}

#[test]
fn a_publisher_that_lacks_a_key_of_a_service_or_gives_another_is_not_believed() {
    let wrong = |change: fn(&mut Vec<ServiceSecrets>)| {
        let (mut host, second) = host_of_two();
        let token = host.invite(Role::Publisher, 1);
        change(&mut host.us.services);
        // The answer names both services, as they are.
        let named = [host.cluster().first_service(), second];
        host.known.lock().named = Some(named.to_vec());
        let error = host.join(&token, &node()).unwrap_err();
        assert!(matches!(&error, JoinError::Impostor { why, .. } if why.contains("keys")), "{error}");
    };
    wrong(|services| _ = services.pop());
    wrong(|services| services[1].secrets = vec![ServiceSecret::Identity(IdentitySecret::generate(&mut rng()))]);
    wrong(|services| services.push(ServiceSecrets::of(IdentitySecret::generate(&mut rng()))));
}

#[test]
fn services_of_another_cluster_are_not_believed() {
    let (host, second) = host_of_two();
    for named in [vec![second, host.cluster().first_service()], vec![second]] {
        host.known.lock().named = Some(named);
        let error = host.join(&host.invite(Role::Worker, 1), &node()).unwrap_err();
        assert!(matches!(&error, JoinError::Impostor { why, .. } if why.contains("services")), "{error}");
    }
    // An empty list, or a service named twice, is out of bounds.
    for named in [vec![], vec![host.cluster().first_service(); 2]] {
        host.known.lock().named = Some(named);
        let error = host.join(&host.invite(Role::Worker, 1), &node()).unwrap_err();
        assert!(matches!(&error, JoinError::Impostor { why, .. } if why.contains("bounds")), "{error}");
    }
}

/// A parcel for a publisher of a cluster with two services.
fn parcel() -> Parcel {
    let (host, _) = host_of_two();
    let joined = host.join(&host.invite(Role::Publisher, 1), &node()).unwrap();
    Parcel {
        discovery: host.discovery.secret.duplicate(),
        points: joined.points,
        secrets: joined.secrets,
        facts: Facts {
            signature: FixedBytes([0; 64]),
            publisher: host.us.membership.chain(),
            member: joined.member.chain(),
            members: vec![],
            services: joined.services,
            discovery: host.discovery.key.unverified(),
            unix: NOW,
        },
    }
}

/// Offsets of the secrets in `parcel()`: two secrets of 32 bytes, the authority key, then two
/// identity keys. The last offset is their end.
fn starts() -> Vec<usize> {
    let lengths = [32, 32, 32, 64, 64].map(|length: usize| 40 + length);
    (0..=lengths.len()).map(|count| 3 + lengths[..count].iter().sum::<usize>()).collect()
}

#[test]
fn a_parcel_that_is_cut_changed_or_of_another_role_is_refused() {
    let bytes = parcel().to_bytes().unwrap();
    let read = |bytes: &[u8], role| Parcel::from_bytes(bytes, role).map(|_| ());
    assert_eq!(read(&bytes, Role::Publisher), Ok(()));
    for length in 0..bytes.len() {
        assert!(read(&bytes[..length], Role::Publisher).is_err(), "cut to {length}");
    }
    let refused = read(&bytes, Role::Worker);
    assert_eq!(refused, Err(ParcelError::NotForWorkers(SecretPurpose::AuthorityKey)));
    let changed = |at: usize, byte: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(read(&changed(0, 2), Role::Publisher), Err(ParcelError::Version(2)));
    assert_eq!(read(&changed(1, 255), Role::Publisher), Err(ParcelError::Bounds));
    let starts = starts();
    // Two secrets of one role; a secret of a service without a service; a node's secret with a
    // service.
    assert_eq!(read(&changed(starts[1] + 1, 1), Role::Publisher), Err(ParcelError::Bounds));
    assert_eq!(read(&changed(starts[2] + 2, 7), Role::Publisher), Err(ParcelError::Bounds));
    assert_eq!(read(&changed(starts[2] + 1, 4), Role::Publisher), Err(ParcelError::Bounds));
}

#[test]
fn a_secret_of_a_later_release_is_skipped_and_a_missing_required_one_is_reported() {
    let parcel = parcel();
    let bytes = parcel.to_bytes().unwrap();
    let starts = starts();
    let mut later = bytes.to_vec();
    later[2] += 1;
    let unknown = [&9u16.to_be_bytes()[..], &[3; 32], &7u32.to_be_bytes(), &5u16.to_be_bytes(), b"later"].concat();
    later.splice(starts[1]..starts[1], unknown);
    let read = Parcel::from_bytes(&later, Role::Publisher).unwrap();
    assert_eq!(*read.to_bytes().unwrap(), *bytes);
    // A secret of an unknown version counts as missing.
    for (start, role) in
        starts.iter().zip([SecretPurpose::DiscoveryKey, SecretPurpose::PointSeed, SecretPurpose::AuthorityKey])
    {
        let mut newer = bytes.to_vec();
        newer[start + 2 + 32 + 3] = 1;
        assert_eq!(Parcel::from_bytes(&newer, Role::Publisher).err(), Some(ParcelError::Lacks(role)));
    }
}
