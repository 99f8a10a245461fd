//! One open link: frames in, frames out, until either side falls silent.
//!
//! Each side pings every few seconds; whoever hears nothing for the bound closes, which is how a frozen peer is told
//! from a quiet one. Nothing that a peer does (or fails to do) makes the other side wait: what is to be sent waits in the
//! link's queue, and a write that takes too long ends the link.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::facts::{CarriedFact, FactStep, FactSync, FactsDigest, SharedFacts};
use rustbalance_gossip::id::NodeId;
use rustbalance_mesh::Update;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval, sleep_until, timeout};

use super::frame::{MessageError, read_message, write_message};
use super::queue::OutQueue;
use super::{LinkLimits, MemberSet};
use crate::bucket::{Rate, TokenBucket};
use crate::counters::{Counter, Counters};
use crate::discovery::{Discovery, Offer};
use crate::frame::{FrameError, MAX};
use crate::stream::BoxStream;

/// After how long a discovery key is offered again on a link: whoever took it before takes no notice, and whoever could not
/// write it down, or had no room for it, must not wait for another link.
const OFFER_AGAIN: Duration = Duration::from_secs(300);

/// Between two discovery keys that are looked at of one peer: each new one costs a signature and
/// the disk.
const OFFER_PAUSE: Duration = Duration::from_secs(10);
/// How many may come at once: two evictions may follow each other closely.
const OFFERS_AT_ONCE: f64 = 4.0;

/// What crosses an open link, in a frame of at most [`MAX`] bytes. Variants that a later version has are skipped.
#[derive(Debug, Serialize, Deserialize)]
pub enum Frame {
    /// Are you there?
    Ping(u64),
    /// I am.
    Pong(u64),
    /// A message of the mesh.
    Gossip(VarBytes),
    /// A discovery key that the other may not have yet.
    Discovery(Offer),
    /// The digest of the facts that the sender knows.
    FactsDigest(FactsDigest),
    /// Facts, because the digests differ.
    Facts(Vec<CarriedFact>),
    /// Does this route carry full frames in time?
    Probe {
        /// Rises with each.
        number: u64,
        /// Zeros. The reader does not look at them.
        padding: VarBytes,
    },
    /// The probe of this number has been read, and so has all before it.
    Probed(u64),
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// Nothing came for too long.
    #[error("silent for {0:?}")]
    Silent(Duration),
    /// The peer takes nothing.
    #[error("the peer has read nothing for {0:?}")]
    Stuck(Duration),
    /// The stream failed, ended, or carried nonsense.
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl Ended {
    /// Where it is counted, if the peer did what no member does.
    pub(super) fn counter(&self) -> Option<Counter> {
        match self {
            Self::Stuck(_) => Some(Counter::LinkDeaf),
            Self::Message(MessageError::Decode(_) | MessageError::Frame(FrameError::TooLong { .. })) => {
                Some(Counter::LinkNonsense)
            }
            Self::Silent(_) | Self::Message(MessageError::Frame(_)) => None,
        }
    }
}

/// What went over one link in one direction.
#[derive(Debug, Default)]
pub(super) struct Passed {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Passed {
    fn add(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Frames, and their bytes.
    pub(super) fn so_far(&self) -> (u64, u64) {
        (self.frames.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// Counts of one link.
#[derive(Debug, Default)]
pub(super) struct LinkCounts {
    pub(super) read: Passed,
    pub(super) written: Passed,
    pub(super) dropped: AtomicU64,
    /// Round-trip time in milliseconds, plus one; 0 while unknown.
    pub(super) round_trip: AtomicU64,
}

/// What one link needs to run.
pub(super) struct Connection {
    pub(super) peer: NodeId,
    pub(super) out: Arc<OutQueue>,
    pub(super) counts: Arc<LinkCounts>,
    pub(super) received: mpsc::Sender<(NodeId, Vec<u8>)>,
    pub(super) counters: Counters,
    pub(super) members: watch::Receiver<MemberSet>,
    pub(super) discovery: watch::Receiver<Option<Arc<Discovery>>>,
    pub(super) offered: mpsc::Sender<Offer>,
    pub(super) facts: mpsc::Sender<Vec<Update>>,
    /// Hears the number of each probe that the peer has answered.
    pub(super) answered: Box<dyn Fn(u64) + Send + Sync>,
    pub(super) limits: LinkLimits,
}

impl Connection {
    /// Runs until the link ends. Cancel by dropping.
    pub(super) async fn run(self, stream: BoxStream) -> Ended {
        let (reader, writer) = tokio::io::split(stream);
        let start = Instant::now();
        let (heard, theirs) = watch::channel(None);
        tokio::select! {
            ended = self.read(reader, start, heard) => ended,
            ended = self.write(writer, start, theirs) => ended,
        }
    }

    async fn read<R: AsyncRead + Unpin>(
        &self,
        mut reader: R,
        start: Instant,
        heard: watch::Sender<Option<FactsDigest>>,
    ) -> Ended {
        let rate = Rate::per_second(self.limits.bytes_per_second, self.limits.bytes_burst);
        let mut bucket = TokenBucket::new(rate, Instant::now());
        let offers = Rate::every(OFFER_PAUSE, OFFERS_AT_ONCE);
        let mut offers = TokenBucket::new(offers, Instant::now());
        loop {
            let (frame, bytes) = match timeout(self.limits.silence, read_message(&mut reader, MAX)).await {
                Err(_) => return Ended::Silent(self.limits.silence),
                Ok(Err(error)) => return error.into(),
                Ok(Ok(read)) => read,
            };
            self.counts.read.add(bytes);
            // A flood is dropped, not answered by closing: the peer would only dial again.
            let cost = bytes as u64 + self.limits.bytes_per_message;
            let room = bucket.take(cost, Instant::now());
            let taken = match frame {
                Some(frame) => room && self.take(frame, start, &heard, &mut offers),
                None => {
                    self.counters.count(Counter::LinkUnknown);
                    room
                }
            };
            self.count(taken);
        }
    }

    /// Takes a frame for which the peer's rate has room; false if there is no room where it belongs.
    fn take(
        &self,
        frame: Frame,
        start: Instant,
        heard: &watch::Sender<Option<FactsDigest>>,
        offers: &mut TokenBucket,
    ) -> bool {
        match frame {
            Frame::Ping(ping) => self.out.answer(ping),
            Frame::Pong(sent) => {
                let now = start.elapsed().as_millis() as u64;
                self.counts.round_trip.store(now.saturating_sub(sent) + 1, Ordering::Relaxed);
            }
            Frame::Probe { number, .. } => self.out.answer_probe(number),
            Frame::Probed(number) => {
                self.out.confirm(number);
                (self.answered)(number);
            }
            Frame::FactsDigest(digest) => {
                heard.send_if_modified(|theirs| theirs.replace(digest) != Some(digest));
            }
            Frame::Gossip(message) => return self.received.try_send((self.peer, message.0)).is_ok(),
            Frame::Discovery(offer) => {
                return offers.take(1, Instant::now()) && self.offered.try_send(offer).is_ok();
            }
            Frame::Facts(facts) => {
                let origin = self.peer;
                let updates = facts.into_iter().filter_map(CarriedFact::read);
                let updates = updates.map(|(kind, bytes)| Update { origin, kind, bytes }).collect();
                return self.facts.try_send(updates).is_ok();
            }
        }
        true
    }

    fn count(&self, taken: bool) {
        if !taken {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            self.counters.count(Counter::LinkFlood);
        }
    }

    async fn write<W: AsyncWrite + Unpin>(
        &self,
        mut writer: W,
        start: Instant,
        mut theirs: watch::Receiver<Option<FactsDigest>>,
    ) -> Ended {
        let mut pings = interval(self.limits.ping);
        let (mut discovery, mut members) = (self.discovery.clone(), self.members.clone());
        let mut sync = FactSync::default();
        let mut due = VecDeque::new();
        // The first key of a cluster came with the join.
        let mut handed_over = ((0, [0xff; 32]), start);
        loop {
            let facts = Arc::clone(&members.borrow_and_update().facts);
            // What is due first goes out: a peer that tells digest after digest must not make it
            // grow.
            let wake = match due.is_empty() {
                true => compare(&mut sync, &facts, *theirs.borrow_and_update(), start, &mut due),
                false => start,
            };
            let newest = discovery.borrow_and_update().clone();
            let offer = newest.filter(|newest| {
                let (rank, (last, since)) = (newest.key.rank(), handed_over);
                let again = rank == last && since.elapsed() >= OFFER_AGAIN;
                (rank > last || again)
                    && sync.is_given(facts.digest(), start.elapsed())
                    && self.may_have(newest, &members)
            });
            let frame = match (due.pop_front(), offer) {
                (Some(frame), _) => frame,
                (None, Some(newest)) => {
                    handed_over = (newest.key.rank(), Instant::now());
                    Frame::Discovery(newest.offer())
                }
                (None, None) => tokio::select! {
                    frame = self.out.next() => frame,
                    _ = pings.tick() => Frame::Ping(start.elapsed().as_millis() as u64),
                    Ok(()) = discovery.changed() => continue,
                    Ok(()) = members.changed() => continue,
                    Ok(()) = theirs.changed() => continue,
                    () = sleep_until(wake) => continue,
                },
            };
            match timeout(self.limits.write, write_message(&mut writer, &frame)).await {
                Err(_) => return Ended::Stuck(self.limits.write),
                Ok(Err(error)) => return error.into(),
                Ok(Ok(bytes)) => self.counts.written.add(bytes),
            }
        }
    }

    /// Whether the peer may have this key: not if it was revoked, nor if it may have been by a
    /// revocation that has not come here yet. The key's generation says how many there were. It
    /// gets all facts before, so that it does not lack the revocations that the key counts.
    fn may_have(&self, newest: &Discovery, members: &watch::Receiver<MemberSet>) -> bool {
        let revoked = &members.borrow().revoked;
        newest.key.generation as usize <= revoked.len() && !revoked.contains_key(&self.peer)
    }
}

/// Queues what the comparison of facts asks for now, and says when to look again at the latest.
fn compare(
    sync: &mut FactSync,
    facts: &SharedFacts,
    theirs: Option<FactsDigest>,
    start: Instant,
    due: &mut VecDeque<Frame>,
) -> Instant {
    if let Some(theirs) = theirs {
        sync.hear(theirs);
    }
    loop {
        match sync.step(facts.digest(), start.elapsed()) {
            FactStep::Tell => due.push_back(Frame::FactsDigest(facts.digest())),
            FactStep::HandOver => due.extend(facts.batches().into_iter().map(Frame::Facts)),
            FactStep::Wait(until) => return start + until,
        }
    }
}
