//! Quotas: the number of bytes that are kept of each incarnation.
//!
//! chitchat never forgets a value, and forwards all that it has. So the values of an incarnation
//! are counted before chitchat gets them, and beyond the quota no more enter. Values that a node
//! sends of itself over its own link are counted apart from those that other peers send of it:
//! these peers can make up values of any node and would leave it no room.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::leaky::LeakyBucket;
use crate::wire::{Incarnation, IncarnationDelta};

/// Approximate cost of a value beyond its key and content, in bytes.
const OVERHEAD: usize = 64;

/// The quota of one incarnation, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quota {
    /// Bytes that it may have whatever others use.
    pub(super) least: usize,
    /// Most bytes that it may have. Also the burst of changes.
    pub(super) most: usize,
    /// It may exceed `least` while all incarnations that share this bound have at most this number
    /// of bytes together.
    pub(super) together: usize,
    /// Sustained rate of changes, in bytes per second.
    pub(super) per_second: usize,
}

/// What the quota permits of the values that a peer sends of an incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weighed {
    /// Number of leading values that may enter.
    pub(super) kept: usize,
    /// Whether further values exceeded the quota.
    pub(super) full: bool,
}

/// An incarnation, and whether its node itself sent the values.
type Account = (Incarnation, bool);

/// The bytes kept of all incarnations.
#[derive(Default)]
pub(super) struct Quotas {
    kept: BTreeMap<Account, Usage>,
    /// The highest version that chitchat has of each.
    versions: BTreeMap<Incarnation, u64>,
}

struct Usage {
    bytes: usize,
    /// The size of each value, by key, in bytes.
    sizes: BTreeMap<String, usize>,
    changed: LeakyBucket,
}

impl Quotas {
    /// Counts the values that a peer sends of an incarnation and returns how many of them may
    /// enter. `shares` is true for the accounts that count towards [`Quota::together`].
    pub(super) fn weigh(
        &mut self,
        values_by_incarnation: &IncarnationDelta<'_>,
        first_hand: bool,
        room: Quota,
        shares: impl Fn(&Account) -> bool,
        now: Instant,
    ) -> Weighed {
        let account = (values_by_incarnation.incarnation, first_hand);
        let known = self.versions.entry(values_by_incarnation.incarnation).or_default();
        // chitchat ignores values that would leave a gap in the versions, and those that are not
        // new.
        if values_by_incarnation.from > *known
            || values_by_incarnation.values.last().is_none_or(|value| value.version <= *known)
        {
            return Weighed { kept: 0, full: false };
        }
        let others = |(other, _): &(&Account, &Usage)| **other != account && shares(other);
        let shared: usize = self.kept.iter().filter(others).map(|(_, quota)| quota.bytes).sum();
        let new = || Usage { bytes: 0, sizes: BTreeMap::new(), changed: LeakyBucket::new(now) };
        let quota = self.kept.entry(account).or_insert_with(new);
        let mut changed = quota.changed.now(now, room.per_second) as usize;
        let before = *known;
        for (count, value) in values_by_incarnation.values.iter().enumerate() {
            if value.version <= before {
                continue;
            }
            let size = value.bytes + OVERHEAD;
            let replaced = quota.sizes.get(value.key).copied().unwrap_or(0);
            let bytes = quota.bytes - replaced + size;
            let fits = bytes <= room.least || (bytes <= room.most && shared + bytes <= room.together);
            if (size > replaced && !fits) || changed + size > room.most {
                return Weighed { kept: count, full: true };
            }
            changed += size;
            quota.changed.add(size);
            quota.bytes = bytes;
            quota.sizes.insert(value.key.to_owned(), size);
            *known = value.version;
        }
        Weighed { kept: values_by_incarnation.values.len(), full: false }
    }

    /// The highest version that chitchat has of an incarnation, or will have soon.
    pub(super) fn version(&self, incarnation: &Incarnation) -> u64 {
        self.versions.get(incarnation).copied().unwrap_or(0)
    }

    /// Forgets the incarnations that chitchat has forgotten. `has` holds the highest version that
    /// chitchat has of each.
    pub(super) fn prune(&mut self, has: &BTreeMap<Incarnation, u64>) {
        self.kept.retain(|(incarnation, _), _| has.contains_key(incarnation));
        self.versions.clone_from(has);
    }

    /// Forgets all incarnations.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
        self.versions.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::ValueHeader;
    use rustbalance_gossip::id::NodeId;

    const ROOM: Quota = Quota { least: 1000, most: 10_000, together: 15_000, per_second: 100 };

    fn incarnation(generation: u64) -> Incarnation {
        Incarnation { node: NodeId::from_public_key([1; 32]), generation }
    }

    /// Sends values of 1000 bytes each under these keys, with versions from `version` on.
    fn weigh_values(
        quotas: &mut Quotas,
        of: u64,
        first_hand: bool,
        keys: &[&str],
        version: u64,
        now: Instant,
    ) -> Weighed {
        let header =
            |(i, key): (usize, &&'static str)| ValueHeader { key, bytes: 1000 - OVERHEAD, version: version + i as u64 };
        let keys: Vec<&'static str> = keys.iter().map(|key| &*String::leak((*key).to_owned())).collect();
        let values_by_incarnation = IncarnationDelta {
            incarnation: incarnation(of),
            from: 0,
            values: keys.iter().enumerate().map(header).collect(),
        };
        quotas.weigh(&values_by_incarnation, first_hand, ROOM, |(_, own)| *own == first_hand, now)
    }

    const KEYS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

    #[test]
    fn new_values_are_kept_up_to_the_quota_and_at_least_one_of_each_incarnation() {
        let (mut quotas, now) = (Quotas::default(), Instant::now());
        assert_eq!(weigh_values(&mut quotas, 1, false, &KEYS, 1, now), Weighed { kept: 10, full: true });
        assert_eq!(weigh_values(&mut quotas, 2, false, &KEYS, 1, now), Weighed { kept: 5, full: true });
        assert_eq!(
            weigh_values(&mut quotas, 3, false, &KEYS, 1, now),
            Weighed { kept: 1, full: true },
            "the least that each may have"
        );
        assert_eq!(
            weigh_values(&mut quotas, 3, true, &KEYS, 2, now),
            Weighed { kept: 10, full: true },
            "its own values"
        );
        quotas.prune(&BTreeMap::from([(incarnation(2), 5)]));
        assert_eq!(
            weigh_values(&mut quotas, 1, false, &KEYS, 1, now),
            Weighed { kept: 10, full: true },
            "after it was forgotten"
        );
    }

    /// Values that chitchat ignores do not count: otherwise peers could use up a node's quota with
    /// values that are not there.
    #[test]
    fn values_that_are_old_or_leave_a_gap_do_not_use_up_the_quota() {
        let (mut quotas, now) = (Quotas::default(), Instant::now());
        assert_eq!(weigh_values(&mut quotas, 1, false, &KEYS[..2], 100, now).kept, 2);
        assert_eq!(weigh_values(&mut quotas, 1, false, &KEYS[2..], 1, now), Weighed { kept: 0, full: false });
        let gap = IncarnationDelta {
            incarnation: incarnation(1),
            from: 102,
            values: vec![ValueHeader { key: "z", bytes: 9, version: 103 }],
        };
        assert_eq!(quotas.weigh(&gap, false, ROOM, |_| true, now), Weighed { kept: 0, full: false });
        assert_eq!(weigh_values(&mut quotas, 1, false, &KEYS[2..10], 102, now), Weighed { kept: 8, full: false });
    }

    #[test]
    fn endless_changes_of_one_value_are_kept_at_a_slow_rate() {
        let (mut quotas, now) = (Quotas::default(), Instant::now());
        let often: Vec<u64> = (0..50).map(|i| i + 1).collect();
        let taken = |quotas: &mut Quotas, now, more: u64| {
            often.iter().filter(|i| weigh_values(quotas, 1, false, &["a"], *i + more, now).kept == 1).count()
        };
        assert_eq!(taken(&mut quotas, now, 0), 10);
        assert_eq!(taken(&mut quotas, now + Duration::from_secs(20), 100), 2);
        assert_eq!(taken(&mut quotas, now + Duration::from_secs(1000), 200), 10);
    }
}
