//! Adapters that implement the tasks' storage traits on the one [`Store`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::PeriodId;

use crate::balance::plan::{Lifetime, SlotId, Stored};
use crate::balance::task::IntroPointStore;
use crate::keys::{IdentitySecret, IntroPointSecrets, PointSeed};
use crate::publish::task::{CredentialSource, RevisionLog};
use crate::store::{Store, StoreError, StoredIntroPoint};
use crate::tor::descriptor::PeriodCredentials;
use crate::tor::{IntroPointKeys, ReplayLog, TorError};

/// Makes credentials from the service's master key, on this node.
pub(super) struct IdentityKeyCredentials(pub(super) IdentitySecret);

impl CredentialSource for IdentityKeyCredentials {
    fn credentials(&self, period: PeriodId, now: SystemTime) -> Result<PeriodCredentials, TorError> {
        PeriodCredentials::derive(&self.0, period, now)
    }
}

/// The revisions of one service in the store.
pub(super) struct StoredRevisions {
    pub(super) store: Arc<Store>,
    pub(super) service: ServiceId,
}

impl RevisionLog for StoredRevisions {
    fn highest(&self, period: PeriodId) -> u64 {
        let known = self.store.revisions(self.service).unwrap_or_default();
        known.into_iter().find(|(id, _)| *id == period).map_or(0, |(_, revision)| revision)
    }

    fn advance(&self, period: PeriodId, revision: u64) -> Result<(), String> {
        self.store.raise_revision(self.service, period, revision).map_err(|error| error.to_string())
    }
}

/// The introduction points of one service in the store, by slot.
pub(super) struct StoredIntroPoints {
    store: Arc<Store>,
    service: ServiceId,
    seed: PointSeed,
    slots: Mutex<BTreeMap<SlotId, Slot>>,
}

/// A slot's keys.
struct Slot {
    secrets: IntroPointSecrets,
    replays: Arc<ReplayLog>,
    /// False before the point first opened: until then no other party has seen the keys, so they
    /// may be forgotten.
    on_disk: bool,
}

impl StoredIntroPoints {
    /// The introduction points of `service`.
    pub(super) fn new(store: Arc<Store>, service: ServiceId) -> Result<Self, StoreError> {
        Ok(Self { seed: store.point_seed()?, store, service, slots: Mutex::new(BTreeMap::new()) })
    }

    fn slot(&self, secrets: IntroPointSecrets, on_disk: bool) -> Result<Slot, String> {
        let path = self.store.replay_log_path(self.service, secrets.nonce);
        let replays = ReplayLog::open(&path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        Ok(Slot { secrets, replays: Arc::new(replays), on_disk })
    }
}

impl IntroPointStore for StoredIntroPoints {
    fn restore(&self) -> Result<Vec<Stored>, String> {
        let mut slots = self.slots.lock();
        let mut restored = Vec::new();
        let points = self.store.intro_points(self.service).map_err(|error| error.to_string())?;
        for (number, point) in (1..).zip(points) {
            let slot = SlotId(number);
            let StoredIntroPoint { nonce, relay, created, introductions, max_seconds, max_introductions, retired } =
                point;
            slots.insert(slot, self.slot(self.seed.secrets(nonce), true)?);
            let lifetime = Lifetime { seconds: max_seconds, introductions: max_introductions };
            restored.push(Stored { slot, relay, created, introductions, lifetime, retired });
        }
        Ok(restored)
    }

    fn keys(&self, slot: SlotId) -> Result<IntroPointKeys, String> {
        let mut slots = self.slots.lock();
        let kept = match slots.entry(slot) {
            Entry::Occupied(kept) => kept.into_mut(),
            Entry::Vacant(free) => free.insert(self.slot(self.seed.draw(&mut rand::rng()), false)?),
        };
        Ok(IntroPointKeys { secrets: kept.secrets.duplicate(), replays: Arc::clone(&kept.replays) })
    }

    fn note(&self, stored: &Stored) -> Result<(), String> {
        let mut slots = self.slots.lock();
        let Some(kept) = slots.get_mut(&stored.slot) else { return Ok(()) };
        if kept.on_disk {
            let (nonce, introductions) = (kept.secrets.nonce, stored.introductions);
            let updated = self.store.update_intro_point(self.service, nonce, introductions, stored.retired);
            return updated.map_err(|error| error.to_string());
        }
        let Stored { relay, created, introductions, lifetime, retired, .. } = *stored;
        let (max_seconds, max_introductions) = (lifetime.seconds, lifetime.introductions);
        let nonce = kept.secrets.nonce;
        let point = StoredIntroPoint { nonce, relay, created, introductions, max_seconds, max_introductions, retired };
        self.store.add_intro_point(self.service, &point).map_err(|error| error.to_string())?;
        kept.on_disk = true;
        Ok(())
    }

    fn forget(&self, slot: SlotId) -> Result<(), String> {
        let mut slots = self.slots.lock();
        let Some(kept) = slots.remove(&slot) else { return Ok(()) };
        self.store.remove_intro_point(self.service, kept.secrets.nonce).map_err(|error| error.to_string())
    }
}
