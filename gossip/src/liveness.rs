//! Who lives: judged by signed heartbeats that have been verified, on this node's own monotonic clock.
//!
//! A node is *alive* once two rising beats of it have come within its allowance, and stays so until it has been silent
//! for longer than that. One beat proves little: gossip keeps the last words of the dead, and a node that has just
//! started hears them all. The allowance follows how often the node's beats arrive here: four times the mean interval,
//! within bounds. A node that says goodbye is dead at once.
//!
//! All beats reach everybody, so a cluster of hundreds that beat as often as one of three would do little else. From
//! a hundred nodes on they beat more seldom the more they are ([`Patience::among`]), and are given more time.
//!
//! When this process itself was stopped (SIGSTOP, a suspended machine), nobody's silence proves anything:
//! [`Liveness::amnesty`] gives all the others their allowance anew.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::NodeId;

/// Bounds and habits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How often a healthy node beats.
    pub interval: Duration,
    /// The shortest silence that can mean death.
    pub least: Duration,
    /// The longest silence that is ever waited out.
    pub most: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { interval: Duration::from_secs(2), least: Duration::from_secs(10), most: Duration::from_secs(40) }
    }
}

/// How many mean intervals of silence are allowed.
const INTERVALS: u32 = 4;
/// All beats of a cluster together come no closer than this: at most fifty a second.
const BETWEEN_BEATS: Duration = Duration::from_millis(20);

impl Patience {
    /// What it is in a cluster of so many nodes. Everybody counts for itself; those who count differently for a moment
    /// still hear each other in time, because beats that come seldom are allowed for.
    pub fn among(self, nodes: usize) -> Self {
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
        let interval = BETWEEN_BEATS.saturating_mul(nodes).max(self.interval);
        let least = if interval > self.interval { self.least.max(interval * INTERVALS) } else { self.least };
        Self { interval, least, most: self.most.max(least) }
    }
}

/// What is known of one node's beats.
#[derive(Debug, Clone, Copy)]
struct Pulse {
    /// When it was last heard.
    heard: Duration,
    /// Since when its silence counts: as above, or since an amnesty.
    last: Duration,
    mean: Duration,
    alive: bool,
    gone: bool,
}

impl Pulse {
    fn allowance(&self, patience: &Patience) -> Duration {
        (self.mean * INTERVALS).clamp(patience.least, patience.most)
    }

    fn silent(&self, patience: &Patience, mono: Duration) -> bool {
        mono.saturating_sub(self.last) > self.allowance(patience)
    }
}

/// The judge of who lives. The caller passes only beats that are verified and new.
#[derive(Debug, Default)]
pub struct Liveness {
    /// As configured.
    given: Patience,
    /// As fits the size of the cluster.
    patience: Patience,
    pulses: BTreeMap<NodeId, Pulse>,
}

impl Liveness {
    /// Nobody has been heard yet.
    pub fn new(patience: Patience) -> Self {
        Self { given: patience, patience, pulses: BTreeMap::new() }
    }

    /// The cluster has so many nodes now.
    pub fn adapt(&mut self, nodes: usize) {
        self.patience = self.given.among(nodes);
    }

    /// The bounds and habits in force.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// A new beat of `node` has come; `goodbye` if it says that it goes. True if the node's being alive changed.
    pub fn beat(&mut self, node: NodeId, goodbye: bool, mono: Duration) -> bool {
        let patience = self.patience;
        let Some(pulse) = self.pulses.get_mut(&node) else {
            let pulse = Pulse { heard: mono, last: mono, mean: patience.interval, alive: false, gone: goodbye };
            self.pulses.insert(node, pulse);
            return false;
        };
        let was_alive = pulse.alive;
        let elapsed = mono.saturating_sub(pulse.last);
        // A longer pause was a death or a restart, and says nothing of how often beats arrive. One that is shorter than
        // the longest allowance counts even if it was taken for a death: this is how a slow path is learnt.
        if !pulse.gone && elapsed <= patience.most {
            pulse.mean = (pulse.mean * 4 + elapsed) / 5;
        }
        pulse.alive = !goodbye && !pulse.gone && !pulse.silent(&patience, mono);
        pulse.gone = goodbye;
        pulse.heard = mono;
        pulse.last = mono;
        was_alive != pulse.alive
    }

    /// Declares dead whoever has been silent too long, and names them.
    pub fn expire(&mut self, mono: Duration) -> Vec<NodeId> {
        let patience = self.patience;
        let mut dead = Vec::new();
        for (node, pulse) in &mut self.pulses {
            if pulse.alive && pulse.silent(&patience, mono) {
                pulse.alive = false;
                dead.push(*node);
            }
        }
        dead
    }

    /// This process was stopped until now: those who lived get their whole allowance again.
    pub fn amnesty(&mut self, mono: Duration) {
        for pulse in self.pulses.values_mut().filter(|pulse| pulse.alive) {
            pulse.last = mono;
        }
    }

    /// True if the node is alive as of the last [`Liveness::beat`] or [`Liveness::expire`].
    pub fn is_alive(&self, node: &NodeId) -> bool {
        self.pulses.get(node).is_some_and(|pulse| pulse.alive)
    }

    /// True if the node's last word was goodbye.
    pub fn is_gone(&self, node: &NodeId) -> bool {
        self.pulses.get(node).is_some_and(|pulse| pulse.gone)
    }

    /// When the node was last heard, on the monotonic clock.
    pub fn last_heard(&self, node: &NodeId) -> Option<Duration> {
        self.pulses.get(node).map(|pulse| pulse.heard)
    }

    /// When the next of those alive would be declared dead if it stayed silent.
    pub fn next_deadline(&self) -> Option<Duration> {
        let allowed = |pulse: &Pulse| pulse.last + pulse.allowance(&self.patience) + Duration::from_millis(1);
        self.pulses.values().filter(|pulse| pulse.alive).map(allowed).min()
    }

    /// Forgets a node.
    pub fn forget(&mut self, node: &NodeId) {
        self.pulses.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeId {
        NodeId::from_public_key([1; 32])
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn beating(every: u64, until: u64) -> Liveness {
        let mut liveness = Liveness::new(Patience::default());
        for at in (0..=until).step_by(every as usize) {
            liveness.beat(node(), false, seconds(at));
        }
        liveness
    }

    #[test]
    fn the_last_word_of_the_dead_does_not_revive_them() {
        let mut liveness = Liveness::new(Patience::default());
        assert!(!liveness.beat(node(), false, seconds(0)));
        assert!(!liveness.is_alive(&node()));
        assert!(liveness.beat(node(), false, seconds(2)));
        assert!(liveness.is_alive(&node()));
    }

    #[test]
    fn silence_is_death_after_ten_seconds_on_a_good_network() {
        let mut liveness = beating(2, 60);
        assert_eq!(liveness.expire(seconds(70)), vec![]);
        assert_eq!(liveness.next_deadline(), Some(seconds(70) + Duration::from_millis(1)));
        assert_eq!(liveness.expire(seconds(71)), vec![node()]);
        assert_eq!(liveness.expire(seconds(72)), vec![]);
        assert!(!liveness.beat(node(), false, seconds(200)));
        assert!(liveness.beat(node(), false, seconds(202)));
    }

    #[test]
    fn a_slow_path_is_learnt_but_not_without_end() {
        let mut liveness = beating(8, 160);
        assert!(liveness.is_alive(&node()));
        assert_eq!(liveness.expire(seconds(185)), vec![]);
        liveness.beat(node(), false, seconds(186));
        assert!(liveness.is_alive(&node()));
        assert_eq!(beating(15, 300).expire(seconds(339)), vec![]);
        assert_eq!(beating(15, 300).expire(seconds(341)), vec![node()]);
    }

    #[test]
    fn hundreds_beat_more_seldom_and_are_given_more_time() {
        let usual = Patience::default();
        assert_eq!(usual.among(100), usual);
        let many = usual.among(500);
        assert_eq!((many.interval, many.least, many.most), (seconds(10), seconds(40), seconds(40)));
        let mut liveness = Liveness::new(usual);
        liveness.adapt(500);
        liveness.beat(node(), false, seconds(0));
        assert!(liveness.beat(node(), false, seconds(10)));
        assert_eq!(liveness.expire(seconds(50)), vec![]);
        assert_eq!(liveness.expire(seconds(51)), vec![node()]);
    }

    #[test]
    fn goodbye_is_believed_at_once_and_ended_by_two_new_beats() {
        let mut liveness = beating(2, 20);
        assert!(liveness.beat(node(), true, seconds(21)));
        assert!(!liveness.is_alive(&node()) && liveness.is_gone(&node()));
        assert!(!liveness.beat(node(), false, seconds(23)));
        assert!(liveness.beat(node(), false, seconds(25)));
    }

    #[test]
    fn whoever_was_stopped_does_not_judge_the_others() {
        let mut liveness = beating(2, 20);
        liveness.amnesty(seconds(500));
        assert_eq!(liveness.expire(seconds(509)), vec![]);
        assert_eq!(liveness.expire(seconds(511)), vec![node()]);
    }
}
