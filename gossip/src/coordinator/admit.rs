//! Decides whether this node may admit a joiner.
//!
//! A token can be redeemed a limited number of times in the whole cluster, but each publisher
//! judges by the records it has received, and secrets that were sent to a joiner cannot be taken
//! back. So a publisher that may lack news admits no joiner. When two publishers redeem one token,
//! it is enough that the later one has heard the earlier one; as neither knows which it is, both
//! listen first.

use std::time::Duration;

use super::{Coordinator, Now};
use crate::id::NodeId;
use crate::record::{Phase, Role};
use crate::view::MemberView;

/// Time after its start for which a node waits for the other publishers before it admits a worker
/// without having heard them. 60 s is several times what a restarted node needs for its links over
/// Tor. A publisher is never admitted without them.
pub const LISTEN_BEFORE_ADMITTING: Duration = Duration::from_secs(60);

/// Reason why a node may not admit a joiner yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdmissionDelay {
    /// This node is isolated ([`super::Isolated`]) or no longer a member.
    Isolated,
    /// This node started recently and has not heard this publisher since.
    Starting(NodeId),
    /// This publisher is silent, and the joiner would become a publisher.
    Silent(NodeId),
}

impl Coordinator {
    /// Whether a joiner may be admitted as `role` now. A node that does not know what other
    /// publishers have admitted would accept a used token again.
    ///
    /// # Errors
    /// Names what is missing. It resolves without intervention, except for a publisher that never
    /// returns: it must be evicted before another publisher is admitted.
    pub fn may_admit(&self, role: Role, now: Now) -> Result<(), AdmissionDelay> {
        if self.life.is_excluded() || self.isolation(now).is_some() {
            return Err(AdmissionDelay::Isolated);
        }
        let starting = now.mono < self.started.mono + LISTEN_BEFORE_ADMITTING;
        let mut others = self.view.members().filter(|node| self.is_other_publisher(node));
        let missing = match role {
            Role::Publisher => others.find(|node| !(node.alive || self.has_no_unknown_admissions(node))),
            // A publisher that joined after our start can have admitted nodes only while we were
            // listening.
            Role::Worker if starting => {
                others.find(|node| !(node.been_alive || self.is_newcomer(node) || self.has_no_unknown_admissions(node)))
            }
            Role::Worker => None,
        };
        match missing {
            None => Ok(()),
            Some(node) if starting && !node.been_alive => Err(AdmissionDelay::Starting(node.node())),
            Some(node) => Err(AdmissionDelay::Silent(node.node())),
        }
    }

    fn is_other_publisher(&self, node: &MemberView) -> bool {
        node.node() != self.me && node.member.role() == Role::Publisher
    }

    /// True if a publisher cannot have admissions that this node lacks: it said goodbye after
    /// announcing everything else, or it joined since our start and has never announced anything.
    /// Such a newcomer has not run yet, and must hear us before it admits a publisher itself.
    fn has_no_unknown_admissions(&self, node: &MemberView) -> bool {
        node.phase() == Phase::Gone || (self.is_newcomer(node) && node.card().is_none())
    }

    fn is_newcomer(&self, node: &MemberView) -> bool {
        node.member.certificate.issued >= self.started.unix
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::{Event, Settings};
    use crate::record::{Heartbeat, RecordKind};
    use crate::sim::{FOUNDED, Founder, Identity, sign};

    /// A publisher that starts at second 0, an hour after the cluster was founded, with these
    /// members on its disk.
    struct Node {
        coordinator: Coordinator,
    }

    const START: u64 = FOUNDED + 3600;

    fn at(second: u64) -> Now {
        Now { mono: Duration::from_secs(second), unix: START + second }
    }

    impl Node {
        fn new(own: &Identity, known: &[&Identity]) -> Self {
            let mut coordinator =
                Coordinator::new(Settings::new(1, 1, 0), Box::new(own.key.clone()), own.member.clone());
            let chains = known.iter().map(|it| it.member.chain()).collect();
            coordinator.handle(Event::KnownMembers(chains), at(0));
            Self { coordinator }
        }

        fn receive(&mut self, of: &Identity, seq: u64, phase: Phase, second: u64) {
            let beat = Heartbeat { unix: START + second, ..of.beat(seq, phase) };
            let bytes = sign(beat, &of.key).to_bytes().unwrap();
            let record = Event::Record { origin: of.node(), kind: RecordKind::Heartbeat, bytes };
            self.coordinator.handle(record, at(second));
        }

        /// Delivers two heartbeats, because one proves nothing.
        fn receive_two_heartbeats(&mut self, of: &Identity, seq: u64, second: u64) {
            self.receive(of, seq, Phase::Active, second - 1);
            self.receive(of, seq + 1, Phase::Active, second);
        }

        fn may(&self, role: Role, second: u64) -> Result<(), AdmissionDelay> {
            self.coordinator.may_admit(role, at(second))
        }
    }

    #[test]
    fn a_publisher_that_starts_admits_once_it_has_heard_the_others() {
        let founder = Founder::new(1);
        let [me, other] = [1, 2].map(|number| founder.node(number, Role::Publisher));
        let worker = founder.node(3, Role::Worker);
        let mut node = Node::new(&me, &[&other, &worker]);
        for role in [Role::Worker, Role::Publisher] {
            assert_eq!(node.may(role, 1), Err(AdmissionDelay::Starting(other.node())), "{role}");
        }
        node.receive(&other, 1, Phase::Active, 2);
        assert_eq!(
            node.may(Role::Worker, 2),
            Err(AdmissionDelay::Starting(other.node())),
            "one heartbeat proves nothing"
        );
        node.receive(&other, 2, Phase::Active, 4);
        for role in [Role::Worker, Role::Publisher] {
            assert_eq!(node.may(role, 4), Ok(()), "{role}");
        }
    }

    #[test]
    fn after_a_minute_workers_are_admitted_and_publishers_only_if_all_publishers_are_heard() {
        let founder = Founder::new(1);
        let [me, other] = [1, 2].map(|number| founder.node(number, Role::Publisher));
        let mut node = Node::new(&me, &[&other]);
        assert_eq!(node.may(Role::Worker, 59), Err(AdmissionDelay::Starting(other.node())));
        assert_eq!(node.may(Role::Worker, 60), Ok(()));
        assert_eq!(node.may(Role::Publisher, 60), Err(AdmissionDelay::Silent(other.node())));
        // The other publisher appears, falls silent, and returns to say goodbye.
        node.receive_two_heartbeats(&other, 1, 70);
        assert_eq!(node.may(Role::Publisher, 70), Ok(()));
        for second in 71..=130 {
            node.coordinator.handle(Event::Tick, at(second));
        }
        assert_eq!(node.may(Role::Publisher, 130), Err(AdmissionDelay::Silent(other.node())));
        node.receive(&other, 3, Phase::Gone, 131);
        assert_eq!(node.may(Role::Publisher, 131), Ok(()));
        // An evicted publisher is not waited for.
        let mut node = Node::new(&me, &[&other]);
        node.coordinator.handle(Event::Fact(founder.revoke(other.node()).into()), at(61));
        assert_eq!(node.may(Role::Publisher, 61), Ok(()));
    }

    #[test]
    fn a_newcomer_that_does_not_run_yet_is_not_waited_for() {
        let founder = Founder::new(1);
        let me = founder.node(1, Role::Publisher);
        let newcomer = founder.admit(2, Role::Publisher, START + 5, None);
        let mut node = Node::new(&me, &[]);
        node.coordinator.handle(Event::KnownMembers(vec![newcomer.member.chain()]), at(5));
        for role in [Role::Worker, Role::Publisher] {
            assert_eq!(node.may(role, 6), Ok(()), "{role}");
        }
        // Once it has announced a record, it counts like any other.
        let bytes = sign(newcomer.card(1, 100), &newcomer.key).to_bytes().unwrap();
        node.coordinator.handle(Event::Record { origin: newcomer.node(), kind: RecordKind::Card, bytes }, at(7));
        assert_eq!(node.may(Role::Publisher, 7), Err(AdmissionDelay::Starting(newcomer.node())));
        assert_eq!(node.may(Role::Worker, 7), Ok(()));
    }

    #[test]
    fn an_isolated_node_admits_no_joiner() {
        let founder = Founder::new(1);
        let [me, other] = [1, 2].map(|number| founder.node(number, Role::Publisher));
        let mut node = Node::new(&me, &[&other]);
        node.coordinator.handle(Event::ShutOut(true), at(100));
        assert_eq!(node.may(Role::Worker, 100), Err(AdmissionDelay::Isolated));
        node.coordinator.handle(Event::ShutOut(false), at(101));
        assert_eq!(node.may(Role::Worker, 101), Ok(()));
        node.coordinator.handle(Event::Fact(founder.revoke(me.node()).into()), at(102));
        assert_eq!(node.may(Role::Worker, 102), Err(AdmissionDelay::Isolated));
    }
}
