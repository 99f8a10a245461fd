//! The engine in a real kernel, alone and with the userspace engine: the suite of engines, and what
//! the crate must not do. Run by scripts/kernel-wireguard.sh in a virtual machine, as root. Each
//! node has a network namespace, with a cable to the bridge `br0`.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rustbalance_gossip::address::{mesh_address, mesh_socket};
use rustbalance_gossip::id::NodeId;
use rustix::thread::{CapabilitySet, LinkNameSpaceType};
use tokio::net::{TcpStream, UdpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::config::WIREGUARD_PORT;
use crate::counters::Counters;
use crate::wireguard::conformance::{Ground, PATIENCE, Started, TestNode, engine_conformance, introduce};
use crate::wireguard::kernel::claim::{alias, interface_name};
use crate::wireguard::{Desired, Engine, EngineError, Kernel, KernelError, PeerStatus, TunnelStream, Userspace};

/// Numbers the hosts of all tests.
static HOSTS: AtomicU8 = AtomicU8::new(1);
static MAKING: Mutex<()> = Mutex::new(());
/// Set for the process that is to be killed.
const TO_BE_KILLED: &str = "RUSTBALANCE_TEST_HOLDS_AN_INTERFACE";

/// Runs `ip`, or `tc`, with these arguments.
fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Starts the engine. While another thread starts a program, that has a copy of the socket with
/// which the engine has tried its port: so a busy port is tried again.
async fn start(node: NodeId, listens: &[SocketAddr]) -> Result<(Kernel, mpsc::Receiver<TunnelStream>), EngineError> {
    for _ in 0..20 {
        match Kernel::start(node, listens, Counters::default()).await {
            Err(EngineError::Kernel(KernelError::Port { .. } | KernelError::Call { .. })) => {
                sleep(Duration::from_millis(50)).await;
            }
            started => return started,
        }
    }
    Kernel::start(node, listens, Counters::default()).await
}

/// A network namespace with an address on the bridge, and a runtime whose threads are in it.
struct Host {
    namespace: String,
    number: u8,
    runtime: Option<Runtime>,
}

impl Host {
    fn new() -> Self {
        // `ip` prepares its folder of namespaces with the first one, which two must not do at once.
        let _alone = MAKING.lock();
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("n{number}");
        run("ip", &format!("netns add {namespace}"));
        run("ip", &format!("link add v{number} type veth peer name eth0 netns {namespace}"));
        run("ip", &format!("link set v{number} master br0 up"));
        for command in ["link set lo up", "link set eth0 up"] {
            run("ip", &format!("-n {namespace} {command}"));
        }
        for address in [format!("10.9.0.{number}/16"), format!("fd09::{number}/64 nodad")] {
            run("ip", &format!("-n {namespace} address add {address} dev eth0"));
        }
        let inside = namespace.clone();
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().on_thread_start(move || enter(&inside)).build();
        Self { namespace, number, runtime: Some(runtime.unwrap()) }
    }

    fn endpoint(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(10, 9, 0, self.number), WIREGUARD_PORT))
    }

    /// Runs `ip` in the namespace.
    fn ip(&self, arguments: &str) -> String {
        run("ip", &format!("-n {} {arguments}", self.namespace))
    }

    /// Runs a future on a thread in the namespace.
    async fn inside<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.as_ref().unwrap().spawn(task).await.unwrap()
    }

    async fn start_kernel(&self, node: NodeId) -> Result<Kernel, EngineError> {
        let listens = [self.endpoint()];
        self.inside(async move { start(node, &listens).await.map(|(engine, _)| engine) }).await
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

/// Moves this thread into a network namespace.
fn enter(namespace: &str) {
    use std::os::fd::AsFd;
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

/// An engine on a host.
struct Inside {
    engine: Arc<dyn Engine>,
    host: Host,
}

#[async_trait]
impl Engine for Inside {
    fn apply(&self, desired: Desired) {
        self.engine.apply(desired);
    }

    fn reaches(&self, to: NodeId) -> bool {
        self.engine.reaches(to)
    }

    async fn dial(&self, to: NodeId, limit: Duration) -> Result<TunnelStream, EngineError> {
        let engine = Arc::clone(&self.engine);
        self.host.inside(async move { engine.dial(to, limit).await }).await
    }

    fn status(&self) -> std::collections::BTreeMap<NodeId, PeerStatus> {
        self.engine.status()
    }
}

/// What the nodes of a test run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Kernel,
    Userspace,
}

/// Nodes with odd numbers run the first, those with even numbers the second.
struct Guest {
    sides: [Side; 2],
    is_lossy: AtomicBool,
}

impl Guest {
    fn new(odd: Side, even: Side) -> Self {
        Self { sides: [even, odd], is_lossy: AtomicBool::new(false) }
    }
}

#[async_trait]
impl Ground for Guest {
    async fn start(&self, node: NodeId) -> Started {
        let host = Host::new();
        if self.is_lossy.load(Ordering::Relaxed) {
            run("tc", &format!("-n {} qdisc add dev eth0 root netem loss 10%", host.namespace));
        }
        let endpoint = host.endpoint();
        let side = self.sides[usize::from(node.public_key()[0] % 2)];
        let (engine, arrivals): (Arc<dyn Engine>, _) = host
            .inside(async move {
                match side {
                    Side::Kernel => {
                        let (engine, arrivals) = start(node, &[endpoint]).await.unwrap();
                        (Arc::new(engine) as Arc<dyn Engine>, arrivals)
                    }
                    Side::Userspace => {
                        let (engine, arrivals) =
                            Userspace::start(node, &[endpoint], Counters::default()).await.unwrap();
                        (Arc::new(engine) as Arc<dyn Engine>, arrivals)
                    }
                }
            })
            .await;
        Started { engine: Arc::new(Inside { engine, host }), arrivals, endpoint }
    }

    fn lose(&self, part: f64) -> bool {
        self.is_lossy.store(part > 0.0, Ordering::Relaxed);
        true
    }

    fn draws(&self) -> usize {
        3
    }

    async fn inject(&self, to: SocketAddr, datagram: Vec<u8>) {
        let socket = UdpSocket::bind("10.9.255.254:0").await.unwrap();
        socket.send_to(&datagram, to).await.unwrap();
    }
}

mod both_kernel {
    use super::*;
    engine_conformance!(in_the_guest tokio::test, Guest::new(Side::Kernel, Side::Kernel));
}

mod kernel_and_userspace {
    use super::*;
    engine_conformance!(in_the_guest tokio::test, Guest::new(Side::Kernel, Side::Userspace));
}

mod userspace_and_kernel {
    use super::*;
    engine_conformance!(in_the_guest tokio::test, Guest::new(Side::Userspace, Side::Kernel));
}

fn node(number: u8) -> NodeId {
    NodeId::from_public_key([number; 32])
}

/// The interfaces of a host, with their addresses and all else, but for what changes by itself.
fn interface(host: &Host, name: &str) -> String {
    host.ip(&format!("-details address show dev {name}"))
}

#[tokio::test]
#[ignore = "needs a kernel without WireGuard: scripts/kernel-wireguard.sh"]
async fn a_kernel_without_the_module_is_refused_with_what_to_do() {
    let host = Host::new();
    let error = host.start_kernel(node(1)).await.map(drop).unwrap_err();
    assert!(matches!(&error, EngineError::Kernel(KernelError::NoModule(_))), "{error}");
    assert!(error.to_string().contains("modprobe wireguard"), "{error}");
}

#[tokio::test]
#[ignore = "needs a kernel with WireGuard: scripts/kernel-wireguard.sh"]
async fn another_programs_interface_by_our_name_stays_as_it_is() {
    let name = interface_name(&node(1));
    for kind in ["dummy", "wireguard"] {
        let host = Host::new();
        host.ip(&format!("link add {name} mtu 1400 type {kind}"));
        host.ip(&format!("link set {name} up"));
        for address in ["10.77.0.1/24", "fd77::1/64 nodad"] {
            host.ip(&format!("address add {address} dev {name}"));
        }
        let before = interface(&host, &name);
        let error = host.start_kernel(node(1)).await.map(drop).unwrap_err();
        assert!(matches!(&error, EngineError::Kernel(KernelError::Foreign(_))), "{kind}: {error}");
        assert!(error.to_string().contains(&format!("ip link delete {name}")), "{error}");
        assert_eq!(interface(&host, &name), before);
    }
}

#[tokio::test]
#[ignore = "needs a kernel with WireGuard: scripts/kernel-wireguard.sh"]
async fn the_interface_has_one_address_and_goes_with_the_engine() {
    let host = Host::new();
    let engine = host.start_kernel(node(1)).await.unwrap();
    let name = interface_name(&node(1));
    let text = interface(&host, &name);
    for part in [&mesh_address(&node(1)).to_string(), "/128", "mtu 1280", &alias(&node(1)), "UP"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(text.matches("inet6").count(), 1, "{text}");
    let taken = host.start_kernel(node(2)).await.map(drop).unwrap_err();
    assert!(matches!(&taken, EngineError::Kernel(KernelError::Port { port: WIREGUARD_PORT, .. })), "{taken}");
    drop(engine);
    assert!(!host.ip("link").contains(&name));
    // An interface that was removed by hand ends the engine, and a new one can start.
    let listens = [host.endpoint()];
    let (_engine, mut streams) = host.inside(async move { start(node(1), &listens).await.unwrap() }).await;
    host.ip(&format!("link delete {name}"));
    assert!(timeout(PATIENCE, streams.recv()).await.expect("the engine goes on").is_none());
    host.start_kernel(node(1)).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel with WireGuard: scripts/kernel-wireguard.sh"]
async fn what_a_killed_process_leaves_is_removed_at_the_next_start() {
    if std::env::var_os(TO_BE_KILLED).is_some() {
        let _engine = start(node(1), &["10.9.255.254:7440".parse().unwrap()]).await.unwrap();
        return std::future::pending().await;
    }
    let name = interface_name(&node(1));
    let left = || run("ip", "link").contains(&name);
    let killed = async || {
        let mut test = Command::new(std::env::current_exe().unwrap());
        let this = "wireguard::kernel::tests::guest::what_a_killed_process_leaves_is_removed_at_the_next_start";
        test.args(["--ignored", "--exact", this]).env(TO_BE_KILLED, "1").stdout(Stdio::null());
        let mut child = test.spawn().unwrap();
        crate::wireguard::conformance::until("the interface is ready", || {
            left() && run("ip", &format!("-6 address show dev {name}")).contains("inet6")
        })
        .await;
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(left(), "the kernel keeps what its maker has not removed");
    };
    killed().await;
    assert!(Kernel::remove_left_over(&node(1)).unwrap());
    assert!(!left() && !Kernel::remove_left_over(&node(1)).unwrap());
    killed().await;
    // Another node's start leaves it alone.
    assert!(!Kernel::remove_left_over(&node(2)).unwrap());
    let (engine, _) = start(node(1), &["10.9.255.254:7440".parse().unwrap()]).await.unwrap();
    drop(engine);
    assert!(!left());
}

#[test]
#[ignore = "needs a kernel with WireGuard: scripts/kernel-wireguard.sh"]
fn a_process_without_the_capability_is_refused_with_what_to_do() {
    let without = std::thread::spawn(|| {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_ADMIN);
        rustix::thread::set_capabilities(None, sets).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let listens = ["10.9.255.254:7441".parse().unwrap()];
        runtime.block_on(start(node(4), &listens)).map(drop).unwrap_err()
    });
    let error = without.join().unwrap();
    assert!(matches!(&error, EngineError::Kernel(KernelError::NotPermitted(_))), "{error}");
    assert!(!run("ip", "link").contains(&interface_name(&node(4))));
}

#[tokio::test]
#[ignore = "needs a kernel with WireGuard: scripts/kernel-wireguard.sh"]
async fn a_neighbour_outside_of_the_tunnel_does_not_reach_the_links() {
    let ground = Guest::new(Side::Kernel, Side::Kernel);
    let (one, mut two) = (TestNode::start(&ground, 1).await, TestNode::start(&ground, 2).await);
    introduce(&[&one, &two]);
    let _near = one.dial(&two).await;
    two.accept().await;
    let SocketAddr::V4(v4) = one.started.endpoint else { unreachable!() };
    let neighbour = Host::new();
    let (address, number) = (mesh_address(&one.id), v4.ip().octets()[3]);
    neighbour.ip(&format!("route add {address}/128 via fd09::{number}"));
    let target = mesh_socket(&one.id);
    let outcome = neighbour.inside(async move { timeout(PATIENCE, TcpStream::connect(target)).await }).await;
    // Refused, so the packet has come, and no socket of the engine has taken it.
    let error = outcome.expect("the packet has not come").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
#[ignore = "needs a kernel with WireGuard: scripts/kernel-wireguard.sh"]
async fn a_removed_peer_leaves_neither_key_nor_route() {
    let ground = Guest::new(Side::Kernel, Side::Kernel);
    let (one, two) = (TestNode::start(&ground, 1).await, TestNode::start(&ground, 2).await);
    introduce(&[&one, &two]);
    one.up(&two).await;
    let SocketAddr::V4(v4) = one.started.endpoint else { unreachable!() };
    let namespace = format!("n{}", v4.ip().octets()[3]);
    let theirs = mesh_address(&two.id).to_string();
    let routes = || run("ip", &format!("-n {namespace} -6 route show"));
    assert!(routes().contains(&theirs));
    one.apply(std::collections::BTreeMap::new());
    crate::wireguard::conformance::until("the route is gone", || !routes().contains(&theirs)).await;
}
