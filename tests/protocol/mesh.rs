//! Gossip as it crosses a link: two real meshes meet for the first time, and every message is caught on its way.

use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::RecordKind;
use rustbalance_mesh::{Carrier, Mesh, MeshConfig, Update};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::cast::Cast;
use crate::{hex, unhex};

/// The seventh start of every node, its first life: what both count from.
const BOOT: u64 = 7;
const GENERATION: u64 = BOOT << 16;

/// Within this time, the first round is over and the second has not begun; so it is for two that start in a row.
const FIRST_ROUND: Duration = Duration::from_millis(100);

/// A mesh with both ends of its wire in hand.
struct Wired {
    _mesh: Mesh,
    updates: mpsc::Receiver<Update>,
    to: mpsc::Sender<(NodeId, Vec<u8>)>,
    from: mpsc::UnboundedReceiver<Vec<u8>>,
}

impl Wired {
    async fn start(cast: &Cast, me: NodeId, seeds: Vec<NodeId>, says: &[(RecordKind, &[u8])]) -> Self {
        let (to, received) = mpsc::channel(8);
        let (sender, from) = mpsc::unbounded_channel();
        let send = Arc::new(move |_, message| sender.send(message).unwrap_or_default());
        let config = MeshConfig { me, cluster: cast.cluster(), generation: BOOT, interval: Duration::from_secs(1) };
        let (mesh, updates) = Mesh::start(config, Carrier { send, received }, seeds).await.unwrap();
        for (kind, bytes) in says {
            mesh.set(*kind, bytes).unwrap();
        }
        // Past its first round: whether it had counted that one before it heard something would be chance.
        tokio::time::sleep(FIRST_ROUND).await;
        Self { _mesh: mesh, updates, to, from }
    }

    async fn hear(&self, from: NodeId, message: &[u8]) {
        self.to.send((from, message.to_vec())).await.unwrap();
    }

    /// The next message of this kind.
    async fn says(&mut self, kind: u8) -> Vec<u8> {
        loop {
            let message = self.from.recv().await.unwrap();
            if message[3] == kind {
                return message;
            }
        }
    }
}

/// Alpha asks beta, beta answers and asks, alpha answers.
pub(crate) async fn messages(cast: &Cast, statements: &Value) -> Value {
    let (alpha, beta) = (cast.alpha.node_id(), cast.beta.node_id());
    let beat = unhex(&statements["heartbeat"]["envelope"]);
    let mut asked = Wired::start(cast, beta, Vec::new(), &[]).await;
    let mut asks = Wired::start(cast, alpha, vec![beta], &[(RecordKind::Heartbeat, &beat)]).await;
    let syn = asks.says(0).await;
    asked.hear(alpha, &syn).await;
    let syn_ack = asked.says(1).await;
    asks.hear(beta, &syn_ack).await;
    let ack = asks.says(2).await;
    json!({
        "asks": alpha.to_string(),
        "answers": beta.to_string(),
        "generation": GENERATION,
        "syn": hex(&syn),
        "syn_ack": hex(&syn_ack),
        "ack": hex(&ack),
        "ack_plain": hex(&plain_ack(alpha, &[("beat", &beat)])),
    })
}

/// An ACK as the document has it, not packed: what alpha says, from the first version on.
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

/// A mesh that has been asked takes either answer, and what comes out is the record.
pub(crate) async fn check(cast: &Cast, statements: &Value, vectors: &Value) {
    let (alpha, beta) = (cast.alpha.node_id(), cast.beta.node_id());
    for name in ["ack", "ack_plain"] {
        let mut asked = Wired::start(cast, beta, Vec::new(), &[]).await;
        asked.hear(alpha, &unhex(&vectors["syn"])).await;
        assert_eq!(hex(&asked.says(1).await), vectors["syn_ack"]);
        asked.hear(alpha, &unhex(&vectors[name])).await;
        let update = asked.updates.recv().await.unwrap();
        let bytes = unhex(&statements["heartbeat"]["envelope"]);
        assert_eq!(update, Update { origin: alpha, kind: RecordKind::Heartbeat, bytes }, "{name}");
    }
}
