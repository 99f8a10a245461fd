//! One open link: reads and writes frames until either side falls silent.
//!
//! Each side pings when it has written nothing for a few seconds, and closes the link after a
//! bounded time without any frame: this tells a frozen peer from a quiet one. Nothing that a peer
//! does or fails to do can block the other side: outgoing messages wait in the link's queue, and a
//! write that takes too long ends the link.

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
use tokio::time::{Instant, sleep_until, timeout};

use super::frame::{MessageError, read_message, write_message};
use super::queue::OutQueue;
use super::{LinkLimits, MemberSet};
use crate::bucket::{Rate, TokenBucket};
use crate::counters::{Counter, Counters};
use crate::discovery::{Discovery, Offer};
use crate::frame::{FrameError, MAX};
use crate::stream::BoxStream;

/// Interval at which the newest discovery key is offered again on a link. A peer that has it
/// ignores the offer; a peer that could not store it, or had no space in its queue, gets another
/// chance.
const OFFER_AGAIN: Duration = Duration::from_secs(300);

/// Interval at which one discovery key from a peer is examined: each new key costs a signature
/// check and a write to disk.
const OFFER_PAUSE: Duration = Duration::from_secs(10);
/// Burst above [`OFFER_PAUSE`]: two evictions may follow each other closely.
const OFFERS_AT_ONCE: f64 = 4.0;

/// Pings of a link that carries other frames, for its round-trip time: one in this number of ping
/// intervals.
const MEASURE_EVERY: u32 = 12;

/// When a link pings: at the start, after a ping interval in which nothing was written, and seldom
/// otherwise.
struct Pings {
    interval: Duration,
    /// The last frame that was written.
    written: Instant,
    pinged: Option<Instant>,
}

impl Pings {
    fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, written: now, pinged: None }
    }

    /// The time of the next ping.
    fn next(&self) -> Instant {
        let first = self.written;
        self.pinged.map_or(first, |at| (self.written + self.interval).min(at + self.interval * MEASURE_EVERY))
    }

    /// Notes a written frame.
    fn on_frame(&mut self, frame: &Frame, now: Instant) {
        self.written = now;
        if matches!(frame, Frame::Ping(_)) {
            self.pinged = Some(now);
        }
    }
}

/// A message on an open link, in a frame of at most [`MAX`] bytes. Variants of a later version are
/// skipped.
#[derive(Debug, Serialize, Deserialize)]
pub enum Frame {
    /// Asks for a [`Frame::Pong`] with the same value: the sender's milliseconds since the link
    /// opened.
    Ping(u64),
    /// The answer to a ping, with its value.
    Pong(u64),
    /// A message of chitchat.
    Gossip(VarBytes),
    /// A discovery key that the receiver may not have yet.
    Discovery(Offer),
    /// The digest of the facts that the sender knows.
    FactsDigest(FactsDigest),
    /// Facts, sent because the digests differ.
    Facts(Vec<CarriedFact>),
    /// Tests whether the route carries full frames in time.
    Probe {
        /// Rises with each probe on a route.
        number: u64,
        /// Zeros, ignored by the receiver.
        padding: VarBytes,
    },
    /// The answer: the probe with this number and every frame before it have been read.
    Probed(u64),
    /// New values that the mesh sends unasked. A node of an earlier version skips it, and gets the
    /// values when it asks.
    Push(VarBytes),
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkEnd {
    /// No frame arrived for this time.
    #[error("silent for {0:?}")]
    Silent(Duration),
    /// A write did not finish in this time.
    #[error("the peer has read nothing for {0:?}")]
    Stuck(Duration),
    /// The stream failed, ended, or carried a malformed message.
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl LinkEnd {
    /// The counter for an ending that an honest member does not cause; `None` for the others.
    pub(super) fn counter(&self) -> Option<Counter> {
        match self {
            Self::Stuck(_) => Some(Counter::LinkStuck),
            Self::Message(MessageError::Decode(_) | MessageError::Frame(FrameError::TooLong { .. })) => {
                Some(Counter::LinkBadFrame)
            }
            Self::Silent(_) | Self::Message(MessageError::Frame(_)) => None,
        }
    }
}

/// Traffic over one link in one direction.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    fn add(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Frames, and their bytes.
    pub(super) fn so_far(&self) -> (u64, u64) {
        (self.frames.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// Counters of one link.
#[derive(Debug, Default)]
pub(super) struct LinkCounts {
    pub(super) read: Traffic,
    pub(super) written: Traffic,
    pub(super) dropped: AtomicU64,
    /// Milliseconds from the opening of the link to the last frame that was read.
    pub(super) heard: AtomicU64,
    /// Round-trip time in milliseconds, plus one; 0 while unknown.
    pub(super) round_trip: AtomicU64,
}

/// The peer's answer to a probe or a ping.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answer {
    /// To the probe of this number.
    Probe(u64),
    /// To a ping that was sent this long ago.
    Ping(Duration),
}

/// Everything one link needs to run.
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
    /// Called with each answer of the peer.
    pub(super) answered: Box<dyn Fn(Answer) + Send + Sync>,
    pub(super) limits: LinkLimits,
}

impl Connection {
    /// Runs until the link ends. Cancel by dropping the future.
    pub(super) async fn run(self, stream: BoxStream) -> LinkEnd {
        let (reader, writer) = tokio::io::split(stream);
        let start = Instant::now();
        let (heard, theirs) = watch::channel(None);
        tokio::select! {
            ended = self.read(reader, heard) => ended,
            ended = self.write(writer, start, theirs) => ended,
        }
    }

    async fn read<R: AsyncRead + Unpin>(&self, mut reader: R, heard: watch::Sender<Option<FactsDigest>>) -> LinkEnd {
        let rate = Rate::per_second(self.limits.bytes_per_second, self.limits.bytes_burst);
        let mut bucket = TokenBucket::new(rate, Instant::now());
        let offers = Rate::every(OFFER_PAUSE, OFFERS_AT_ONCE);
        let mut offers = TokenBucket::new(offers, Instant::now());
        loop {
            let (frame, bytes) = match timeout(self.limits.silence, read_message(&mut reader, MAX)).await {
                Err(_) => return LinkEnd::Silent(self.limits.silence),
                Ok(Err(error)) => return error.into(),
                Ok(Ok(read)) => read,
            };
            self.counts.read.add(bytes);
            self.counts.heard.store(self.out.age(), Ordering::Relaxed);
            // A flood is dropped. Closing the link would not help: the peer would only dial again.
            let cost = bytes as u64 + self.limits.bytes_per_message;
            let room = bucket.take(cost, Instant::now());
            let taken = match frame {
                Some(frame) => room && self.take(frame, &heard, &mut offers),
                None => {
                    self.counters.count(Counter::LinkUnknown);
                    room
                }
            };
            self.count(taken);
        }
    }

    /// Handles a frame that passed the peer's rate limit. Returns false if the frame was dropped
    /// because a further limit or its receiver's queue was exceeded.
    fn take(&self, frame: Frame, heard: &watch::Sender<Option<FactsDigest>>, offers: &mut TokenBucket) -> bool {
        match frame {
            Frame::Ping(ping) => self.out.answer(ping),
            Frame::Pong(sent) => {
                let milliseconds = self.out.age().saturating_sub(sent);
                self.counts.round_trip.store(milliseconds + 1, Ordering::Relaxed);
                (self.answered)(Answer::Ping(Duration::from_millis(milliseconds)));
            }
            Frame::Probe { number, .. } => self.out.answer_probe(number),
            Frame::Probed(number) => {
                self.out.confirm(number);
                (self.answered)(Answer::Probe(number));
            }
            Frame::FactsDigest(digest) => {
                heard.send_if_modified(|theirs| theirs.replace(digest) != Some(digest));
            }
            Frame::Gossip(message) | Frame::Push(message) => {
                return self.received.try_send((self.peer, message.0)).is_ok();
            }
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
    ) -> LinkEnd {
        let mut pings = Pings::new(self.limits.ping, start);
        let (mut discovery, mut members) = (self.discovery.clone(), self.members.clone());
        let mut sync = FactSync::default();
        let mut due = VecDeque::new();
        // Never offers a key of generation 0: the peer got that one when it joined.
        let mut handed_over = ((0, [0xff; 32]), start);
        loop {
            let facts = Arc::clone(&members.borrow_and_update().facts);
            // Due frames are sent before the digests are compared again: otherwise a peer that
            // sends digest after digest could make `due` grow.
            let wake = match due.is_empty() {
                true => compare(&mut sync, &facts, *theirs.borrow_and_update(), start, &mut due),
                false => start,
            };
            let newest = discovery.borrow_and_update().clone();
            let offer = newest.filter(|newest| {
                let (rank, (last, since)) = (newest.key.rank(), handed_over);
                let again = rank == last && since.elapsed() >= OFFER_AGAIN;
                (rank > last || again)
                    && sync.has_facts(facts.digest(), start.elapsed())
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
                    () = sleep_until(pings.next()) => Frame::Ping(self.out.age()),
                    Ok(()) = discovery.changed() => continue,
                    Ok(()) = members.changed() => continue,
                    Ok(()) = theirs.changed() => continue,
                    () = sleep_until(wake) => continue,
                },
            };
            pings.on_frame(&frame, Instant::now());
            match timeout(self.limits.write, write_message(&mut writer, &frame)).await {
                Err(_) => return LinkEnd::Stuck(self.limits.write),
                Ok(Err(error)) => return error.into(),
                Ok(Ok(bytes)) => self.counts.written.add(bytes),
            }
        }
    }

    /// Whether the peer may have this key. A revoked peer may not. The key's generation counts the
    /// revocations at its creation: if it exceeds those known here, the peer may be among the
    /// missing ones. All facts are handed over first, so that the peer knows the revocations that
    /// the key counts.
    fn may_have(&self, newest: &Discovery, members: &watch::Receiver<MemberSet>) -> bool {
        let revoked = &members.borrow().revoked;
        newest.key.generation as usize <= revoked.len() && !revoked.contains_key(&self.peer)
    }
}

/// Queues the frames that the comparison of facts asks for now; returns when to compare again at
/// the latest.
fn compare(
    sync: &mut FactSync,
    facts: &SharedFacts,
    theirs: Option<FactsDigest>,
    start: Instant,
    due: &mut VecDeque<Frame>,
) -> Instant {
    if let Some(theirs) = theirs {
        sync.set_peer_digest(theirs);
    }
    loop {
        match sync.step(facts.digest(), start.elapsed()) {
            FactStep::SendDigest => due.push_back(Frame::FactsDigest(facts.digest())),
            FactStep::HandOver => due.extend(facts.batches().into_iter().map(Frame::Facts)),
            FactStep::Wait(until) => return start + until,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_carries_frames_is_pinged_seldom_and_a_quiet_one_often() {
        let (start, interval) = (Instant::now(), Duration::from_secs(5));
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pings = Pings::new(interval, start);
        assert_eq!(pings.next(), start);
        pings.on_frame(&Frame::Ping(0), start);
        assert_eq!(pings.next(), at(5));
        (1..=29).for_each(|i| pings.on_frame(&Frame::Probed(0), at(i * 2)));
        assert_eq!(pings.next(), at(60));
        pings.on_frame(&Frame::Ping(0), at(60));
        assert_eq!(pings.next(), at(65));
    }
}
