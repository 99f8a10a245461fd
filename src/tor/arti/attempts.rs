//! Decides when an attempt to build a circuit may start: one at a time while the network is silent,
//! and few while no guard is usable.
//!
//! Arti counts each failed circuit against its guard, and after each failure the guard may rest up
//! to three times as long as before. A node that is cut off needs some twenty circuits at once (for
//! uploads, introduction points and links); if all fail at once, the guards rest for minutes after
//! the network is back. And each attempt while all guards rest makes Arti try, in vain, to refill
//! its pool of circuits: 8 to 1024 tries at once, more in an older and busier process.

use std::time::{Duration, Instant};

use arti_client::{ErrorKind, HasKind};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::sleep;

use crate::backoff::Backoff;

/// The network is silent if no cell has arrived for 5 s: links carry gossip every second.
const SILENT: Duration = Duration::from_secs(5);

/// An attempt on a silent network blocks the next one for at most 10 s, about Arti's timeout for a
/// circuit.
const LONGEST: Duration = Duration::from_secs(10);

/// Pauses between attempts while no guard is usable. The longest one bounds how late the end of
/// the guards' rest is noticed.
const REST: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8));

/// Interval at which a waiting attempt checks whether the network is still silent.
const LOOK: Duration = Duration::from_millis(100);

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Built,
    /// No guard was usable: nothing was sent.
    NoGuard,
    Failed,
}

/// Whether an attempt may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It may start; the number identifies it.
    Go(u64),
    /// It must ask again after this time.
    Wait(Duration),
}

/// Decides when an attempt may start.
#[derive(Debug, Default)]
struct Plan {
    next: u64,
    /// The only attempt on a silent network or without a usable guard, and its start.
    lone: Option<(u64, Instant)>,
    /// The end of the pause after an attempt found no usable guard, and the number of such pauses
    /// in a row before it.
    rest: Option<(Instant, u32)>,
}

impl Plan {
    /// `silence` is the time since the last cell arrived; `None` if none ever did.
    fn ask(&mut self, silence: Option<Duration>, now: Instant) -> Answer {
        if let Some((until, _)) = self.rest
            && now < until
        {
            return Answer::Wait(until - now);
        }
        let alone = self.rest.is_some() || silence.is_none_or(|silence| silence >= SILENT);
        if alone && self.lone.is_some_and(|(_, since)| now.duration_since(since) < LONGEST) {
            return Answer::Wait(LOOK);
        }
        let number = self.next;
        self.next += 1;
        if alone {
            self.lone = Some((number, now));
        }
        Answer::Go(number)
    }

    /// An attempt has ended.
    fn ended(&mut self, number: u64, outcome: Outcome, now: Instant) {
        self.lone.take_if(|(lone, _)| *lone == number);
        match (outcome, self.rest) {
            // This attempt started before the pause.
            (Outcome::NoGuard | Outcome::Failed, Some((until, _))) if now < until => {}
            (Outcome::NoGuard, rest) => {
                let earlier = rest.map_or(0, |(_, earlier)| earlier.saturating_add(1));
                self.rest = Some((now + REST.pause(earlier), earlier));
            }
            (Outcome::Built | Outcome::Failed, _) => self.rest = None,
        }
    }
}

/// The attempts of one Tor client.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    plan: Mutex<Plan>,
}

impl Attempts {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock()
    }

    /// Waits until an attempt may start. Not bounded: the caller sets a timeout.
    pub(super) async fn turn(&self) -> Attempt<'_> {
        loop {
            let answer = self.plan().ask(tor_proto::time_since_last_incoming_traffic(), Instant::now());
            match answer {
                Answer::Go(number) => return Attempt { attempts: self, number, outcome: Outcome::Failed },
                Answer::Wait(pause) => sleep(pause).await,
            }
        }
    }
}

/// An attempt that has started. If it is dropped without [`Attempt::ended`], it counts as failed.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    attempts: &'a Attempts,
    number: u64,
    outcome: Outcome,
}

impl Attempt<'_> {
    /// Ends the attempt with this result.
    pub(super) fn ended<T, E: HasKind>(mut self, result: &Result<T, E>) {
        self.outcome = match result {
            Ok(_) => Outcome::Built,
            Err(error) if error.kind() == ErrorKind::TorAccessFailed => Outcome::NoGuard,
            Err(_) => Outcome::Failed,
        };
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.attempts.plan().ended(self.number, self.outcome, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARD: Option<Duration> = Some(Duration::from_millis(900));
    const SILENCE: Option<Duration> = Some(Duration::from_secs(6));

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// How many of 20 attempts may start at this moment.
    fn going(plan: &mut Plan, silence: Option<Duration>, now: Instant) -> usize {
        (0..20).filter(|_| matches!(plan.ask(silence, now), Answer::Go(_))).count()
    }

    fn go(plan: &mut Plan, silence: Option<Duration>, now: Instant) -> u64 {
        match plan.ask(silence, now) {
            Answer::Go(number) => number,
            Answer::Wait(pause) => panic!("{pause:?} to wait"),
        }
    }

    #[test]
    fn with_a_silent_network_there_is_one_attempt_at_a_time() {
        let (mut plan, start) = (Plan::default(), Instant::now());
        assert_eq!(going(&mut plan, HEARD, start), 20);
        let first = go(&mut plan, SILENCE, start);
        assert_eq!(going(&mut plan, SILENCE, start + seconds(9)), 0);
        assert_eq!(going(&mut plan, None, start + seconds(9)), 0);
        // The next one starts when it has failed, or takes too long.
        plan.ended(first, Outcome::Failed, start + seconds(9));
        assert_eq!(going(&mut plan, SILENCE, start + seconds(9)), 1);
        assert_eq!(going(&mut plan, SILENCE, start + seconds(18)), 0);
        assert_eq!(going(&mut plan, SILENCE, start + seconds(19)), 1);
        // The late end of an earlier attempt does not count.
        plan.ended(first, Outcome::Failed, start + seconds(20));
        assert_eq!(going(&mut plan, SILENCE, start + seconds(20)), 0);
        assert_eq!(going(&mut plan, HEARD, start + seconds(20)), 20);
    }

    #[test]
    fn without_a_guard_attempts_are_few_until_there_is_one() {
        let (mut plan, start) = (Plan::default(), Instant::now());
        let mut tried = Vec::new();
        for tenth in 0..600 {
            let now = start + Duration::from_millis(100 * tenth);
            for _ in 0..20 {
                if let Answer::Go(number) = plan.ask(HEARD, now) {
                    plan.ended(number, Outcome::NoGuard, now);
                    tried.push(tenth / 10);
                }
            }
        }
        assert_eq!(tried, [0, 1, 3, 7, 15, 23, 31, 39, 47, 55]);
        // The first one that finds a guard is alone; then all start.
        let now = start + seconds(63);
        let number = go(&mut plan, HEARD, now);
        assert_eq!(going(&mut plan, HEARD, now), 0);
        plan.ended(number, Outcome::Built, now);
        assert_eq!(going(&mut plan, HEARD, now), 20);
    }

    #[test]
    fn simultaneous_attempts_without_a_guard_count_as_one_failure() {
        let (mut plan, start) = (Plan::default(), Instant::now());
        let numbers: Vec<u64> = (0..20).map(|_| go(&mut plan, HEARD, start)).collect();
        for number in numbers {
            plan.ended(number, Outcome::NoGuard, start);
        }
        assert_eq!(plan.ask(HEARD, start), Answer::Wait(seconds(1)));
        // A failure of an attempt from before the pause does not end it; a built circuit does.
        plan.ended(100, Outcome::Failed, start);
        assert_eq!(plan.ask(HEARD, start), Answer::Wait(seconds(1)));
        plan.ended(101, Outcome::Built, start);
        assert_eq!(going(&mut plan, HEARD, start), 20);
    }

    struct GuardsRest;

    impl HasKind for GuardsRest {
        fn kind(&self) -> ErrorKind {
            ErrorKind::TorAccessFailed
        }
    }

    #[tokio::test]
    async fn an_abandoned_attempt_frees_its_place() {
        let attempts = Attempts::default();
        // No cell has arrived in this process.
        let first = attempts.turn().await;
        assert!(attempts.plan().lone.is_some());
        drop(first);
        assert!(attempts.plan().lone.is_none());
        attempts.turn().await.ended::<(), _>(&Err(GuardsRest));
        assert!(matches!(attempts.plan().ask(HEARD, Instant::now()), Answer::Wait(_)));
    }
}
