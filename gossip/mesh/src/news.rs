//! Finds the values in chitchat's state that are new since the last call, in a form that can be
//! pushed to peers.
//!
//! A push says on which versions it builds: on the highest version among the values that it does
//! not contain. So it applies to a peer that missed earlier pushes of the same key, such as
//! heartbeats. A peer that misses a value under another key finds the gap and asks.

use std::collections::BTreeMap;

use chitchat::{ChitchatId, DeletionStatus, NodeState};

use crate::wire::{Fresh, Incarnation};

/// Most bytes of one incarnation in a message, unless one value has more: three quarters of what a
/// push may have.
const PART: usize = 24_576;
/// Most such parts that are pushed at a time. Larger changes are left to comparisons, which know
/// what a peer lacks. A node that announces all records of sixteen services again has about one.
const PARTS: usize = 4;

/// The versions pushed so far.
#[derive(Default)]
pub(super) struct News {
    pushed: BTreeMap<ChitchatId, u64>,
}

/// The new values. Those of one incarnation may be in several parts, of which each builds on the
/// one before.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) news: Vec<Fresh>,
    /// The newest value of each incarnation of another node that had none before.
    pub(super) appeared: Vec<Fresh>,
    /// Whether some incarnation changed by more than can be pushed.
    pub(super) too_much: bool,
}

impl News {
    /// The values that are new since the last call, of all incarnations. What another node's
    /// incarnation has when it is seen for the first time came by a comparison. Peers cannot have
    /// subscribed to it yet, and may not know it.
    pub(super) fn next(&mut self, states: &BTreeMap<ChitchatId, NodeState>, own: &ChitchatId) -> Found {
        let mut found = Found::default();
        for (id, state) in states {
            let pushed = self.pushed.entry(id.clone()).or_insert(0);
            if state.max_version() == *pushed {
                continue;
            }
            if *pushed == 0 && id != own {
                *pushed = state.max_version();
                found.appeared.extend(newer(id, state, *pushed - 1));
                continue;
            }
            // The version of a state falls only if chitchat has reset it.
            let parts = if state.max_version() > *pushed { newer(id, state, *pushed) } else { Vec::new() };
            *pushed = state.max_version();
            if parts.len() <= PARTS {
                found.news.extend(parts);
            } else {
                found.too_much = true;
            }
        }
        found
    }

    /// Forgets incarnations that are gone.
    pub(super) fn forget(&mut self, gone: impl Fn(&ChitchatId) -> bool) {
        self.pushed.retain(|id, _| !gone(id));
    }
}

/// The values above version `pushed`, in parts; none if the id is not one of ours.
fn newer(id: &ChitchatId, state: &NodeState, pushed: u64) -> Vec<Fresh> {
    let Some(incarnation) = Incarnation::of(id) else { return Vec::new() };
    let older = state.key_values_including_deleted().map(|(_, value)| value.version);
    let mut from = older.filter(|version| *version <= pushed).max().unwrap_or(0);
    let mut parts: Vec<Fresh> = Vec::new();
    let mut values: Vec<_> = state.key_values_including_deleted().filter(|(_, value)| value.version > pushed).collect();
    values.sort_by_key(|(_, value)| value.version);
    for (key, value) in values {
        let status = match value.status {
            DeletionStatus::Set => 0,
            DeletionStatus::Deleted(_) => 1,
            DeletionStatus::DeleteAfterTtl(_) => 2,
        };
        let fits = |part: &&mut Fresh| part.bytes() + key.len() + value.value.len() <= PART;
        match parts.last_mut().filter(fits) {
            Some(part) => part.add(key, &value.value, value.version, status),
            None => {
                let mut part = Fresh::new(incarnation, from);
                part.add(key, &value.value, value.version, status);
                parts.push(part);
            }
        }
        from = value.version;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustbalance_gossip::address::mesh_socket;
    use rustbalance_gossip::id::NodeId;

    fn id(i: u8) -> ChitchatId {
        let node = NodeId::from_public_key([i; 32]);
        ChitchatId::new(node.to_string(), 1, mesh_socket(&node))
    }

    fn fresh(id: &ChitchatId, from: u64, values: &[(&str, &str, u64, u8)]) -> Fresh {
        let mut fresh = Fresh::new(Incarnation::of(id).unwrap(), from);
        values.iter().for_each(|(key, value, version, status)| fresh.add(key, value, *version, *status));
        fresh
    }

    #[test]
    fn each_value_is_found_once_and_builds_on_the_newest_other_value() {
        let (own, other) = (id(1), id(2));
        let mut states = BTreeMap::from([(own.clone(), NodeState::for_test()), (other.clone(), NodeState::for_test())]);
        let set = |states: &mut BTreeMap<ChitchatId, NodeState>, id: &ChitchatId, key: &str, value: &str| {
            states.get_mut(id).unwrap().set(key, value);
        };
        set(&mut states, &own, "card", "a");
        set(&mut states, &other, "card", "b");
        let mut news = News::default();
        let found = news.next(&states, &own);
        let appeared = vec![fresh(&other, 0, &[("card", "b", 1, 0)])];
        assert_eq!(found, Found { news: vec![fresh(&own, 0, &[("card", "a", 1, 0)])], appeared, too_much: false });
        for beat in 0..3 {
            set(&mut states, &own, "beat", &beat.to_string());
            let found = news.next(&states, &own);
            assert_eq!(found.news, [fresh(&own, 1, &[("beat", &beat.to_string(), 2 + beat, 0)])]);
        }
        set(&mut states, &other, "lease", "c");
        set(&mut states, &other, "beat", "d");
        states.get_mut(&other).unwrap().delete("lease");
        let found = news.next(&states, &own);
        assert_eq!(found.news, [fresh(&other, 1, &[("beat", "d", 3, 0), ("lease", "", 4, 1)])]);
        assert_eq!(news.next(&states, &own), Found::default());
    }

    #[test]
    fn large_changes_are_pushed_in_parts_and_the_largest_are_left_to_comparisons() {
        let own = id(1);
        let mut states = BTreeMap::from([(own.clone(), NodeState::for_test())]);
        let (long, longest) = ("x".repeat(PART / 2), "x".repeat(PART));
        let state = states.get_mut(&own).unwrap();
        [("a", &long), ("b", &longest), ("c", &long)].into_iter().for_each(|(key, value)| state.set(key, value));
        state.set("beat", "x");
        let mut news = News::default();
        let parts = [
            fresh(&own, 0, &[("a", &long, 1, 0)]),
            fresh(&own, 1, &[("b", &longest, 2, 0)]),
            fresh(&own, 2, &[("c", &long, 3, 0), ("beat", "x", 4, 0)]),
        ];
        assert_eq!(news.next(&states, &own), Found { news: parts.into(), ..Found::default() });
        (0..=PARTS).for_each(|i| states.get_mut(&own).unwrap().set(format!("k{i}"), &longest));
        assert_eq!(news.next(&states, &own), Found { too_much: true, ..Found::default() });
        states.get_mut(&own).unwrap().set("beat", "y");
        let version = 4 + PARTS as u64 + 1;
        assert_eq!(news.next(&states, &own).news, [fresh(&own, version, &[("beat", "y", version + 1, 0)])]);
    }
}
