//! The directories of the next time period while the network has no shared random value.
//!
//! Arti knows the next period's directories only once a value for it is in the consensus. Without one (a network's first
//! hours, or a failure of its authorities) clients fall back on a value that follows from the period alone, and so must
//! we: a descriptor has to be there before the period begins. Everywhere else Arti's own choice is used.

use std::collections::BTreeSet;

use rustbalance_gossip::record::{PeriodId, RelayId};
use sha3::{Digest, Sha3_256};
use tor_hscrypto::pk::HsBlindId;
use tor_hscrypto::time::TimePeriod;
use tor_netdir::NetDir;

use crate::tor::{Directory, descriptor};

/// Made-up descriptors in a row that must bring nothing new.
const FRUITLESS: usize = 64;

/// The directories responsible for `blinded` in `period`, replica by replica, each once (rend-spec-v3, section 2.2.3),
/// under the fallback value (same section: "shared-random-disaster").
pub(super) fn directories(
    netdir: &NetDir,
    current: TimePeriod,
    blinded: &[u8; 32],
    period: TimePeriod,
) -> Vec<Directory> {
    let parameters = netdir.params();
    let replicas = u64::try_from(parameters.hsdir_n_replicas.get()).unwrap_or(2);
    let spread = usize::try_from(parameters.hsdir_spread_store.get()).unwrap_or(4);
    responsible(all(netdir, current), blinded, descriptor::period_id(period), replicas, spread)
}

/// The same, given all the relays that are directories, the number of replicas and the directories of each.
pub fn responsible(
    relays: BTreeSet<RelayId>,
    blinded: &[u8; 32],
    period: PeriodId,
    replicas: u64,
    spread: usize,
) -> Vec<Directory> {
    let value = value(period);
    let index = |relay: RelayId| (node_index(&relay.ed25519.0, &value, period), relay);
    let mut ring: Vec<([u8; 32], RelayId)> = relays.into_iter().map(index).collect();
    ring.sort_unstable();
    let mut chosen = BTreeSet::new();
    let mut directories = Vec::new();
    for replica in 1..=replicas {
        let start = ring.partition_point(|(index, _)| *index < replica_index(blinded, replica, period));
        let (before, after) = ring.split_at(start);
        let free = after.iter().chain(before).map(|(_, relay)| *relay).filter(|relay| !chosen.contains(relay));
        let picked: Vec<RelayId> = free.take(spread).collect();
        chosen.extend(picked.iter().copied());
        directories.extend(picked.into_iter().map(|relay| Directory { relay }));
    }
    directories
}

/// Every relay that is a directory of onion services.
///
/// Arti does not tell which relays have the flag, but which of them are responsible for any given descriptor of the
/// current period. So descriptors are made up until they have brought nothing new for long enough.
fn all(netdir: &NetDir, current: TimePeriod) -> BTreeSet<RelayId> {
    let mut found = BTreeSet::new();
    let mut fruitless = 0;
    for probe in 0u64.. {
        let place: [u8; 32] = Sha3_256::digest(probe.to_be_bytes()).into();
        let Ok(relays) = netdir.hs_dirs_upload(HsBlindId::from(place), current) else { break };
        let before = found.len();
        found.extend(relays.map(|relay| super::directories::relay_id(&relay)));
        fruitless = if found.len() == before { fruitless + 1 } else { 0 };
        if fruitless > found.len().max(FRUITLESS) {
            break;
        }
    }
    found
}

/// `INT_8(period_length) | INT_8(period_num)`.
fn length_and_number(period: PeriodId) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&u64::from(period.length_minutes).to_be_bytes());
    bytes[8..].copy_from_slice(&period.number.to_be_bytes());
    bytes
}

/// What stands for the shared random value of a period that has none.
fn value(period: PeriodId) -> [u8; 32] {
    let digest = Sha3_256::new().chain_update(b"shared-random-disaster").chain_update(length_and_number(period));
    digest.finalize().into()
}

/// `hsdir_index(node)`.
fn node_index(identity: &[u8; 32], value: &[u8; 32], period: PeriodId) -> [u8; 32] {
    let digest = Sha3_256::new()
        .chain_update(b"node-idx")
        .chain_update(identity)
        .chain_update(value)
        .chain_update(period.number.to_be_bytes())
        .chain_update(u64::from(period.length_minutes).to_be_bytes());
    digest.finalize().into()
}

/// `hs_index(replicanum)`.
fn replica_index(blinded: &[u8; 32], replica: u64, period: PeriodId) -> [u8; 32] {
    let digest = Sha3_256::new()
        .chain_update(b"store-at-idx")
        .chain_update(blinded)
        .chain_update(replica.to_be_bytes())
        .chain_update(length_and_number(period));
    digest.finalize().into()
}
