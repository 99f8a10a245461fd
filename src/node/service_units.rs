//! Keeps one unit running for each service of the cluster: it starts those that come and stops those that go, while the
//! others serve on.

use std::collections::BTreeMap;

use rustbalance_gossip::id::ServiceId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::NodeError;
use super::cluster::{ServiceWanted, Services};
use super::service_unit::{ServiceContext, ServiceUnit, ServiceView, ServiceWatches};
use super::supervisor::Ended;
use crate::proxy::PortTarget;

/// What `status` shows of each service that has a unit.
pub(super) type ServiceViews = BTreeMap<ServiceId, ServiceView>;

/// The units of this node.
pub(super) struct ServiceUnits {
    context: ServiceContext,
    /// What this node's configuration says of each service.
    targets: BTreeMap<ServiceId, Vec<PortTarget>>,
    /// What the cluster decides, service by service.
    services: watch::Receiver<Services>,
    units: BTreeMap<ServiceId, Unit>,
    running: JoinSet<ServiceId>,
    views: watch::Sender<ServiceViews>,
    failed: mpsc::Sender<NodeError>,
}

/// A unit that runs or stops.
struct Unit {
    wanted: ServiceWatches,
    view: ServiceView,
    stop: CancellationToken,
}

impl ServiceUnits {
    /// Starts a unit for each service that there is now. What a unit cannot go on for later is told to `failed`.
    ///
    /// # Errors
    /// If one of them cannot be started.
    pub(super) fn start(
        context: ServiceContext,
        targets: BTreeMap<ServiceId, Vec<PortTarget>>,
        services: watch::Receiver<Services>,
        failed: mpsc::Sender<NodeError>,
    ) -> Result<Self, NodeError> {
        let (units, running, views) = (BTreeMap::new(), JoinSet::new(), watch::Sender::default());
        let mut all = Self { context, targets, services, units, running, views, failed };
        all.reconcile()?;
        Ok(all)
    }

    /// What `status` shows of each service, changing as they come and go.
    pub(super) fn views(&self) -> watch::Receiver<ServiceViews> {
        self.views.subscribe()
    }

    /// Runs until `stop` and until every unit has stopped.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Ended {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.services.changed() => if changed.is_err() { break },
                Some(ended) = self.running.join_next() => match ended {
                    Ok(service) => drop(self.units.remove(&service)),
                    // It has panicked: without it the service is not served.
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

    /// Brings the units to what the cluster has. A service that comes back while its unit stops gets a new one once that
    /// has ended: two would use the same keys.
    fn reconcile(&mut self) -> Result<(), NodeError> {
        let services = self.services.borrow_and_update().clone();
        for (service, unit) in &self.units {
            match services.get(service) {
                Some(wanted) => unit.wanted.set(wanted.clone()),
                None if unit.stop.is_cancelled() => {}
                None => {
                    info!(service = %service, "no longer serving this address");
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

    fn start_unit(&mut self, service: ServiceId, first: ServiceWanted) -> Result<(), NodeError> {
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
