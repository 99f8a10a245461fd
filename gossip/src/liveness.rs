//! Failure detection: judges which nodes are alive from verified heartbeats, on this node's own
//! monotonic clock.
//!
//! A node becomes *alive* when two new heartbeats arrive within its allowance, and stays alive
//! until it has been silent for longer than that. One heartbeat proves little: gossip keeps the
//! last records of dead nodes, and a node that has just started receives them all. The allowance
//! follows the observed rate: four times the mean interval between the node's heartbeats, within
//! bounds. A node that says goodbye is dead at once.
//!
//! Every heartbeat reaches every node, so the total must be bounded: above a hundred nodes the
//! heartbeat interval and the allowance grow with the size of the cluster ([`Patience::among`]).
//!
//! After this process itself was stopped (SIGSTOP, a suspended machine), silence proves nothing:
//! [`Liveness::amnesty`] starts the allowance of every living node again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::NodeId;

/// Heartbeat interval, and bounds of the silence after which a node counts as dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Interval between two heartbeats of a healthy node.
    pub interval: Duration,
    /// Lower bound of the allowance: a shorter silence never means death.
    pub least: Duration,
    /// Upper bound of the allowance: a longer silence always means death.
    pub most: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { interval: Duration::from_secs(2), least: Duration::from_secs(10), most: Duration::from_secs(40) }
    }
}

/// Number of mean intervals of silence that are allowed.
const INTERVALS: u32 = 4;
/// Minimum mean interval between two heartbeats of the whole cluster: at most 50 per second.
const BETWEEN_BEATS: Duration = Duration::from_millis(20);

impl Patience {
    /// These bounds scaled to a cluster of `nodes` nodes. Nodes may briefly disagree on the count;
    /// that is safe, because the allowance follows the observed interval.
    pub fn among(self, nodes: usize) -> Self {
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
        let interval = BETWEEN_BEATS.saturating_mul(nodes).max(self.interval);
        let least = if interval > self.interval { self.least.max(interval * INTERVALS) } else { self.least };
        Self { interval, least, most: self.most.max(least) }
    }
}

/// State of one node's heartbeats. Times are on the monotonic clock.
#[derive(Debug, Clone, Copy)]
struct HeartbeatState {
    /// When its last heartbeat arrived.
    heard: Duration,
    /// Start of the silence that is judged: `heard`, or the last amnesty if that was later.
    last: Duration,
    mean: Duration,
    alive: bool,
    gone: bool,
}

impl HeartbeatState {
    fn allowance(&self, patience: &Patience) -> Duration {
        (self.mean * INTERVALS).clamp(patience.least, patience.most)
    }

    fn silent(&self, patience: &Patience, mono: Duration) -> bool {
        mono.saturating_sub(self.last) > self.allowance(patience)
    }
}

/// The failure detector. The caller passes in only heartbeats that are verified and new.
#[derive(Debug, Default)]
pub struct Liveness {
    /// The configured bounds.
    given: Patience,
    /// The bounds scaled to the size of the cluster.
    patience: Patience,
    pulses: BTreeMap<NodeId, HeartbeatState>,
}

impl Liveness {
    /// A detector that knows no node yet.
    pub fn new(patience: Patience) -> Self {
        Self { given: patience, patience, pulses: BTreeMap::new() }
    }

    /// Scales the bounds to a cluster of `nodes` nodes.
    pub fn adapt(&mut self, nodes: usize) {
        self.patience = self.given.among(nodes);
    }

    /// The bounds in force, scaled to the size of the cluster.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Processes a new heartbeat of `node`; `goodbye` means that the node announces its departure.
    /// Returns true if this changed whether the node is alive.
    pub fn on_heartbeat(&mut self, node: NodeId, goodbye: bool, mono: Duration) -> bool {
        let patience = self.patience;
        let Some(pulse) = self.pulses.get_mut(&node) else {
            let pulse =
                HeartbeatState { heard: mono, last: mono, mean: patience.interval, alive: false, gone: goodbye };
            self.pulses.insert(node, pulse);
            return false;
        };
        let was_alive = pulse.alive;
        let elapsed = mono.saturating_sub(pulse.last);
        // A pause longer than the longest allowance was a death or a restart and does not enter the
        // mean. A shorter one does, even if the node was declared dead during it, so that the
        // allowance adapts to a slow path.
        if !pulse.gone && elapsed <= patience.most {
            pulse.mean = (pulse.mean * 4 + elapsed) / 5;
        }
        pulse.alive = !goodbye && !pulse.gone && !pulse.silent(&patience, mono);
        pulse.gone = goodbye;
        pulse.heard = mono;
        pulse.last = mono;
        was_alive != pulse.alive
    }

    /// Declares nodes dead whose silence exceeds their allowance, and returns them.
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

    /// To be called when this process was stopped until now: starts the allowance of every living
    /// node again.
    pub fn amnesty(&mut self, mono: Duration) {
        for pulse in self.pulses.values_mut().filter(|pulse| pulse.alive) {
            pulse.last = mono;
        }
    }

    /// True if the node is alive, as of its last heartbeat or the last [`Liveness::expire`].
    pub fn is_alive(&self, node: &NodeId) -> bool {
        self.pulses.get(node).is_some_and(|pulse| pulse.alive)
    }

    /// True if the node's last heartbeat said goodbye.
    pub fn is_gone(&self, node: &NodeId) -> bool {
        self.pulses.get(node).is_some_and(|pulse| pulse.gone)
    }

    /// When the node's last heartbeat arrived, on the monotonic clock; `None` if none did.
    pub fn last_heard(&self, node: &NodeId) -> Option<Duration> {
        self.pulses.get(node).map(|pulse| pulse.heard)
    }

    /// Earliest time at which a living node would be declared dead if it stays silent; `None` if
    /// none is alive.
    pub fn next_deadline(&self) -> Option<Duration> {
        let allowed = |pulse: &HeartbeatState| pulse.last + pulse.allowance(&self.patience) + Duration::from_millis(1);
        self.pulses.values().filter(|pulse| pulse.alive).map(allowed).min()
    }

    /// Discards all state of a node, such as one that was evicted.
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
            liveness.on_heartbeat(node(), false, seconds(at));
        }
        liveness
    }

    #[test]
    fn a_single_heartbeat_of_a_dead_node_does_not_revive_it() {
        let mut liveness = Liveness::new(Patience::default());
        assert!(!liveness.on_heartbeat(node(), false, seconds(0)));
        assert!(!liveness.is_alive(&node()));
        assert!(liveness.on_heartbeat(node(), false, seconds(2)));
        assert!(liveness.is_alive(&node()));
    }

    #[test]
    fn a_silent_node_is_dead_after_ten_seconds_on_a_good_network() {
        let mut liveness = beating(2, 60);
        assert_eq!(liveness.expire(seconds(70)), vec![]);
        assert_eq!(liveness.next_deadline(), Some(seconds(70) + Duration::from_millis(1)));
        assert_eq!(liveness.expire(seconds(71)), vec![node()]);
        assert_eq!(liveness.expire(seconds(72)), vec![]);
        assert!(!liveness.on_heartbeat(node(), false, seconds(200)));
        assert!(liveness.on_heartbeat(node(), false, seconds(202)));
    }

    #[test]
    fn a_slow_path_extends_the_patience_up_to_a_bound() {
        let mut liveness = beating(8, 160);
        assert!(liveness.is_alive(&node()));
        assert_eq!(liveness.expire(seconds(185)), vec![]);
        liveness.on_heartbeat(node(), false, seconds(186));
        assert!(liveness.is_alive(&node()));
        assert_eq!(beating(15, 300).expire(seconds(339)), vec![]);
        assert_eq!(beating(15, 300).expire(seconds(341)), vec![node()]);
    }

    #[test]
    fn hundreds_of_nodes_send_heartbeats_more_seldom_and_get_more_time() {
        let usual = Patience::default();
        assert_eq!(usual.among(100), usual);
        let many = usual.among(500);
        assert_eq!((many.interval, many.least, many.most), (seconds(10), seconds(40), seconds(40)));
        let mut liveness = Liveness::new(usual);
        liveness.adapt(500);
        liveness.on_heartbeat(node(), false, seconds(0));
        assert!(liveness.on_heartbeat(node(), false, seconds(10)));
        assert_eq!(liveness.expire(seconds(50)), vec![]);
        assert_eq!(liveness.expire(seconds(51)), vec![node()]);
    }

    #[test]
    fn a_goodbye_takes_effect_at_once_and_two_new_heartbeats_end_it() {
        let mut liveness = beating(2, 20);
        assert!(liveness.on_heartbeat(node(), true, seconds(21)));
        assert!(!liveness.is_alive(&node()) && liveness.is_gone(&node()));
        assert!(!liveness.on_heartbeat(node(), false, seconds(23)));
        assert!(liveness.on_heartbeat(node(), false, seconds(25)));
    }

    #[test]
    fn a_node_that_was_stopped_does_not_declare_others_dead_at_once() {
        let mut liveness = beating(2, 20);
        liveness.amnesty(seconds(500));
        assert_eq!(liveness.expire(seconds(509)), vec![]);
        assert_eq!(liveness.expire(seconds(511)), vec![node()]);
    }
}
