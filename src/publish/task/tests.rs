//! The publisher task on the fake engine: what it does when its disk takes nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::timeout;
use zeroize::Zeroizing;

use super::*;
use crate::keys::MasterSecret;
use crate::tor::fake::FakeNet;
use crate::tor::fake::tests::{limits, new_keys};
use crate::tor::{Incoming, IntroRequest, RelayChoice};

const LIMIT: Duration = Duration::from_secs(20);

struct Credentials(MasterSecret);

impl CredentialSource for Credentials {
    fn credentials(&self, period: PeriodId, now: SystemTime) -> Result<PeriodCredentials, TorError> {
        PeriodCredentials::derive(&self.0, period, now)
    }
}

/// A disk that may be full.
#[derive(Default)]
struct Disk(AtomicBool);

impl RevisionLog for Disk {
    fn highest(&self, _: PeriodId) -> u64 {
        0
    }

    fn advance(&self, _: PeriodId, _: u64) -> Result<(), String> {
        if self.0.load(Ordering::SeqCst) { Err("No space left on device".into()) } else { Ok(()) }
    }
}

async fn point(engine: &Arc<crate::tor::fake::FakeEngine>, master: MasterId) -> IntroPoint {
    let relay = RelayChoice::AnyBut(Default::default());
    let (streams, _incoming) = tokio::sync::mpsc::channel::<Incoming>(1);
    engine
        .open_intro_point(IntroRequest { master, keys: new_keys(), relay, limits: limits() }, streams)
        .await
        .unwrap()
        .describe()
}

#[tokio::test]
async fn a_full_disk_is_told_until_there_is_room_again() {
    let net = FakeNet::new(5, 12);
    let engine = net.engine();
    let mut bytes = Zeroizing::new([9; 64]);
    (bytes[0], bytes[31]) = (8, 72);
    let secret = MasterSecret::from_expanded(&bytes).unwrap();
    let master = secret.master_id();
    let wanted = Wanted { term: Some(1), points: vec![point(&engine, master).await], floors: BTreeMap::new() };
    let (_wanted, wanted) = watch::channel(wanted);
    let (report, mut reported) = watch::channel(Vec::new());
    let (unable, mut told) = watch::channel(());
    let disk = Arc::new(Disk::default());
    disk.0.store(true, Ordering::SeqCst);
    let publisher = Publisher {
        engine,
        master,
        credentials: Arc::new(Credentials(secret)),
        revisions: Arc::clone(&disk) as Arc<dyn RevisionLog>,
        wanted,
        report,
        unable,
        refresh: Duration::from_secs(3600),
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(publisher.run(stop.clone()));
    timeout(LIMIT, told.changed()).await.unwrap().unwrap();
    timeout(LIMIT, told.changed()).await.unwrap().unwrap();
    assert!(reported.borrow().is_empty(), "published without its revision on disk");

    disk.0.store(false, Ordering::SeqCst);
    let complete = |periods: &Vec<PublishedPeriod>| {
        !periods.is_empty() && periods.iter().all(|it| it.directories > 0 && it.confirmed == it.directories)
    };
    timeout(LIMIT, reported.wait_for(complete)).await.unwrap().unwrap();
    stop.cancel();
    running.await.unwrap();
}
