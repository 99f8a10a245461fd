//! Raw streams, handshakes and frames of a hostile member, over any engine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rustbalance::clock::unix_now;
use rustbalance::frame::{self, MAX, MAX_UNPROVEN};
use rustbalance::link::handshake::{Dialler, HandshakeSide, Purpose};
use rustbalance::link::{ChannelBinding, Frame, LINK_PORT, RouteKind};
use rustbalance::store::Store;
use rustbalance::stream::BoxStream;
use rustbalance::tor::Engine;
use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::codec;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::NodeCard;
use rustbalance_gossip::signed::{Statement, Verified};
use rustbalance_mesh::{Carrier, Mesh, MeshConfig};
use tokio::sync::mpsc;

/// Time limit of a dial.
const DIAL: Duration = Duration::from_secs(60);

/// A stream to a node's link port, without a handshake.
pub(crate) async fn dial(engine: &dyn Engine, to: NodeId) -> Result<BoxStream> {
    Ok(engine.dial(to.address(), LINK_PORT, DIAL).await?)
}

/// A link of the member of `store` after the handshake; an error if the node refuses it.
pub(crate) async fn link(engine: &dyn Engine, store: &Store, to: NodeId, purpose: Purpose) -> Result<BoxStream> {
    let mut stream = dial(engine, to).await?;
    let (membership, key) = (store.membership(), store.node_secret()?);
    let (route, binding) = (RouteKind::TOR, ChannelBinding::BY_ID);
    let own = HandshakeSide { membership, key: &key, route, binding, nonce: rand::random() };
    let dialler = Dialler { own, dialled: to, purpose };
    let challenge = frame::read(&mut stream, MAX_UNPROVEN).await?;
    let (proof, claimed) = dialler.challenge(&challenge)?;
    frame::write(&mut stream, &proof).await?;
    let answer = frame::read(&mut stream, MAX_UNPROVEN).await?;
    claimed.answer(&answer, &BTreeMap::new(), unix_now())?;
    Ok(stream)
}

/// A card for `node` with the certificates of the member of `store`.
pub(crate) fn card(store: &Store, node: NodeId, seq: u64) -> NodeCard {
    NodeCard {
        cluster: store.cluster(),
        node,
        seq,
        chain: store.membership().chain(),
        address: mesh_address(&node),
        priority: 0,
        weight: 100,
        version: "1".into(),
        ports: vec![80],
    }
}

/// Signs with the key of the member of `store`.
pub(crate) fn sign<T: Statement>(store: &Store, statement: T) -> Vec<u8> {
    Verified::sign(statement, &store.node_secret().unwrap()).unwrap().to_bytes().unwrap()
}

/// The encoded payload of a frame.
pub(crate) fn payload(frame: &Frame) -> Vec<u8> {
    codec::encode(frame).unwrap()
}

/// The SYN that a new mesh of this member sends first, which asks for all records.
pub(crate) async fn question(store: &Store, to: NodeId) -> Vec<u8> {
    let (sender, mut sent) = mpsc::unbounded_channel();
    let (_nobody, received) = mpsc::channel(1);
    let send = Arc::new(move |_, message| sender.send(message).unwrap_or_default());
    let (me, cluster) = (store.node_id(), store.cluster());
    let config = MeshConfig { me, cluster, generation: 1, interval: Duration::from_millis(100) };
    let (_mesh, _updates) =
        Mesh::start(config, Carrier { send, received, links: Arc::new(BTreeSet::new) }, vec![to]).await.unwrap();
    payload(&Frame::Gossip(VarBytes(sent.recv().await.unwrap())))
}

/// Inputs that no honest member sends: too long, unreadable, of another version, and, as the last
/// two, frames that never end.
pub(crate) fn nonsense() -> Vec<Vec<u8>> {
    let framed = |length: u32, payload: &[u8]| [&length.to_be_bytes()[..], payload].concat();
    vec![
        framed(MAX as u32 + 1, &[1; 4096]),
        framed(u32::MAX, &[1; 4096]),
        framed(4, &[1, 0xff, 0xff, 0xff]),
        framed(2, &[9, 0]),
        // An array of 2^32 - 1 arrays.
        framed(11, &[1, 0x9a, 0xff, 0xff, 0xff, 0xff, 0x9a, 0xff, 0xff, 0xff, 0xff]),
        framed(100, &[1; 50]),
        Vec::new(),
    ]
}
