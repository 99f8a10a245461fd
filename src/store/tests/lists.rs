//! Facts, and other lists.

use std::fs;
use std::os::unix::fs::MetadataExt;

use ciborium::Value;
use rustbalance_gossip::record::{AnyFact, RecordKind};
use rustbalance_gossip::signed::{Strict, sign_unknown_kind};

use super::*;

#[test]
fn facts_of_every_kind_are_kept_also_of_kinds_that_a_later_version_has() {
    let (folder, cluster) = publisher();
    let store = Store::open(&state(&folder)).unwrap();
    let authority = store.membership().authority_id();
    let later = |key: &str, seq: u64| {
        let statement = [("cluster", Value::from(&cluster.id().public_key()[..])), ("seq", seq.into())];
        let statement = statement.map(|(name, value)| (Value::from(name), value));
        let bytes = codec::encode(&Value::Map(statement.into())).unwrap();
        let record = sign_unknown_kind("rustbalance record later", bytes, &cluster.authority).unwrap();
        AnyFact::read(RecordKind::from_key(key).unwrap(), &record, authority.public_key(), &Strict).unwrap()
    };
    assert!(store.facts().unwrap().is_empty());
    let known = [cluster.revocation(1).into(), cluster.invitation(1, &[4], false).into()];
    store.put_facts(&[&known[..], &[later("later/1", 1), later("later/2", 1)]].concat(), 2).unwrap();
    store.put_facts(&[later("later/1", 2), later("later/2", 0)], 2).unwrap();
    drop(store);
    let store = Store::open(&state(&folder)).unwrap();
    assert_eq!(store.facts().unwrap(), [&known[..], &[later("later/1", 2), later("later/2", 1)]].concat());
    fs::remove_file(state(&folder).join("facts")).unwrap();
    assert_eq!(store.facts().unwrap(), known);
}

#[test]
fn a_redemption_is_never_forgotten() {
    let (folder, cluster) = publisher();
    let store = Store::open(&state(&folder)).unwrap();
    store.put_invitations(&[cluster.invitation(1, &[4], false), cluster.invitation(2, &[], false)], 2).unwrap();
    store.put_invitations(&[cluster.invitation(1, &[], false)], 2).unwrap();
    assert_eq!(store.invitations().unwrap().len(), 2);
    assert_eq!(store.invitations().unwrap()[0].redeemed.len(), 1);
    // Each version has something that the other lacks: both stay until one contains it all.
    store.put_invitations(&[cluster.invitation(1, &[5], true)], 2).unwrap();
    assert_eq!(store.invitations().unwrap().len(), 3);
    store.put_invitations(&[cluster.invitation(1, &[4, 5], true)], 2).unwrap();
    let kept = store.invitations().unwrap();
    assert_eq!(kept.len(), 2);
    assert!(kept.iter().any(|invitation| invitation.revoked && invitation.redeemed.len() == 2));
}

#[test]
fn invitations_that_ended_long_ago_make_room() {
    let (folder, cluster) = publisher();
    let store = Store::open(&state(&folder)).unwrap();
    let invitation = |number: usize, expires: u64, redeemed: usize| {
        let mut token = [7; 32];
        token[..8].copy_from_slice(&number.to_be_bytes());
        let redeemed = (0..redeemed).map(|node| NodeId::from_public_key([node as u8; 32])).collect();
        let token = InvitationId::from_public_key(token);
        let whole = Invitation { token, expires, redeemed, ..(*cluster.invitation(0, &[], false)).clone() };
        Verified::sign(whole, &cluster.authority).unwrap()
    };
    // The most that a cluster keeps; each expires a second after the one before.
    let full: Vec<_> = (0..Invitation::MAX_KEPT).map(|number| invitation(number, 100 + number as u64, 3)).collect();
    store.put_invitations(&full, 2).unwrap();
    let next = [invitation(1000, 1_000_000_000, 0), invitation(1001, 1_000_000_000, 0)];
    // An invitation that is used up but has not expired stays.
    assert!(matches!(store.put_invitations(&next, 100), Err(StoreError::TooMany { .. })));
    assert_eq!(store.invitations().unwrap().len(), Invitation::MAX_KEPT, "a refused list must change nothing");
    // Expired ones are removed, the longest expired first, until the list fits.
    store.put_invitations(&next, 110).unwrap();
    let kept = store.invitations().unwrap();
    assert_eq!((kept.len(), kept[0].expires), (Invitation::MAX_KEPT, 102));
    store.put_invitations(&[invitation(1002, 1_000_000_000, 0)], 30 * 24 * 3600).unwrap();
    assert_eq!(store.invitations().unwrap().len(), 3);
}

#[test]
fn an_update_that_changes_nothing_is_not_written() {
    let (folder, cluster) = publisher();
    let store = Store::open(&state(&folder)).unwrap();
    let inode = |name: &str| fs::metadata(state(&folder).join(name)).unwrap().ino();
    let (members, given) = (store.members().unwrap(), [cluster.invitation(1, &[4], false)]);
    store.put_invitations(&given, 2).unwrap();
    let before = (inode("members"), inode("invitations"));
    store.put_members(&members).unwrap();
    store.put_invitations(&given, 2).unwrap();
    store.put_invitations(&[cluster.invitation(1, &[], false)], 2).unwrap();
    assert_eq!((inode("members"), inode("invitations")), before);
}

#[test]
fn revocations_are_never_removed() {
    let (folder, cluster) = publisher();
    let store = Store::open(&state(&folder)).unwrap();
    store.put_revocations(&[cluster.revocation(1), cluster.revocation(1)]).unwrap();
    store.put_revocations(&[cluster.revocation(2)]).unwrap();
    assert_eq!(store.revocations().unwrap().len(), 2);
}

/// A hostile publisher can certify a second authority. Entries signed by it must not keep the
/// others off the disk.
#[test]
fn entries_of_another_authority_are_skipped_and_the_others_written_and_read() {
    let (folder, cluster) = publisher();
    let foreign = Cluster { master: cluster.master.duplicate(), ..Cluster::new() };
    let revoked =
        |store: &Store| store.revocations().unwrap().iter().map(|revocation| revocation.node).collect::<Vec<_>>();
    let node = |number| NodeId::from_public_key([number; 32]);
    let store = Store::open(&state(&folder)).unwrap();
    store.put_revocations(&[foreign.revocation(1), cluster.revocation(1), foreign.revocation(2)]).unwrap();
    store.put_revocations(&[cluster.revocation(3), foreign.revocation(4)]).unwrap();
    store.put_invitations(&[foreign.invitation(1, &[], false), cluster.invitation(2, &[], false)], 2).unwrap();
    assert_eq!((revoked(&store), store.invitations().unwrap().len()), (vec![node(1), node(3)], 1));
    // An older version may have left the file like this.
    let list = [foreign.revocation(1), cluster.revocation(3)].map(|entry| entry.unverified());
    let bytes = file::encode(Kind::Revocations, cluster.service().address(), &codec::encode(&list).unwrap());
    file::replace(&state(&folder).join("revocations"), &bytes).unwrap();
    drop(store);
    let store = Store::open(&state(&folder)).unwrap();
    store.put_revocations(&[cluster.revocation(5)]).unwrap();
    assert_eq!(revoked(&store), [node(3), node(5)]);
}

#[test]
fn lists_are_bounded_and_full_ones_leave_the_old_in_place() {
    let (folder, cluster) = publisher();
    let store = Store::open(&state(&folder)).unwrap();
    let member = cluster.chain(NodeId::from_public_key([3; 32]), Role::Worker);
    store.put_members(&vec![member.clone(); MAX_NODES]).unwrap();
    assert!(matches!(store.put_members(&vec![member; MAX_NODES + 1]), Err(StoreError::TooMany { .. })));
    assert_eq!(store.members().unwrap().len(), MAX_NODES);
}
