//! The operator's requests about invitations: make, revoke, acknowledge.

use std::time::Duration;

use rustbalance_gossip::coordinator::{AdmissionDelay, Coordinator, Event};
use rustbalance_gossip::id::InvitationId;
use rustbalance_gossip::record::{Fact, Invitation, Role};
use rustbalance_gossip::signed::Verified;
use rustbalance_gossip::time::Now;
use tracing::info;

use super::control::{Daemon, RunningParts, not_yet};
use crate::blocking::on_disk;
use crate::clock::unix_now;
use crate::control::{InvitationPrefix, Response, TokenText};
use crate::display::short;
use crate::join::{self, Terms};
use crate::store::StoreError;

/// The answer when the cluster cannot keep another invitation.
fn too_many_invitations() -> Response {
    Response::refused(format!(
        "the cluster knows {} invitations, and no more are kept until one of them has been over for a week: \
         make fewer, each for more nodes (--uses) or for a shorter time (--expires)",
        Invitation::MAX_KEPT
    ))
}

/// A text for the operator: why no node can join with a new token at the moment. `None` if one can.
fn why_not_admitted(coordinator: &Coordinator, role: Role, now: Now) -> Option<String> {
    match coordinator.may_admit(role, now).err()? {
        AdmissionDelay::Isolated => {
            Some("this node is isolated, as `rustbalance status` shows, and admits no node until that ends".into())
        }
        // This passes within a minute, and `join` waits for it.
        AdmissionDelay::Starting(_) => None,
        AdmissionDelay::Silent(node) => Some(format!(
            "publisher {} is silent: no other publisher is admitted until it is heard, or evicted with `rustbalance evict`",
            node.short()
        )),
    }
}

impl Daemon {
    pub(super) async fn invite(&self, role: Role, expires_seconds: u64, uses: u16) -> Response {
        let Some(running) = self.running.get() else { return not_yet() };
        let authority = match self.authority() {
            Ok(authority) => authority,
            Err(refused) => return refused,
        };
        let terms = Terms { role, uses, lifetime: Duration::from_secs(expires_seconds) };
        let (token, signed) = match join::invite(self.store.cluster(), &authority, terms, unix_now(), &mut rand::rng())
        {
            Ok(made) => made,
            Err(error) => return Response::refused(error),
        };
        let (id, expires) = (signed.token, signed.expires);
        if let Err(refused) = self.announce(running, signed).await {
            return refused;
        }
        if running.cluster.look(|coordinator, _| coordinator.invitation(&id).is_none()) {
            return too_many_invitations();
        }
        info!(name: "invitation_made", %role, uses, "invitation made");
        Response::Invited {
            master: self.store.cluster().to_string(),
            token: TokenText(token.text().to_string()),
            id: id.to_string(),
            expires,
            note: running.cluster.look(|coordinator, now| why_not_admitted(coordinator, role, now)),
        }
    }

    /// Revokes an invitation. Nodes that joined with it stay members; no further node can join.
    pub(super) async fn revoke_invitation(&self, prefix: &InvitationPrefix) -> Response {
        let Some(running) = self.running.get() else { return not_yet() };
        let known = running.cluster.look(|coordinator, _| {
            let invitations = coordinator.view().invitations();
            let id: InvitationId = prefix.choose(invitations.iter().map(|invitation| invitation.token))?;
            invitations.get(&id).cloned().ok_or_else(|| format!("invitation {id} was forgotten: it ended long ago"))
        });
        let known = match known {
            Ok(known) => known,
            Err(why) => return Response::refused(why),
        };
        let signed = self.authority().and_then(|authority| {
            Verified::sign(Invitation { revoked: true, ..known.clone() }, &authority).map_err(Response::refused)
        });
        let signed = match signed {
            Ok(signed) => signed,
            Err(refused) => return refused,
        };
        if let Err(refused) = self.announce(running, signed).await {
            return refused;
        }
        let id = known.token.to_string();
        info!(name: "invitation_revoked", invitation = short(&id), "invitation revoked");
        let members = match known.redeemed.len() {
            0 => "no node has joined with it".into(),
            joined => format!("nodes that joined with it stay members: {joined} ({})", nodes(&known)),
        };
        Response::done(format!("invitation {} is revoked, its token admits no further node; {members}", short(&id)))
    }

    /// Acknowledges an alarm on this node alone: a thief that holds the key must not be able to end
    /// it on all nodes.
    pub(super) fn acknowledge(&self, prefix: &InvitationPrefix) -> Response {
        let Some(running) = self.running.get() else { return not_yet() };
        let alarm = match running.alarms.acknowledge(prefix) {
            Ok(alarm) => alarm,
            Err(why) => return Response::refused(why),
        };
        match on_disk(|| self.store.put_alarms(std::slice::from_ref(&alarm))) {
            Ok(()) => Response::done(
                "acknowledged on this node; the other nodes go on warning until it is acknowledged there, too",
            ),
            Err(error) => Response::refused(format!("acknowledged until this node restarts: {error}")),
        }
    }

    /// Writes an invitation to disk, then announces it to the cluster. A crash can neither leave
    /// the operator with a token that no node knows, nor bring back a revoked one.
    async fn announce(&self, running: &RunningParts, signed: Verified<Invitation>) -> Result<(), Response> {
        match on_disk(|| self.store.put_invitations(std::slice::from_ref(&signed), unix_now())) {
            Ok(()) => {}
            Err(StoreError::TooMany { .. }) => return Err(too_many_invitations()),
            Err(error) => return Err(Response::refused(error)),
        }
        running.cluster.send_event_and_wait(Event::Fact(signed.into())).await.map_err(Response::refused)
    }
}

/// The nodes that have joined with the invitation, as `rustbalance evict` takes them.
fn nodes(invitation: &Invitation) -> String {
    Vec::from_iter(invitation.redeemed.iter().map(|node| node.short())).join(", ")
}
