//! The proxy on real sockets of this host, with clients in memory.

use std::cell::Cell;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::*;
use crate::stream::BoxStream;
use crate::tor::{CircuitId, ExportedCircuitId, Rejection, StreamRequest};

/// The service of all proxies here.
fn service() -> ServiceId {
    ServiceId::from_public_key([0x5a; 32])
}

thread_local! {
    /// Streams that were refused in this test because their circuit exceeded a limit.
    static EXCESSES: Cell<u32> = const { Cell::new(0) };
}

/// A client's request that reports whether it was accepted.
struct FakeRequest {
    stream: DuplexStream,
    answered: Option<oneshot::Sender<bool>>,
}

#[async_trait]
impl StreamRequest for FakeRequest {
    async fn accept(mut self: Box<Self>) -> Result<BoxStream, TorError> {
        self.answered.take().unwrap().send(true).ok();
        Ok(Box::new(self.stream))
    }

    async fn reject(self: Box<Self>, _why: Rejection) {
        self.answered.unwrap().send(false).ok();
    }

    fn refuse_excess(self: Box<Self>) {
        EXCESSES.with(|count| count.set(count.get() + 1));
    }
}

/// A request for `port`, the client's end of it, and the answer: whether it was accepted; an error
/// if it was dropped without an answer.
fn request(port: u16) -> (Incoming, DuplexStream, oneshot::Receiver<bool>) {
    request_on(CircuitId(1), port)
}

/// [`request`] on this circuit.
fn request_on(circuit: CircuitId, port: u16) -> (Incoming, DuplexStream, oneshot::Receiver<bool>) {
    let (ours, theirs) = duplex(4096);
    let (answered, answer) = oneshot::channel();
    let request = FakeRequest { stream: theirs, answered: Some(answered) };
    let exported = ExportedCircuitId::new(0x000a_0000 + 0x0001_0001 * circuit.0 as u32);
    (Incoming { port, circuit, exported, request: Box::new(request) }, ours, answer)
}

fn short() -> ProxyLimits {
    ProxyLimits {
        streams: 2,
        connect: Duration::from_secs(5),
        idle: Some(Duration::from_secs(60)),
        stall: Some(Duration::from_secs(60)),
        half_closed: Duration::from_secs(60),
        shutdown: Duration::from_secs(60),
        ..ProxyLimits::default()
    }
}

fn proxy(target: Target, limits: ProxyLimits) -> Proxy {
    proxy_to(PortTarget::new(80, target), limits)
}

fn proxy_to(target: PortTarget, limits: ProxyLimits) -> Proxy {
    let targets = watch::channel(vec![target]).1;
    Proxy::new(watch::channel(limits).1, usize::MAX, Counters::default()).with_targets(service(), targets)
}

fn count(proxy: &Proxy, counter: Counter) -> u64 {
    proxy.shared.counters.get(counter)
}

/// The streams that are open, those accepted, and the bytes from and to clients.
fn traffic(proxy: &Proxy) -> [u64; 4] {
    let port = proxy.shared.counters.service(service()).port(80);
    [&port.streams_open, &port.streams_accepted, &port.bytes_from_clients, &port.bytes_to_clients]
        .map(|count| count.load(Ordering::Relaxed))
}

async fn tcp_proxy(limits: ProxyLimits) -> (Proxy, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    (proxy(target, limits), listener)
}

/// A client whose stream is open, the target's end of it, and the task that serves it.
async fn open(proxy: &Proxy, listener: &TcpListener) -> (DuplexStream, TcpStream, JoinHandle<()>) {
    let (incoming, client, answer) = request(80);
    let proxy = proxy.clone();
    let served = tokio::spawn(async move { proxy.serve(incoming).await });
    let (target, _) = listener.accept().await.unwrap();
    assert!(answer.await.unwrap());
    (client, target, served)
}

#[tokio::test]
async fn bytes_go_both_ways_and_are_counted() {
    let (proxy, listener) = tcp_proxy(short()).await;
    let (mut client, mut target, served) = open(&proxy, &listener).await;
    client.write_all(b"GET /").await.unwrap();
    let mut asked = [0; 5];
    target.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"GET /");
    assert_eq!(traffic(&proxy)[0], 1);
    let page = vec![7; 300_000];
    let (page_sent, page_read) = tokio::join!(
        async {
            target.write_all(&page).await.unwrap();
            drop(target);
            page.len()
        },
        async {
            let mut read = Vec::new();
            client.read_to_end(&mut read).await.unwrap();
            drop(client);
            read.len()
        }
    );
    served.await.unwrap();
    assert_eq!(page_sent, page_read);
    assert_eq!(traffic(&proxy), [0, 1, 5, 300_000]);
    let connected = proxy.shared.counters.service(service()).port(80).connect_time.values();
    assert_eq!(connected.buckets.iter().map(|(_, count)| count).sum::<u64>(), 1);
}

#[tokio::test]
async fn a_client_that_has_ended_its_half_still_receives_the_answer() {
    let (proxy, listener) = tcp_proxy(short()).await;
    let (mut client, mut target, served) = open(&proxy, &listener).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = Vec::new();
    target.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    target.write_all(b"answer").await.unwrap();
    drop(target);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    served.await.unwrap();
}

#[tokio::test]
async fn a_target_that_lingers_after_the_clients_end_is_cut_off() {
    let (proxy, listener) = tcp_proxy(ProxyLimits { half_closed: Duration::from_millis(50), ..short() }).await;
    let (mut client, mut target, served) = open(&proxy, &listener).await;
    client.shutdown().await.unwrap();
    served.await.unwrap();
    assert_eq!(target.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(count(&proxy, Counter::StreamsIdle), 0);
}

#[tokio::test]
async fn an_idle_stream_is_closed_and_a_moving_one_is_not() {
    let (proxy, listener) = tcp_proxy(ProxyLimits { idle: Some(Duration::from_secs(3)), ..short() }).await;
    let (mut client, mut target, served) = open(&proxy, &listener).await;
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.write_all(b"x").await.unwrap();
        target.read_exact(&mut [0]).await.unwrap();
    }
    assert!(!served.is_finished());
    served.await.unwrap();
    assert_eq!(count(&proxy, Counter::StreamsIdle), 1);
    assert_eq!(traffic(&proxy)[2], 12);
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_and_holds_little() {
    let (proxy, listener) = tcp_proxy(ProxyLimits { stall: Some(Duration::from_millis(200)), ..short() }).await;
    let (client, mut target, served) = open(&proxy, &listener).await;
    let flood = tokio::spawn(async move {
        let mut sent = 0_u64;
        while target.write_all(&[0; 65_536]).await.is_ok() {
            sent += 65_536;
        }
        sent
    });
    served.await.unwrap();
    flood.await.unwrap();
    assert_eq!(count(&proxy, Counter::StreamsStalled), 1);
    assert_eq!(traffic(&proxy)[3], 4096, "only what the client's own window took");
    drop(client);
}

#[tokio::test]
async fn a_refusing_target_and_an_unknown_port_are_a_rejected_stream() {
    let (proxy, listener) = tcp_proxy(short()).await;
    drop(listener);
    let (incoming, _client, answer) = request(80);
    proxy.serve(incoming).await;
    assert!(!answer.await.unwrap());
    let (incoming, _client, answer) = request(81);
    proxy.serve(incoming).await;
    assert!(!answer.await.unwrap());
    assert_eq!(count(&proxy, Counter::StreamsTargetDown), 1);
    assert_eq!(count(&proxy, Counter::StreamsUnknownPort), 1);
    assert_eq!(traffic(&proxy)[1], 0);
}

#[tokio::test]
async fn a_unix_target_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let proxy = proxy(Target::Unix(path), short());
    let (incoming, mut client, answer) = request(80);
    let served = tokio::spawn(async move { proxy.serve(incoming).await });
    let (mut target, _) = listener.accept().await.unwrap();
    assert!(answer.await.unwrap());
    target.write_all(b"hello").await.unwrap();
    drop(target);
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"hello");
    drop(client);
    served.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn idle_streams_and_unread_streams_stay_open_by_default() {
    let (proxy, _listener) = tcp_proxy(ProxyLimits::default()).await;
    let (client, theirs) = duplex(16);
    let (mut target, targets) = duplex(16);
    let counters = proxy.shared.counters.service(service()).port(80);
    let bounds = Bounds { idle: None, stall: None, half_closed: Duration::from_secs(30) };
    let copying = tokio::spawn(async move {
        let (from_client, to_client) = (&counters.bytes_from_clients, &counters.bytes_to_clients);
        let watching = Watching { report: &|_| {}, pace: &|_| None };
        let stopping = CancellationToken::new();
        copy_both(Box::new(theirs), Box::new(targets), bounds, watching, &stopping, from_client, to_client).await
    });
    // More than the client's window and the buffers hold, so it waits for the client.
    let page = tokio::spawn(async move { target.write_all(&[7; 40_000]).await });
    tokio::time::sleep(Duration::from_secs(30 * 24 * 3600)).await;
    assert!(!copying.is_finished() && !page.is_finished());
    let mut client = client;
    let mut body = Vec::new();
    client.read_to_end(&mut body).await.unwrap();
    assert_eq!(body.len(), 40_000);
    drop(client);
    assert!(matches!(copying.await.unwrap(), Ended::Whole | Ended::HalfClosed), "after a month");
}

#[tokio::test]
async fn an_idle_stream_gives_way_and_its_target_with_it() {
    let (proxy, listener) = tcp_proxy(ProxyLimits { streams: 1, ..short() }).await;
    let (mut client, mut target, served) = open(&proxy, &listener).await;
    client.write_all(b"x").await.unwrap();
    target.read_exact(&mut [0]).await.unwrap();
    tokio::time::sleep(plan::PATIENCE + Duration::from_millis(100)).await;
    let _second = open(&proxy, &listener).await;
    served.await.unwrap();
    assert_eq!(target.read(&mut [0]).await.unwrap(), 0, "the application's connection is closed too");
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(count(&proxy, Counter::StreamsEvicted), 1);
    assert_eq!(traffic(&proxy)[0], 1);
}

#[tokio::test]
async fn a_target_learns_the_circuit_before_the_client_is_heard() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    for protocol in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let port = PortTarget { proxy_protocol: Some(protocol), ..PortTarget::new(80, target.clone()) };
        let proxy = proxy_to(port.clone(), short());
        let (mut client, mut target, _served) = open(&proxy, &listener).await;
        client.write_all(b"hello").await.unwrap();
        let header = protocol.header(ExportedCircuitId::new(0x000b_0001), 80).unwrap();
        let mut heard = vec![0; header.len() + 5];
        target.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, [&header[..], b"hello"].concat());
        // A check of the target's health comes on no circuit.
        let connector = Connector::without_tor();
        let (connected, accepted) =
            tokio::join!(connector.connect_port(&port, None, Duration::from_secs(5)), listener.accept());
        drop(connected.unwrap());
        let mut heard = Vec::new();
        accepted.unwrap().0.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, protocol.header(None, 80).unwrap());
    }
}

#[tokio::test]
async fn streams_of_a_circuit_over_its_rate_are_refused_and_reported() {
    let limits = ProxyLimits { streams: 99, circuit_streams_per_second: Some((1, 2)), ..short() };
    let (proxy, listener) = tcp_proxy(limits).await;
    let _first = (open(&proxy, &listener).await, open(&proxy, &listener).await);
    for _ in 0..3 {
        let (incoming, _client, answer) = request(80);
        proxy.serve(incoming).await;
        assert!(answer.await.is_err(), "it was dropped");
    }
    assert_eq!((count(&proxy, Counter::CircuitStreamsOverRate), EXCESSES.get()), (3, 3));
    let (incoming, _client, answer) = request_on(CircuitId(2), 80);
    tokio::spawn(async move { proxy.serve(incoming).await });
    assert!(answer.await.unwrap(), "another circuit has its own rate");
}

#[tokio::test]
async fn the_bytes_of_a_circuit_are_slowed_to_its_rate() {
    let limits = ProxyLimits { streams: 99, circuit_bytes_per_second: Some(40_000), ..short() };
    let (proxy, listener) = tcp_proxy(limits).await;
    let (client, mut target, served) = open(&proxy, &listener).await;
    let page = tokio::spawn(async move { target.write_all(&[7; 100_000]).await });
    let (start, mut body, mut client) = (Instant::now(), Vec::new(), client);
    client.read_to_end(&mut body).await.unwrap();
    // 40,000 bytes at once, and the rest at the rate.
    assert!(start.elapsed() >= Duration::from_millis(1300), "{:?}", start.elapsed());
    assert_eq!((body.len(), count(&proxy, Counter::CircuitStreamsSlowed)), (100_000, 1));
    page.await.unwrap().unwrap();
    drop(client);
    served.await.unwrap();
}

#[tokio::test]
async fn streams_over_the_limit_are_refused_until_one_ends() {
    let (proxy, listener) = tcp_proxy(short()).await;
    let first = open(&proxy, &listener).await;
    let _second = open(&proxy, &listener).await;
    let (incoming, _client, answer) = request(80);
    proxy.serve(incoming).await;
    assert!(!answer.await.unwrap());
    assert_eq!(count(&proxy, Counter::StreamsOverLimit), 1);
    let (client, target, served) = first;
    drop((client, target));
    served.await.unwrap();
    open(&proxy, &listener).await;
}

#[tokio::test]
async fn shutdown_lets_streams_end_then_cuts_them_off() {
    let (proxy, listener) = tcp_proxy(short()).await;
    let (streams, queue) = mpsc::channel(4);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(proxy.clone().run(queue, shutdown.clone(), Duration::from_secs(1)));
    let (incoming, mut client, answer) = request(80);
    streams.send(incoming).await.ok().unwrap();
    let (mut target, _) = listener.accept().await.unwrap();
    assert!(answer.await.unwrap());
    shutdown.cancel();
    client.write_all(b"late").await.unwrap();
    target.read_exact(&mut [0; 4]).await.unwrap();
    running.await.unwrap();
    assert_eq!(client.read(&mut [0; 4]).await.unwrap(), 0);
    assert_eq!(traffic(&proxy)[0], 0);
    assert!(streams.send(request(80).0).await.is_err());
}

#[tokio::test]
async fn a_stream_that_waits_takes_little_memory() {
    let (proxy, _listener) = tcp_proxy(short()).await;
    let (incoming, ..) = request(80);
    let admitted = proxy.admit(incoming.circuit).unwrap();
    let (outer, inner) =
        (size_of_val(&proxy.serve(request(80).0)), size_of_val(&proxy.serve_whole(incoming, &admitted)));
    assert!(outer <= 1024 && inner <= 2100, "{outer} and {inner} bytes");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_ends_the_streams_at_which_no_client_waits() {
    let stopping = CancellationToken::new();
    // The client's end, the target's end, and the task that copies.
    let open = || {
        let ((client, theirs), (target, targets)) = (duplex(64), duplex(64));
        let bounds = Bounds { idle: None, stall: None, half_closed: Duration::from_secs(30) };
        let stopping = stopping.clone();
        let copying = tokio::spawn(async move {
            let (from_client, to_client) = (Default::default(), Default::default());
            let (theirs, targets) = (Box::new(theirs), Box::new(targets));
            let watching = Watching { report: &|_| {}, pace: &|_| None };
            copy_both(theirs, targets, bounds, watching, &stopping, &from_client, &to_client).await
        });
        (client, target, copying)
    };
    let (_client, _target, unused) = open();
    let (mut client, mut target, answered) = open();
    client.write_all(b"question").await.unwrap();
    target.read_exact(&mut [0; 8]).await.unwrap();
    target.write_all(b"answer").await.unwrap();
    client.read_exact(&mut [0; 6]).await.unwrap();
    let (mut waiting, mut busy, waits) = open();
    waiting.write_all(b"question").await.unwrap();
    busy.read_exact(&mut [0; 8]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(!unused.is_finished() && !answered.is_finished(), "until the node stops");
    stopping.cancel();
    assert!(matches!(unused.await.unwrap(), Ended::Asleep) && matches!(answered.await.unwrap(), Ended::Asleep));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(!waits.is_finished(), "the client waits for its answer");
    busy.write_all(b"answer").await.unwrap();
    waiting.read_exact(&mut [0; 6]).await.unwrap();
    assert!(matches!(waits.await.unwrap(), Ended::Asleep));
}
