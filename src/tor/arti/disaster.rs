//! The directories of the next time period while the network has no shared random value.
//!
//! Arti computes the next period's directories only once the consensus has a shared random value
//! for it. Without one (in a network's first hours, or after a failure of its authorities) clients
//! use a fallback value that depends on the period alone. So must we, because a descriptor has to
//! be there before the period begins. In all other cases Arti's choice is used.

use std::collections::BTreeSet;

use rustbalance_gossip::record::{PeriodId, RelayId};
use sha3::{Digest, Sha3_256};
use tor_hscrypto::pk::HsBlindId;
use tor_hscrypto::time::TimePeriod;
use tor_netdir::NetDir;

use crate::tor::{Directory, descriptor};

/// The search for directories ends after at least this number of consecutive probes without a new
/// directory.
const FRUITLESS: usize = 64;

/// The directories responsible for `blinded` in `period`, replica by replica, each once, under the
/// fallback value (rend-spec-v3, section 2.2.3: "shared-random-disaster").
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

/// The directories responsible for `blinded` in `period` under the fallback value, replica by
/// replica, each once. `relays` are all relays with the HSDir flag; `spread` is the number of
/// directories per replica.
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

/// Every relay with the HSDir flag.
///
/// Arti does not expose the flag, only the directories responsible for a given descriptor of the
/// current period. So this probes invented descriptors until a long run of them yields no new
/// directory.
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

/// `INT_8(period_length) | INT_8(period_num)` of the specification.
fn length_and_number(period: PeriodId) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&u64::from(period.length_minutes).to_be_bytes());
    bytes[8..].copy_from_slice(&period.number.to_be_bytes());
    bytes
}

/// The fallback for the shared random value of a period that has none.
fn value(period: PeriodId) -> [u8; 32] {
    let digest = Sha3_256::new().chain_update(b"shared-random-disaster").chain_update(length_and_number(period));
    digest.finalize().into()
}

/// `hsdir_index(node)` of the specification.
fn node_index(identity: &[u8; 32], value: &[u8; 32], period: PeriodId) -> [u8; 32] {
    let digest = Sha3_256::new()
        .chain_update(b"node-idx")
        .chain_update(identity)
        .chain_update(value)
        .chain_update(period.number.to_be_bytes())
        .chain_update(u64::from(period.length_minutes).to_be_bytes());
    digest.finalize().into()
}

/// `hs_index(replicanum)` of the specification.
fn replica_index(blinded: &[u8; 32], replica: u64, period: PeriodId) -> [u8; 32] {
    let digest = Sha3_256::new()
        .chain_update(b"store-at-idx")
        .chain_update(blinded)
        .chain_update(replica.to_be_bytes())
        .chain_update(length_and_number(period));
    digest.finalize().into()
}
