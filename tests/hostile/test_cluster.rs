//! A cluster of whole daemons in this process, and its clients. Each daemon has its own runtime,
//! which can be killed like a process.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use rustbalance::clock::unix_now;
use rustbalance::config::{Config, JOIN_PORT, LiveConfig, Reloaded};
use rustbalance::control::{Request, Response, Status, call};
use rustbalance::join::{JoinError, Joined, Token, found, persist_joined, redeem};
use rustbalance::keys::NodeSecret;
use rustbalance::node::{NodeError, run_on, run_with};
use rustbalance::store::{SetupCommand, Store};
use rustbalance::stream::BoxStream;
use rustbalance::tor::Engine;
use rustbalance::tor::fake::{FakeEngine, FakeNet};
use rustbalance_gossip::id::{ClusterId, NodeId, OnionAddress, ServiceId};
use rustbalance_gossip::record::Role;
use rustbalance_gossip::view::Condition;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Time limit for every expected event, generous because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
/// Time limit of one request. A client without an answer tries the next introduction point after 15
/// s.
const VISIT: Duration = Duration::from_secs(40);
/// More terms than a cluster uses by itself in a test. The attackers' claims are for later terms.
pub(crate) const OWN_TERMS: u64 = 50;
/// The times of a cluster whose extra configuration has none.
const SHORT_TIMES: &str = "[cluster]\nheartbeat = \"300ms\"\nlease_ttl = \"3s\"\n";
/// Interval between two checks, and between two visits.
const LOOK: Duration = Duration::from_millis(100);

/// A cluster on its own in-memory network.
pub(crate) struct TestCluster {
    pub(crate) net: FakeNet,
    pub(crate) cluster: ClusterId,
    pub(crate) daemons: Vec<Daemon>,
    folder: TempDir,
    /// A second service that the nodes serve, if any.
    pub(crate) further: Option<ServiceId>,
    /// Further lines for the configuration of the daemon with this name.
    extra: Box<dyn Fn(&str) -> String + Send + Sync>,
}

/// One daemon, running or not.
pub(crate) struct Daemon {
    pub(crate) name: String,
    pub(crate) id: NodeId,
    pub(crate) engine: Arc<FakeEngine>,
    pub(crate) dir: PathBuf,
    stop: CancellationToken,
    /// The runtime and main task, which stand for the process; `None` if the daemon does not run.
    running: Option<(Runtime, JoinHandle<Result<(), NodeError>>)>,
    /// The configuration of the last start.
    live: Option<Arc<LiveConfig>>,
}

/// Repeats `check` until it succeeds; panics with its last error after [`PATIENCE`].
pub(crate) async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Result<T>) -> T {
    let start = Instant::now();
    loop {
        match check().await {
            Ok(found) => return found,
            Err(missing) => assert!(start.elapsed() < PATIENCE, "never happened: {what}: {missing:#}"),
        }
        sleep(LOOK).await;
    }
}

/// Starts the site of a node. It reads a line; the answer to `flood` is an endless stream of bytes,
/// and to any other line the node's name.
async fn site(name: String) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let name = name.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut asked = String::new();
                stream.read_line(&mut asked).await?;
                if asked == "flood\n" {
                    while stream.write_all(&[0; 4096]).await.is_ok() {}
                }
                stream.write_all(name.as_bytes()).await?;
                stream.shutdown().await
            });
        }
    });
    address
}

impl TestCluster {
    /// The first service, whose key is the cluster's id.
    pub(crate) fn service(&self) -> ServiceId {
        self.cluster.first_service()
    }

    /// The onion address of the first service.
    pub(crate) fn address(&self) -> OnionAddress {
        self.service().address()
    }

    /// A cluster without nodes, for nodes that already have a state directory.
    pub(crate) fn without_nodes(cluster: ClusterId, folder: TempDir) -> Self {
        let extra = Box::new(|_: &str| String::new());
        Self { net: FakeNet::new(1, 30), cluster, daemons: Vec::new(), folder, further: None, extra }
    }

    /// A healthy cluster of the publishers alpha and beta and the worker gamma. `extra` is appended
    /// to each configuration.
    pub(crate) async fn start(extra: &str) -> Self {
        let extra = extra.to_owned();
        Self::start_each(move |_| extra.clone()).await
    }

    /// Like [`TestCluster::start`], with further lines for the daemon of each name.
    pub(crate) async fn start_each(extra: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let mut test_cluster = Self::first_node(Box::new(extra)).await;
        let publisher = test_cluster.invite(Role::Publisher, 1).await;
        let worker = test_cluster.invite(Role::Worker, 1).await;
        let (beta, gamma) = tokio::join!(test_cluster.join("beta", &publisher), test_cluster.join("gamma", &worker));
        for (name, store) in [("beta", beta), ("gamma", gamma)] {
            let (id, dir) = (store.node_id(), store.dir().to_owned());
            drop(store);
            test_cluster.add(name, id, dir).await;
        }
        test_cluster.healthy().await;
        test_cluster
    }

    /// A cluster of alpha alone, which is published.
    pub(crate) async fn start_alone(extra: String) -> Self {
        Self::first_node(Box::new(move |_| extra.clone())).await
    }

    async fn first_node(extra: Box<dyn Fn(&str) -> String + Send + Sync>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("alpha");
        let store = found(Store::create(&dir).unwrap(), None, unix_now(), &mut rand::rng()).unwrap();
        let (cluster, id) = (store.cluster(), store.node_id());
        drop(store);
        let mut test_cluster = Self { extra, ..Self::without_nodes(cluster, folder) };
        test_cluster.add("alpha", id, dir).await;
        until("alpha is published", async || test_cluster.served().await).await;
        test_cluster
    }

    /// Adds and runs a node that already has a state directory.
    pub(crate) async fn add(&mut self, name: &str, id: NodeId, dir: PathBuf) {
        let site = site(name.to_owned()).await;
        let further = self
            .further
            .map(|service| format!("[[port]]\nvirtual = 80\ntarget = \"{site}\"\nservice = \"{service}\"\n"));
        let further = further.unwrap_or_default();
        let extra = (self.extra)(name);
        let times = if extra.contains("[cluster]") { "" } else { SHORT_TIMES };
        let text = format!(
            "[[port]]\nvirtual = 80\ntarget = \"{site}\"\n{further}[health]\ninterval = \"500ms\"\n{times}{extra}"
        );
        std::fs::write(dir.join("rustbalance.toml"), text).unwrap();
        let mut daemon = Daemon {
            name: name.to_owned(),
            id,
            engine: self.net.engine(),
            dir,
            stop: CancellationToken::new(),
            running: None,
            live: None,
        };
        daemon.run(&self.net);
        self.daemons.push(daemon);
    }

    pub(crate) fn named(&self, name: &str) -> &Daemon {
        self.daemons.iter().find(|daemon| daemon.name == name).unwrap()
    }

    pub(crate) fn named_mut(&mut self, name: &str) -> &mut Daemon {
        self.daemons.iter_mut().find(|daemon| daemon.name == name).unwrap()
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &Daemon> {
        self.daemons.iter().filter(|daemon| daemon.running.is_some())
    }

    /// A token from alpha, whose invitation every running node knows.
    pub(crate) async fn invite(&self, role: Role, uses: u16) -> Token {
        let request = Request::Invite { role, expires_seconds: 3600, uses };
        let token = match self.named("alpha").call(request).await.unwrap() {
            Response::Invited { token, .. } => Token::parse(&token.0).unwrap(),
            other => panic!("no token: {other:?}"),
        };
        let id = token.invitation_id().to_string();
        until("every node knows the invitation", async || {
            for daemon in self.running() {
                let known = daemon.status().await?.invitations;
                ensure!(known.iter().any(|invitation| invitation.id == id), "{} does not know it", daemon.name);
            }
            Ok(())
        })
        .await;
        token
    }

    /// A stream to the join port from a new Tor client.
    pub(crate) async fn dial_join_port(&self) -> Result<(BoxStream, Arc<FakeEngine>)> {
        let engine = self.net.engine();
        let stream = engine.dial(self.address(), JOIN_PORT, VISIT).await?;
        Ok((stream, engine))
    }

    /// Redeems a token once, as the `join` command does.
    pub(crate) async fn redeem(&self, token: &Token, key: &NodeSecret) -> Result<Joined> {
        let (stream, _engine) = self.dial_join_port().await?;
        Ok(redeem(stream, token, key, self.cluster, unix_now).await?)
    }

    /// Joins a node and stores the result in a new state directory.
    pub(crate) async fn join(&self, name: &str, token: &Token) -> Store {
        let mut draft = Store::create(&self.folder.path().join(name)).unwrap();
        draft.begin(SetupCommand::Join, self.cluster).unwrap();
        let key = draft.node_secret(|| NodeSecret::generate(&mut rand::rng())).unwrap();
        let joined = until(&format!("{name} joins"), async || {
            let joined = self.redeem(token, &key).await;
            if let Some(JoinError::Refused(refusal)) = joined.as_ref().err().and_then(|error| error.downcast_ref()) {
                assert!(refusal.is_transient(), "{name} is refused: {refusal}");
            }
            joined
        })
        .await;
        persist_joined(draft, &joined).unwrap()
    }

    /// Visits the first service as a fresh client. Returns the name of the node that served.
    pub(crate) async fn visit(&self) -> Result<String> {
        visit(&self.net, self.address()).await
    }

    /// Visits this service as a fresh client. Returns the name of the node that served.
    pub(crate) async fn visit_service(&self, service: ServiceId) -> Result<String> {
        visit(&self.net, service.address()).await
    }

    async fn served(&self) -> Result<()> {
        self.visit().await.map(|_| ())
    }

    /// Waits until the cluster is healthy: all running daemons agree on one publisher, know each
    /// other as alive and published and the others as neither, and the newest descriptor is on all
    /// directories. Then visits it once.
    pub(crate) async fn healthy(&self) {
        until("a healthy cluster", async || self.is_healthy().await).await;
        let served = timeout(PATIENCE, self.visit()).await.expect("a visit does not end");
        served.expect("a client was not served");
    }

    pub(crate) async fn is_healthy(&self) -> Result<()> {
        let mut publishers = BTreeSet::new();
        for daemon in self.running() {
            let (name, status) = (&daemon.name, daemon.status().await?);
            ensure!(status.phase == Condition::Healthy, "{name} is {}", status.phase);
            let publisher = status.publisher.with_context(|| format!("{name} knows no publisher"))?;
            publishers.insert((publisher.node.clone(), publisher.term));
            for other in &self.daemons {
                let id = other.id.to_string();
                let known = status.members.iter().find(|member| member.node == id);
                let alive = known.is_some_and(|member| member.alive);
                ensure!(alive == other.running.is_some(), "{name} takes {} for alive: {alive}", other.name);
                let published = known.map_or(0, |member| member.published);
                ensure!((published > 0) == alive, "{name} knows {published} published points of {}", other.name);
            }
            let (all, me) = (&status.directories, publisher.node == status.node);
            ensure!(all.iter().all(|it| it.current), "directories lack the newest descriptor of {name}: {all:?}");
            ensure!(all.is_empty() != me, "{name} publishes: {me}, and knows the directories {all:?}");
            let publication = status.publication.with_context(|| format!("{name} knows no publication"))?;
            for period in &publication.periods {
                let (confirmed, all) = (period.confirmed, period.directories);
                ensure!(confirmed == all && all > 0, "{name} knows {confirmed} of {all} directories to be up to date");
            }
        }
        let mut publishers = publishers.into_iter();
        match (publishers.next(), publishers.next()) {
            (Some((node, _)), None) if self.running().any(|daemon| daemon.id.to_string() == node) => Ok(()),
            (first, second) => bail!("the daemons do not agree on a publisher: {first:?}, {second:?}"),
        }
    }

    /// The publisher and its term. Waits for one, because a daemon that a busy machine does not run
    /// for longer than the short lease of these tests loses it.
    pub(crate) async fn publisher(&self) -> (String, u64) {
        until("a daemon knows a publisher", async || {
            let status = self.running().next().context("no daemon runs")?.status().await?;
            let publisher = status.publisher.context("it knows none")?;
            Ok((publisher.node, publisher.term))
        })
        .await
    }

    /// Fails unless an honest node publishes in a term that the cluster has reached by itself since
    /// `before`. The lease may have moved: a daemon loses it if the machine does not run it for
    /// longer than the short lease of these tests.
    pub(crate) async fn assert_honest_publisher(&self, before: &(String, u64), hostile: NodeId) {
        let after = self.publisher().await;
        let own = (before.1..before.1 + OWN_TERMS).contains(&after.1);
        assert!(own && after.0 != hostile.to_string(), "{before:?}, then {after:?}");
    }

    /// The sum of one refusal counter over all running daemons.
    pub(crate) async fn refused(&self, name: &str) -> u64 {
        let mut sum = 0;
        for daemon in self.running() {
            sum += daemon.refused(name).await;
        }
        sum
    }

    /// Waits until the running daemons together have counted at least `least` refusals of this
    /// name.
    pub(crate) async fn counts(&self, name: &str, least: u64) {
        until(&format!("{least} {name} are counted"), async || {
            let refused = self.refused(name).await;
            ensure!(refused >= least, "{refused} are counted");
            Ok(())
        })
        .await;
    }

    /// Starts fresh clients, one after the other, until [`OngoingVisits::end`].
    pub(crate) fn visitors(&self) -> OngoingVisits {
        let (net, address, enough) = (self.net.clone(), self.address(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&enough);
        let task = tokio::spawn(async move {
            let mut seen = VisitResults::default();
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                match visit(&net, address).await {
                    Ok(name) => *seen.by.entry(name).or_default() += 1,
                    Err(error) => seen.failures.push(format!("{error:#}")),
                }
                seen.slowest = seen.slowest.max(start.elapsed());
                sleep(LOOK).await;
            }
            seen
        });
        OngoingVisits { enough, task }
    }
}

async fn visit(net: &FakeNet, address: OnionAddress) -> Result<String> {
    let engine = net.engine();
    let mut stream = engine.dial(address, 80, VISIT).await?;
    let fetch = async {
        stream.write_all(b"name\n").await?;
        let mut name = String::new();
        stream.read_to_string(&mut name).await?;
        anyhow::Ok(name)
    };
    let name = timeout(VISIT, fetch).await.context("no answer within the time limit")??;
    ensure!(!name.is_empty(), "the answer is empty");
    Ok(name)
}

/// Visits in progress.
pub(crate) struct OngoingVisits {
    enough: Arc<AtomicBool>,
    task: JoinHandle<VisitResults>,
}

/// Results of the visits.
#[derive(Debug, Default)]
pub(crate) struct VisitResults {
    pub(crate) by: BTreeMap<String, usize>,
    pub(crate) failures: Vec<String>,
    pub(crate) slowest: Duration,
}

impl OngoingVisits {
    /// Stops the visits and returns their results.
    pub(crate) async fn end(self) -> VisitResults {
        self.enough.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }

    /// Stops the visits; fails unless all were served.
    pub(crate) async fn all_served(self) {
        let seen = self.end().await;
        assert!(seen.failures.is_empty() && !seen.by.is_empty(), "{seen:?}");
    }
}

impl Daemon {
    /// Starts the daemon with a new Tor client.
    pub(crate) fn run(&mut self, net: &FakeNet) {
        self.engine = net.engine();
        let engine = Arc::clone(&self.engine);
        self.launch(|store, live, stop| run_on(engine, store, live, stop));
    }

    /// Starts the daemon with a Tor client that it replaces by itself; returns the clients that it
    /// has had so far.
    pub(crate) fn run_renewing(&mut self, net: &FakeNet) -> Arc<Mutex<Vec<Arc<FakeEngine>>>> {
        let (engines, net) = (Arc::new(Mutex::new(Vec::new())), net.clone());
        let made = Arc::clone(&engines);
        let make = move |_: &Store| {
            let engine = net.engine();
            made.lock().push(Arc::clone(&engine));
            Ok(engine as Arc<dyn Engine>)
        };
        self.launch(|store, live, stop| run_with(make, store, live, stop));
        engines
    }

    fn launch<F>(&mut self, node: impl FnOnce(Arc<Store>, Arc<LiveConfig>, CancellationToken) -> F + Send + 'static)
    where
        F: Future<Output = Result<(), NodeError>> + Send,
    {
        assert!(self.running.is_none(), "{} is already running", self.name);
        self.stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (dir, stop) = (self.dir.clone(), self.stop.clone());
        let live = Arc::new(LiveConfig::new(Config::load(&dir).unwrap()));
        self.live = Some(Arc::clone(&live));
        let task = runtime.spawn(async move {
            let store = Arc::new(Store::open(&dir)?);
            Box::pin(node(store, live, stop)).await
        });
        self.running = Some((runtime, task));
    }

    /// Kills the daemon as SIGKILL does: it sends no last message.
    pub(crate) async fn kill(&mut self) {
        let (runtime, _) = self.running.take().unwrap();
        self.engine.kill();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
    }

    /// Stops the daemon as SIGTERM does: it announces its end first.
    pub(crate) async fn stop(&mut self) {
        let (runtime, task) = self.running.take().unwrap();
        self.stop.cancel();
        timeout(PATIENCE, task).await.unwrap_or_else(|_| panic!("{} does not stop", self.name)).unwrap().unwrap();
        self.engine.kill();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
    }

    /// Whether the daemon has ended by itself.
    pub(crate) fn has_ended(&self) -> bool {
        self.running.as_ref().is_some_and(|(_, task)| task.is_finished())
    }

    /// Waits until the daemon ends by itself; returns the reason.
    pub(crate) async fn end(&mut self) -> NodeError {
        let (runtime, task) = self.running.take().unwrap();
        let ended = timeout(PATIENCE, task).await.unwrap_or_else(|_| panic!("{} does not end", self.name));
        self.engine.kill();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
        ended.unwrap().unwrap_err()
    }

    pub(crate) async fn call(&self, request: Request) -> Result<Response> {
        Ok(call(&self.dir, &request, Duration::from_secs(10)).await?)
    }

    pub(crate) async fn status(&self) -> Result<Status> {
        match self.call(Request::Status {}).await? {
            Response::Status(status) => Ok(*status),
            other => bail!("{} answers {other:?}", self.name),
        }
    }

    /// One refusal counter of this daemon; 0 if it does not answer.
    pub(crate) async fn refused(&self, name: &str) -> u64 {
        self.status().await.map_or(0, |status| status.refused.get(name).copied().unwrap_or(0))
    }

    /// Changes the configuration of the running daemon.
    pub(crate) fn reconfigure(&self, change: impl FnOnce(&mut Config)) -> Reloaded {
        let live = self.live.as_ref().unwrap();
        let mut config = live.at_start().clone();
        change(&mut config);
        let Ok(reloaded) = live.reload(|| Ok::<_, Infallible>(config));
        reloaded
    }

    /// The state directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The output of `rustbalance status`.
    pub(crate) fn shown(&self) -> String {
        self.printed(&[])
    }

    /// The output of `rustbalance status` with these options.
    pub(crate) fn printed(&self, options: &[&str]) -> String {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rustbalance"));
        let output = command.arg("--dir").arg(&self.dir).arg("status").args(options).output().unwrap();
        assert!(output.status.success(), "status fails: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some((runtime, _)) = self.running.take() {
            runtime.shutdown_background();
        }
    }
}
