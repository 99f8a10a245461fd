//! What goes wrong, and how often.

use std::time::Duration;

/// A deliberate bug in the harness around a node, to show that the simulation catches it. The node's own code carries
/// no such switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A restart finds no term on disk.
    ForgetsTerm,
    /// The publisher's revision is the clock's, whatever gossip and directories say.
    ClockRevision,
    /// The view believes records without checking signatures.
    TrustsUnverified,
    /// The plan counts the dead.
    KeepsDead,
    /// Whoever loses the lease goes on renewing it.
    LoserRenews,
}

impl Bug {
    /// All of them, by name.
    pub const ALL: [(&'static str, Self); 5] = [
        ("forgets-term", Self::ForgetsTerm),
        ("clock-revision", Self::ClockRevision),
        ("trusts-unverified", Self::TrustsUnverified),
        ("keeps-dead", Self::KeepsDead),
        ("loser-renews", Self::LoserRenews),
    ];

    /// The one of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, bug)| *bug)
    }
}

/// How often each fault strikes, relative to the others. 0: never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// A process is killed; it may be started again.
    pub crash: usize,
    /// One that was killed is started again.
    pub restart: usize,
    /// A process is stopped for a while; its connections stay up.
    pub freeze: usize,
    /// A machine sleeps for a while: its monotonic clock stands.
    pub sleep: usize,
    /// The network falls apart in two.
    pub partition: usize,
    /// Messages pass in one direction only: a node is not heard, a node hears nobody, or one half does not hear the other.
    pub one_way: usize,
    /// All parts are joined again.
    pub heal: usize,
    /// A clock jumps, to at most ten minutes off.
    pub clock: usize,
    /// A disk takes seconds for every write for a while; a crash before a write has landed undoes it.
    pub slow_disk: usize,
    /// A disk is full for a while: nothing that is written stays, and nothing starts.
    pub full_disk: usize,
    /// A new node joins.
    pub join: usize,
    /// Two new nodes join with one token of one use.
    pub race: usize,
    /// A node says goodbye.
    pub leave: usize,
    /// A node is evicted.
    pub evict: usize,
    /// A node drains, or ends it.
    pub drain: usize,
    /// A target fails, or is back.
    pub target: usize,
    /// An intro point is lost.
    pub point: usize,
    /// A member spreads forged records of others.
    pub forge: usize,
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
        }
    }
}

/// One run: how large, how long, what goes wrong.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Nodes at the start; never more than twice as many take part at once.
    pub nodes: usize,
    /// Services of the cluster, each served by every node.
    pub services: u32,
    /// How long things go wrong; then only safety is checked.
    pub chaos: Duration,
    /// Mean time between two faults.
    pub every: Duration,
    /// Which.
    pub weights: Weights,
    /// Worst loss of messages, 0 to 1.
    pub loss: f64,
    /// Longest delay of a message.
    pub delay: Duration,
    /// Within how long after the last fault all must agree.
    pub settle: Duration,
    /// For how long they are then watched.
    pub watch: Duration,
    /// The bug to be caught.
    pub bug: Option<Bug>,
}

impl Weights {
    /// Nothing goes wrong.
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
    };
}

impl Scenario {
    /// The usual run of this seed. The larger the cluster, the more often something strikes.
    pub fn new(seed: u64, nodes: usize) -> Self {
        let every = Duration::from_secs(8).div_f64(1.0 + nodes as f64 / 50.0);
        Self {
            seed,
            nodes,
            services: 1,
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
