//! chitchat messages from other members: single messages at the gate, and whole conversations with
//! the real chitchat behind it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustbalance_gossip::address::{MESH_PORT, mesh_address};
use rustbalance_gossip::hash::{Label, labelled};
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::{MAX_RECORD, RecordKind};
use rustbalance_mesh::{Carrier, Gate, MAX_MESSAGE, Mesh, MeshConfig, ROUND};
use tokio::sync::mpsc;

use super::Seed;
use super::script::{Script, ScriptBuilder};
use super::world::{MEMBERS, NODES, world};

/// Size of an unpacked block, in bytes.
const BLOCK: usize = 16_384;
/// The generation number of this node's current incarnation in [`mesh`].
const OWN_GENERATION: u64 = 1 << 16;
const SYN: u8 = 0;
const SYN_ACK: u8 = 1;
const ACK: u8 = 2;

fn members() -> BTreeSet<NodeId> {
    world().nodes[..MEMBERS].iter().copied().collect()
}

/// One message from the node that the first byte chooses. A message that passes the gate passes it
/// again.
pub(crate) fn message(bytes: &[u8]) -> bool {
    let Some((&from, bytes)) = bytes.split_first() else { return false };
    let from = world().nodes[usize::from(from) % NODES];
    let gate = Gate::new(world().nodes[0], world().cluster, ROUND);
    gate.set_members(members());
    if gate.read(from, bytes).is_err() {
        return false;
    }
    assert!(bytes.len() <= MAX_MESSAGE);
    assert!(gate.read(from, bytes).is_ok());
    true
}

/// Writes a message in chitchat's format.
struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Self {
        Self([&45_139u16.to_le_bytes()[..], &[0, kind]].concat())
    }

    fn text(&mut self, text: &str) {
        self.0.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
        self.0.extend(text.as_bytes());
    }

    fn numbers(&mut self, numbers: &[u64]) {
        numbers.iter().for_each(|number| self.0.extend(number.to_le_bytes()));
    }

    fn incarnation(&mut self, who: usize, generation: u64) {
        let node = world().nodes[who];
        self.text(&node.to_string());
        self.numbers(&[generation]);
        self.0.push(6);
        self.0.extend(mesh_address(&node).octets());
        self.0.extend(MESH_PORT.to_le_bytes());
    }

    /// Writes a digest: the three numbers of an incarnation are its heartbeat, last
    /// garbage-collected version and highest version.
    fn digest(&mut self, known: &[(usize, u64, [u64; 3])]) {
        self.0.extend(u16::try_from(known.len()).unwrap().to_le_bytes());
        for (who, generation, counts) in known {
            self.incarnation(*who, *generation);
            self.numbers(counts);
        }
    }

    /// Writes a stream of blocks, compressed if `packed`.
    fn stream(&mut self, body: &[u8], packed: bool) {
        for block in body.chunks(BLOCK) {
            let block = if packed { zstd::bulk::compress(block, 0).unwrap() } else { block.to_vec() };
            self.0.push(if packed { 1 } else { 2 });
            self.0.extend(u16::try_from(block.len()).unwrap().to_le_bytes());
            self.0.extend(block);
        }
        self.0.push(0);
    }
}

/// One operation of a delta, before it is written into a stream.
enum DeltaOperation {
    /// Begins the changes of an incarnation: node, generation, and the pair of its last
    /// garbage-collected version and the version before the changes.
    Incarnation(usize, u64, [u64; 2]),
    /// A value: key, value, version, status (1: deleted).
    Value(String, String, u64, u8),
    /// The version up to which the changes are complete.
    Version(u64),
}

impl DeltaOperation {
    fn value(key: &str, value: &str, version: u64) -> Self {
        Self::Value(key.into(), value.into(), version, 0)
    }
}

fn body(delta: &[DeltaOperation]) -> Vec<u8> {
    let mut out = Writer(Vec::new());
    for operation in delta {
        match operation {
            DeltaOperation::Incarnation(who, generation, counts) => {
                out.0.push(0);
                out.incarnation(*who, *generation);
                out.numbers(counts);
            }
            DeltaOperation::Value(key, value, version, status) => {
                out.0.push(1);
                out.text(key);
                out.text(value);
                out.numbers(&[*version]);
                out.0.push(*status);
            }
            DeltaOperation::Version(version) => {
                out.0.push(2);
                out.numbers(&[*version]);
            }
        }
    }
    out.0
}

fn syn(known: &[(usize, u64, [u64; 3])]) -> Vec<u8> {
    let mut message = Writer::new(SYN);
    message.digest(known);
    message.text(&world().cluster.to_string());
    message.0
}

fn ack(delta: &[DeltaOperation], packed: bool) -> Vec<u8> {
    let mut message = Writer::new(ACK);
    message.stream(&body(delta), packed);
    message.0
}

fn syn_ack(known: &[(usize, u64, [u64; 3])], delta: &[DeltaOperation], packed: bool) -> Vec<u8> {
    let mut message = Writer::new(SYN_ACK);
    message.digest(known);
    message.stream(&body(delta), packed);
    message.0
}

/// A push of heartbeats of these nodes, in the incarnation of this generation.
fn push(heartbeats: &[usize], generation: u64) -> Vec<u8> {
    let heartbeat = |who: &usize| {
        let name = labelled(Label::Incarnation, &[world().nodes[*who].public_key(), &generation.to_le_bytes()]);
        // The version before, the heartbeat's version, its sequence number, and its other fields.
        [&[0][..], &name[..8], &[2], &[3, 5, 1, 77, 9, 100, 1], &[7; 8], &[8; 64]].concat()
    };
    b"rb\x01".iter().copied().chain(heartbeats.iter().flat_map(heartbeat)).collect()
}

pub(crate) fn message_seeds() -> Vec<Seed> {
    let from = |message: &[u8]| [&[1][..], message].concat();
    let known = [(0, OWN_GENERATION, [3, 0, 4]), (1, 7, [9, 0, 2]), (5, 1, [1, 0, 0])];
    let two_values = |value: &str| {
        [
            DeltaOperation::Incarnation(1, 7, [0, 0]),
            DeltaOperation::value("beat", value, 1),
            DeltaOperation::value("card", value, 2),
        ]
    };
    let deleted =
        [DeltaOperation::Incarnation(1, 7, [0, 0]), DeltaOperation::Value("card".into(), String::new(), 5, 1)];
    let silent = [DeltaOperation::Incarnation(2, 1, [3, 0]), DeltaOperation::Version(9)];
    let long = "A".repeat(20_000);
    let values = (1..=100).map(|version| DeltaOperation::value("card", &long, version));
    let bomb: Vec<_> = std::iter::once(DeltaOperation::Incarnation(1, 7, [0, 0])).chain(values).collect();
    let mut absurd = known;
    absurd[1].2[0] = u64::MAX;
    vec![
        Seed::good("question", from(&syn(&known))),
        Seed::good("answer", from(&syn_ack(&known, &two_values("QUJD"), false))),
        Seed::good("packed-answer", from(&syn_ack(&known, &two_values("QUJD"), true))),
        Seed::good("values", from(&ack(&two_values("QUJD"), false))),
        Seed::good("deleted", from(&ack(&deleted, false))),
        Seed::bad("silent", from(&ack(&silent, false))),
        Seed::good("push", from(&push(&[1, 2], 7))),
        Seed::bad("push-of-nothing", from(b"rb\x01\x03")),
        Seed::good("subscriptions", from(b"rb\x02nodenodeothernod")),
        Seed::good("nothing", from(&ack(&[], true))),
        Seed::good("other-cluster", from(&Writer::new(3).0)),
        Seed::bad("absurd", from(&syn(&absurd))),
        // 2 MB unpacked, from a few hundred bytes.
        Seed::bad("bomb", from(&ack(&bomb, true))),
    ]
}

/// Most messages in one conversation.
const MOST: usize = 12;
/// Bound on the length of each list in a message.
const ENTRIES: usize = 12;

/// A conversation of hostile members with a running mesh. Afterwards the mesh must still answer an
/// honest SYN, chitchat must not have stopped, and every update that came out must be small enough
/// for a record.
pub(crate) fn mesh(bytes: &[u8]) -> bool {
    let mut script = Script::new(bytes);
    let mut messages = Vec::new();
    while !script.is_over() && messages.len() < MOST {
        let from = 1 + script.choice(NODES - 1);
        messages.push((from, composed(&mut script)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(converse(messages))
}

fn composed(script: &mut Script<'_>) -> Vec<u8> {
    let kind = script.choice(5) as u8;
    let mut message = Writer::new(kind);
    match kind {
        SYN | SYN_ACK => {
            let known: Vec<_> = (0..script.choice(ENTRIES))
                .map(|_| (script.choice(NODES), script.number(), [script.number(), script.number(), script.number()]))
                .collect();
            message.digest(&known);
        }
        ACK => {}
        // A message of an unknown kind, or any bytes.
        _ => return script.bytes().to_vec(),
    }
    if kind == SYN {
        message.text(&world().cluster.to_string());
        return message.0;
    }
    let delta: Vec<_> = (0..script.choice(ENTRIES)).map(|_| operation(script)).collect();
    message.stream(&body(&delta), false);
    message.0
}

fn operation(script: &mut Script<'_>) -> DeltaOperation {
    match script.choice(4) {
        0 => DeltaOperation::Incarnation(script.choice(NODES), script.number(), [script.number(), script.number()]),
        1 => DeltaOperation::Version(script.number()),
        _ => {
            let key = key(script.byte());
            let value = String::from_utf8_lossy(script.bytes()).chars().take(MAX_RECORD / 4).collect();
            DeltaOperation::Value(key, value, script.number(), script.byte())
        }
    }
}

/// A record key: of a known kind, of an unknown kind, or of a known kind in the wrong case.
fn key(which: u8) -> String {
    let revocation = RecordKind::Revocation(world().nodes[2]).key();
    match which % 6 {
        0 => RecordKind::Card.key(),
        1 => RecordKind::Heartbeat.key(),
        2 => RecordKind::Lease.key(),
        3 => revocation,
        4 => "later".into(),
        _ => revocation.to_uppercase().replace("REV/", "rev/"),
    }
}

async fn converse(messages: Vec<(usize, Vec<u8>)>) -> bool {
    let me = world().nodes[0];
    let (to_mesh, received) = mpsc::channel(64);
    let sent = Arc::new(Mutex::new(Vec::<(NodeId, Vec<u8>)>::new()));
    let taken = Arc::clone(&sent);
    let send = Arc::new(move |to, message| taken.lock().unwrap().push((to, message)));
    let interval = Duration::from_secs(1);
    let config = MeshConfig { me, cluster: world().cluster, generation: 1, interval };
    let (mesh, mut updates) =
        Mesh::start(config, Carrier { send, received, links: Arc::new(BTreeSet::new) }, Vec::new()).await.unwrap();
    mesh.set_members(members());
    mesh.set(RecordKind::Card, b"our own").unwrap();
    tokio::time::sleep(interval).await;
    for (from, message) in messages {
        to_mesh.send((world().nodes[from], message)).await.unwrap();
        tokio::time::sleep(interval / 4).await;
    }
    tokio::time::sleep(interval * 2).await;
    let after = mesh.counters();
    assert!(after.restarts <= after.spoofed_versions, "chitchat has stopped and was restarted: {after:?}");
    sent.lock().unwrap().clear();
    to_mesh.send((world().nodes[1], syn(&[(1, 3, [1, 0, 0])]))).await.unwrap();
    tokio::time::sleep(interval / 4).await;
    let answered = |sent: &[(NodeId, Vec<u8>)]| sent.iter().any(|(to, it)| *to == world().nodes[1] && it[3] == SYN_ACK);
    assert!(answered(&sent.lock().unwrap()), "an honest SYN was not answered");
    assert!(sent.lock().unwrap().iter().all(|(_, message)| message.len() <= MAX_MESSAGE));
    let mut heard = false;
    while let Ok(update) = updates.try_recv() {
        assert!(update.bytes.len() <= MAX_RECORD);
        heard = true;
    }
    heard
}

pub(crate) fn mesh_seeds() -> Vec<Seed> {
    let incarnation = |who: u8| ScriptBuilder::default().byte(0).byte(who).number(7).number(0).number(0);
    let value =
        |key: u8, version: u64| ScriptBuilder::default().byte(2).byte(key).bytes(b"QUJD").number(version).byte(0);
    let version = |version: u64| ScriptBuilder::default().byte(1).number(version);
    let ack = |from: u8, operations: Vec<ScriptBuilder>| {
        let orders = ScriptBuilder::default().byte(from - 1).byte(ACK).byte(operations.len() as u8);
        operations.into_iter().fold(orders, |orders, next| orders.rest(&next.0)).0
    };
    // The numbers: heartbeat, last garbage-collected version (0), highest version (3).
    let asked = |from: u8, who: u8, generation: u64, beat: u64| {
        let orders = ScriptBuilder::default().byte(from - 1).byte(SYN).byte(1).byte(who).number(generation);
        orders.number(beat).number(0).number(3).0
    };
    vec![
        Seed::good(
            "records",
            [asked(1, 1, 7, 5), ack(1, vec![incarnation(1), value(0, 1), value(1, 2), value(2, 3)])].concat(),
        ),
        Seed::good(
            "passed-on",
            [asked(1, 2, 7, 5), ack(1, vec![incarnation(2), value(3, 4)]), asked(2, 2, 7, 6)].concat(),
        ),
        // A push above version 2, after which the node has version 5.
        Seed::good(
            "pushed",
            [
                asked(1, 1, 7, 5),
                ack(1, vec![incarnation(1), value(0, 1), value(1, 2)]),
                ScriptBuilder::default().byte(0).byte(3).bytes(&push(&[1], 7)).0,
            ]
            .concat(),
        ),
        Seed::bad("silent", [asked(1, 1, 7, 5), ack(1, vec![incarnation(1), version(9)])].concat()),
        // The delta claims to be complete up to a version below that of its last value.
        Seed::bad("falls", [asked(1, 1, 7, 5), ack(1, vec![incarnation(1), value(0, 9), version(2)])].concat()),
        Seed::bad("lies", [asked(1, 0, OWN_GENERATION, 500), asked(2, 0, OWN_GENERATION, 900)].concat()),
        Seed::bad("nonsense", ScriptBuilder::default().byte(0).byte(3).bytes(&syn(&[])).0),
    ]
}
