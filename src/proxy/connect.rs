//! Connects to targets. Nothing else in this program opens a connection for a client's stream or
//! for a check of a target.
//!
//! Enter with [`Connector::connect`]. A target on this host and a private address are connected
//! directly. A name is looked up by the system's resolver, and refused unless each of its addresses
//! is private; the answer is used for [`LOOKUP_LASTS`], and asked for again after a failed
//! connection. Another onion service is dialled through an [`OnionDialer`], because this floor does
//! not know Tor.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use rustbalance_gossip::id::OnionAddress;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};

use super::private::{HostName, is_private};
use super::target::{PortTarget, Target};
use crate::stream::BoxStream;
use crate::tor::ExportedCircuitId;

/// How long the addresses of a name are used before it is looked up again: containers that move
/// get a new address, and their DNS has short lifetimes.
const LOOKUP_LASTS: Duration = Duration::from_secs(60);
/// Shortest time between two lookups of one name, also after failures: clients choose how often
/// connections are tried.
const LOOKUP_PAUSE: Duration = Duration::from_secs(2);
/// Most addresses of a name that are tried for one connection.
const TRIED: usize = 4;
/// The least time for connecting to another onion service. A first connection fetches a descriptor
/// and builds circuits, which takes some 10 s, and much longer on a slow path.
pub const ONION_LIMIT: Duration = Duration::from_secs(30);

/// Dials other onion services.
#[async_trait]
pub trait OnionDialer: Send + Sync {
    /// Connects to `port` of `to` within `limit`.
    async fn dial(&self, to: OnionAddress, port: u16, limit: Duration) -> io::Result<BoxStream>;
}

/// Looks names up.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// All addresses of a name.
    async fn look_up(&self, name: &HostName) -> io::Result<Vec<IpAddr>>;
}

/// The resolver of the operating system: `/etc/hosts`, and the DNS servers that it is configured
/// with.
struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn look_up(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
        #[expect(clippy::disallowed_methods, reason = "the operator has consented to this name (allow_private)")]
        let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }
}

/// Connects to targets. A clone is a second handle on the same.
#[derive(Clone)]
pub struct Connector {
    inner: Arc<Inner>,
}

struct Inner {
    /// `None`: without Tor.
    onions: Option<Box<dyn OnionDialer>>,
    resolver: Box<dyn Resolver>,
    /// Addresses that this cluster serves: a stream to one of them would come back to a node.
    own: RwLock<BTreeSet<OnionAddress>>,
    names: Mutex<BTreeMap<HostName, Arc<Lookup>>>,
}

/// What the resolver has answered for one name. Locked during a lookup, so that there is one at a
/// time.
type Lookup = tokio::sync::Mutex<Option<Answer>>;

struct Answer {
    at: Instant,
    addresses: Result<Vec<IpAddr>, String>,
    /// Set after a failed connection.
    doubtful: bool,
}

impl Answer {
    fn holds(&self) -> bool {
        let lasts = if self.doubtful || self.addresses.is_err() { LOOKUP_PAUSE } else { LOOKUP_LASTS };
        self.at.elapsed() < lasts
    }
}

impl Connector {
    /// Connects to all targets but onion services.
    pub fn without_tor() -> Self {
        Self::new(None, Box::new(SystemResolver))
    }

    /// Connects to all targets, to onion services through `onions`.
    pub fn with_tor(onions: impl OnionDialer + 'static) -> Self {
        Self::new(Some(Box::new(onions)), Box::new(SystemResolver))
    }

    fn new(onions: Option<Box<dyn OnionDialer>>, resolver: Box<dyn Resolver>) -> Self {
        Self { inner: Arc::new(Inner { onions, resolver, own: RwLock::default(), names: Mutex::default() }) }
    }

    /// Never connects to this address: it is one of this cluster's.
    pub fn refuse_own(&self, address: OnionAddress) {
        self.inner.own.write().insert(address);
    }

    /// Connects to the target of a port for a stream on the circuit with this id, or for this node
    /// itself, and sends the header that the target expects. `limit` as for [`Connector::connect`].
    ///
    /// # Errors
    /// As [`Connector::connect`].
    pub async fn connect_port(
        &self,
        port: &PortTarget,
        circuit: Option<ExportedCircuitId>,
        limit: Duration,
    ) -> io::Result<BoxStream> {
        let mut stream = self.connect(&port.target, limit).await?;
        let sending = port.send_header(&mut stream, circuit);
        timeout(limit, sending).await.unwrap_or_else(|_| Err(too_slow(limit)))?;
        Ok(stream)
    }

    /// Connects within `limit`, or within [`ONION_LIMIT`] if that is longer and Tor is needed.
    ///
    /// # Errors
    /// That of the system; or a text that says why the target is refused.
    pub async fn connect(&self, target: &Target, limit: Duration) -> io::Result<BoxStream> {
        if let Target::Onion(address, port) = target {
            return self.dial(*address, *port, limit.max(ONION_LIMIT)).await;
        }
        let connecting = async {
            let stream: BoxStream = match target {
                Target::Tcp(address) | Target::Private(address) => Box::new(connect_tcp(*address).await?),
                Target::Localhost(port) => Box::new(connect_localhost(*port).await?),
                Target::Unix(path) => Box::new(UnixStream::connect(path).await?),
                Target::Name(name, port) => Box::new(self.connect_name(name, *port, limit).await?),
                Target::Onion(..) => return Err(io::Error::other("onion services are dialled over Tor")),
            };
            Ok(stream)
        };
        timeout(limit, connecting).await.unwrap_or_else(|_| Err(too_slow(limit)))
    }

    async fn dial(&self, to: OnionAddress, port: u16, limit: Duration) -> io::Result<BoxStream> {
        if self.inner.own.read().contains(&to) {
            let why =
                "it is an address of this cluster itself, so its streams would go round in a loop: name another one";
            return Err(io::Error::other(why));
        }
        match &self.inner.onions {
            Some(onions) => onions.dial(to, port, limit).await,
            None => Err(io::Error::other("it is reached over Tor, which only the running daemon has")),
        }
    }

    /// Connects to the first address of a name that answers; each has its share of `limit`.
    async fn connect_name(&self, name: &HostName, port: u16, limit: Duration) -> io::Result<TcpStream> {
        let lookup = Arc::clone(self.inner.names.lock().entry(name.clone()).or_default());
        let addresses = self.addresses(name, &lookup).await?;
        let tried = &addresses[..addresses.len().min(TRIED)];
        let each = limit / (tried.len() as u32 + 1);
        let mut failure = io::Error::other(format!("{name} has no address"));
        for ip in tried {
            let address = SocketAddr::new(*ip, port);
            match timeout(each, connect_tcp(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) if error.raw_os_error().is_some_and(is_out_of_descriptors) => return Err(error),
                Ok(Err(error)) => failure = io::Error::new(error.kind(), format!("{address}: {error}")),
                Err(_) => failure = io::Error::new(io::ErrorKind::TimedOut, format!("{address}: {}", too_slow(each))),
            }
        }
        if let Some(answer) = lookup.lock().await.as_mut() {
            answer.doubtful = true;
        }
        Err(failure)
    }

    /// The addresses of a name, all of them private.
    async fn addresses(&self, name: &HostName, lookup: &Arc<Lookup>) -> io::Result<Vec<IpAddr>> {
        let mut answer = Arc::clone(lookup).lock_owned().await;
        if !answer.as_ref().is_some_and(Answer::holds) {
            // In a task of its own, which keeps the lock: a caller that gives up must neither lose
            // the answer nor have another lookup begin beside this one.
            let (inner, name) = (Arc::clone(&self.inner), name.clone());
            let looking = tokio::spawn(async move {
                let found = inner.resolver.look_up(&name).await;
                let addresses = found.map_err(|error| error.to_string()).and_then(|all| private_only(&name, all));
                *answer = Some(Answer { at: Instant::now(), addresses, doubtful: false });
                answer
            });
            answer = looking.await.map_err(io::Error::other)?;
        }
        match answer.as_ref().map(|answer| &answer.addresses) {
            Some(Ok(addresses)) => Ok(addresses.clone()),
            Some(Err(why)) => Err(io::Error::other(why.clone())),
            None => Err(io::Error::other(format!("{name} was not looked up"))),
        }
    }
}

/// These addresses of a name if there are some, and each is private.
fn private_only(name: &HostName, all: Vec<IpAddr>) -> Result<Vec<IpAddr>, String> {
    if let Some(other) = all.iter().find(|ip| !is_private(**ip)) {
        return Err(format!(
            "{name} has the address {other}, which is not private, so no stream is sent there: each address of the name \
             must be one of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 or fc00::/7"
        ));
    }
    if all.is_empty() {
        return Err(format!("{name} has no address"));
    }
    Ok(all)
}

fn too_slow(limit: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"))
}

/// Whether the code of a system error is EMFILE or ENFILE, which have no `ErrorKind`: this process
/// has no free file descriptor, which says nothing about the target.
pub fn is_out_of_descriptors(code: i32) -> bool {
    matches!(code, 24 | 23)
}

async fn connect_tcp(address: SocketAddr) -> io::Result<TcpStream> {
    #[expect(clippy::disallowed_methods, reason = "a loopback address or a private one, never a name")]
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Applications that are given `localhost` listen on 127.0.0.1, on ::1 or on both.
async fn connect_localhost(port: u16) -> io::Result<TcpStream> {
    let [v4, v6] =
        [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].map(|ip| SocketAddr::new(ip, port));
    match connect_tcp(v4).await {
        Err(of_v4) if !of_v4.raw_os_error().is_some_and(is_out_of_descriptors) => {
            connect_tcp(v6).await.map_err(|of_v6| io::Error::new(of_v4.kind(), format!("{v4}: {of_v4}; {v6}: {of_v6}")))
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn localhost_is_either_loopback() {
        let connector = Connector::without_tor();
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(host).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let target: Target = format!("localhost:{port}").parse().unwrap();
            connector.connect(&target, LIMIT).await.unwrap_or_else(|error| panic!("{host}: {error}"));
            drop(listener);
            let Err(error) = connector.connect(&target, LIMIT).await else { panic!("nothing listens") };
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            for tried in [format!("127.0.0.1:{port}: "), format!("[::1]:{port}: ")] {
                assert!(error.to_string().contains(&tried), "{error}");
            }
        }
    }

    /// Answers with these addresses, and counts the questions.
    struct FixedResolver {
        addresses: Vec<IpAddr>,
        asked: Arc<AtomicUsize>,
    }

    #[async_trait]
    impl Resolver for FixedResolver {
        async fn look_up(&self, _name: &HostName) -> io::Result<Vec<IpAddr>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Ok(self.addresses.clone())
        }
    }

    fn resolving(addresses: &[&str]) -> (Connector, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        (Connector::new(None, Box::new(FixedResolver { addresses, asked: Arc::clone(&asked) })), asked)
    }

    async fn refusal(addresses: &[&str]) -> String {
        let (connector, _) = resolving(addresses);
        let lookup = Arc::<Lookup>::default();
        connector.addresses(&HostName::parse("web").unwrap(), &lookup).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_name_is_refused_unless_each_of_its_addresses_is_private() {
        for other in ["203.0.113.9", "127.0.0.1", "::1", "169.254.169.254", "fe80::1", "2001:db8::1"] {
            let why = refusal(&["10.0.0.7", other]).await;
            assert!(why.contains("web") && why.contains(other) && why.contains("not private"), "{why}");
        }
        assert!(refusal(&[]).await.contains("no address"));
        let (connector, _) = resolving(&["10.0.0.7", "fd00::7"]);
        let all = connector.addresses(&HostName::parse("web").unwrap(), &Arc::default()).await.unwrap();
        assert_eq!(all.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_up_again_after_a_minute_and_soon_after_a_failure() {
        let (connector, asked) = resolving(&["10.0.0.7"]);
        let (name, lookup) = (HostName::parse("web").unwrap(), Arc::<Lookup>::default());
        let after = async |pause: u64| {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            connector.addresses(&name, &lookup).await.unwrap();
            asked.load(Ordering::Relaxed)
        };
        assert_eq!((after(0).await, after(59).await, after(2).await), (1, 1, 2));
        lookup.lock().await.as_mut().unwrap().doubtful = true;
        assert_eq!((after(1).await, after(2).await, after(3).await), (2, 3, 3));
    }

    struct Nowhere;

    #[async_trait]
    impl OnionDialer for Nowhere {
        async fn dial(&self, _to: OnionAddress, port: u16, limit: Duration) -> io::Result<BoxStream> {
            Err(io::Error::other(format!("port {port} within {limit:?}")))
        }
    }

    #[tokio::test]
    async fn an_onion_service_is_dialled_over_tor_unless_it_is_of_this_cluster() {
        let [own, other] = [1, 2].map(|key| OnionAddress::from_public_key([key; 32]));
        let connector = Connector::with_tor(Nowhere);
        connector.refuse_own(own);
        let error = async |connector: &Connector, to| match connector.connect(&Target::Onion(to, 80), LIMIT).await {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{to} is connected"),
        };
        assert_eq!(error(&connector, other).await, "port 80 within 30s", "Tor needs longer than this host");
        assert!(error(&connector, own).await.contains("loop"));
        assert!(error(&Connector::without_tor(), other).await.contains("daemon"));
    }
}
