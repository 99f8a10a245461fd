//! Gossip on a link: two real meshes meet for the first time, and the test intercepts every
//! message.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::hash::{Label, labelled};
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::RecordKind;
use rustbalance_mesh::{Carrier, Mesh, MeshConfig, PUSH_DICTIONARY, Update, is_push};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::cast::VectorKeys;
use crate::{hex, unhex};

/// Start number of both nodes; their gossip is in the first incarnation of this start.
const BOOT: u64 = 7;
const GENERATION: u64 = BOOT << 16;

/// After this time the first gossip round of a mesh is over and the second has not begun. That
/// holds for two meshes that are started one after the other, too.
const FIRST_ROUND: Duration = Duration::from_millis(100);

/// A mesh whose messages the test sends and receives.
struct Wired {
    mesh: Mesh,
    updates: mpsc::Receiver<Update>,
    to: mpsc::Sender<(NodeId, Vec<u8>)>,
    from: mpsc::UnboundedReceiver<Vec<u8>>,
}

impl Wired {
    async fn start(cast: &VectorKeys, me: NodeId, seeds: Vec<NodeId>, records: &[(RecordKind, &[u8])]) -> Self {
        Self::linked(cast, me, seeds, BTreeSet::new(), records).await
    }

    async fn linked(
        cast: &VectorKeys,
        me: NodeId,
        seeds: Vec<NodeId>,
        links: BTreeSet<NodeId>,
        records: &[(RecordKind, &[u8])],
    ) -> Self {
        let (to, received) = mpsc::channel(8);
        let (sender, from) = mpsc::unbounded_channel();
        let send = Arc::new(move |_, message| sender.send(message).unwrap_or_default());
        let config = MeshConfig { me, cluster: cast.cluster(), generation: BOOT, interval: Duration::from_secs(1) };
        let (mesh, updates) =
            Mesh::start(config, Carrier { send, received, links: Arc::new(move || links.clone()) }, seeds)
                .await
                .unwrap();
        for (kind, bytes) in records {
            mesh.set(*kind, bytes).unwrap();
        }
        // Waits for the end of the first round. Otherwise the order of that round and the first
        // received message, and with it the heartbeat, would depend on chance.
        tokio::time::sleep(FIRST_ROUND).await;
        Self { mesh, updates, to, from }
    }

    async fn receive(&self, from: NodeId, message: &[u8]) {
        self.to.send((from, message.to_vec())).await.unwrap();
    }

    /// The next message of this kind that the mesh sends.
    async fn next_of_kind(&mut self, kind: u8) -> Vec<u8> {
        loop {
            let message = self.from.recv().await.unwrap();
            if !is_push(&message) && message[3] == kind {
                return message;
            }
        }
    }

    /// The next push that the mesh sends.
    async fn pushes(&mut self) -> Vec<u8> {
        loop {
            let message = self.from.recv().await.unwrap();
            if is_push(&message) {
                return message;
            }
        }
    }
}

/// Alpha sends a SYN to beta, beta answers with a SYN-ACK, and alpha with an ACK.
pub(crate) async fn messages(cast: &VectorKeys, statements: &Value) -> Value {
    let (alpha, beta) = (cast.alpha.node_id(), cast.beta.node_id());
    let beat = unhex(&statements["heartbeat"]["envelope"]);
    let mut asked = Wired::start(cast, beta, Vec::new(), &[]).await;
    let mut asks = Wired::start(cast, alpha, vec![beta], &[(RecordKind::Heartbeat, &beat)]).await;
    let syn = asks.next_of_kind(0).await;
    asked.receive(alpha, &syn).await;
    let syn_ack = asked.next_of_kind(1).await;
    asks.receive(beta, &syn_ack).await;
    let ack = asks.next_of_kind(2).await;
    let linked = BTreeSet::from([beta]);
    let mut pushes = Wired::linked(cast, alpha, Vec::new(), linked, &[]).await;
    pushes.receive(beta, &syn_ack).await;
    pushes.next_of_kind(2).await;
    pushes.mesh.set(RecordKind::Heartbeat, &beat).unwrap();
    let heartbeat = pushes.pushes().await;
    pushes.mesh.set(RecordKind::Lease, &unhex(&statements["lease"]["envelope"])).unwrap();
    let lease = pushes.pushes().await;
    json!({
        "push_heartbeat": hex(&heartbeat),
        "push_lease": hex(&lease),
        "push_dictionary": hex(PUSH_DICTIONARY),
        "subscriptions": hex(&subscriptions(alpha)),
        "asks": alpha.to_string(),
        "answers": beta.to_string(),
        "generation": GENERATION,
        "syn": hex(&syn),
        "syn_ack": hex(&syn_ack),
        "ack": hex(&ack),
        "ack_plain": hex(&plain_ack(alpha, &[("beat", &beat)])),
    })
}

/// The subscription of the document: to the incarnation of alpha.
fn subscriptions(of: NodeId) -> Vec<u8> {
    let name = labelled(Label::Incarnation, &[of.public_key(), &GENERATION.to_le_bytes()]);
    [&b"rb\x02"[..], &name[..8]].concat()
}

/// The uncompressed ACK of the document: alpha's values, from version 1 on.
fn plain_ack(of: NodeId, values: &[(&str, &[u8])]) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat();
    let mut body = vec![0];
    body.extend(text(&of.to_string()));
    body.extend(GENERATION.to_le_bytes());
    body.push(6);
    body.extend(mesh_address(&of).octets());
    body.extend(7440u16.to_le_bytes());
    body.extend([0; 16]);
    for (version, (key, value)) in (1u64..).zip(values) {
        body.push(1);
        body.extend(text(key));
        body.extend(text(&BASE64.encode(value)));
        body.extend(version.to_le_bytes());
        body.push(0);
    }
    [&[0x53, 0xb0, 0, 2, 2][..], &(body.len() as u16).to_le_bytes(), &body, &[0]].concat()
}

/// A mesh accepts the compressed and the plain ACK and the push, and reports the record. It sends a
/// value of alpha to a peer that has subscribed.
pub(crate) async fn check(cast: &VectorKeys, statements: &Value, vectors: &Value) {
    let (alpha, beta) = (cast.alpha.node_id(), cast.beta.node_id());
    let peer = cast.gamma.node_id();
    for name in ["ack", "ack_plain", "push_heartbeat"] {
        let mut asked = Wired::linked(cast, beta, Vec::new(), BTreeSet::from([peer]), &[]).await;
        asked.receive(alpha, &unhex(&vectors["syn"])).await;
        assert_eq!(hex(&asked.next_of_kind(1).await), vectors["syn_ack"]);
        asked.receive(alpha, &unhex(&vectors[name])).await;
        let update = asked.updates.recv().await.unwrap();
        let bytes = unhex(&statements["heartbeat"]["envelope"]);
        assert_eq!(update, Update { origin: alpha, kind: RecordKind::Heartbeat, bytes }, "{name}");
        // What comes along with an incarnation's first value is not pushed: no peer can have
        // subscribed to it.
        tokio::time::sleep(FIRST_ROUND * 3).await;
        asked.receive(peer, &unhex(&vectors["subscriptions"])).await;
        asked.receive(alpha, &unhex(&vectors["push_lease"])).await;
        let bytes = unhex(&statements["lease"]["envelope"]);
        assert_eq!(asked.updates.recv().await, Some(Update { origin: alpha, kind: RecordKind::Lease, bytes }));
        assert_eq!(hex(&asked.pushes().await), vectors["push_lease"], "{name}");
    }
}
