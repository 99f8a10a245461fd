//! The faults of a run, how often each strikes, and the deliberate bugs.

use std::time::Duration;

/// A deliberate bug in the harness around a node, to show that the simulation catches it. The code
/// of the node itself has no such switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A restarted node has lost the term that was on disk.
    ForgetsTerm,
    /// The publisher takes revisions from its clock, regardless of gossip and directories.
    ClockRevision,
    /// The view believes records without checking signatures.
    TrustsUnverified,
    /// The plan includes dead nodes.
    KeepsDead,
    /// A publisher that loses the lease goes on renewing it.
    LoserRenews,
}

impl Bug {
    /// All bugs, with the names that `SIM_BUG` takes.
    pub const ALL: [(&'static str, Self); 5] = [
        ("forgets-term", Self::ForgetsTerm),
        ("clock-revision", Self::ClockRevision),
        ("trusts-unverified", Self::TrustsUnverified),
        ("keeps-dead", Self::KeepsDead),
        ("loser-renews", Self::LoserRenews),
    ];

    /// The bug of this name; `None` if the name is unknown.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, bug)| *bug)
    }
}

/// How often each kind of fault strikes, relative to the others. 0: never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// A process is killed; it may be started again.
    pub crash: usize,
    /// A process that was killed is started again.
    pub restart: usize,
    /// A process is stopped for a while; its connections stay up.
    pub freeze: usize,
    /// A machine sleeps for a while: its monotonic clock stops.
    pub sleep: usize,
    /// The network splits into two halves.
    pub partition: usize,
    /// Messages pass in one direction only: a node is not heard, a node hears no other, or one half
    /// does not hear the other.
    pub one_way: usize,
    /// All partitions end.
    pub heal: usize,
    /// The wall clock of a machine jumps, to at most ten minutes off.
    pub clock: usize,
    /// A disk takes up to 40 s for every write for a while. A crash before a write has finished
    /// undoes it.
    pub slow_disk: usize,
    /// A disk is full for a while: writes are lost, and no process starts.
    pub full_disk: usize,
    /// A new node joins.
    pub join: usize,
    /// Two new nodes join with one token that is good for one use.
    pub race: usize,
    /// A node announces that it stops, and leaves for good.
    pub leave: usize,
    /// A node is evicted.
    pub evict: usize,
    /// A node begins or ends draining.
    pub drain: usize,
    /// A target fails, or answers again.
    pub target: usize,
    /// A node loses an introduction point.
    pub point: usize,
    /// A member sends forged records of others.
    pub forge: usize,
    /// The faster routes fail for all nodes, for one node, or lose half of their packets; or all
    /// work again.
    pub udp: usize,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            crash: 6,
            restart: 8,
            freeze: 4,
            sleep: 1,
            partition: 3,
            one_way: 3,
            heal: 5,
            clock: 3,
            slow_disk: 4,
            full_disk: 1,
            join: 2,
            race: 1,
            leave: 2,
            evict: 1,
            drain: 2,
            target: 3,
            point: 6,
            forge: 4,
            udp: 0,
        }
    }
}

/// The settings of one run.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Decides every random choice.
    pub seed: u64,
    /// Nodes at the start; at most twice that number take part at once.
    pub nodes: usize,
    /// Services of the cluster. All nodes serve the first one, two of three nodes each of the
    /// others.
    pub services: u32,
    /// Number of nodes, from the first, that have faster routes to each other. Newcomers have
    /// none.
    pub fast: usize,
    /// How long faults strike. Meanwhile only safety is checked, not agreement.
    pub chaos: Duration,
    /// Mean time between two faults.
    pub every: Duration,
    /// How often each kind of fault strikes.
    pub weights: Weights,
    /// Highest share of messages that is lost, 0 to 1.
    pub loss: f64,
    /// Longest delay of a message.
    pub delay: Duration,
    /// All nodes must agree within this time after the last fault.
    pub settle: Duration,
    /// For this time after that, they must keep agreeing.
    pub watch: Duration,
    /// The bug that the run must catch; `None` to run without one.
    pub bug: Option<Bug>,
}

impl Weights {
    /// No faults.
    pub const NONE: Self = Self {
        crash: 0,
        restart: 0,
        freeze: 0,
        sleep: 0,
        partition: 0,
        one_way: 0,
        heal: 0,
        clock: 0,
        slow_disk: 0,
        full_disk: 0,
        join: 0,
        race: 0,
        leave: 0,
        evict: 0,
        drain: 0,
        target: 0,
        point: 0,
        forge: 0,
        udp: 0,
    };
}

impl Scenario {
    /// The usual run of this seed. The larger the cluster, the more often faults strike.
    pub fn new(seed: u64, nodes: usize) -> Self {
        let every = Duration::from_secs(8).div_f64(1.0 + nodes as f64 / 50.0);
        Self {
            seed,
            nodes,
            services: 1,
            fast: 0,
            chaos: Duration::from_secs(300),
            every,
            weights: Weights::default(),
            loss: 0.3,
            delay: Duration::from_secs(10),
            settle: Duration::from_secs(60),
            watch: Duration::from_secs(30),
            bug: None,
        }
    }
}
