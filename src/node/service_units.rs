//! Runs one unit for each service of the cluster: it starts units for new services and stops those
//! of removed ones, while the others continue. When a reload changes the targets, the units follow
//! it without an end; only one that had no targets, and so no clients, starts again.

use std::collections::BTreeMap;

use rustbalance_gossip::id::ServiceId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::NodeError;
use super::closing;
use super::cluster::{DecisionsByService, ServiceDecisions};
use super::service_unit::{ServiceContext, ServiceUnit, ServiceView, ServiceWatches};
use super::supervisor::PartResult;
use crate::config::Targets;
use crate::proxy::PortTarget;
use crate::sync;

/// The state of each service that has a unit, for `status`.
pub(super) type ServiceViews = BTreeMap<ServiceId, ServiceView>;

/// The units of this node.
pub(super) struct ServiceUnits {
    context: ServiceContext,
    /// The targets of all services, from this node's configuration.
    targets: watch::Receiver<Targets>,
    /// The service whose targets are those without an address.
    first: ServiceId,
    /// The cluster's decisions for each service.
    services: watch::Receiver<DecisionsByService>,
    units: BTreeMap<ServiceId, Unit>,
    running: JoinSet<ServiceId>,
    views: watch::Sender<ServiceViews>,
    failed: mpsc::Sender<NodeError>,
}

/// A unit that runs or is stopping.
struct Unit {
    wanted: ServiceWatches,
    targets: watch::Sender<Vec<PortTarget>>,
    /// Whether it has been started with targets.
    serves: bool,
    view: ServiceView,
    stop: CancellationToken,
}

impl ServiceUnits {
    /// Starts a unit for each current service. If a unit fails later, its error goes to `failed`.
    ///
    /// # Errors
    /// A unit cannot be started.
    pub(super) fn start(
        context: ServiceContext,
        targets: watch::Receiver<Targets>,
        services: watch::Receiver<DecisionsByService>,
        failed: mpsc::Sender<NodeError>,
    ) -> Result<Self, NodeError> {
        let (units, running, views) = (BTreeMap::new(), JoinSet::new(), watch::Sender::default());
        let first = context.store.cluster().first_service();
        let mut all = Self { context, targets, first, services, units, running, views, failed };
        all.reconcile()?;
        Ok(all)
    }

    /// The state of each service for `status`, updated as services come and go.
    pub(super) fn views(&self) -> watch::Receiver<ServiceViews> {
        self.views.subscribe()
    }

    /// Runs until `stop` and until every unit has stopped. A node that is asked to stop first
    /// serves the clients that it has.
    pub(super) async fn run(mut self, stop: CancellationToken) -> PartResult {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.services.changed() => if changed.is_err() { break },
                // Without a sender the targets do not change any further.
                Ok(()) = self.targets.changed() => {}
                Some(ended) = self.running.join_next() => match ended {
                    Ok(service) => drop(self.units.remove(&service)),
                    // The unit has panicked, and without it the service is not served.
                    Err(_) => return Ok(()),
                },
            }
            if let Err(error) = self.reconcile() {
                // One error is enough to end the node.
                let _ = self.failed.try_send(error);
            }
        }
        stop.cancelled().await;
        if self.context.asked_to_stop.is_cancelled() {
            let views = self.views.borrow().clone();
            closing::serve_out(&self.context, &views).await;
        }
        self.units.values().for_each(|unit| unit.stop.cancel());
        while self.running.join_next().await.is_some() {}
        Ok(())
    }

    /// Starts and stops units to match the cluster's services. If a service comes back while its
    /// unit stops, its new unit starts after the old one has ended: two would use the same keys.
    fn reconcile(&mut self) -> Result<(), NodeError> {
        let services = self.services.borrow_and_update().clone();
        let mut targets = self.targets.borrow_and_update().by_service(self.first);
        for (service, unit) in &self.units {
            let targets = targets.get(service).cloned().unwrap_or_default();
            match services.get(service) {
                Some(_) if !unit.serves && !targets.is_empty() => unit.stop.cancel(),
                Some(wanted) => {
                    unit.wanted.set(wanted.clone());
                    sync::publish(&unit.targets, targets);
                }
                None if unit.stop.is_cancelled() => {}
                None => {
                    info!(name: "service_ended", service = %service, "this address is no longer served");
                    unit.stop.cancel();
                }
            }
        }
        for (service, wanted) in services {
            if !self.units.contains_key(&service) {
                self.start_unit(service, wanted, targets.remove(&service).unwrap_or_default())?;
            }
        }
        let view = |(service, unit): (&ServiceId, &Unit)| (*service, unit.view.clone());
        self.views.send_replace(self.units.iter().map(view).collect());
        Ok(())
    }

    fn start_unit(
        &mut self,
        service: ServiceId,
        first: ServiceDecisions,
        targets: Vec<PortTarget>,
    ) -> Result<(), NodeError> {
        let (wanted, serves) = (ServiceWatches::new(first), !targets.is_empty());
        let (targets, of_unit) = watch::channel(targets);
        let unit = ServiceUnit::start(service, of_unit, &wanted, &self.context)?;
        let (view, stop, failed) = (unit.view(), CancellationToken::new(), self.failed.clone());
        let asked = stop.clone();
        self.running.spawn(async move {
            unit.run(asked, failed).await;
            service
        });
        self.units.insert(service, Unit { wanted, targets, serves, view, stop });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
