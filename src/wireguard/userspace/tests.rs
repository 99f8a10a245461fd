//! The engine under the suite of engines, over loopback and over a network in memory; and the
//! machine alone, in the hands of hostile members.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::net::UdpSocket;

use super::*;
use crate::wireguard::conformance::{Ground, Started, engine_conformance};

mod hostile;
mod hosts;
mod lab;
mod machine;
pub(crate) mod memory;

/// Nodes on the loopback interface, with real sockets.
struct Loopback(IpAddr);

#[async_trait]
impl Ground for Loopback {
    async fn start(&self, node: NodeId) -> Started {
        let (engine, arrivals) =
            Userspace::start(node, &[SocketAddr::new(self.0, 0)], Counters::default()).await.unwrap();
        let endpoint = engine.addresses()[0];
        Started { engine: Arc::new(engine), arrivals, endpoint }
    }

    fn lose(&self, _part: f64) -> bool {
        false
    }

    async fn inject(&self, to: SocketAddr, datagram: Vec<u8>) {
        let socket = UdpSocket::bind(SocketAddr::new(self.0, 0)).await.unwrap();
        socket.send_to(&datagram, to).await.unwrap();
    }
}

mod over_loopback {
    use super::*;
    engine_conformance!(tokio::test, Loopback(Ipv4Addr::LOCALHOST.into()));
}

mod over_ipv6 {
    use super::*;
    engine_conformance!(tokio::test, Loopback(Ipv6Addr::LOCALHOST.into()));
}

mod in_memory {
    use super::*;
    engine_conformance!(tokio::test(start_paused = true), memory::MemoryNet::new());
}

#[tokio::test]
async fn one_address_of_each_family_is_bound_and_nothing_else() {
    let me = NodeId::from_public_key([1; 32]);
    let start = async |addresses: &[&str]| {
        let addresses: Vec<SocketAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Userspace::start(me, &addresses, Counters::default()).await.map(|(engine, _)| engine)
    };
    let both = start(&["127.0.0.1:0", "[::1]:0"]).await.unwrap();
    assert_eq!(both.addresses().len(), 2);
    let refused: [&[&str]; 4] = [&[], &["0.0.0.0:0"], &["[::]:0"], &["127.0.0.1:0", "127.0.0.2:0"]];
    for addresses in refused {
        assert!(matches!(start(addresses).await, Err(EngineError::Addresses(_))), "{addresses:?}");
    }
    let taken = both.addresses()[0];
    let error = start(&[&taken.to_string()]).await.map(drop).unwrap_err();
    assert!(matches!(&error, EngineError::Bind { address, .. } if *address == taken));
    assert!(error.to_string().contains(&taken.to_string()));
}

#[tokio::test]
async fn streams_end_when_the_engine_is_dropped() {
    use crate::wireguard::conformance::{TestNode, introduce};
    use tokio::io::AsyncReadExt;

    let ground = Loopback(Ipv4Addr::LOCALHOST.into());
    let (one, two) = (TestNode::start(&ground, 1).await, TestNode::start(&ground, 2).await);
    introduce(&[&one, &two]);
    let mut near = one.dial(&two).await;
    let endpoint = one.started.endpoint;
    drop(one);
    let read = timeout(Duration::from_secs(5), near.stream.read(&mut [0])).await.expect("the stream hangs");
    assert!(read.is_err());
    drop(near);
    // The port is free again.
    let bound = async {
        while UdpSocket::bind(endpoint).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(5), bound).await.expect("the port is still bound");
}
