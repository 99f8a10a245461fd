//! The behaviour that every implementation of [`Engine`] must have.
//!
//! Each function checks one behaviour and panics if it is not met; [`all`] runs them one after the
//! other. The unit tests run them over the fake; the network tests include this file and run them
//! over Arti on a private Tor network. So they allow for the delays of a real network, and use
//! nothing that only the fake can do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use futures::future::join_all;
use rustbalance::keys::{DiscoverySecret, IdentitySecret, NodeSecret, PointSeed};
use rustbalance::stream::BoxStream;
use rustbalance::tor::descriptor::{self, DescriptorContent, PeriodCredentials};
use rustbalance::tor::{
    Engine, Incoming, IntroPointKeys, IntroRequest, OpenIntroPoint, OwnService, Period, Refused, Rejection,
    RelayChoice, ReplayLog, ServiceGuard, ServiceLimits, TorError, Visit, VisitStage, subprotocols,
};
use rustbalance_gossip::id::OnionAddress;
use rustbalance_gossip::record::{IntroPoint, RelayId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

pub(crate) use bounds::{circuits_are_shown_and_closed, rendezvous_are_bounded, streams_on_one_circuit_are_bounded};

// The path is given, because the network tests include this file by its path.
#[path = "conformance/bounds.rs"]
mod bounds;

/// A port that is open, and one that is not.
const OPEN: u16 = 80;
const CLOSED: u16 = 81;
/// More than a stream's window, so that both directions must flow at once.
const BULK: usize = 300_000;

/// The network that the engines are on.
#[async_trait]
pub(crate) trait Stage: Sync {
    /// A new Tor client, of a node or of a visitor, without any cached state.
    async fn engine(&self) -> Arc<dyn Engine>;
    /// A visitor to a service that is not restricted: if possible, a stock Tor client in its own
    /// process.
    async fn guest(&self, to: OnionAddress, port: u16, limit: Duration) -> Result<Visitor, TorError>;
    /// Stops a relay for good; false if this network cannot do that.
    async fn kill_relay(&self, relay: RelayId) -> bool;
    /// Time limit for one operation that must succeed.
    fn patience(&self) -> Duration;
    /// Time limit for a connection that must fail.
    fn short(&self) -> Duration;
}

/// A visitor whose circuits end when it is dropped. Tor clients within this process may keep
/// theirs.
pub(crate) struct Visitor {
    /// The stream to the service.
    pub(crate) stream: BoxStream,
    /// Ends the visitor when dropped.
    pub(crate) life: Box<dyn Send + Sync>,
}

/// All behaviours, one after the other.
pub(crate) async fn all(stage: &dyn Stage) {
    /// Runs each behaviour, and prints its name and its duration.
    macro_rules! run {
        ($($behaviour:ident),*) => {
            $(
                let started = Instant::now();
                println!("{} ...", stringify!($behaviour));
                $behaviour(stage).await;
                println!("{} ok after {:.1} s", stringify!($behaviour), started.elapsed().as_secs_f64());
            )*
        };
    }
    run!(
        becomes_ready,
        directories_keep_the_highest_revision,
        own_service_is_restricted,
        clients_are_served_at_an_intro_point,
        a_visit_goes_through_the_point_that_it_names,
        points_keep_clear_of_excluded_relays,
        a_dropped_point_serves_again_with_its_keys,
        a_point_passes_to_the_node_that_opened_it_last,
        streams_on_one_circuit_are_bounded,
        rendezvous_are_bounded,
        circuits_are_shown_and_closed,
        a_point_is_lost_with_its_relay
    );
}

/// The bootstrap ends; after it, every period has directories.
pub(crate) async fn becomes_ready(stage: &dyn Stage) {
    let engine = ready(stage).await;
    let mut changes = engine.network_changes();
    timeout(stage.patience(), changes.wait_for(|count| *count > 0))
        .await
        .expect("no change of the network's directory was reported")
        .unwrap();
    let periods = engine.publication(new_master().service_id()).await.unwrap();
    assert!(!periods.is_empty());
    for period in &periods {
        let distinct: BTreeSet<_> = period.directories.iter().collect();
        assert!(!distinct.is_empty());
        assert_eq!(distinct.len(), period.directories.len(), "each directory once");
        assert!(period.parameters.max_size <= descriptor::MAX_DESCRIPTOR);
    }
    assert_eq!(periods.iter().map(|period| period.id).collect::<BTreeSet<_>>().len(), periods.len());
}

/// A directory returns an upload unchanged, and refuses one with an equal or lower revision.
pub(crate) async fn directories_keep_the_highest_revision(stage: &dyn Stage) {
    let (engine, master) = (ready(stage).await, new_master());
    let (streams, _kept) = mpsc::channel(1);
    let point =
        open(stage, &*engine, &master, RelayChoice::AnyBut(BTreeSet::new()), &limits(), new_keys(), streams).await;
    let period = engine.publication(master.service_id()).await.unwrap().swap_remove(0);
    let directory = &period.directories[0];
    let fetch = async |engine: &dyn Engine, of| {
        eventually(stage, "download", async || engine.fetch(directory, of, period.id, stage.patience()).await).await
    };
    let upload = async |text: &str| {
        let upload = async || match engine.upload(directory, period.id, text, stage.patience()).await {
            Err(error) if !matches!(error, TorError::Refused { .. }) && error.is_transient() => Err(error),
            answer => Ok(answer),
        };
        eventually(stage, "upload", upload).await
    };
    assert_eq!(fetch(&*engine, master.service_id()).await, None);
    let credentials = PeriodCredentials::derive(&master, period.id, SystemTime::now()).unwrap();
    let text = |revision| {
        let content = DescriptorContent { revision, points: vec![point.describe()], ..Default::default() };
        descriptor::build(&credentials, &content, period.parameters, SystemTime::now()).unwrap()
    };
    let first = text(1000);
    upload(&first).await.unwrap();
    for refused in [&first, &text(1000), &text(999), "garbage"] {
        let answer = upload(refused).await;
        assert!(matches!(answer, Err(TorError::Refused { .. })), "{answer:?}");
    }
    assert_eq!(
        fetch(&*ready(stage).await, master.service_id()).await.as_ref(),
        Some(&first),
        "another client reads a different descriptor"
    );
    let second = text(1001);
    upload(&second).await.unwrap();
    let held = fetch(&*engine, master.service_id()).await.unwrap();
    assert_eq!(held, second);
    let content = descriptor::read(&held, master.service_id(), period.id, SystemTime::now()).unwrap();
    assert_eq!((content.revision, content.points), (1001, vec![point.describe()]));
    assert_eq!(fetch(&*engine, new_master().service_id()).await, None, "another address");
}

/// Only holders of the discovery key reach a node's own service, and only at its ports; the key can
/// be rotated.
pub(crate) async fn own_service_is_restricted(stage: &dyn Stage) {
    let host = ready(stage).await;
    let [old, new] = [0; 2].map(|_| DiscoverySecret::generate(&mut rand::rng()));
    let identity = NodeSecret::generate(&mut rand::rng());
    let (node, address) = (identity.node_id(), identity.node_id().address());
    let service = |discovery| OwnService {
        identity: identity.duplicate(),
        discovery,
        ports: vec![OPEN],
        refused: Arc::default(),
    };
    let (streams, incoming) = mpsc::channel(16);
    let open_to_all = host.listen(service(vec![]), streams.clone()).await;
    assert!(matches!(open_to_all, Err(TorError::Invalid(..))), "a service without a discovery key was started");
    let listening = host.listen(service(vec![old.public()]), streams).await.unwrap();
    serve(incoming);

    let friend = ready(stage).await;
    friend.trust_discovery(node, &[&old]).unwrap();
    echoes(eventually(stage, "a friend's dial", async || friend.dial(address, OPEN, stage.patience()).await).await)
        .await;
    fails(stage, "a port that is not open", friend.dial(address, CLOSED, stage.patience())).await;
    let stranger = ready(stage).await;
    fails(stage, "a dial without the key", stranger.dial(address, OPEN, stage.short())).await;
    stranger.trust_discovery(node, &[&new]).unwrap();
    let wrong_key = async || match stranger.dial(address, OPEN, stage.patience()).await {
        Err(TorError::ShutOut { .. }) => Ok(()),
        Err(other) => Err(other.to_string()),
        Ok(_) => Err("the wrong key opens the service".into()),
    };
    eventually(stage, "`ShutOut` for a dial with a wrong key", wrong_key).await;

    listening.authorize(vec![new.public()]).await.unwrap();
    assert!(listening.authorize(vec![]).await.is_err());
    let visitor = async |key: &[&DiscoverySecret]| {
        let visitor = ready(stage).await;
        visitor.trust_discovery(node, key).unwrap();
        (visitor.dial(address, OPEN, stage.short()).await, visitor)
    };
    // A client that has both keys gets in, whichever of them the service accepts.
    let both = ready(stage).await;
    both.trust_discovery(node, &[&new, &old]).unwrap();
    echoes(eventually(stage, "both keys", async || both.dial(address, OPEN, stage.patience()).await).await).await;
    let (stream, _visitor) = eventually(stage, "the new key", async || match visitor(&[&new]).await {
        (Ok(stream), visitor) => Ok((stream, visitor)),
        (Err(error), _) => Err(error),
    })
    .await;
    echoes(stream).await;
    let shut_out = async || match visitor(&[&old]).await.0 {
        Ok(_) => Err("the old key still opens it"),
        Err(_) => Ok(()),
    };
    eventually(stage, "the end of the old key", shut_out).await;
    drop(listening);
    let gone = async || match visitor(&[&new]).await.0 {
        Ok(_) => Err("it still answers"),
        Err(_) => Ok(()),
    };
    eventually(stage, "the end of the service", gone).await;
}

/// Clients find a published point and are counted; their streams are accepted or rejected; no byte
/// is lost in either direction.
pub(crate) async fn clients_are_served_at_an_intro_point(stage: &dyn Stage) {
    let (host, master) = (ready(stage).await, new_master());
    let (streams, incoming) = mpsc::channel(16);
    let limits = limits();
    let keys = new_keys();
    let session = ed25519_dalek::SigningKey::from_bytes(&keys.secrets.session).verifying_key().to_bytes();
    let point = open(stage, &*host, &master, RelayChoice::AnyBut(BTreeSet::new()), &limits, keys, streams).await;
    assert_eq!(point.describe().session_key.0, session);
    descriptor::check_point(&point.describe()).unwrap();
    assert_eq!(point.introductions(), 0);
    serve(incoming);
    publish(stage, &*host, &master, &[point.describe()], 0).await;

    let address = master.service_id().address();
    let (stream, client) = visit(stage, address).await;
    echoes(stream).await;
    let introduced = point.introductions();
    assert!(introduced >= 1);
    fails(stage, "a stream that the node rejects", client.dial(address, CLOSED, stage.patience())).await;
    let again = async || client.dial(address, OPEN, stage.patience()).await;
    let mut again = eventually(stage, "another stream", again).await;
    again.write_all(b"bulk").await.unwrap();
    again.flush().await.unwrap();
    let mut received = Vec::new();
    // Arti returns an error for END cells that a C tor client reads as the end of the stream.
    let _ = timeout(stage.patience(), again.read_to_end(&mut received)).await.expect("the stream did not end");
    assert_eq!(received.len(), BULK, "bytes sent before the end were lost");
    let guest = async || stage.guest(address, OPEN, stage.patience()).await;
    let Visitor { stream, life: _life } = eventually(stage, "a stock client's visit", guest).await;
    echoes(stream).await;
    assert!(point.introductions() > introduced);
    let refused = [Refused::Replay, Refused::Malformed, Refused::Introduction, Refused::Stream];
    assert!(refused.iter().all(|what| limits.refused.get(*what) == 0), "{:?}", limits.refused);
}

/// A visit uses the point that it names, and an error says how far it came.
pub(crate) async fn a_visit_goes_through_the_point_that_it_names(stage: &dyn Stage) {
    let (host, master) = (ready(stage).await, new_master());
    let (streams, incoming) = mpsc::channel(16);
    let any = RelayChoice::AnyBut(BTreeSet::new());
    let one = open(stage, &*host, &master, any, &limits(), new_keys(), streams.clone()).await;
    let others = RelayChoice::AnyBut([one.describe().relay].into());
    let other = open(stage, &*host, &master, others, &limits(), new_keys(), streams).await;
    serve(incoming);
    let (visitor, service) = (ready(stage).await, master.service_id());
    let (period, asked) = visitor.client_directories(service).await.unwrap();
    let all = host.publication(service).await.unwrap().into_iter().find(|it| it.id == period).unwrap().directories;
    assert!(!asked.is_empty() && asked.iter().all(|directory| all.contains(directory)), "{asked:?} of {all:?}");
    let point = other.describe();
    let visit = async |port| {
        let visit = Visit { service, period, point: point.clone(), port };
        visitor.visit(visit, stage.patience()).await
    };
    eventually(stage, "a visit", async || visit(Some(OPEN)).await).await;
    assert_eq!((one.introductions(), other.introductions() > 0), (0, true));
    let stops_at = async |expected: VisitStage, port| match visit(port).await {
        Err(error) if error.stage == expected => Ok(()),
        outcome => Err(format!("not stopped at {expected:?}: {outcome:?}")),
    };
    eventually(stage, "a refused port", async || stops_at(VisitStage::Port, Some(CLOSED)).await).await;
    drop(other);
    eventually(stage, "a dropped point", async || stops_at(VisitStage::Introduction, None).await).await;
    visitor.renew_circuits();
}

/// No point is opened at an excluded relay, and none at a relay that does not exist.
pub(crate) async fn points_keep_clear_of_excluded_relays(stage: &dyn Stage) {
    let (host, master, limits) = (ready(stage).await, new_master(), limits());
    let (streams, _kept) = mpsc::channel(1);
    let mut points = Vec::new();
    let mut taken = BTreeSet::new();
    for _ in 0..3 {
        let choice = RelayChoice::AnyBut(taken.clone());
        let point = open(stage, &*host, &master, choice, &limits, new_keys(), streams.clone()).await;
        assert!(taken.insert(point.describe().relay), "an excluded relay was chosen");
        points.push(point);
    }
    let mut nowhere = points[0].describe().relay;
    nowhere.ed25519.0[0] ^= 1;
    let request = request(&master, RelayChoice::Exactly(nowhere), &limits, new_keys());
    let answer = host.open_intro_point(request, streams).await.map(|point| point.describe());
    assert!(matches!(answer, Err(TorError::NoRelay(_))), "{answer:?}");
}

/// A dropped point serves no client. If it is opened again with the same keys at the same relay, it
/// serves the clients that still have the old descriptor.
pub(crate) async fn a_dropped_point_serves_again_with_its_keys(stage: &dyn Stage) {
    let (host, master, limits) = (ready(stage).await, new_master(), limits());
    let (streams, incoming) = mpsc::channel(16);
    serve(incoming);
    let IntroPointKeys { secrets, replays } = new_keys();
    let keys = || IntroPointKeys { secrets: secrets.duplicate(), replays: Arc::clone(&replays) };
    let anywhere = RelayChoice::AnyBut(BTreeSet::new());
    let point = open(stage, &*host, &master, anywhere, &limits, keys(), streams.clone()).await;
    let described = point.describe();
    publish(stage, &*host, &master, std::slice::from_ref(&described), 0).await;
    let address = master.service_id().address();
    echoes(visit(stage, address).await.0).await;
    let seen = replays.len();
    assert!(seen > 0, "the replay log is empty");

    drop(point);
    let unserved = async || match ready(stage).await.dial(address, OPEN, stage.short()).await {
        Ok(_) => Err("a dropped point serves a client"),
        Err(_) => Ok(()),
    };
    eventually(stage, "the end of a point", unserved).await;

    // As after a restart of the node: with a new Tor client.
    let host = ready(stage).await;
    let point = open(stage, &*host, &master, RelayChoice::Exactly(described.relay), &limits, keys(), streams).await;
    assert_eq!(point.describe(), described);
    echoes(visit(stage, address).await.0).await;
    assert!(replays.len() > seen);
}

/// When a second node opens a point with the same keys at the same relay, it serves the clients
/// from then on, and the first node learns that it has lost the point. The same holds when the
/// first node takes the point back.
pub(crate) async fn a_point_passes_to_the_node_that_opened_it_last(stage: &dyn Stage) {
    let (first, second, master, limits) = (ready(stage).await, ready(stage).await, new_master(), limits());
    let seed = PointSeed::from_bytes(&Zeroizing::new(rand::random()));
    let nonce = seed.draw(&mut rand::rng()).nonce;
    let keys = || IntroPointKeys { secrets: seed.secrets(nonce), replays: Arc::new(ReplayLog::ephemeral()) };
    let (to_first, incoming) = mpsc::channel(16);
    serve(incoming);
    let (to_second, incoming) = mpsc::channel(16);
    serve(incoming);
    let anywhere = RelayChoice::AnyBut(BTreeSet::new());
    let own = open(stage, &*first, &master, anywhere, &limits, keys(), to_first.clone()).await;
    let described = own.describe();
    publish(stage, &*first, &master, std::slice::from_ref(&described), 0).await;
    let address = master.service_id().address();
    echoes(visit(stage, address).await.0).await;
    assert!(own.introductions() > 0);

    let there = RelayChoice::Exactly(described.relay);
    let taken = open(stage, &*second, &master, there.clone(), &limits, keys(), to_second).await;
    assert_eq!(taken.describe(), described);
    timeout(stage.patience(), own.lost()).await.expect("the first node did not notice that its point was taken");
    echoes(visit(stage, address).await.0).await;
    assert!(taken.introductions() > 0);

    let back = open(stage, &*first, &master, there, &limits, keys(), to_first).await;
    timeout(stage.patience(), taken.lost()).await.expect("the second node did not notice that its point was taken");
    echoes(visit(stage, address).await.0).await;
    assert!(back.introductions() > 0);
}

/// A node learns that the relay of its introduction point is gone.
pub(crate) async fn a_point_is_lost_with_its_relay(stage: &dyn Stage) {
    let (host, master, limits) = (ready(stage).await, new_master(), limits());
    let (streams, _kept) = mpsc::channel(1);
    let anywhere = RelayChoice::AnyBut(BTreeSet::new());
    let point = open(stage, &*host, &master, anywhere, &limits, new_keys(), streams).await;
    let still = timeout(Duration::from_millis(200), point.lost()).await;
    assert!(still.is_err(), "the point was lost at once: {still:?}");
    if stage.kill_relay(point.describe().relay).await {
        let why = timeout(stage.patience(), point.lost()).await.expect("the loss of a relay was not noticed");
        assert!(!why.is_empty());
    }
}

async fn ready(stage: &dyn Stage) -> Arc<dyn Engine> {
    let engine = stage.engine().await;
    let mut bootstrap = engine.bootstrap();
    let started = Instant::now();
    timeout(stage.patience() * 2, bootstrap.wait_for(|state| state.ready))
        .await
        .expect("the bootstrap did not end")
        .unwrap();
    if started.elapsed() > stage.patience() / 3 {
        println!("  a bootstrap took {:.1} s", started.elapsed().as_secs_f64());
    }
    engine
}

fn new_master() -> IdentitySecret {
    IdentitySecret::generate(&mut rand::rng())
}

fn new_keys() -> IntroPointKeys {
    let secrets = PointSeed::from_bytes(&Zeroizing::new(rand::random())).draw(&mut rand::rng());
    IntroPointKeys { secrets, replays: Arc::new(ReplayLog::ephemeral()) }
}

fn few() -> ServiceLimits {
    ServiceLimits {
        pending_rendezvous: 16,
        open_rendezvous: 64,
        streams_per_circuit: 16,
        refusals_per_circuit: None,
        introduction_queue: 16,
        introductions_per_second: Some((25, 200)),
    }
}

fn limits() -> Arc<ServiceGuard> {
    Arc::new(ServiceGuard::fixed(few()))
}

fn request(
    master: &IdentitySecret,
    relay: RelayChoice,
    limits: &Arc<ServiceGuard>,
    keys: IntroPointKeys,
) -> IntroRequest {
    IntroRequest { service: master.service_id(), keys, relay, limits: Arc::clone(limits) }
}

/// Opens a point; tries again, because circuits fail for a while just after a bootstrap.
async fn open(
    stage: &dyn Stage,
    engine: &dyn Engine,
    master: &IdentitySecret,
    relay: RelayChoice,
    limits: &Arc<ServiceGuard>,
    keys: IntroPointKeys,
    streams: mpsc::Sender<Incoming>,
) -> Box<dyn OpenIntroPoint> {
    let attempt = async || {
        let keys = IntroPointKeys { secrets: keys.secrets.duplicate(), replays: Arc::clone(&keys.replays) };
        match engine.open_intro_point(request(master, relay.clone(), limits, keys), streams.clone()).await {
            Err(error) if error.is_transient() => Err(error),
            outcome => Ok(outcome.unwrap()),
        }
    };
    eventually(stage, "an introduction point", attempt).await
}

/// Uploads a descriptor to every directory of every period. `bump` is added to the revision.
async fn publish(stage: &dyn Stage, engine: &dyn Engine, master: &IdentitySecret, points: &[IntroPoint], bump: u64) {
    let upload = async |period: &Period, text: &str, at: usize| {
        let upload = async || engine.upload(&period.directories[at], period.id, text, stage.patience()).await;
        eventually(stage, "an upload", upload).await
    };
    for period in engine.publication(master.service_id()).await.unwrap() {
        let now = SystemTime::now();
        let credentials = PeriodCredentials::derive(master, period.id, now).unwrap();
        let revision = credentials.revision(period.revision_clock) + bump;
        let content = DescriptorContent { revision, points: points.to_vec(), subprotocols: subprotocols::granted() };
        let text = descriptor::build(&credentials, &content, period.parameters, now).unwrap();
        join_all((0..period.directories.len()).map(|at| upload(&period, &text, at))).await;
    }
}

/// A stream from a new client, and that client.
async fn visit(stage: &dyn Stage, address: OnionAddress) -> (BoxStream, Arc<dyn Engine>) {
    let visit = async || {
        let client = ready(stage).await;
        client.dial(address, OPEN, stage.patience()).await.map(|stream| (stream, client))
    };
    eventually(stage, "a new client's visit", visit).await
}

/// Accepts streams to the open port and rejects others. A client that sends "bulk" gets [`BULK`]
/// bytes and then the end of the stream; anything else is echoed.
fn serve(mut incoming: mpsc::Receiver<Incoming>) {
    tokio::spawn(async move {
        while let Some(Incoming { port, request, .. }) = incoming.recv().await {
            if port != OPEN {
                request.reject(Rejection::Refused).await;
                continue;
            }
            let Ok(mut stream) = request.accept().await else { continue };
            tokio::spawn(async move {
                let mut chunk = vec![0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut chunk).await {
                    let bulk = &chunk[..length] == b"bulk";
                    let answer = if bulk { vec![7; BULK] } else { chunk[..length].to_vec() };
                    if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() || bulk {
                        break;
                    }
                }
                let _ = stream.shutdown().await;
            });
        }
    });
}

/// Sends [`BULK`] bytes and checks that they come back.
async fn echoes(stream: BoxStream) {
    let sent: Vec<u8> = (0..BULK).map(|at| (at % 251) as u8).collect();
    let mut received = vec![0; BULK];
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        writer.write_all(&sent).await.unwrap();
        writer.flush().await.unwrap();
    };
    let both = async { tokio::join!(write, reader.read_exact(&mut received)).1 };
    timeout(Duration::from_secs(60), both).await.expect("no echo in time").unwrap();
    assert!(received == sent, "what came back is not what was sent");
}

async fn fails(stage: &dyn Stage, what: &str, dial: impl Future<Output = Result<BoxStream, TorError>>) {
    let result = timeout(stage.patience() * 2, dial).await.unwrap_or_else(|_| panic!("{what}: no answer in time"));
    let Err(error) = result else { panic!("{what} went through") };
    assert!(error.is_transient(), "{what}: {error}");
}

/// Repeats `attempt` until it succeeds, for at most four times the stage's patience.
async fn eventually<T, E: std::fmt::Display>(
    stage: &dyn Stage,
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let started = Instant::now();
    loop {
        match attempt().await {
            Ok(value) => {
                if started.elapsed() > Duration::from_secs(1) {
                    println!("  {what} took {:.1} s", started.elapsed().as_secs_f64());
                }
                return value;
            }
            Err(error) if started.elapsed() > stage.patience() * 4 => panic!("{what}: {error}"),
            Err(_) => sleep(stage.patience().min(Duration::from_secs(1)) / 10).await,
        }
    }
}
