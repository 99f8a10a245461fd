//! Facts on disk: invitations and revocations have a file each, all other kinds share `facts`.

use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::facts::{AllFacts, CarriedFact};
use rustbalance_gossip::record::{AnyFact, Fact, Invitation, Member, Revocation};
use rustbalance_gossip::signed::{Statement, Strict, Unverified, Verified};
use tracing::warn;

use super::{Kind, Store, StoreError, at_most};

impl Store {
    /// The stored facts of every kind.
    pub fn facts(&self) -> Result<Vec<AnyFact>, StoreError> {
        let mut facts: Vec<AnyFact> = self.revocations()?.into_iter().map(AnyFact::from).collect();
        facts.extend(self.invitations()?.into_iter().map(AnyFact::from));
        facts.extend(self.other_facts()?.complete_statements());
        Ok(facts)
    }

    /// Adds facts to those stored, each to the file of its kind. `unix` is the time now, in seconds
    /// since the epoch.
    pub fn put_facts(&self, given: &[AnyFact], unix: u64) -> Result<(), StoreError> {
        let (mut invitations, mut revocations, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for fact in given {
            match fact {
                AnyFact::Invitation(invitation) => invitations.push(invitation.clone()),
                AnyFact::Revocation(revocation) => revocations.push(revocation.clone()),
                AnyFact::Service(_) | AnyFact::Renewal(_) | AnyFact::Unknown(_) => others.push(fact.clone()),
            }
        }
        self.put_revocations(&revocations)?;
        self.put_invitations(&invitations, unix)?;
        self.put_others(others, unix)
    }

    /// This node's certificates with the latest end: those of [`Store::membership`], or renewed
    /// ones. Signatures have been checked, expiry has not.
    pub fn newest_membership(&self) -> Result<Member, StoreError> {
        let (own, facts) = (&self.membership, self.other_facts()?);
        let renewed = facts.renewals.get(&self.node_id()).and_then(|renewal| renewal.chain(&own.authority).ok());
        let renewed = renewed.and_then(|chain| chain.verify(self.cluster(), 0).ok());
        let later = renewed.filter(|renewed| renewed.certificate.expires > own.certificate.expires);
        Ok(later.unwrap_or_else(|| own.clone()))
    }

    /// Facts of the kinds that have no file of their own.
    pub(super) fn other_facts(&self) -> Result<AllFacts, StoreError> {
        let (kind, authority) = (Kind::Facts, self.membership.authority_id());
        let mut facts = AllFacts::default();
        for stored in self.value::<Vec<CarriedFact>>(kind)? {
            let key = stored.kind.clone();
            let Some((of, record)) = stored.read() else {
                return Err(self.content(kind, format!("{key:?} is not the key of a fact")));
            };
            let fact = AnyFact::read(of, &record, authority.public_key(), &Strict);
            let fact = fact.map_err(|error| self.content(kind, format!("{key}: {error}")))?;
            facts.put(fact, 0).map_err(|error| self.content(kind, format!("{key}: {error}")))?;
        }
        Ok(facts)
    }

    fn put_others(&self, given: Vec<AnyFact>, unix: u64) -> Result<(), StoreError> {
        if given.is_empty() {
            return Ok(());
        }
        let _changing = self.change();
        let mut kept = self.other_facts()?;
        let mut changed = false;
        for fact in given {
            let key = fact.kind().key();
            match kept.put(fact, unix) {
                Ok(news) => changed |= news,
                Err(error) => warn!(
                    name: "fact_store_failed",
                    %key, %error,
                    "cannot store a fact: a neighbour must send it after a restart"
                ),
            }
        }
        if !changed {
            return Ok(());
        }
        let carried = |fact: AnyFact| {
            let record = fact.to_bytes().map_err(|error| self.content(Kind::Facts, error))?;
            Ok(CarriedFact { kind: fact.kind().key(), record: VarBytes(record) })
        };
        let list = kept.complete_statements().into_iter().map(carried).collect::<Result<Vec<_>, StoreError>>()?;
        self.put_value(Kind::Facts, &list)
    }

    /// The stored invitations. One token may have several versions, each with a redemption or a
    /// revocation that the others lack.
    pub fn invitations(&self) -> Result<Vec<Verified<Invitation>>, StoreError> {
        self.statements(Kind::Invitations, Invitation::MAX_KEPT)
    }

    /// Adds invitations to those stored; `unix` is the time now, in seconds since the epoch. No
    /// redemption or revocation is lost: of two versions of a token, the one that contains the
    /// other is kept, or both if neither does.
    ///
    /// Beyond `Invitation::MAX_KEPT`, invitations that expired long ago are removed, then other
    /// expired ones, the longest expired first. A used-up invitation that has not expired stays:
    /// otherwise an older version that another node has kept would make its token valid again.
    pub fn put_invitations(&self, given: &[Verified<Invitation>], unix: u64) -> Result<(), StoreError> {
        let _changing = self.change();
        let mut kept = self.invitations()?;
        let mut changed = false;
        for invitation in given.iter().filter(|given| self.is_of_our_authority(Kind::Invitations, given.signer())) {
            if !kept.iter().any(|known| covers(known, invitation)) {
                kept.retain(|known| !covers(invitation, known));
                kept.push(invitation.clone());
                changed = true;
            }
        }
        if !changed {
            return Ok(());
        }
        if kept.len() > Invitation::MAX_KEPT {
            kept.retain(|invitation| invitation.is_kept(unix));
            kept.sort_by_key(|invitation| invitation.expires);
            let over = kept.iter().take_while(|invitation| invitation.expires < unix).count();
            kept.drain(..over.min(kept.len().saturating_sub(Invitation::MAX_KEPT)));
        }
        self.put_statements(Kind::Invitations, &kept, Invitation::MAX_KEPT)
    }

    /// The stored revocations.
    pub fn revocations(&self) -> Result<Vec<Verified<Revocation>>, StoreError> {
        self.statements(Kind::Revocations, Revocation::MAX_KEPT)
    }

    /// Adds revocations to those stored. None is ever removed.
    pub fn put_revocations(&self, given: &[Verified<Revocation>]) -> Result<(), StoreError> {
        let _changing = self.change();
        let mut kept = self.revocations()?;
        let before = kept.len();
        for revocation in given.iter().filter(|given| self.is_of_our_authority(Kind::Revocations, given.signer())) {
            if !kept.iter().any(|known| known.node == revocation.node) {
                kept.push(revocation.clone());
            }
        }
        if kept.len() == before {
            return Ok(());
        }
        self.put_statements(Kind::Revocations, &kept, Revocation::MAX_KEPT)
    }

    /// A list of statements signed by the authority.
    fn statements<T: Statement>(&self, kind: Kind, max: usize) -> Result<Vec<Verified<T>>, StoreError> {
        let authority = self.membership.authority_id();
        self.list::<Unverified<T>>(kind, max)?
            .into_iter()
            .filter(|entry| self.is_of_our_authority(kind, entry.claimed_signer()))
            .map(|entry| entry.verify(authority.public_key()).map_err(|error| self.content(kind, error)))
            .collect()
    }

    /// True if the cluster's authority is the signer; logs otherwise. A foreign entry is skipped,
    /// so that it does not keep the others off the disk.
    fn is_of_our_authority(&self, kind: Kind, signer: &[u8; 32]) -> bool {
        let ours = signer == self.membership.authority_id().public_key();
        if !ours {
            warn!(
                name: "fact_of_other_authority",
                file = kind.name(),
                "skipping an entry that another authority has signed"
            );
        }
        ours
    }

    fn put_statements<T: Statement>(&self, kind: Kind, list: &[Verified<T>], max: usize) -> Result<(), StoreError> {
        at_most(kind.name(), list.len(), max)?;
        let list: Vec<_> = list.iter().map(Verified::unverified).collect();
        self.put_value(kind, &list)
    }
}

/// True if nothing is lost when only `one` is kept.
fn covers(one: &Invitation, other: &Invitation) -> bool {
    one.token == other.token && one.redeemed.is_superset(&other.redeemed) && (one.revoked || !other.revoked)
}
