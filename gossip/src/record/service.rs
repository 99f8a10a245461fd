//! A service: one address that the cluster serves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::own::within;
use super::{Fact, MAX_SERVICES, NodeCard, OutOfBounds};
use crate::bytes::VarBytes;
use crate::id::{ClusterId, ServiceId};
use crate::signed::Statement;

/// The authority's statement that the cluster serves an address, and with which settings.
///
/// Every member keeps it and hands it on. A changed service is a new statement with a higher
/// sequence number. The greater of two statements counts, so all nodes that have received both
/// agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The cluster that serves it.
    pub cluster: ClusterId,
    /// The service's id, which is its address.
    pub service: ServiceId,
    /// Sequence number: rises with every change.
    pub seq: u64,
    /// When this statement was issued, in seconds since the Unix epoch.
    pub issued: u64,
    /// True if the cluster no longer serves it. Final: no later statement brings it back.
    pub removed: bool,
    /// The virtual ports at which clients may connect: in rising order, none 0, at most
    /// [`NodeCard::MAX_PORTS`].
    pub ports: Vec<u16>,
    /// Further settings by name, at most [`Service::MAX_SETTINGS`]. A node keeps settings that it
    /// does not know unchanged, also when it issues a new statement.
    pub settings: BTreeMap<String, Setting>,
}

/// One setting of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Setting {
    /// Version of the encoding of `value`. A node that does not know it acts as if the setting were
    /// absent.
    pub version: u16,
    /// The value, encoded as that version defines.
    pub value: VarBytes,
}

impl Statement for Service {
    const CONTEXT: &'static str = "rustbalance record svc";
    const MAX_SIZE: usize = 4096;
}

impl Service {
    /// Maximum number of settings of one service.
    pub const MAX_SETTINGS: usize = 32;
    /// Maximum length of a setting's name in bytes. It consists of lower-case letters, digits and
    /// hyphens.
    pub const MAX_NAME: usize = 32;

    fn rank(&self) -> (bool, u64, u64, &[u16], &BTreeMap<String, Setting>) {
        (self.removed, self.seq, self.issued, &self.ports, &self.settings)
    }
}

impl Fact for Service {
    type Id = ServiceId;
    const PLURAL: &'static str = "services";
    const MAX_KEPT: usize = 4 * MAX_SERVICES;
    const BY_WORKERS: bool = true;

    fn cluster(&self) -> ClusterId {
        self.cluster
    }

    fn id(&self) -> ServiceId {
        self.service
    }

    fn check_bounds(&self) -> Result<(), OutOfBounds> {
        let rising = self.ports.is_sorted_by(|a, b| a < b) && !self.ports.contains(&0);
        within(rising && self.ports.len() <= NodeCard::MAX_PORTS, "ports")?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let named = |name: &String| (1..=Self::MAX_NAME).contains(&name.len()) && name.bytes().all(plain);
        within(self.settings.len() <= Self::MAX_SETTINGS && self.settings.keys().all(named), "settings")
    }

    /// Takes the greater of the two: a removal, otherwise the higher sequence number. Ties are
    /// decided by the remaining fields, so that any order and any repetition give one result.
    fn merge(&mut self, other: &Self) {
        if self.rank() < other.rank() {
            self.clone_from(other);
        }
    }

    /// A removed service is kept, too: otherwise an older statement would bring it back.
    fn kept_until(&self) -> u64 {
        u64::MAX
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec;

    fn service(seq: u64, ports: Vec<u16>) -> Service {
        let service = ServiceId::from_public_key([1; 32]);
        let (cluster, settings) = (ClusterId::named_by(service), BTreeMap::new());
        Service { cluster, service, seq, issued: 7, removed: false, ports, settings }
    }

    fn setting(value: &[u8]) -> Setting {
        Setting { version: 1, value: VarBytes(value.to_vec()) }
    }

    #[test]
    fn every_field_has_its_bounds() {
        assert_eq!(service(1, vec![22, 80]).check_bounds(), Ok(()));
        for ports in [vec![80, 22], vec![80, 80], vec![0], (1..=65).collect()] {
            assert_eq!(service(1, ports).check_bounds(), Err(OutOfBounds::Field("ports")));
        }
        for name in [String::new(), "Stealth".into(), "a b".into(), "x".repeat(33)] {
            let settings = BTreeMap::from([(name, setting(b""))]);
            assert_eq!(Service { settings, ..service(1, vec![]) }.check_bounds(), Err(OutOfBounds::Field("settings")));
        }
        let settings = (0..33).map(|n| (format!("s{n}"), setting(b""))).collect();
        assert_eq!(Service { settings, ..service(1, vec![]) }.check_bounds(), Err(OutOfBounds::Field("settings")));
    }

    #[test]
    fn a_setting_of_a_later_version_is_kept_as_it_came() {
        let settings = BTreeMap::from([("stealth".to_owned(), Setting { version: 9, value: VarBytes(vec![1, 2, 3]) })]);
        let later = Service { settings, ..service(2, vec![80]) };
        let read: Service = codec::decode(&codec::encode(&later).unwrap(), Service::MAX_SIZE).unwrap();
        let changed = Service { seq: 3, ports: vec![80, 443], ..read };
        assert_eq!(changed.settings, later.settings);
    }

    fn any_service() -> impl Strategy<Value = Service> {
        let ports = prop::collection::btree_set(1u16..4, 0..3);
        let settings = prop::collection::btree_map("[ab]", "[xy]", 0..2);
        (any::<bool>(), 0u64..3, 0u64..2, ports, settings).prop_map(|(removed, seq, issued, ports, settings)| {
            let settings = settings.into_iter().map(|(name, value)| (name, setting(value.as_bytes()))).collect();
            Service { removed, issued, settings, ..service(seq, ports.into_iter().collect()) }
        })
    }

    proptest! {
        #[test]
        fn merging_gives_the_same_result_in_any_order_and_repetition(a in any_service(), b in any_service(), c in any_service()) {
            let merged = |order: &[&Service]| {
                let mut first = order[0].clone();
                order[1..].iter().for_each(|other| first.merge(other));
                first
            };
            let all = merged(&[&a, &b, &c]);
            prop_assert_eq!(&merged(&[&c, &a, &b, &a]), &all);
            prop_assert_eq!(&merged(&[&b, &c, &a, &c]), &all);
            prop_assert!(!all.removed || a.removed || b.removed || c.removed);
            prop_assert!(all.removed || all.seq == a.seq.max(b.seq).max(c.seq));
        }
    }
}
