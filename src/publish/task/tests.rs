//! The publisher task on the fake engine: with a full disk, and with another publisher of its
//! address.

use std::sync::atomic::{AtomicBool, Ordering};

use rustbalance_gossip::record::IntroPoint;
use tokio::time::timeout;

use super::*;
use crate::keys::IdentitySecret;
use crate::tor::fake::FakeNet;
use crate::tor::fake::tests::{limits, new_keys};
use crate::tor::{Incoming, IntroRequest, RelayChoice};

const LIMIT: Duration = Duration::from_secs(20);

struct Credentials(IdentitySecret);

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

async fn point(engine: &Arc<crate::tor::fake::FakeEngine>, service: ServiceId) -> IntroPoint {
    let relay = RelayChoice::AnyBut(Default::default());
    let (streams, _incoming) = tokio::sync::mpsc::channel::<Incoming>(1);
    engine
        .open_intro_point(IntroRequest { service, keys: new_keys(), relay, limits: limits() }, streams)
        .await
        .unwrap()
        .describe()
}

/// A running publisher task and its outputs.
struct Working {
    net: FakeNet,
    secret: IdentitySecret,
    point: IntroPoint,
    disk: Arc<Disk>,
    reported: watch::Receiver<Vec<PublishedPeriod>>,
    confirmed: watch::Receiver<Vec<DirectoryReport>>,
    notices: watch::Receiver<()>,
    other_publishers: watch::Receiver<Option<OtherPublisherSeen>>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<Result<(), JobPanicked>>,
    doubt: mpsc::Sender<(PeriodId, Directory)>,
    _wanted: watch::Sender<WantedPublication>,
}

impl Working {
    async fn start(disk_is_full: bool) -> Self {
        let net = FakeNet::new(5, 12);
        let engine = net.engine();
        let secret = IdentitySecret::generate(&mut rand::rng());
        let service = secret.service_id();
        let point = point(&engine, service).await;
        let content = DesiredContent { points: vec![point.clone()], ..Default::default() };
        let (wanted_sender, wanted) =
            watch::channel(WantedPublication { term: Some(1), content, ..Default::default() });
        let (doubt, doubts) = mpsc::channel(1);
        let (report, reported) = watch::channel(Vec::new());
        let (directories, confirmed) = watch::channel(Vec::new());
        let (cannot_publish, notices) = watch::channel(());
        let (other_publisher, other_publishers) = watch::channel(None);
        let disk = Arc::new(Disk(AtomicBool::new(disk_is_full)));
        let publisher = Publisher {
            engine,
            service,
            credentials: Arc::new(Credentials(secret.duplicate())),
            revisions: Arc::clone(&disk) as Arc<dyn RevisionLog>,
            wanted,
            doubts,
            report,
            directories,
            cannot_publish,
            other_publisher,
            refresh: Duration::from_secs(3600),
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(publisher.run(stop.clone()));
        Self {
            net,
            secret,
            point,
            disk,
            reported,
            confirmed,
            notices,
            other_publishers,
            stop,
            running,
            doubt,
            _wanted: wanted_sender,
        }
    }

    async fn is_everywhere(&mut self) {
        let complete = |periods: &Vec<PublishedPeriod>| {
            // The first report may have only one of the two.
            periods.len() == 2 && periods.iter().all(|it| it.directories > 0 && it.confirmed == it.directories)
        };
        timeout(LIMIT * 3, self.reported.wait_for(complete)).await.unwrap().unwrap();
        let all = |reports: &Vec<DirectoryReport>| !reports.is_empty() && reports.iter().all(|it| it.is_current);
        timeout(LIMIT, self.confirmed.wait_for(all)).await.unwrap().unwrap();
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_is_reported_until_there_is_room_again() {
    let mut working = Working::start(true).await;
    timeout(LIMIT, working.notices.changed()).await.unwrap().unwrap();
    timeout(LIMIT, working.notices.changed()).await.unwrap().unwrap();
    assert!(working.reported.borrow().is_empty(), "published without its revision on disk");

    working.disk.0.store(false, Ordering::SeqCst);
    working.is_everywhere().await;
    working.end().await;
}

/// The old service with the same key still runs. Its descriptor is readable for all in the first
/// run, for authorized clients only in the second.
#[tokio::test(start_paused = true)]
async fn another_publisher_of_the_address_is_reported_and_its_revision_exceeded() {
    for readable in [true, false] {
        let mut working = Working::start(false).await;
        working.is_everywhere().await;
        assert!(working.other_publishers.borrow().is_none());

        let (engine, service, period) = (working.net.engine(), working.secret.service_id(), working.net.periods()[0]);
        let directories = working.net.directories(service, period);
        let ours = working.net.held(&directories[0], service, period).unwrap();
        let revision = descriptor::read_revision(&ours, service, period, SystemTime::now()).unwrap() + 1000;
        let credentials = PeriodCredentials::derive(&working.secret, period, SystemTime::now()).unwrap();
        let points = [point(&engine, service).await];
        let theirs = match readable {
            true => {
                let parameters = descriptor::DescriptorParameters::default();
                let content = DescriptorContent { revision, points: points.into(), ..Default::default() };
                descriptor::build(&credentials, &content, parameters, SystemTime::now()).unwrap()
            }
            false => descriptor::build_restricted(&credentials, &points, revision),
        };
        for directory in &directories {
            engine.upload(directory, period, &theirs, LIMIT).await.unwrap();
        }

        timeout(LIMIT * 3, working.other_publishers.changed()).await.unwrap().unwrap();
        assert_eq!(working.other_publishers.borrow().unwrap().readable, readable);
        // Our descriptor is back at the latest after the next read-back.
        let restored = async || {
            let held = directories.iter().map(|directory| working.net.held(directory, service, period).unwrap());
            let held: Vec<_> = held.map(|text| descriptor::read(&text, service, period, SystemTime::now())).collect();
            held.iter().all(|read| read.as_ref().is_ok_and(|content| content.points == [working.point.clone()]))
        };
        let mut tries = 0..60;
        while !restored().await {
            assert!(tries.next().is_some(), "the other publisher's descriptor is still there");
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        working.end().await;
    }
}

#[tokio::test]
async fn a_doubted_directory_gets_the_descriptor_again() {
    let mut working = Working::start(false).await;
    working.is_everywhere().await;
    let (service, period) = (working.secret.service_id(), working.net.periods()[0]);
    let directory = working.net.directories(service, period).swap_remove(3);
    let before = working.net.held(&directory, service, period);
    working.net.lose_descriptor(&directory, service, period);
    working.doubt.send((period, directory.clone())).await.unwrap();
    timeout(LIMIT, async {
        while working.net.held(&directory, service, period) != before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it was not uploaded");
    working.end().await;
}
