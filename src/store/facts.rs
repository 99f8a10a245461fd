//! Facts on disk: invitations and revocations each in a file of their own, all other kinds in `facts`.

use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::facts::{AllFacts, CarriedFact};
use rustbalance_gossip::record::{AnyFact, Fact, Invitation, Revocation};
use rustbalance_gossip::signed::{Statement, Strict, Unverified, Verified};
use tracing::warn;

use super::{Kind, Store, StoreError, at_most};

impl Store {
    /// The facts known, of every kind.
    pub fn facts(&self) -> Result<Vec<AnyFact>, StoreError> {
        let mut facts: Vec<AnyFact> = self.revocations()?.into_iter().map(AnyFact::from).collect();
        facts.extend(self.invitations()?.into_iter().map(AnyFact::from));
        facts.extend(self.other_facts()?.wholes());
        Ok(facts)
    }

    /// Adds these to the facts known, at `unix` seconds since the epoch: each kind in its file.
    pub fn put_facts(&self, given: &[AnyFact], unix: u64) -> Result<(), StoreError> {
        let (mut invitations, mut revocations, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for fact in given {
            match fact {
                AnyFact::Invitation(invitation) => invitations.push(invitation.clone()),
                AnyFact::Revocation(revocation) => revocations.push(revocation.clone()),
                AnyFact::Service(_) | AnyFact::Unknown(_) => others.push(fact.clone()),
            }
        }
        self.put_revocations(&revocations)?;
        self.put_invitations(&invitations, unix)?;
        self.put_others(others, unix)
    }

    /// Facts of the kinds that have no file of their own.
    pub(super) fn other_facts(&self) -> Result<AllFacts, StoreError> {
        let (kind, authority) = (Kind::Facts, self.membership.authority_id());
        let mut facts = AllFacts::default();
        for stored in self.value::<Vec<CarriedFact>>(kind)? {
            let key = stored.kind.clone();
            let Some((of, record)) = stored.read() else {
                return Err(self.content(kind, format!("no fact has the key {key:?}")));
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
                Err(error) => warn!(%key, %error, "a fact is not stored: neighbours have it again after a restart"),
            }
        }
        if !changed {
            return Ok(());
        }
        let carried = |fact: AnyFact| {
            let record = fact.to_bytes().map_err(|error| self.content(Kind::Facts, error))?;
            Ok(CarriedFact { kind: fact.kind().key(), record: VarBytes(record) })
        };
        let list = kept.wholes().into_iter().map(carried).collect::<Result<Vec<_>, StoreError>>()?;
        self.put_value(Kind::Facts, &list)
    }

    /// The invitations known. Several versions of one may be among them, none of which covers another.
    pub fn invitations(&self) -> Result<Vec<Verified<Invitation>>, StoreError> {
        self.statements(Kind::Invitations, Invitation::MOST)
    }

    /// Adds these to the invitations known, at `unix` seconds since the epoch. What was redeemed or revoked stays so: of
    /// two versions the one that knows more is kept, and both if each knows something of its own. Where there is no room
    /// left, those that ended long ago are forgotten, then others that are over, the longest first. One that is used up
    /// and not over stays: forgotten, an older version that somebody kept would make its token good again.
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
        if kept.len() > Invitation::MOST {
            kept.retain(|invitation| invitation.is_kept(unix));
            kept.sort_by_key(|invitation| invitation.expires);
            let over = kept.iter().take_while(|invitation| invitation.expires < unix).count();
            kept.drain(..over.min(kept.len().saturating_sub(Invitation::MOST)));
        }
        self.put_statements(Kind::Invitations, &kept, Invitation::MOST)
    }

    /// The revocations known.
    pub fn revocations(&self) -> Result<Vec<Verified<Revocation>>, StoreError> {
        self.statements(Kind::Revocations, Revocation::MOST)
    }

    /// Adds these to the revocations known. None is ever forgotten.
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
        self.put_statements(Kind::Revocations, &kept, Revocation::MOST)
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

    /// Whether the cluster's authority is the signer. One foreign entry must not keep the others
    /// off the disk, so it is skipped, and logged.
    fn is_of_our_authority(&self, kind: Kind, signer: &[u8; 32]) -> bool {
        let ours = signer == self.membership.authority_id().public_key();
        if !ours {
            warn!(file = kind.name(), "an entry that another authority has signed is skipped");
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
