//! Judges this machine's clock by what others say: Tor's directory and relays, and the members.
//!
//! Four witnesses, and what each can do:
//! * The network's directory begins to be valid at a time that most directory authorities have
//!   signed. A clock that shows less is slow: this proves it.
//! * Tor's estimate from at least eight relays, of which one or two cannot lie.
//! * The median of the members' heartbeats. One member may lie, and in a cluster of two nodes
//!   it is open whose clock is wrong: this alone only warns.
//! * The publishers. If more than half of them see this clock off in the same direction, it counts
//!   as proven. They could evict this node anyway, so they get no new power by it.

/// Seconds by which a clock may be off without a warning.
const WARN_AT: u64 = 60;
/// Seconds by which the directory must be ahead of the clock to count: authorities have it some
/// minutes before it becomes valid.
const DIRECTORY_AT: u64 = 300;
/// Seconds beyond which other nodes take heartbeats of this node for replays: see
/// `docs/PROTOCOL.md`, section 9.
const REFUSE_AT: u64 = 1800;

/// The difference of a member's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberTime {
    /// Seconds by which this machine's clock is ahead of the member's.
    pub ahead: i64,
    /// True if the member is a publisher.
    pub publisher: bool,
}

/// What the witnesses say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Witnesses {
    /// When the network's directory became valid, in seconds since the Unix epoch.
    pub directory: Option<u64>,
    /// Seconds by which this clock is ahead of the relays', if Tor is sure of a large difference.
    pub relays: Option<i64>,
    /// The other members that were heard lately.
    pub members: Vec<MemberTime>,
    /// Number of publishers in the cluster, this node and silent ones among them.
    pub publishers: usize,
}

/// The witness whose view is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, strum::Display)]
#[strum(serialize_all = "snake_case")]
pub enum Witness {
    /// The directory of the Tor network.
    Directory,
    /// Several relays.
    Relays,
    /// The median of the other members.
    Members,
}

/// How wrong this machine's clock is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClockVerdict {
    /// Seconds by which it is ahead, negative if it is behind, and who says so; `None` if no
    /// witness is there. A directory only says the least possible.
    pub off: Option<(i64, Witness)>,
    /// True if it is proven to be off by so much that other nodes ignore this one.
    pub proven: bool,
}

impl ClockVerdict {
    /// The difference in seconds and the witness, if it is worth a warning.
    pub fn warning(&self) -> Option<(i64, Witness)> {
        self.off.filter(|(ahead, _)| ahead.unsigned_abs() >= WARN_AT)
    }
}

/// Judges a clock that shows `unix`.
pub fn judge(witnesses: &Witnesses, unix: u64) -> ClockVerdict {
    let Witnesses { directory, relays, members, publishers } = witnesses;
    let behind = directory.map_or(0, |valid_after| valid_after.saturating_sub(unix));
    let directory = i64::try_from(behind).ok().filter(|_| behind >= DIRECTORY_AT).map(|behind| -behind);
    let relays = relays.filter(|ahead| *ahead != 0);
    let is_far = |ahead: i64| ahead.unsigned_abs() > REFUSE_AT;
    // The publishers that see this clock far off in one direction, if they are the majority.
    let agreed = [1, -1].into_iter().find_map(|sign| {
        let far = members.iter().filter(|it| it.publisher && is_far(it.ahead) && it.ahead.signum() == sign);
        let far: Vec<_> = far.copied().collect();
        (far.len() * 2 > *publishers).then_some(far)
    });
    let by_members = agreed.as_deref().map_or_else(|| median(members), median);
    let off = directory
        .map(|ahead| (ahead, Witness::Directory))
        .or(relays.map(|ahead| (ahead, Witness::Relays)))
        .or(by_members.map(|ahead| (ahead, Witness::Members)));
    let proven = directory.is_some_and(is_far) || relays.is_some_and(is_far) || agreed.is_some();
    ClockVerdict { off, proven }
}

/// Takes a verdict against the clock only if it lasts. A heartbeat that waited while this machine
/// slept makes the clock look fast until the next one arrives.
#[derive(Debug, Default)]
pub struct ClockWatch {
    /// Verdicts in a row against the clock.
    streak: u32,
    settled: ClockVerdict,
}

impl ClockWatch {
    /// Verdicts in a row after which they are taken.
    const ENOUGH: u32 = 3;

    /// Takes note of a new verdict. Returns the one that holds.
    pub fn observe(&mut self, verdict: ClockVerdict) -> ClockVerdict {
        let is_against = verdict.proven || verdict.warning().is_some();
        self.streak = if is_against { self.streak.saturating_add(1) } else { 0 };
        if !is_against || self.streak >= Self::ENOUGH {
            self.settled = verdict;
        }
        self.settled
    }
}

/// The median; of two in the middle the one nearer to zero.
fn median(members: &[MemberTime]) -> Option<i64> {
    let mut all: Vec<_> = members.iter().map(|it| it.ahead).collect();
    all.sort_unstable();
    let middle = [all.len().checked_sub(1)? / 2, all.len() / 2].map(|at| all.get(at).copied());
    middle.into_iter().flatten().min_by_key(|ahead| ahead.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn members(ahead: &[i64], publisher: bool) -> Vec<MemberTime> {
        ahead.iter().map(|ahead| MemberTime { ahead: *ahead, publisher }).collect()
    }

    fn judged(witnesses: Witnesses) -> (Option<(i64, Witness)>, bool) {
        let verdict = judge(&witnesses, NOW);
        (verdict.warning(), verdict.proven)
    }

    #[test]
    fn a_clock_that_all_agree_with_is_right() {
        let directory = Some(NOW - 3000);
        let right = Witnesses { directory, relays: Some(0), members: members(&[1, -2, 59], true), publishers: 4 };
        assert_eq!(judged(right), (None, false));
        assert_eq!(judged(Witnesses::default()), (None, false), "no witness");
        assert_eq!(judge(&Witnesses::default(), NOW).off, None);
    }

    #[test]
    fn a_clock_before_the_directorys_time_is_slow() {
        let at = |valid_after| judged(Witnesses { directory: Some(valid_after), ..Witnesses::default() });
        assert_eq!(at(NOW + 299), (None, false), "it is there before it becomes valid");
        assert_eq!(at(NOW + 300), (Some((-300, Witness::Directory)), false));
        assert_eq!(at(NOW + 1800), (Some((-1800, Witness::Directory)), false));
        assert_eq!(at(NOW + 1801), (Some((-1801, Witness::Directory)), true));
        assert!(!at(u64::MAX).1, "not a time");
        assert_eq!(at(0), (None, false), "an old directory says nothing: it may not have been updated");
    }

    #[test]
    fn tors_estimate_from_many_relays_counts_in_both_directions() {
        let at = |ahead| judged(Witnesses { relays: Some(ahead), ..Witnesses::default() });
        assert_eq!(at(1000), (Some((1000, Witness::Relays)), false));
        assert_eq!(at(1801), (Some((1801, Witness::Relays)), true));
        assert_eq!(at(-1801), (Some((-1801, Witness::Relays)), true));
    }

    #[test]
    fn members_warn_by_their_median_and_one_liar_does_not_change_it() {
        let at =
            |ahead: &[i64]| judged(Witnesses { members: members(ahead, false), publishers: 1, ..Witnesses::default() });
        assert_eq!(at(&[61]), (Some((61, Witness::Members)), false), "one of the two is wrong");
        assert_eq!(at(&[100_000, 1, 2]), (None, false));
        assert_eq!(at(&[-100_000, 1]), (None, false), "in doubt for this clock");
        assert_eq!(at(&[90, 80, -5]), (Some((80, Witness::Members)), false));
        assert_eq!(at(&[i64::MIN, i64::MAX, 100_000]), (Some((100_000, Witness::Members)), false));
    }

    #[test]
    fn a_verdict_against_the_clock_counts_if_it_lasts() {
        let mut watch = ClockWatch::default();
        let right = ClockVerdict { off: Some((1, Witness::Members)), proven: false };
        let wrong = ClockVerdict { off: Some((9000, Witness::Members)), proven: true };
        let held =
            [right, wrong, wrong, right, wrong, wrong, wrong, wrong, right].map(|verdict| watch.observe(verdict));
        assert_eq!(held, [right, right, right, right, right, right, wrong, wrong, right]);
    }

    #[test]
    fn workers_never_stop_a_node_and_publishers_only_as_a_majority() {
        let at = |ahead: &[i64], publishers| {
            judged(Witnesses { members: members(ahead, true), publishers, ..Witnesses::default() }).1
        };
        assert!(!judged(Witnesses { members: members(&[9999; 50], false), publishers: 1, ..Witnesses::default() }).1);
        assert!(!at(&[9999], 2), "one against one");
        assert!(!at(&[9999, 0], 3));
        assert!(!at(&[9999, -9999], 3), "they do not agree");
        assert!(!at(&[1800, 1800], 3), "within what records allow");
        assert!(at(&[1801, 1900], 3) && at(&[-1801, -1900], 3));
        assert!(!at(&[1801, 1900], 4), "silent ones count as content");
        let many = [members(&[0; 20], false), members(&[2000, 1900], true)].concat();
        let verdict = judged(Witnesses { members: many, publishers: 3, ..Witnesses::default() });
        assert_eq!(verdict, (Some((1900, Witness::Members)), true), "what is proven is also what is shown");
    }
}
