//! The state directory after founding and joining.

use rustbalance_gossip::record::Revocation;

use super::*;
use crate::store::{SetupCommand, Store, StoreError};

#[test]
fn a_founder_is_a_publisher_of_a_cluster_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("founder");
    let store = found(Store::create(&dir).unwrap(), None, NOW, &mut rng()).unwrap();
    let cluster = store.cluster();
    drop(store);
    let store = Store::open(&dir).unwrap();
    assert_eq!(store.cluster(), cluster);
    assert_eq!(store.membership().clone().chain().verify(cluster, NOW).unwrap().role(), Role::Publisher);
    let again = Store::create(&dir).unwrap_err();
    assert!(matches!(again, StoreError::Locked { .. }));
}

#[test]
fn an_imported_key_gives_its_address_and_an_interrupted_founding_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("founder");
    let master = IdentitySecret::generate(&mut rng());
    let store = found(Store::create(&dir).unwrap(), Some(master.duplicate()), NOW, &mut rng()).unwrap();
    let cluster = ClusterId::named_by(master.service_id());
    assert_eq!(store.cluster(), cluster);
    let node = store.node_id();
    drop(store);
    // The state that a crash before the last file would leave.
    std::fs::remove_file(dir.join("membership")).unwrap();
    let other = folder.path().join("other");
    let mut pending = Store::create(&other).unwrap();
    pending.begin(SetupCommand::Init, cluster).unwrap();
    std::fs::copy(other.join("pending"), dir.join("pending")).unwrap();

    let error =
        found(Store::create(&dir).unwrap(), Some(IdentitySecret::generate(&mut rng())), NOW, &mut rng()).unwrap_err();
    assert!(matches!(error, StoreError::KeyInTheWay { .. }), "{error}");
    let store = found(Store::create(&dir).unwrap(), None, NOW, &mut rng()).unwrap();
    assert_eq!((store.cluster(), store.node_id()), (cluster, node));
}

#[test]
fn the_state_of_a_join_is_there_after_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let host = TestPublisher::new();
    for role in [Role::Worker, Role::Publisher] {
        let dir = folder.path().join(role.to_string());
        let mut draft = Store::create(&dir).unwrap();
        draft.begin(SetupCommand::Join, host.cluster()).unwrap();
        let secret = draft.node_secret(node).unwrap();
        let joined = host.join(&host.invite(role, 1), &secret).unwrap();
        persist_joined(draft, &joined).unwrap();
        let store = Store::open(&dir).unwrap();
        assert_eq!(store.node_id(), secret.node_id());
        assert_eq!(store.membership(), &joined.member);
        assert_eq!(store.identity_secret(host.master().service_id()).unwrap().is_some(), role == Role::Publisher);
        assert_eq!(store.discovery().unwrap().newest().key.generation, 3);
        assert_eq!(store.members().unwrap().len(), joined.members.len());
    }
    // No byte of the services' secrets is in the worker's directory.
    let mut dirs = vec![folder.path().join("worker")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.path().is_dir() {
                dirs.push(entry.path());
                continue;
            }
            let bytes = std::fs::read(entry.path()).unwrap();
            for secret in [&host.master().expanded()[..16], &host.us.authority.seed()[..16]] {
                assert!(!contains(&bytes, secret), "{}", entry.path().display());
            }
        }
    }
}

#[test]
fn revocations_of_the_cluster_can_be_stored_by_a_founder() {
    let folder = tempfile::tempdir().unwrap();
    let store = found(Store::create(&folder.path().join("x")).unwrap(), None, NOW, &mut rng()).unwrap();
    let revocation = Revocation { cluster: store.cluster(), node: NodeId::from_public_key([1; 32]), revoked: NOW };
    let authority = store.authority_secret().unwrap().unwrap();
    store.put_revocations(&[Verified::sign(revocation, &authority).unwrap()]).unwrap();
    let (token, invitation) = invite(store.cluster(), &authority, Terms::default(), NOW, &mut rng()).unwrap();
    store.put_invitations(&[invitation], NOW).unwrap();
    assert_eq!(store.invitations().unwrap()[0].token, token.invitation_id());
}
