//! Gossip messages encoded by hand after docs/PROTOCOL.md section 6, with versions that chitchat
//! would never choose.

use anyhow::{Result, bail};
use data_encoding::BASE64;
use rustbalance::frame::{self, MAX};
use rustbalance::link::Frame;
use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::codec;
use rustbalance_gossip::id::{ClusterId, NodeId};
use rustbalance_gossip::record::RecordKind;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::hand;

/// An incarnation of a node's gossip, and its highest known version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) node: NodeId,
    pub(crate) generation: u64,
    pub(crate) version: u64,
}

/// A SYN with a digest of these incarnations.
pub(crate) fn question(cluster: ClusterId, heartbeat: u64, known: &[Known]) -> Vec<u8> {
    let mut out = vec![0x53, 0xb0, 0, 0];
    out.extend((known.len() as u16).to_le_bytes());
    for it in known {
        name(&mut out, it.node, it.generation);
        for number in [heartbeat, 0, it.version] {
            out.extend(number.to_le_bytes());
        }
    }
    text(&mut out, &cluster.to_string());
    out
}

/// An ACK with values of one node: key, value, version.
pub(crate) fn answer(node: NodeId, generation: u64, values: &[(String, Vec<u8>, u64)]) -> Vec<u8> {
    let mut body = vec![0];
    name(&mut body, node, generation);
    body.extend([0; 16]);
    for (key, value, version) in values {
        body.push(1);
        text(&mut body, key);
        text(&mut body, &BASE64.encode(value));
        body.extend(version.to_le_bytes());
        body.push(0);
    }
    let mut out = vec![0x53, 0xb0, 0, 2];
    for block in body.chunks(16_000) {
        out.push(2);
        out.extend((block.len() as u16).to_le_bytes());
        out.extend(block);
    }
    out.push(0);
    out
}

/// A value for [`answer`].
pub(crate) fn value(kind: RecordKind, record: &[u8], version: u64) -> (String, Vec<u8>, u64) {
    (kind.key(), record.to_vec(), version)
}

/// Reads frames until a digest names the own incarnation and version of `node`.
pub(crate) async fn read_known(stream: &mut (impl AsyncRead + Unpin), node: NodeId) -> Result<Known> {
    for _ in 0..100 {
        let frame = frame::read(stream, MAX).await?;
        if let Ok(Frame::Gossip(VarBytes(bytes))) = codec::decode::<Frame>(&frame, MAX)
            && let Some(own) = named(&bytes).into_iter().find(|known| known.node == node && known.version > 0)
        {
            return Ok(own);
        }
    }
    bail!("{node} does not send its own version")
}

/// Sends a gossip message.
pub(crate) async fn send(stream: &mut (impl AsyncWrite + Unpin), message: Vec<u8>) -> Result<()> {
    Ok(frame::write(stream, &hand::payload(&Frame::Gossip(VarBytes(message)))).await?)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
}

fn name(out: &mut Vec<u8>, node: NodeId, generation: u64) {
    text(out, &node.to_string());
    out.extend(generation.to_le_bytes());
    out.push(6);
    out.extend(mesh_address(&node).octets());
    out.extend(7440_u16.to_le_bytes());
}

/// The incarnations in the digest of a SYN or SYN-ACK; empty for other messages.
fn named(bytes: &[u8]) -> Vec<Known> {
    let mut all = Vec::new();
    if bytes.len() < 6 || bytes[3] > 1 {
        return all;
    }
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let mut at = 6;
    for _ in 0..u16::from_le_bytes([bytes[4], bytes[5]]) {
        let length = usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let node = std::str::from_utf8(&bytes[at + 2..at + 2 + length]).unwrap().parse().unwrap();
        at += 2 + length;
        // Generation, address, then heartbeat, garbage-collected version and highest version.
        all.push(Known { node, generation: number(at), version: number(at + 27 + 16) });
        at += 27 + 24;
    }
    all
}
