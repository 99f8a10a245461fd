//! Answers requests on the control socket.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use async_trait::async_trait;
use rustbalance_gossip::coordinator::{Coordinator, Event};
use rustbalance_gossip::record::Revocation;
use rustbalance_gossip::signed::Verified;
use rustbalance_gossip::view::{Condition, MemberView};
use rustbalance_mesh::MeshCounters;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::alarms::Alarms;
use super::canary::CanaryHandle;
use super::check::free_space;
use super::cluster::Cluster;
use super::reload::reload;
use super::renewal::Renewals;
use super::service_units::ServiceViews;
use super::status;
use super::timekeeping;
use super::wireguard::WireguardHandle;
use super::wireguard_status::{self, OtherMember};
use crate::alerts;
use crate::blocking::on_disk;
use crate::causes::with_causes;
use crate::clock::{ClockVerdict, unix_now};
use crate::config::{Change, LiveConfig, Reloaded};
use crate::control::{
    Bootstrap, CanaryStatus, ClockStatus, Handler, LinkStatus, Request, Response, Status, TorRenewals, TrafficStatus,
    UsageStatus, WireguardStatus,
};
use crate::counters::Counters;
use crate::discovery::Discovery;
use crate::keys::AuthoritySecret;
use crate::link::Links;
use crate::log;
use crate::memory;
use crate::open_files::OpenFiles;
use crate::proxy::Proxy;
use crate::store::Store;
use crate::tor::{self, Engine, ServiceGuard};

/// The state that requests can use once Tor is ready and the cluster's task runs.
pub(super) struct RunningParts {
    pub(super) cluster: Cluster,
    pub(super) links: Arc<Links>,
    pub(super) services: watch::Receiver<ServiceViews>,
    pub(super) discovery: watch::Receiver<Option<Arc<Discovery>>>,
    /// Says how many circuits of clients there are.
    pub(super) engine: Arc<dyn Engine>,
    /// The bounds on these circuits.
    pub(super) limits: Arc<ServiceGuard>,
    /// The bound on clients' streams.
    pub(super) proxy: Proxy,
    /// Reads how many messages gossip has refused, by reason.
    pub(super) gossip: Box<dyn Fn() -> MeshCounters + Send + Sync>,
    /// The alarms that more nodes joined as publishers with one invitation than it allows.
    pub(super) alarms: Arc<Alarms>,
    pub(super) wireguard: WireguardHandle,
    pub(super) canary: CanaryHandle,
    pub(super) clock: watch::Receiver<ClockVerdict>,
}

/// The daemon as seen by the control socket.
pub(super) struct Daemon {
    pub(super) store: Arc<Store>,
    pub(super) engine: Arc<dyn Engine>,
    /// The clients before it in this process; `None` if it is the first.
    pub(super) renewals: Option<Renewals>,
    pub(super) started: Instant,
    pub(super) bootstrap: watch::Receiver<tor::Bootstrap>,
    /// The configuration in use.
    pub(super) live: Arc<LiveConfig>,
    pub(super) counters: Counters,
    /// Takes alerts for delivery.
    pub(super) alerts: alerts::Sender,
    pub(super) running: OnceLock<RunningParts>,
    /// Cancelling it stops the daemon.
    pub(super) leave: CancellationToken,
}

/// The answer before [`Daemon::running`] is set.
pub(super) fn not_yet() -> Response {
    Response::refused("the daemon is still connecting to Tor: `rustbalance status` shows how far it is; try again then")
}

#[async_trait]
impl Handler for Daemon {
    async fn handle(&self, request: Request) -> Response {
        match request {
            Request::Status {} => Response::Status(Box::new(self.status())),
            Request::Invite { role, expires_seconds, uses } => self.invite(role, expires_seconds, uses).await,
            Request::RevokeInvitation { invitation } => self.revoke_invitation(&invitation).await,
            Request::Acknowledge { invitation } => self.acknowledge(&invitation),
            Request::Leave {} => self.leave().await,
            Request::Drain {} => self.set_draining(true).await,
            Request::Resume {} => self.set_draining(false).await,
            Request::Evict { node } => self.evict(&node).await,
            Request::RecentLog {} => Response::RecentLog { lines: log::recent() },
            Request::TestAlert {} => self.test_alert().await,
            Request::Reload {} => self.reload(),
            Request::Canary {} => match self.running.get() {
                Some(running) => running.canary.run().await,
                None => not_yet(),
            },
            Request::Circuits {} => self.circuits(),
            Request::KillCircuit { circuit } => self.kill_circuit(circuit),
            Request::WireguardOn {} => self.switch_wireguard(true).await,
            Request::WireguardOff {} => self.switch_wireguard(false).await,
        }
    }
}

impl Daemon {
    fn reload(&self) -> Response {
        match on_disk(|| reload(self.store.dir(), &self.live)) {
            Ok(Reloaded { applied, after_restart }) => {
                let shown = |changes: Vec<Change>| changes.iter().map(ToString::to_string).collect();
                Response::Reloaded { applied: shown(applied), after_restart: shown(after_restart) }
            }
            Err(error) => {
                Response::refused(format!("the running configuration stays, because {}", with_causes(&error)))
            }
        }
    }

    /// The open files that are allowed, and those that the configuration in use needs.
    pub(super) fn files(&self) -> OpenFiles {
        OpenFiles::of_process(self.live.proxy().borrow().streams)
    }

    /// Drains or resumes even if the state cannot be stored: an operator whose disk is full may
    /// need to drain all the more.
    async fn set_draining(&self, draining: bool) -> Response {
        let Some(running) = self.running.get() else { return not_yet() };
        let stored = on_disk(|| self.store.set_draining(draining));
        let event = if draining { Event::Drain } else { Event::Resume };
        if let Err(stopping) = running.cluster.send_event_and_wait(event).await {
            return Response::refused(stopping);
        }
        info!(name: "drain_changed", draining, "the operator has changed whether this node takes new clients");
        let done = match draining {
            true => "draining: this node leaves the descriptor and serves on",
            false => "resumed: this node takes clients again",
        };
        match (stored, draining) {
            (Ok(()), true) => {
                Response::done(format!("{done}; it drains until `rustbalance resume`, also after a restart"))
            }
            (Ok(()), false) => Response::done(done),
            (Err(error), _) => {
                Response::done(format!("{done}, but it cannot be stored, so a restart forgets it: {error}"))
            }
        }
    }

    /// Leaves the cluster. The goodbye is in the mesh when this returns; the shutdown gives it time
    /// to spread.
    async fn leave(&self) -> Response {
        info!(name: "leaving", "leaving, as asked");
        if let Some(running) = self.running.get() {
            // If the cluster's task has ended, the node is stopping anyway.
            let _ = running.cluster.send_event_and_wait(Event::Leave).await;
        }
        self.leave.cancel();
        Response::done("this node has said goodbye and stops; `rustbalance run` would bring it back")
    }

    /// The authority key, or a refusal that says why this node does not have it.
    pub(super) fn authority(&self) -> Result<AuthoritySecret, Response> {
        match self.store.authority_secret() {
            Ok(Some(authority)) => Ok(authority),
            Ok(None) => Err(Response::refused(
                "this node is a worker, and only publishers can do that: run the command on a publisher",
            )),
            Err(error) => Err(Response::refused(error)),
        }
    }

    async fn evict(&self, prefix: &crate::control::NodePrefix) -> Response {
        let Some(running) = self.running.get() else { return not_yet() };
        let named = |member: &MemberView| {
            (member.node(), member.report().and_then(|report| report.name.as_ref()).map(ToString::to_string))
        };
        let members = |coordinator: &Coordinator, _| coordinator.view().members().map(named).collect::<Vec<_>>();
        let members = running.cluster.look(members);
        let node = match prefix.choose(members) {
            Ok(node) if node == self.store.node_id() => {
                return Response::refused("this is the node itself: use `rustbalance leave`, or evict it from another");
            }
            Ok(node) => node,
            Err(why) => return Response::refused(why),
        };
        let signed = self.authority().and_then(|authority| {
            let revocation = Revocation { cluster: self.store.cluster(), node, revoked: unix_now() };
            Verified::sign(revocation, &authority).map_err(Response::refused)
        });
        let signed = match signed {
            Ok(signed) => signed,
            Err(refused) => return refused,
        };
        // Stored before the answer: after the operator has read it, no crash may bring the node
        // back.
        if let Err(error) = on_disk(|| self.store.put_revocations(std::slice::from_ref(&signed))) {
            return Response::refused(error);
        }
        match running.cluster.send_event_and_wait(Event::Fact(signed.into())).await {
            Ok(()) => Response::done(format!("{node} is no longer a member")),
            Err(stopping) => Response::refused(stopping),
        }
    }

    pub(super) fn status(&self) -> Status {
        let bootstrap = self.bootstrap.borrow().clone();
        let files = self.files();
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            cluster: self.store.cluster().to_string(),
            node: self.store.node_id().to_string(),
            role: self.store.membership().role(),
            phase: Condition::Joining,
            uptime_seconds: self.started.elapsed().as_secs(),
            tor: Bootstrap { fraction: bootstrap.fraction, ready: bootstrap.ready, message: bootstrap.message },
            tor_renewals: self.renewals.as_ref().map_or_else(TorRenewals::default, |renewals| TorRenewals {
                count: renewals.count,
                last: Some(renewals.last_unix),
                why: Some(renewals.why.clone()),
            }),
            publisher: None,
            members: Vec::new(),
            intro_points: Vec::new(),
            stand_ins: Vec::new(),
            publication: None,
            directories: Vec::new(),
            other_publisher: None,
            ports: Vec::new(),
            traffic: TrafficStatus::default(),
            usage: UsageStatus::default(),
            refused: Default::default(),
            links: Vec::new(),
            invitations: Vec::new(),
            alarms: Vec::new(),
            discovery_generation: 0,
            files_allowed: Some(files.limit).filter(|limit| *limit < u64::MAX),
            files_needed: files.needed,
            disk_free_bytes: free_space(self.store.dir()).ok(),
            isolated: None,
            clock: ClockStatus::default(),
            wireguard: WireguardStatus::default(),
            problems: Vec::new(),
            canary: CanaryStatus::default(),
        };
        if let Some(running) = self.running.get() {
            running.fill(&self.counters, &mut status);
        }
        status.clock = timekeeping::status(match self.running.get() {
            Some(running) => *running.clock.borrow(),
            None => timekeeping::verdict(&*self.engine, None),
        });
        status.usage.memory_bytes = memory::resident();
        status.usage.waiting_bytes_allowed = memory::quota();
        status.problems = status.find_problems();
        status
    }
}

impl RunningParts {
    fn fill(&self, counters: &Counters, status: &mut Status) {
        let part = self.cluster.look(status::cluster_part);
        status.publisher = part.publisher;
        status.members = part.members;
        status.publication = part.publication;
        status.invitations = part.invitations;
        status.alarms = self.alarms.open();
        status.phase = part.phase;
        status.isolated = part.isolated;
        status.discovery_generation = self.discovery.borrow().as_ref().map_or(0, |newest| newest.key.generation);
        for (id, service) in &*self.services.borrow() {
            status.intro_points.extend(status::intro_points(*id, &service.points.borrow(), unix_now()));
            if status.other_publisher.is_none() {
                status.other_publisher = service.other_publisher.borrow().as_ref().and_then(status::other_publisher);
            }
            status.directories.extend(status::directories(*id, &service.directories.borrow()));
            status.stand_ins.extend(status::stand_ins(&service.stand_ins.borrow()));
            let ports = service.health.as_ref().map(|health| status::ports(*id, &health.ports()));
            status.ports.extend(ports.unwrap_or_default());
        }
        let links = self.links.status();
        let others = |coordinator: &Coordinator, _| {
            let view = coordinator.view();
            let nodes = view.members().map(MemberView::node).filter(|node| *node != view.me());
            let silence = |node, unreachable| view.allowed_silence(&node, unreachable);
            let member = |node| OtherMember { node, usual: silence(node, false), unreachable: silence(node, true) };
            nodes.map(member).collect::<Vec<_>>()
        };
        status.wireguard = wireguard_status::status(&self.wireguard, &self.cluster.look(others), &links);
        status.canary = self.canary.status();
        status.links = links.into_iter().map(link_status).collect();
        status::collect(counters, &part.refused, (self.gossip)());
        status.traffic = status::traffic(counters);
        status.usage = status::usage(self.engine.client_circuits(), self.limits.circuits(), self.proxy.most_streams());
        status.refused = status::refused(counters);
    }
}

fn link_status(link: crate::link::LinkStatus) -> LinkStatus {
    LinkStatus {
        peer: link.peer.to_string(),
        route: link.route.to_string(),
        state: link.state.to_string(),
        carries: link.carries,
        outgoing: link.outgoing,
        age_seconds: link.age.as_secs(),
        frames_in: link.frames_in,
        frames_out: link.frames_out,
        bytes_in: link.bytes_in,
        bytes_out: link.bytes_out,
        dropped: link.dropped,
        round_trip_ms: link.round_trip.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
    }
}
