//! An interface in memory, which refuses what the real one only pretends to do.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::wireguard::kernel::KernelError;
use crate::wireguard::kernel::device::{Device, Measured, Place};
use crate::wireguard::{WireguardKey, WireguardSecret};

/// What the interface has, and what happens to calls.
#[derive(Default)]
pub(super) struct FakeState {
    pub(super) key: Option<WireguardKey>,
    pub(super) keys_set: usize,
    pub(super) peers: BTreeMap<WireguardKey, FakePeer>,
    pub(super) routes: Vec<Ipv6Addr>,
    /// The interface was removed by an administrator.
    pub(super) is_gone: bool,
    /// The interface was removed by the engine.
    pub(super) is_removed: bool,
    /// Reads do not return.
    pub(super) is_stuck: Arc<AtomicBool>,
}

#[derive(Default)]
pub(super) struct FakePeer {
    pub(super) place: Place,
    pub(super) measured: Measured,
    pub(super) is_resting: bool,
}

/// The interface.
#[derive(Default)]
pub(super) struct FakeDevice(pub(super) Arc<Mutex<FakeState>>, Removal);

/// Whether dropping removes the interface.
#[derive(Default, PartialEq, Eq)]
enum Removal {
    #[default]
    Never,
    AtDrop,
}

impl Drop for FakeDevice {
    fn drop(&mut self) {
        if self.1 == Removal::AtDrop {
            self.0.lock().is_removed = true;
        }
    }
}

impl FakeDevice {
    /// The engine's handle of the interface, whose drop removes it.
    pub(super) fn owner(&self) -> Self {
        Self(Arc::clone(&self.0), Removal::AtDrop)
    }

    fn give(&self, key: &WireguardKey, address: Option<Ipv6Addr>) {
        let mut state = self.0.lock();
        if address.is_some() {
            let others = state.peers.values_mut().filter(|peer| peer.place.address == address);
            others.for_each(|peer| peer.place.address = None);
        }
        let peer = state.peers.get_mut(key).expect("a peer that is not there was changed");
        peer.place.address = address.or(peer.place.address);
        peer.is_resting = address.is_none();
    }

    /// The keys of the peers that carry an address.
    pub(super) fn carriers(&self) -> Vec<WireguardKey> {
        let state = self.0.lock();
        state.peers.iter().filter(|(_, peer)| peer.place.address.is_some()).map(|(key, _)| *key).collect()
    }
}

impl Device for FakeDevice {
    fn name(&self) -> &str {
        "fake"
    }

    fn is_there(&mut self) -> Result<bool, KernelError> {
        Ok(!self.0.lock().is_gone)
    }

    fn set_key(&mut self, secret: &WireguardSecret) -> Result<(), KernelError> {
        let mut state = self.0.lock();
        state.key = Some(secret.public());
        state.keys_set += 1;
        Ok(())
    }

    fn add_peer(&mut self, key: &WireguardKey, place: Place) -> Result<(), KernelError> {
        let former = self.0.lock().peers.insert(*key, FakePeer { place, ..FakePeer::default() });
        assert!(former.is_none(), "a peer was added twice without being removed");
        if let Some(address) = place.address {
            self.give(key, Some(address));
        }
        Ok(())
    }

    fn give_address(&mut self, key: &WireguardKey, address: Ipv6Addr) -> Result<(), KernelError> {
        self.give(key, Some(address));
        Ok(())
    }

    fn rest(&mut self, key: &WireguardKey) -> Result<(), KernelError> {
        self.give(key, None);
        self.0.lock().peers.get_mut(key).unwrap().place.address = None;
        Ok(())
    }

    fn remove_peer(&mut self, key: &WireguardKey) -> Result<(), KernelError> {
        self.0.lock().peers.remove(key).expect("a peer that is not there was removed");
        Ok(())
    }

    fn add_route(&mut self, address: Ipv6Addr) -> Result<(), KernelError> {
        self.0.lock().routes.push(address);
        Ok(())
    }

    fn remove_route(&mut self, address: Ipv6Addr) -> Result<(), KernelError> {
        self.0.lock().routes.retain(|route| *route != address);
        Ok(())
    }

    fn read(&mut self) -> Result<BTreeMap<WireguardKey, Measured>, KernelError> {
        let is_stuck = Arc::clone(&self.0.lock().is_stuck);
        while is_stuck.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(self.0.lock().peers.iter().map(|(key, peer)| (*key, peer.measured)).collect())
    }
}
