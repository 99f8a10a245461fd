//! Runs one unit for each service of the cluster: it starts units for new services and stops those
//! of removed ones, while the others continue.

use std::collections::BTreeMap;

use rustbalance_gossip::id::ServiceId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::NodeError;
use super::cluster::{DecisionsByService, ServiceDecisions};
use super::service_unit::{ServiceContext, ServiceUnit, ServiceView, ServiceWatches};
use super::supervisor::PartResult;
use crate::proxy::PortTarget;

/// The state of each service that has a unit, for `status`.
pub(super) type ServiceViews = BTreeMap<ServiceId, ServiceView>;

/// The units of this node.
pub(super) struct ServiceUnits {
    context: ServiceContext,
    /// The targets of each service, from this node's configuration.
    targets: BTreeMap<ServiceId, Vec<PortTarget>>,
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
        targets: BTreeMap<ServiceId, Vec<PortTarget>>,
        services: watch::Receiver<DecisionsByService>,
        failed: mpsc::Sender<NodeError>,
    ) -> Result<Self, NodeError> {
        let (units, running, views) = (BTreeMap::new(), JoinSet::new(), watch::Sender::default());
        let mut all = Self { context, targets, services, units, running, views, failed };
        all.reconcile()?;
        Ok(all)
    }

    /// The state of each service for `status`, updated as services come and go.
    pub(super) fn views(&self) -> watch::Receiver<ServiceViews> {
        self.views.subscribe()
    }

    /// Runs until `stop` and until every unit has stopped.
    pub(super) async fn run(mut self, stop: CancellationToken) -> PartResult {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.services.changed() => if changed.is_err() { break },
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
        self.units.values().for_each(|unit| unit.stop.cancel());
        while self.running.join_next().await.is_some() {}
        Ok(())
    }

    /// Starts and stops units to match the cluster's services. If a service comes back while its
    /// unit stops, its new unit starts after the old one has ended: two would use the same keys.
    fn reconcile(&mut self) -> Result<(), NodeError> {
        let services = self.services.borrow_and_update().clone();
        for (service, unit) in &self.units {
            match services.get(service) {
                Some(wanted) => unit.wanted.set(wanted.clone()),
                None if unit.stop.is_cancelled() => {}
                None => {
                    info!(service = %service, "this address is no longer served");
                    unit.stop.cancel();
                }
            }
        }
        for (service, wanted) in services {
            if !self.units.contains_key(&service) {
                self.start_unit(service, wanted)?;
            }
        }
        let view = |(service, unit): (&ServiceId, &Unit)| (*service, unit.view.clone());
        self.views.send_replace(self.units.iter().map(view).collect());
        Ok(())
    }

    fn start_unit(&mut self, service: ServiceId, first: ServiceDecisions) -> Result<(), NodeError> {
        let ports = self.targets.get(&service).cloned().unwrap_or_default();
        let wanted = ServiceWatches::new(first);
        let unit = ServiceUnit::start(service, ports, &wanted, &self.context)?;
        let (view, stop, failed) = (unit.view(), CancellationToken::new(), self.failed.clone());
        let asked = stop.clone();
        self.running.spawn(async move {
            unit.run(asked, failed).await;
            service
        });
        self.units.insert(service, Unit { wanted, view, stop });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
