//! The IO of a join, with bounds on time, sizes and concurrency.

use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex as SyncMutex;
use rustbalance_gossip::id::ClusterId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};

use super::admitter::{Admission, Admissions, Effect, Event, Outcome, Publisher, Redemption};
use super::joiner::{JoinError, Joined, Joiner, Step};
use super::message::{self, JoinRefusal};
use super::token::Token;
use super::transcript::Fresh;
use crate::bucket::{Rate, TokenBucket};
use crate::frame::{self, FrameError};
use crate::keys::NodeSecret;
use crate::places::Places;
use crate::stream::BoxStream;

/// Time limit for the joiner to receive a frame: a worker may first have to build a circuit to a
/// publisher.
const ANSWER: Duration = Duration::from_secs(90);
/// Time limit for the other side to close its stream after the last message.
const LINGER: Duration = Duration::from_secs(10);
/// Time limit for a worker to carry one join.
const CARRY: Duration = Duration::from_secs(180);
/// Bytes that a worker carries in one direction of a join: a few small frames, and one of the
/// maximum size.
const CARRY_BYTES: u64 = (frame::MAX + 4 * frame::MAX_UNPROVEN) as u64;

/// Bounds on joiners at a [`Door`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoorLimits {
    /// Joiners at the same time.
    pub at_once: usize,
    /// Joiners in a burst, before the rate limit applies.
    pub burst: u32,
    /// After a burst, one joiner is accepted in this time.
    pub every: Duration,
    /// Time limit for a joiner to send its next frame, or to read one.
    pub patience: Duration,
    /// Time limit for recording a redemption.
    pub record: Duration,
}

impl Default for DoorLimits {
    fn default() -> Self {
        let (patience, record) = (Duration::from_secs(30), Duration::from_secs(20));
        Self { at_once: 16, burst: 32, every: Duration::from_millis(500), patience, record }
    }
}

/// Redeems a token over a stream to the join port of the master address. `unix` is this node's
/// clock, in seconds since the epoch.
///
/// # Errors
/// If [`JoinError::may_have_joined`] is true, the node key must be kept for another try.
pub async fn redeem(
    stream: BoxStream,
    token: &Token,
    node: &NodeSecret,
    cluster: ClusterId,
    unix: impl Fn() -> u64,
) -> Result<Joined, JoinError> {
    redeem_within(ANSWER, stream, token, node, cluster, unix).await
}

/// Like [`redeem`], with another time limit for each frame.
pub(super) async fn redeem_within(
    limit: Duration,
    mut stream: BoxStream,
    token: &Token,
    node: &NodeSecret,
    cluster: ClusterId,
    unix: impl Fn() -> u64,
) -> Result<Joined, JoinError> {
    let (mut joiner, hello) = Joiner::new(token, node, cluster, Fresh::generate(&mut rand::rng()))?;
    let mut next = hello;
    loop {
        let redeemed = joiner.has_redeemed();
        // Once Redeem is on its way, silence may mean that the answer was lost. A refusal is
        // reported as it is.
        let lost = |error: JoinError| match error {
            JoinError::Refused(_) | JoinError::ClockSkew { .. } => error,
            error if redeemed => JoinError::Unanswered(Box::new(error)),
            error => error,
        };
        let exchange = async {
            let written = frame::write(&mut stream, &next).await;
            // The publisher may refuse before everything is written: its refusal says more than the
            // failed write.
            match frame::read(&mut stream, frame::MAX).await {
                Err(_) if written.is_err() => written.map(|()| Vec::new()),
                read => read,
            }
        };
        let frame = timeout(limit, exchange)
            .await
            .map_err(|_| lost(JoinError::Timeout(limit.as_secs())))?
            .map_err(|error| lost(error.into()))?;
        match joiner.handle(&frame, unix()).map_err(lost)? {
            Step::Send(frame) => next = frame,
            Step::Joined(joined) => return Ok(*joined),
        }
    }
}

/// The services that a [`Door`] needs from its node.
#[async_trait]
pub trait Admitter: Send + Sync {
    /// The publisher that admits.
    fn publisher(&self) -> &Publisher;
    /// This node's clock, in seconds since the epoch.
    fn unix(&self) -> u64;
    /// Calls `decide` with the current state of the cluster, including everything recorded so far.
    fn with_admissions(&self, decide: &mut dyn FnMut(&dyn Admissions));
    /// Writes a redemption to disk, synced, and gossips it. False if it could not be written.
    async fn record(&self, redemption: &Redemption) -> bool;
}

/// Admits joiners. A node has one door, which makes its decisions one after another.
pub struct Door {
    limits: watch::Receiver<DoorLimits>,
    places: Places,
    bucket: SyncMutex<TokenBucket>,
    turn: Mutex<()>,
}

impl Door {
    /// A door that applies the latest `limits` to each joiner.
    pub fn new(limits: watch::Receiver<DoorLimits>) -> Self {
        let DoorLimits { every, burst, .. } = *limits.borrow();
        let bucket = SyncMutex::new(TokenBucket::new(Rate::every(every, burst.into()), Instant::now()));
        Self { limits, places: Places::default(), bucket, turn: Mutex::new(()) }
    }

    fn limits(&self) -> DoorLimits {
        *self.limits.borrow()
    }

    /// Admits or refuses the joiner on a stream, direct or carried. `None` if it left or fell
    /// silent.
    pub async fn admit(&self, mut stream: BoxStream, admitter: &dyn Admitter) -> Option<Outcome> {
        let limits = self.limits();
        let place = self.places.take(limits.at_once);
        if place.is_none() || !self.within_rate(Instant::now()) {
            drop(place);
            refuse(stream, JoinRefusal::Busy).await;
            return Some(Outcome::Refused(JoinRefusal::Busy));
        }
        let mut admission = Admission::new(Fresh::generate(&mut rand::rng()));
        loop {
            let frame = match timeout(limits.patience, frame::read(&mut stream, frame::MAX_UNPROVEN)).await.ok()? {
                Ok(frame) => frame,
                // Treated like any other malformed frame.
                Err(FrameError::TooLong { .. }) => Vec::new(),
                Err(_) => return None,
            };
            let (frames, outcome) = self.decide(&mut admission, &frame, admitter).await;
            for frame in frames {
                timeout(limits.patience, frame::write(&mut stream, &frame)).await.ok()?.ok()?;
            }
            if outcome.is_some() {
                finish(&mut stream).await;
                return outcome;
            }
        }
    }

    /// Passes a frame to the admission and carries out its effects, except sending: returns the
    /// frames to send.
    async fn decide(
        &self,
        admission: &mut Admission,
        frame: &[u8],
        admitter: &dyn Admitter,
    ) -> (Vec<Vec<u8>>, Option<Outcome>) {
        let _turn = match admission.decides_next() {
            true => Some(self.turn.lock().await),
            false => None,
        };
        let mut effects = ask(admission, Event::Frame(frame), admitter);
        if let [Effect::Record(redemption)] = effects.as_slice() {
            let recorded = timeout(self.limits().record, admitter.record(redemption)).await.unwrap_or(false);
            effects = ask(admission, Event::Recorded(recorded), admitter);
        }
        let (mut frames, mut outcome) = (Vec::new(), None);
        for effect in effects {
            match effect {
                Effect::Send(frame) => frames.push(frame),
                Effect::Close(how) => outcome = Some(how),
                Effect::Record(_) => {}
            }
        }
        (frames, outcome)
    }

    /// Takes from the bucket of joins; false if it is empty.
    fn within_rate(&self, now: Instant) -> bool {
        let DoorLimits { every, burst, .. } = self.limits();
        self.take(now, Rate::every(every, burst.into()))
    }

    /// Whether a worker may carry another joiner now. All `carriers` workers together may carry
    /// joiners at the rate at which one publisher admits them, but with a quarter of its burst:
    /// each carried join counts towards the streams per second that a publisher accepts from all
    /// members.
    pub fn may_carry(&self, now: Instant, carriers: usize) -> bool {
        let carriers = u32::try_from(carriers).unwrap_or(u32::MAX).max(1);
        let DoorLimits { every, burst, .. } = self.limits();
        let burst = f64::from(burst) / 4.0 / f64::from(carriers);
        self.take(now, Rate::every(every.saturating_mul(carriers), burst.max(1.0)))
    }

    fn take(&self, now: Instant, rate: Rate) -> bool {
        self.bucket.lock().take_at(rate, 1, now)
    }
}

fn ask(admission: &mut Admission, event: Event<'_>, admitter: &dyn Admitter) -> Vec<Effect> {
    let (mut event, mut effects) = (Some(event), Vec::new());
    admitter.with_admissions(&mut |cluster| {
        if let Some(event) = event.take() {
            effects = admission.handle(event, admitter.unix(), admitter.publisher(), cluster);
        }
    });
    effects
}

/// Refuses a joiner without reading its messages, for instance on a worker that can reach no
/// publisher.
pub async fn refuse(mut stream: BoxStream, refusal: JoinRefusal) {
    if let Ok(frame) = message::refusal(&refusal)
        && let Ok(Ok(())) = timeout(LINGER, frame::write(&mut stream, &frame)).await
    {
        finish(&mut stream).await;
    }
}

/// Closes a stream after the other side has closed it: dropping it earlier could lose bytes in
/// flight.
async fn finish(stream: &mut BoxStream) {
    let close = async {
        stream.shutdown().await?;
        let mut rest = stream.take(CARRY_BYTES);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // The peer has the last message, so it does not matter how it closes.
    let _ = timeout(LINGER, close).await;
}

/// Carries a join between a joiner and a publisher, unread, until either side is done. Returns the
/// bytes carried from the joiner and to the joiner.
pub async fn carry(joiner: BoxStream, publisher: BoxStream) -> (u64, u64) {
    let ((mut from_joiner, mut to_joiner), (mut from_publisher, mut to_publisher)) =
        (tokio::io::split(joiner), tokio::io::split(publisher));
    let (mut there, mut back) = (0, 0);
    let both = async {
        tokio::select! {
            () = pump(&mut from_joiner, &mut to_publisher, &mut there) => {}
            () = pump(&mut from_publisher, &mut to_joiner, &mut back) => {}
        }
    };
    // However it ended, both sides see their stream closed.
    let _ = timeout(CARRY, both).await;
    let close = async {
        let _ = tokio::join!(to_joiner.shutdown(), to_publisher.shutdown());
        tokio::io::copy(&mut from_joiner.take(CARRY_BYTES), &mut tokio::io::sink()).await
    };
    let _ = timeout(LINGER, close).await;
    (there, back)
}

/// Copies until the end of the stream, an error or [`CARRY_BYTES`].
async fn pump(from: &mut (impl AsyncReadExt + Unpin), to: &mut (impl AsyncWriteExt + Unpin), count: &mut u64) {
    let mut buffer = vec![0; 16 << 10];
    while *count < CARRY_BYTES {
        let Ok(size @ 1..) = from.read(&mut buffer).await else { return };
        let Some(bytes) = buffer.get(..size) else { return };
        if to.write_all(bytes).await.is_err() || to.flush().await.is_err() {
            return;
        }
        *count += size as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_joins_is_admitted_and_then_the_rate_holds() {
        let limits = DoorLimits { burst: 3, every: Duration::from_secs(2), ..DoorLimits::default() };
        let door = Door::new(watch::channel(limits).1);
        let start = Instant::now();
        let seconds = [0, 0, 0, 0, 1, 2, 2, 3, 60, 60, 60, 60];
        let let_in = seconds.map(|second| door.within_rate(start + Duration::from_secs(second)));
        let wanted = [true, true, true, false, false, true, false, false, true, true, true, false];
        assert_eq!(let_in, wanted);
    }

    #[test]
    fn nodes_that_carry_joins_share_the_rate_of_one_join_port() {
        let limits = DoorLimits { burst: 32, every: Duration::from_secs(1), ..DoorLimits::default() };
        let doors = [(); 4].map(|()| Door::new(watch::channel(limits).1));
        let start = Instant::now();
        let carried = |second| {
            let now = start + Duration::from_secs(second);
            doors.iter().map(|door| (0..99).filter(|_| door.may_carry(now, 4)).count()).sum::<usize>()
        };
        assert_eq!([0, 2, 4, 8].map(carried), [8, 0, 4, 4]);
    }
}
