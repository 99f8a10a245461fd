//! Failure detection: judges which nodes are alive from verified heartbeats, on this node's own
//! monotonic clock.
//!
//! A node becomes *alive* when two new heartbeats arrive within its allowance, and stays alive
//! until it has been silent for longer than that. One heartbeat proves little: gossip keeps the
//! last records of dead nodes, and a node that has just started receives them all. The allowance
//! follows the observed rate: a multiple of the mean interval between the node's heartbeats, within
//! bounds. A node that says goodbye is dead at once.
//!
//! Every heartbeat reaches every node, so the total must be bounded: above 66 nodes the
//! heartbeat interval and the allowance grow with the size of the cluster ([`Patience::among`]).
//!
//! A node that answers on none of its links with this node ([`crate::contact`]) gets a shorter
//! allowance: one and a half mean intervals, three seconds in place of ten. A heartbeat of it that
//! others forward still counts, so the links alone never make a node dead.
//!
//! After this process itself was stopped (SIGSTOP, a suspended machine), silence proves nothing:
//! [`Liveness::amnesty`] starts the allowance of every living node again.

use std::collections::{BTreeMap, BTreeSet};
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
/// The same in a large cluster: while an interval lasts, a heartbeat has reached all nodes, and a
/// lost one was pulled from several neighbours.
const INTERVALS_OF_MANY: u32 = 3;
/// A heartbeat interval has this time for each node beyond [`FEW`]: so that each of 200 nodes sends
/// less than 200 kB a minute (MEASUREMENTS, "Gossip").
const OF_EACH: Duration = Duration::from_millis(40);
/// Nodes that do not lengthen the interval: it stays short enough for 100 nodes to notice a death
/// after ten seconds, like a small cluster.
const FEW: usize = 16;

impl Patience {
    /// These bounds scaled to a cluster of `nodes` nodes. Nodes may briefly disagree on the count;
    /// that is safe, because the allowance follows the observed interval.
    pub fn among(self, nodes: usize) -> Self {
        let many = u32::try_from(nodes.saturating_sub(FEW)).unwrap_or(u32::MAX);
        let interval = OF_EACH.saturating_mul(many).max(self.interval);
        let least = self.least.max(interval.saturating_mul(INTERVALS_OF_MANY));
        Self { interval, least, most: self.most.max(least) }
    }

    /// The allowance of a node with this mean interval. `unreachable`: if it answers on no link.
    fn allowance(&self, mean: Duration, unreachable: bool) -> Duration {
        let large = self.interval.saturating_mul(INTERVALS) > self.least;
        let intervals = if large { INTERVALS_OF_MANY } else { INTERVALS };
        let usual = mean.saturating_mul(intervals).clamp(self.least, self.most);
        if unreachable { self.brief(mean).min(usual) } else { usual }
    }

    /// One and a half intervals: a heartbeat that others forward is in time if it takes half an
    /// interval more than the last one.
    fn brief(&self, mean: Duration) -> Duration {
        mean.max(self.interval).saturating_mul(3) / 2
    }

    /// Longest pause of this process after which silence still counts. The last heartbeat of each
    /// node may have arrived an interval before the pause, so half an interval of the allowance
    /// remains. A node that receives nothing still wakes for its own heartbeats: the bound is above
    /// an interval.
    pub fn longest_pause(&self) -> Duration {
        (self.interval * 3).min(self.least.saturating_sub(self.interval * 3 / 2))
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
    fn silent(&self, patience: &Patience, unreachable: bool, mono: Duration) -> bool {
        mono.saturating_sub(self.last) > patience.allowance(self.mean, unreachable)
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
    /// The nodes that answer on none of their links with this node.
    unreachable: BTreeSet<NodeId>,
}

impl Liveness {
    /// A detector that knows no node yet.
    pub fn new(patience: Patience) -> Self {
        Self { given: patience, patience, pulses: BTreeMap::new(), unreachable: BTreeSet::new() }
    }

    /// Scales the bounds to a cluster of `nodes` nodes.
    pub fn adapt(&mut self, nodes: usize) {
        self.patience = self.given.among(nodes);
    }

    /// The bounds in force, scaled to the size of the cluster.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Sets the nodes that answer on none of their links with this node: their allowance is
    /// shorter.
    pub fn set_unreachable(&mut self, nodes: BTreeSet<NodeId>) {
        self.unreachable = nodes;
    }

    /// Silence after which this node counts as dead. `unreachable`: if it answers on none of its
    /// links with this node.
    pub fn allowance(&self, node: &NodeId, unreachable: bool) -> Duration {
        let mean = self.pulses.get(node).map_or(self.patience.interval, |pulse| pulse.mean);
        self.patience.allowance(mean, unreachable)
    }

    /// True if the node is dead, and answers on none of its links with this node.
    pub fn is_lost(&self, node: &NodeId) -> bool {
        self.unreachable.contains(node) && self.pulses.get(node).is_some_and(|pulse| !pulse.alive)
    }

    /// Processes a new heartbeat of `node`; `goodbye` means that the node announces its departure.
    /// Returns true if this changed whether the node is alive.
    pub fn on_heartbeat(&mut self, node: NodeId, goodbye: bool, mono: Duration) -> bool {
        let (patience, unreachable) = (self.patience, self.unreachable.contains(&node));
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
        pulse.alive = !goodbye && !pulse.gone && !pulse.silent(&patience, unreachable, mono);
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
            if pulse.alive && pulse.silent(&patience, self.unreachable.contains(node), mono) {
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
        let allowed = |(node, pulse): (&NodeId, &HeartbeatState)| {
            let allowance = self.patience.allowance(pulse.mean, self.unreachable.contains(node));
            pulse.last + allowance + Duration::from_millis(1)
        };
        self.pulses.iter().filter(|(_, pulse)| pulse.alive).map(allowed).min()
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
    fn a_cluster_of_up_to_66_nodes_has_the_usual_bounds_and_a_larger_one_longer_ones() {
        let usual = Patience::default();
        assert!((1..=66).all(|nodes| usual.among(nodes) == usual));
        let bounds = |nodes| {
            let patience = usual.among(nodes);
            [patience.interval, patience.least, patience.most].map(|bound| bound.as_millis())
        };
        assert_eq!(bounds(70), [2160, 10_000, 40_000]);
        assert_eq!(bounds(100), [3360, 10_080, 40_000]);
        assert_eq!(bounds(200), [7360, 22_080, 40_000]);
        assert_eq!(bounds(500), [19_360, 58_080, 58_080]);
    }

    #[test]
    fn a_node_that_answers_on_no_link_is_dead_after_three_seconds_unless_others_hear_it() {
        let unreachable = || BTreeSet::from([node()]);
        let mut liveness = beating(2, 60);
        liveness.set_unreachable(unreachable());
        assert_eq!(liveness.next_deadline(), Some(seconds(63) + Duration::from_millis(1)));
        assert_eq!(liveness.expire(seconds(63)), vec![]);
        // Others still hear it.
        for at in (62..100).step_by(2) {
            assert_eq!(liveness.expire(seconds(at)), vec![]);
            liveness.on_heartbeat(node(), false, seconds(at));
        }
        assert!(!liveness.is_lost(&node()));
        assert_eq!(liveness.expire(seconds(102)), vec![node()]);
        assert!(liveness.is_lost(&node()));
        // A last heartbeat that was on its way does not revive it, two do.
        assert!(!liveness.on_heartbeat(node(), false, seconds(103)));
        assert!(liveness.on_heartbeat(node(), false, seconds(105)));
        liveness.expire(seconds(110));
        // It answers again: the next heartbeat ends a false death.
        liveness.set_unreachable(BTreeSet::new());
        assert!(!liveness.is_lost(&node()));
        assert!(liveness.on_heartbeat(node(), false, seconds(111)));
        assert_eq!(liveness.expire(seconds(121)), vec![], "the usual patience applies again");
    }

    #[test]
    fn the_brief_patience_follows_the_interval_and_is_never_longer_than_the_usual() {
        for nodes in 1..=500 {
            let patience = Patience::default().among(nodes);
            for mean in [1, 2, 3, 8, 20, 60] {
                let brief = patience.brief(seconds(mean));
                assert!(brief >= patience.interval * 3 / 2 && brief <= seconds(mean).max(patience.interval) * 3 / 2);
            }
            assert!(patience.brief(patience.interval) < patience.least);
        }
    }

    #[test]
    fn hundreds_of_nodes_send_heartbeats_more_seldom_and_get_more_time() {
        let mut liveness = Liveness::new(Patience::default());
        liveness.adapt(200);
        liveness.on_heartbeat(node(), false, seconds(0));
        assert!(liveness.on_heartbeat(node(), false, seconds(7)));
        assert_eq!(liveness.expire(seconds(29)), vec![]);
        assert_eq!(liveness.expire(seconds(30)), vec![node()]);
    }

    /// Nodes learn of joins and evictions at different times, so for a while one sends heartbeats
    /// at the interval of another size than its reader expects. A node that has just started may
    /// know no other yet.
    #[test]
    fn a_cluster_that_grows_or_shrinks_by_much_at_once_declares_no_node_dead() {
        for [before, after] in [[50, 200], [200, 50], [1, 260], [260, 1], [120, 300], [300, 120]] {
            let patience = |nodes| Patience::default().among(nodes);
            for [reads, sends] in [[before, after], [after, before]] {
                let mut liveness = Liveness::new(Patience::default());
                liveness.adapt(before);
                let mut at = Duration::ZERO;
                for (count, nodes) in (0..40).map(|count| (count, if count < 20 { before } else { sends })) {
                    let expired = liveness.expire(at);
                    assert!(count < 2 || expired.is_empty(), "{before} to {after} nodes, heartbeat {count}");
                    liveness.on_heartbeat(node(), false, at);
                    at += patience(nodes).interval;
                    liveness.adapt(if count < 20 { before } else { reads });
                }
                assert!(liveness.is_alive(&node()));
            }
        }
    }

    /// An isolated node must declare the others dead although it wakes only for its own heartbeats.
    #[test]
    fn a_pause_declares_no_node_dead_and_waiting_for_the_own_heartbeat_is_no_pause() {
        assert_eq!(Patience::default().longest_pause(), seconds(6));
        for nodes in 1..=500 {
            let patience = Patience::default().among(nodes);
            assert!(patience.longest_pause() + patience.interval < patience.least, "{nodes} nodes");
            assert!(patience.longest_pause() * 10 >= patience.interval * 15, "{nodes} nodes");
        }
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
