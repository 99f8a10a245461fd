//! The messages that this crate writes itself: new values in a [push](super::packed), and a request
//! for some incarnations in a SYN-ACK without values, which nodes of every version answer.

use rustbalance_gossip::id::ClusterId;

use super::{DigestEntry, INCARNATION_BYTES, Incarnation, MAGIC, Operation, SYN_ACK, VERSION, packed, write_known};

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

/// Pushes with these values: at least one incarnation in each, and none twice.
pub(crate) fn push(cluster: ClusterId, news: &[&Fresh]) -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    let mut last = None;
    for Fresh { incarnation, from, values } in news {
        let mut fresh = Vec::new();
        packed::write(&mut fresh, cluster, incarnation, *from, values);
        match bodies.last_mut() {
            Some(body) if last != Some(incarnation) && body.len() + fresh.len() <= packed::MAX_PUSH => {
                body.extend(fresh);
            }
            _ => bodies.push(fresh),
        }
        last = Some(incarnation);
    }
    bodies.iter().map(|body| packed::pack(body)).collect()
}

/// A request for the values of these incarnations above the given versions. The incarnations of the
/// peer itself are `own`, with the versions known of them: of one that is not named, a peer sends
/// all of its own values.
pub(crate) fn pull(own: &[(Incarnation, u64)], lacked: &[(Incarnation, u64)]) -> Vec<u8> {
    let others = lacked.iter().filter(|lacked| !own.contains(lacked));
    let entries: Vec<_> = own
        .iter()
        .chain(others)
        .map(|(incarnation, version)| DigestEntry {
            incarnation: *incarnation,
            heartbeat: 0,
            last_gc: 0,
            version: *version,
        })
        .collect();
    let mut bytes = [&MAGIC[..], &[VERSION, SYN_ACK]].concat();
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
    use crate::wire::tests::names;
    use crate::wire::{Message, for_chitchat};

    fn incarnation(i: u8) -> Incarnation {
        Incarnation { node: NodeId::from_public_key([i; 32]), generation: 1 << 16 }
    }

    #[test]
    fn what_is_pushed_is_read_as_chitchats() {
        let mut names = names();
        (1..=3).for_each(|i| names.learn(incarnation(i)));
        let mut fresh = Fresh::new(incarnation(1), 4);
        fresh.add("beat", &"?".repeat(20_000), 6, 0);
        fresh.add("lease", "", 9, 1);
        let mut short = Fresh::new(incarnation(2), 7);
        short.add("beat", "x", 8, 0);
        let third = Fresh { incarnation: incarnation(3), ..fresh.clone() };
        let messages = push(ClusterId::from_public_key([1; 32]), &[&short, &fresh, &third]);
        let mut read = |bytes: &Vec<u8>| {
            let message = Message::read(bytes, &mut names).unwrap();
            assert!(message.for_chitchat().is_ok());
            message.values_by_incarnation().iter().map(|values| (values.from, values.values.len())).collect::<Vec<_>>()
        };
        assert_eq!(messages.iter().map(&mut read).collect::<Vec<_>>(), [vec![(7, 1), (4, 2)], vec![(4, 2)]]);
        assert!(messages.iter().all(|message| message.len() < 32_000));
        let next = Fresh { from: 8, ..short.clone() };
        let parts = push(ClusterId::from_public_key([1; 32]), &[&short, &next]);
        assert_eq!(parts.iter().map(&mut read).collect::<Vec<_>>(), [vec![(7, 1)], vec![(8, 1)]]);
    }

    #[test]
    fn chitchat_reads_what_is_pulled_and_each_incarnation_is_named_once() {
        let own = [(incarnation(1), 7), (incarnation(3), 8)];
        let bytes = pull(&own, &[(incarnation(1), 7), (incarnation(2), 9)]);
        let message = Message::read(&bytes, &mut names()).unwrap();
        let entries: Vec<_> = message.digest().iter().map(|entry| (entry.incarnation, entry.version)).collect();
        assert_eq!(entries, [(incarnation(1), 7), (incarnation(3), 8), (incarnation(2), 9)]);
        assert!(for_chitchat(&bytes).is_ok());
    }
}
