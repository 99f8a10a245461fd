//! The messages that this crate writes itself: new values in a [push](super::packed), and a request
//! for some incarnations in a SYN-ACK without values, which nodes of every version answer.

use super::{DigestEntry, INCARNATION_BYTES, Incarnation, MAGIC, Operation, SYN_ACK, VERSION, packed, write_known};

/// In a digest entry's field for the last deletion, which chitchat always leaves at 0 here: "send
/// me further values of this incarnation when they arrive". Nodes that do not know it ignore it.
pub(super) const SUBSCRIBES: u64 = 1;

/// New values of one incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fresh {
    pub(crate) incarnation: Incarnation,
    /// Applies to a state that has every value up to this version.
    from: u64,
    values: Vec<Operation>,
}

impl Fresh {
    /// No value yet, above version `from`.
    pub(crate) fn new(incarnation: Incarnation, from: u64) -> Self {
        Self { incarnation, from, values: Vec::new() }
    }

    /// Adds a value, in the order of versions. `status` is chitchat's.
    pub(crate) fn add(&mut self, key: &str, value: &str, version: u64, status: u8) {
        self.values.push(Operation::Value { key: key.into(), value: value.into(), version, status });
    }

    /// Unpacked size, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let value = |operation: &Operation| match operation {
            Operation::Incarnation { .. } => INCARNATION_BYTES,
            Operation::Value { key, value, .. } => key.len() + value.len(),
        };
        INCARNATION_BYTES + self.values.iter().map(value).sum::<usize>()
    }
}

/// Pushes with these values, at least one incarnation in each.
pub(crate) fn push(news: &[&Fresh]) -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    for Fresh { incarnation, from, values } in news {
        let mut fresh = Vec::new();
        packed::write(&mut fresh, &Operation::Incarnation { incarnation: *incarnation, from: *from });
        values.iter().for_each(|value| packed::write(&mut fresh, value));
        match bodies.last_mut() {
            Some(body) if body.len() + fresh.len() <= packed::MAX_PUSH => body.extend(fresh),
            _ => bodies.push(fresh),
        }
    }
    bodies.iter().filter_map(|body| packed::pack(body)).collect()
}

/// A request for the values of these incarnations above the given versions, now and when new ones
/// arrive. The peer's `own` incarnation is named too, with the version known of it; of an
/// incarnation that is not named, a peer sends all of its own values.
pub(crate) fn pull(own: (Incarnation, u64), lacked: &[(Incarnation, u64)]) -> Vec<u8> {
    let mut bytes = [&MAGIC[..], &[VERSION, SYN_ACK]].concat();
    let entry = |(incarnation, version): (Incarnation, u64), last_gc| DigestEntry {
        incarnation,
        heartbeat: 0,
        last_gc,
        version,
    };
    let others = lacked.iter().filter(|(incarnation, _)| *incarnation != own.0);
    let entries: Vec<_> =
        std::iter::once(entry(own, 0)).chain(others.map(|lacked| entry(*lacked, SUBSCRIBES))).collect();
    // At most the admitted incarnations, so 16 bits suffice.
    bytes.extend((entries.len() as u16).to_le_bytes());
    entries.iter().for_each(|entry| write_known(&mut bytes, entry));
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use rustbalance_gossip::id::NodeId;

    use super::*;
    use crate::wire::{Message, Names, for_chitchat};

    fn incarnation(i: u8) -> Incarnation {
        Incarnation { node: NodeId::from_public_key([i; 32]), generation: 1 << 16 }
    }

    #[test]
    fn what_is_pushed_is_read_as_chitchats() {
        let mut fresh = Fresh::new(incarnation(1), 4);
        fresh.add("beat", &"?".repeat(20_000), 6, 0);
        fresh.add("lease", "", 9, 1);
        let mut short = Fresh::new(incarnation(2), 7);
        short.add("beat", "x", 8, 0);
        let messages = push(&[&short, &fresh, &Fresh { incarnation: incarnation(3), ..fresh.clone() }]);
        let read = |bytes: &Vec<u8>| {
            let message = Message::read(bytes, &mut Names::default()).unwrap();
            assert!(message.for_chitchat().is_ok());
            message.values_by_incarnation().iter().map(|values| (values.from, values.values.len())).collect::<Vec<_>>()
        };
        assert_eq!(messages.iter().map(read).collect::<Vec<_>>(), [vec![(7, 1), (4, 2)], vec![(4, 2)]]);
        assert!(messages.iter().all(|message| message.len() < 32_000));
    }

    #[test]
    fn chitchat_reads_what_is_pulled_and_only_the_others_are_subscribed() {
        let bytes = pull((incarnation(1), 7), &[(incarnation(1), 7), (incarnation(2), 9)]);
        let message = Message::read(&bytes, &mut Names::default()).unwrap();
        let entries: Vec<_> =
            message.digest().iter().map(|entry| (entry.incarnation, entry.version, entry.subscribes())).collect();
        assert_eq!(entries, [(incarnation(1), 7, false), (incarnation(2), 9, true)]);
        assert!(for_chitchat(&bytes).is_ok());
    }
}
