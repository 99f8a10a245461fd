//! The state directory as a whole.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use rand::rng;
use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::id::{ClusterId, InvitationId, ServiceId};
use rustbalance_gossip::record::{
    AuthorityCertificate, Fact, Invitation, MemberCertificate, PeriodId, PointNonce, RelayId, Revocation, Role,
};
use rustbalance_gossip::signed::Verified;
use rustbalance_gossip::view::MAX_REVISIONS;
use tempfile::TempDir;

use super::*;
use crate::keys::{IdentitySecret, PointSeed, ServiceSecrets};
use crate::tor::ReplayLog;

mod access;
mod client_files;
mod drafts;
mod lists;
mod migrations;
mod services;

/// The keys of a cluster, from which state directories are made.
struct Cluster {
    master: IdentitySecret,
    authority: AuthoritySecret,
    discovery: KeyRing,
}

impl Cluster {
    fn new() -> Self {
        let (master, authority) = (IdentitySecret::generate(&mut rng()), AuthoritySecret::generate(&mut rng()));
        let first = Discovery::generate(ClusterId::named_by(master.service_id()), 0, &authority, &mut rng()).unwrap();
        Self { master, authority, discovery: KeyRing::new(first) }
    }

    fn id(&self) -> ClusterId {
        ClusterId::named_by(self.master.service_id())
    }

    fn service(&self) -> ServiceId {
        self.master.service_id()
    }

    fn chain(&self, node: NodeId, role: Role) -> Chain {
        let cluster = self.id();
        let authority = AuthorityCertificate { cluster, authority: self.authority.authority_id(), issued: 1 };
        let member = MemberCertificate { cluster, node, role, issued: 1, expires: 2, invitation: None };
        Chain {
            authority: Verified::sign(authority, &self.master).unwrap().unverified(),
            member: Verified::sign(member, &self.authority).unwrap().unverified(),
        }
    }

    fn complete(&self, mut draft: Draft, role: Role) -> Result<Store, StoreError> {
        let beginning = if role == Role::Publisher { SetupCommand::Init } else { SetupCommand::Join };
        draft.begin(beginning, self.id())?;
        let node = draft.node_secret(|| NodeSecret::generate(&mut rng()))?;
        let publisher = role == Role::Publisher;
        let points = PointSeed::derive(&self.authority, node.node_id());
        draft.complete(&InitialContents {
            chain: &self.chain(node.node_id(), role),
            services: &[if publisher {
                ServiceSecrets::of(self.master.duplicate())
            } else {
                ServiceSecrets::none(self.service())
            }],
            authority: publisher.then_some(&self.authority),
            discovery: &self.discovery,
            points: &points,
            members: &[self.chain(NodeId::from_public_key([3; 32]), Role::Worker)],
        })
    }

    fn invitation(&self, token: u8, redeemed: &[u8], revoked: bool) -> Verified<Invitation> {
        let invitation = Invitation {
            cluster: self.id(),
            token: InvitationId::from_public_key([token; 32]),
            role: Role::Worker,
            uses: 3,
            issued: 1,
            expires: 2,
            redeemed: redeemed.iter().map(|&node| NodeId::from_public_key([node; 32])).collect(),
            revoked,
        };
        Verified::sign(invitation, &self.authority).unwrap()
    }

    fn revocation(&self, node: u8) -> Verified<Revocation> {
        let revocation = Revocation { cluster: self.id(), node: NodeId::from_public_key([node; 32]), revoked: 5 };
        Verified::sign(revocation, &self.authority).unwrap()
    }
}

/// The state directory of a publisher, whose store is closed.
fn publisher() -> (TempDir, Cluster) {
    let (folder, cluster) = (tempfile::tempdir().unwrap(), Cluster::new());
    cluster.complete(Store::create(&folder.path().join("state")).unwrap(), Role::Publisher).unwrap();
    (folder, cluster)
}

fn state(folder: &TempDir) -> PathBuf {
    folder.path().join("state")
}

/// The kinds of files that a publisher must have.
fn required() -> impl Iterator<Item = Kind> {
    Kind::ALL.iter().copied().filter(|kind| kind.row().absent != kind::IfAbsent::Default)
}

/// The path of a publisher's file.
fn path_of(kind: Kind, folder: &TempDir, cluster: &Cluster) -> PathBuf {
    match kind.row().place {
        Place::Directory => state(folder).join(kind.name()),
        _ => OwnedFolder::of_service(&state(folder), cluster.service()).path(kind),
    }
}

fn period(number: u64) -> PeriodId {
    PeriodId { number, length_minutes: 1440, offset_seconds: 43_200 }
}

fn point(relay: u8) -> StoredIntroPoint {
    StoredIntroPoint {
        relay: RelayId { rsa: FixedBytes([relay; 20]), ed25519: FixedBytes([relay; 32]) },
        nonce: PointNonce(FixedBytes([relay; 16])),
        created: u64::from(relay),
        introductions: 0,
        max_seconds: 70_000,
        max_introductions: 20_000,
        retired: None,
    }
}

#[test]
fn written_state_is_there_after_opening_again() {
    let (folder, cluster) = publisher();
    let store = Store::open(&state(&folder)).unwrap();
    assert_eq!(store.cluster(), cluster.id());
    assert_eq!(store.node_secret().unwrap().node_id(), store.node_id());
    assert_eq!(store.identity_secret(cluster.service()).unwrap().unwrap().expanded(), cluster.master.expanded());
    assert_eq!(store.authority_secret().unwrap().unwrap().seed(), cluster.authority.seed());
    assert_eq!(store.discovery().unwrap().newest().key, cluster.discovery.newest().key);
    assert_eq!(store.members().unwrap().len(), 1);
    assert_eq!(
        fs::read_to_string(state(&folder).join("master.pub")).unwrap().lines().nth(1),
        Some(&*cluster.id().to_string())
    );
}

#[test]
fn only_one_process_opens_a_directory_at_a_time() {
    let (folder, _) = publisher();
    let store = Store::open(&state(&folder)).unwrap();
    let error = Store::open(&state(&folder)).unwrap_err();
    assert!(matches!(error, StoreError::Locked { process: Some(id), .. } if id == std::process::id()), "{error}");
    assert!(error.to_string().contains("status"), "{error}");
    assert!(matches!(Store::create(&state(&folder)), Err(StoreError::Locked { .. })));
    drop(store);
    Store::open(&state(&folder)).unwrap();
}

#[test]
fn a_missing_or_empty_directory_is_not_a_node_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open(&state(&folder)), Err(StoreError::NotFound(_))));
    assert!(!state(&folder).exists());
    assert!(matches!(Store::open(folder.path()), Err(StoreError::NotFound(_))));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_node_is_never_made_over_another() {
    let (folder, cluster) = publisher();
    let before = snapshot(&folder);
    assert!(
        matches!(Store::create(&state(&folder)), Err(StoreError::Exists { cluster: found, .. }) if found == cluster.id())
    );
    assert_eq!(snapshot(&folder), before);
}

/// Name and content of every file except the lock.
fn snapshot(folder: &TempDir) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(state(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|path| path.is_file() && !path.ends_with("lock"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_missing_file_is_named_and_nothing_is_made_in_its_place() {
    for kind in required() {
        let (folder, cluster) = publisher();
        fs::remove_file(path_of(kind, &folder, &cluster)).unwrap();
        let before = snapshot(&folder);
        for error in [Store::open(&state(&folder)).unwrap_err(), Store::create(&state(&folder)).unwrap_err()] {
            let exists = matches!(error, StoreError::Exists { .. });
            let missing = matches!(&error, StoreError::Missing { path, .. } if path.ends_with(kind.name()));
            assert!(missing || (exists && kind != Kind::Membership), "{}: {error}", kind.name());
        }
        assert_eq!(snapshot(&folder), before, "{}", kind.name());
    }
}

#[test]
fn every_file_cut_short_or_changed_is_named_and_left_alone() {
    let (folder, cluster) = publisher();
    let store = Store::open(&state(&folder)).unwrap();
    store.add_intro_point(cluster.service(), &point(1)).unwrap();
    let intro = store.intro_files(cluster.service()).unwrap();
    let intro = store.of(cluster.service()).dir.join("intro").join(format!("{}.{}", intro[0].0, intro[0].1));
    drop(store);
    let paths: Vec<_> = required().chain([Kind::Version]).map(|kind| path_of(kind, &folder, &cluster)).collect();
    for path in paths.into_iter().chain([intro]) {
        let whole = fs::read(&path).unwrap();
        let cut = (0..whole.len()).step_by(7).chain([whole.len() - 1]).map(|length| whole[..length].to_vec());
        let changed = (0..whole.len()).step_by(11).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            bytes
        });
        for bytes in cut.chain(changed) {
            fs::write(&path, &bytes).unwrap();
            let error = Store::open(&state(&folder)).unwrap_err();
            assert!(matches!(&error, StoreError::Damaged { path: at, .. } if *at == path), "{error}");
            assert!(error.to_string().contains("nothing was overwritten"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        fs::write(&path, whole).unwrap();
    }
    Store::open(&state(&folder)).unwrap();
}

#[test]
fn a_file_of_another_cluster_or_under_another_name_is_reported() {
    let ((ours, cluster), (theirs, other)) = (publisher(), publisher());
    for kind in required().filter(|kind| *kind != Kind::MasterPub) {
        let path = path_of(kind, &ours, &cluster);
        let whole = fs::read(&path).unwrap();
        fs::copy(path_of(kind, &theirs, &other), &path).unwrap();
        let error = Store::open(&state(&ours)).unwrap_err();
        assert!(error.to_string().contains(&other.id().to_string()), "{error}");
        fs::copy(state(&ours).join("master.pub"), &path).unwrap();
        let error = Store::open(&state(&ours)).unwrap_err();
        assert!(error.to_string().contains("is a master.pub file"), "{error}");
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn keys_of_another_node_or_authority_of_the_same_cluster_are_reported() {
    let (folder, cluster) = publisher();
    for (kind, bytes) in [(Kind::NodeKey, vec![9; 32]), (Kind::AuthorityKey, vec![9; 32]), (Kind::NodeKey, vec![9; 31])]
    {
        let path = state(&folder).join(kind.name());
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &**file::encode(kind, cluster.service().address(), &bytes)).unwrap();
        let error = Store::open(&state(&folder)).unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { damage: Damage::Content(_), .. }), "{error}");
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn a_worker_has_no_key_of_the_master_address_and_may_not_get_one() {
    let (folder, cluster) = (tempfile::tempdir().unwrap(), Cluster::new());
    let store = cluster.complete(Store::create(&state(&folder)).unwrap(), Role::Worker).unwrap();
    assert!(store.identity_secret(cluster.service()).unwrap().is_none());
    assert!(store.authority_secret().unwrap().is_none());
    let path = path_of(Kind::IdentityKey, &folder, &cluster);
    assert!(!path.exists() && !state(&folder).join("authority.key").exists());
    drop(store);
    write(&OwnedFolder::of_service(&state(&folder), cluster.service()), Kind::IdentityKey, cluster.master.expanded())
        .unwrap();
    assert!(matches!(Store::open(&state(&folder)), Err(StoreError::NotForWorkers(at)) if at == path));
}

#[test]
fn stored_numbers_only_rise() {
    let (folder, cluster) = publisher();
    let (store, service) = (Store::open(&state(&folder)).unwrap(), cluster.service());
    assert_eq!((store.next_boot(0).unwrap(), store.next_boot(0).unwrap()), (1, 2));
    store.raise_term(7).unwrap();
    store.raise_term(7).unwrap();
    assert!(matches!(store.raise_term(6), Err(StoreError::Falls { stored: 7, given: 6, .. })));
    store.raise_revision(service, period(1), 50).unwrap();
    assert!(matches!(
        store.raise_revision(service, period(1), 49),
        Err(StoreError::Falls { stored: 50, given: 49, .. })
    ));
    store.raise_revision(service, period(2), 3).unwrap();
    drop(store);
    let store = Store::open(&state(&folder)).unwrap();
    assert_eq!(store.next_boot(0).unwrap(), 3);
    // Numbers that a backup has forgotten are not reused. A clock that is far ahead raises the
    // count by `MAX_BOOT_JUMP` at most.
    assert_eq!([(); 2].map(|()| store.next_boot(3600 * 500_000).unwrap()), [500_000, 500_001]);
    assert_eq!(store.next_boot(u64::MAX).unwrap(), 500_001 + MAX_BOOT_JUMP);
    assert_eq!(store.term().unwrap(), 7);
    assert_eq!(store.revisions(service).unwrap(), [(period(1), 50), (period(2), 3)]);
}

#[test]
fn the_oldest_periods_are_forgotten_but_not_the_one_in_use() {
    let (folder, cluster) = publisher();
    let (store, service) = (Store::open(&state(&folder)).unwrap(), cluster.service());
    for number in 100..130 {
        store.raise_revision(service, period(number), number).unwrap();
    }
    assert_eq!(store.revisions(service).unwrap().len(), MAX_REVISIONS);
    assert_eq!(store.revisions(service).unwrap()[0].0, period(114));
    store.raise_revision(service, period(1), 9).unwrap();
    assert!(store.revisions(service).unwrap().contains(&(period(1), 9)));
    assert_eq!(store.revisions(service).unwrap().len(), MAX_REVISIONS);
}

#[test]
fn the_discovery_key_changes_only_to_a_newer_generation() {
    let (folder, cluster) = publisher();
    let store = Store::open(&state(&folder)).unwrap();
    let make = |generation| Discovery::generate(cluster.id(), generation, &cluster.authority, &mut rng()).unwrap();
    let (older, next) = (make(1), make(2));
    assert!(!store.adopt_discovery(cluster.discovery.newest().duplicate(), 5).unwrap().1);
    assert!(store.adopt_discovery(next.duplicate(), 5).unwrap().1);
    assert!(!store.adopt_discovery(older, 6).unwrap().1);
    drop(store);
    let found = Store::open(&state(&folder)).unwrap().discovery().unwrap();
    assert_eq!(found.newest().key, next.key);
    assert_eq!(found.secrets().len(), 2, "the one before is kept");
}

#[test]
fn intro_points_are_kept_and_removed_with_their_replay_logs() {
    let (folder, cluster) = publisher();
    let (store, service) = (Store::open(&state(&folder)).unwrap(), cluster.service());
    let (one, two) = (point(1), point(2));
    store.add_intro_point(service, &two).unwrap();
    store.add_intro_point(service, &one).unwrap();
    for point in [&one, &two] {
        ReplayLog::open(&store.replay_log_path(service, point.nonce)).unwrap().is_new(b"hello").unwrap();
    }
    store.update_intro_point(service, one.nonce, 9, Some(33)).unwrap();
    drop(store);

    let store = Store::open(&state(&folder)).unwrap();
    let points = store.intro_points(service).unwrap();
    assert_eq!(points.iter().map(|point| (point.created, point.introductions)).collect::<Vec<_>>(), [(1, 9), (2, 0)]);
    assert_eq!(points.iter().map(|point| point.retired).collect::<Vec<_>>(), [Some(33), None]);
    assert_eq!((points[0].max_seconds, points[0].max_introductions), (70_000, 20_000));
    assert_eq!(ReplayLog::open(&store.replay_log_path(service, one.nonce)).unwrap().len(), 1);
    store.remove_intro_point(service, one.nonce).unwrap();
    assert!(!store.replay_log_path(service, one.nonce).exists());
    assert!(matches!(store.update_intro_point(service, one.nonce, 1, None), Err(StoreError::NoIntroPoint(_))));

    // A crash between the two removals leaves a log without keys.
    fs::remove_file(
        store.of(service).dir.join("intro").join(format!("{}.point", data_encoding::HEXLOWER.encode(&two.nonce.0.0))),
    )
    .unwrap();
    drop(store);
    let store = Store::open(&state(&folder)).unwrap();
    assert!(!store.replay_log_path(service, two.nonce).exists());
}

#[test]
fn intro_points_are_bounded() {
    let (folder, cluster) = publisher();
    let (store, service) = (Store::open(&state(&folder)).unwrap(), cluster.service());
    for relay in 0..64 {
        store.add_intro_point(service, &point(relay)).unwrap();
    }
    assert!(matches!(store.add_intro_point(service, &point(64)), Err(StoreError::TooMany { .. })));
    assert_eq!(store.intro_points(service).unwrap().len(), MAX_STORED_POINTS);
}

#[test]
fn half_written_files_of_a_crash_are_swept() {
    let (folder, cluster) = publisher();
    let service = OwnedFolder::of_service(&state(&folder), cluster.service()).dir;
    let leftovers = [state(&folder), service.clone(), service.join("intro")].map(|dir| dir.join(".new-abc"));
    for leftover in &leftovers {
        fs::write(leftover, b"half").unwrap();
        fs::set_permissions(leftover, fs::Permissions::from_mode(0o600)).unwrap();
    }
    Store::open(&state(&folder)).unwrap();
    assert!(leftovers.iter().all(|leftover| !leftover.exists()));
}

#[test]
fn no_error_and_no_debug_shows_a_secret() {
    let (folder, cluster) = publisher();
    let secret = data_encoding::HEXLOWER.encode(cluster.master.expanded());
    let store = Store::open(&state(&folder)).unwrap();
    assert!(!format!("{store:?}").contains(&secret[..16]));
    assert!(format!("{:?}", store.discovery().unwrap()).contains("redacted"));
    drop(store);
    fs::write(path_of(Kind::IdentityKey, &folder, &cluster), cluster.master.expanded()).unwrap();
    let error = Store::open(&state(&folder)).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(&secret[..16]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn terms_and_boots_never_fall(steps in proptest::collection::vec((0u64..20, any::<bool>()), 1..20)) {
        let (folder, _) = publisher();
        let mut store = Store::open(&state(&folder)).unwrap();
        let (mut highest, mut boots) = (0, BTreeSet::new());
        for (term, restart) in steps {
            prop_assert_eq!(store.raise_term(term).is_ok(), term >= highest);
            highest = highest.max(term);
            if restart {
                drop(store);
                store = Store::open(&state(&folder)).unwrap();
                let boot = store.next_boot(0).unwrap();
                prop_assert!(boots.last().is_none_or(|last| boot > *last));
                boots.insert(boot);
            }
            prop_assert_eq!(store.term().unwrap(), highest);
        }
    }
}
