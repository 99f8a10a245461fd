//! The frames that wait to be sent on one link, and those that may not have arrived.
//!
//! The queue is bounded and drops the oldest frame first. Where another route can take over, a
//! written frame is kept until the peer has answered a probe written after it: on a stream, that
//! answer shows that everything before the probe has been read. If the link fails, the frames that
//! are left go by the other route. A frame may then arrive twice, which is harmless: gossip
//! compares versions.

use std::collections::VecDeque;

use parking_lot::{Mutex, MutexGuard};
use rustbalance_gossip::bytes::VarBytes;
use rustbalance_mesh::is_push;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connection::Frame;

/// Bytes of padding in a probe. With the headers of TCP and IPv6 the frame of about 1200 bytes
/// fills a packet of a tunnel with the smallest MTU that IPv6 allows (1280), and one of the shorter
/// packets of the engine inside the process. So a path which loses full packets is not proven.
const PROBE_PADDING: usize = 1160;

/// The queue of one link.
pub(super) struct OutQueue {
    state: Mutex<State>,
    changed: Notify,
    bound: usize,
    keeps: bool,
    opened: Instant,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    /// Answers to be sent: the latest of each kind.
    pong: Option<u64>,
    probed: Option<u64>,
    probe: Option<u64>,
    /// True if a ping is to be sent before all messages.
    asks: bool,
    /// The probe that was written last.
    last_probe: u64,
    /// Written frames, each with the number of the last probe before it.
    unconfirmed: VecDeque<(u64, Vec<u8>)>,
}

impl OutQueue {
    /// A queue of at most `bound` frames. With `keeps`, it also keeps up to `bound` written frames
    /// until they are confirmed.
    pub(super) fn new(bound: usize, keeps: bool) -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), bound: bound.max(1), keeps, opened: Instant::now() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Queues a message; true if the oldest one was dropped to make space.
    pub(super) fn push(&self, message: Vec<u8>) -> bool {
        let mut state = self.state();
        let full = state.waiting.len() >= self.bound;
        if full {
            state.waiting.pop_front();
        }
        state.waiting.push_back(message);
        self.changed.notify_one();
        full
    }

    /// Milliseconds since the link opened: the value of a ping that is sent now.
    pub(super) fn age(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Queues a ping before all messages.
    pub(super) fn ask(&self) {
        self.state().asks = true;
        self.changed.notify_one();
    }

    /// Queues the answer to a ping. Only the latest ping is answered.
    pub(super) fn answer(&self, ping: u64) {
        self.state().pong = Some(ping);
        self.changed.notify_one();
    }

    /// Queues the answer to a probe. Only the latest probe is answered.
    pub(super) fn answer_probe(&self, number: u64) {
        self.state().probed = Some(number);
        self.changed.notify_one();
    }

    /// Queues a probe. `number` rises from 1.
    pub(super) fn probe(&self, number: u64) {
        self.state().probe = Some(number);
        self.changed.notify_one();
    }

    /// Notes that the peer has answered a probe: the frames before it have arrived. A number that
    /// was never written confirms nothing.
    pub(super) fn confirm(&self, number: u64) {
        let mut state = self.state();
        if number <= state.last_probe {
            state.unconfirmed.retain(|(before, _)| *before >= number);
        }
    }

    /// Takes all frames that wait or may not have arrived, oldest first.
    pub(super) fn drain(&self) -> Vec<Vec<u8>> {
        let mut state = self.state();
        let unconfirmed = std::mem::take(&mut state.unconfirmed).into_iter().map(|(_, message)| message);
        unconfirmed.chain(std::mem::take(&mut state.waiting)).collect()
    }

    fn pop(&self) -> Option<Frame> {
        let mut state = self.state();
        if let Some(ping) = state.pong.take() {
            return Some(Frame::Pong(ping));
        }
        if let Some(number) = state.probed.take() {
            return Some(Frame::Probed(number));
        }
        if std::mem::take(&mut state.asks) {
            return Some(Frame::Ping(self.age()));
        }
        if let Some(number) = state.probe.take() {
            state.last_probe = number;
            return Some(Frame::Probe { number, padding: VarBytes(vec![0; PROBE_PADDING]) });
        }
        let message = state.waiting.pop_front()?;
        if self.keeps {
            if state.unconfirmed.len() >= self.bound {
                state.unconfirmed.pop_front();
            }
            let last = state.last_probe;
            state.unconfirmed.push_back((last, message.clone()));
        }
        let push = is_push(&message);
        let message = VarBytes(message);
        Some(if push { Frame::Push(message) } else { Frame::Gossip(message) })
    }

    /// The next frame to be written. Cancel-safe.
    pub(super) async fn next(&self) -> Frame {
        loop {
            let changed = self.changed.notified();
            if let Some(frame) = self.pop() {
                return frame;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(queue: &OutQueue) -> Vec<u8> {
        let mut order = Vec::new();
        while let Some(frame) = queue.pop() {
            match frame {
                Frame::Gossip(message) => order.push(message.0[0]),
                Frame::Probe { number, .. } => order.push(100 + number as u8),
                Frame::Ping(_) => order.push(200),
                other => panic!("{other:?}"),
            }
        }
        order
    }

    #[test]
    fn frames_that_no_answered_probe_confirms_are_handed_over_in_order() {
        let queue = OutQueue::new(8, true);
        (1..4).for_each(|i| assert!(!queue.push(vec![i])));
        assert_eq!(written(&queue), [1, 2, 3]);
        queue.probe(1);
        assert_eq!(written(&queue), [101]);
        queue.push(vec![4]);
        assert_eq!(written(&queue), [4]);
        queue.push(vec![5]);
        // Probe 2 was never sent, so this number confirms nothing.
        queue.confirm(2);
        queue.confirm(0);
        queue.confirm(1);
        assert_eq!(queue.drain(), [[4], [5]]);
        assert!(queue.drain().is_empty());
    }

    #[test]
    fn a_question_is_asked_once_and_before_the_messages() {
        let queue = OutQueue::new(8, true);
        queue.push(vec![1]);
        queue.ask();
        queue.ask();
        assert_eq!(written(&queue), [200, 1]);
    }

    #[test]
    fn unconfirmed_frames_are_bounded_and_kept_only_if_another_route_can_take_over() {
        for (keeps, left) in [(true, 8), (false, 0)] {
            let queue = OutQueue::new(8, keeps);
            for i in 0..20 {
                queue.push(vec![i]);
                written(&queue);
            }
            assert_eq!(queue.drain().len(), left);
        }
        let queue = OutQueue::new(8, true);
        assert_eq!((0..20).filter(|i| queue.push(vec![*i])).count(), 12);
        assert_eq!(queue.drain().len(), 8);
    }

    #[test]
    fn a_probe_fills_a_packet_of_the_smallest_tunnel() {
        let queue = OutQueue::new(1, true);
        queue.probe(u64::MAX);
        let frame = rustbalance_gossip::codec::encode(&queue.pop().unwrap()).unwrap();
        // 1280 less the headers of IPv6 (40) and TCP (20, or 32 with time stamps).
        assert!((1190..=1208).contains(&(frame.len() + crate::frame::HEADER)), "{} bytes", frame.len());
    }
}
