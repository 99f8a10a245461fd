//! How a node stops without losing a client's request.
//!
//! The node has said goodbye: another publisher takes the lease, and the descriptor no longer names
//! this node. Clients hold the old descriptor for hours, so its introduction points must not close
//! before others serve there:
//!
//! 1. **The points are handed over.** Publishers stand in at them at once. The relay of each point
//!    closes this node's circuit as it takes the other one, so that no introduction is refused. If
//!    there is no publisher left, the points stay open to the end.
//! 2. **Clients that were met go on.** Circuits without a stream are closed after a pause, which
//!    becomes shorter as the time limit comes nearer: a client that uses its circuit in short
//!    intervals is left alone for as long as possible. It then comes to another node.
//! 3. **The limit.** `[limits] shutdown_timeout` after the begin, whatever is left is cut off.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::service_unit::{ServiceContext, ServiceView};
use super::service_units::ServiceViews;
use crate::balance::keeping::Keeping;
use crate::systemd;
use crate::tor::CircuitCounts;

/// Longest wait until others have taken the introduction points over: they hear of it within a
/// second, and circuits over slow relays take several. Then the points close.
const HAND_OVER: Duration = Duration::from_secs(20);
/// A circuit without a stream for this long is closed: most clients that load a page ask for the
/// next part of it sooner.
const QUIET: Duration = Duration::from_secs(5);
/// The same shortly before the limit: longer than cells take to a client.
const LEAST_QUIET: Duration = Duration::from_millis(500);
/// Interval between two looks at what is left.
const LOOK: Duration = Duration::from_millis(250);

/// Serves the clients that are there, until none is left or the limit has passed.
pub(super) async fn serve_out(context: &ServiceContext, views: &ServiceViews) {
    let (began, limit) = (Instant::now(), context.proxy.shutdown_limit());
    context.proxy.end_sleeping();
    context.keeping.send_replace(Keeping::UntilTaken);
    if hand_over(context, views, began + limit.min(HAND_OVER)).await {
        context.keeping.send_replace(Keeping::Nothing);
    }
    let mut shown = CircuitCounts::default();
    loop {
        let left = limit.saturating_sub(began.elapsed());
        context.engine.close_idle_circuits(quiet(left, limit));
        let now = context.engine.client_circuits();
        if now == CircuitCounts::default() {
            return info!(name: "clients_drained", took = ?began.elapsed(), "no client is left");
        }
        if left.is_zero() {
            let CircuitCounts { making, open } = now;
            return warn!(
                name: "clients_cut_off",
                making, open, ?limit,
                "cutting off the clients that are left: the time limit has passed"
            );
        }
        if now != shown {
            systemd::status(&format!("stopping: {} circuits of clients are left", now.making + now.open));
            shown = now;
        }
        sleep(LOOK).await;
    }
}

/// Waits until other nodes have taken all points over, or until `deadline`. False if no publisher
/// is left that could.
async fn hand_over(context: &ServiceContext, views: &ServiceViews, deadline: Instant) -> bool {
    let open_at = |view: &ServiceView| {
        let own = view.points.borrow().iter().filter(|point| !point.retired).count();
        own + view.stand_ins.borrow().len()
    };
    let open = || views.values().map(open_at).sum::<usize>();
    let had = open();
    if had == 0 {
        return true;
    }
    systemd::status("stopping: other nodes take the introduction points over");
    loop {
        let left = open();
        if left == 0 {
            info!(name: "points_handed_over", points = had, "other nodes have taken the introduction points over");
            return true;
        }
        if !context.cluster.look(|coordinator, _| coordinator.view().has_successor()) {
            info!(
                name: "points_handover_without_publisher",
                points = left,
                "no other publisher can take the introduction points over: they stay open to the end"
            );
            return false;
        }
        if Instant::now() >= deadline {
            warn!(
                name: "points_handover_failed",
                left,
                "no other node has taken these introduction points over: they close, and clients try others"
            );
            return true;
        }
        sleep(LOOK).await;
    }
}

/// Time without a stream after which a circuit is closed if `left` of `limit` remains.
fn quiet(left: Duration, limit: Duration) -> Duration {
    QUIET.mul_f64(left.as_secs_f64() / limit.as_secs_f64().max(1.0)).clamp(LEAST_QUIET, QUIET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circuit_may_rest_for_less_as_the_limit_comes_nearer() {
        let limit = Duration::from_secs(60);
        let of = |left| quiet(Duration::from_secs(left), limit);
        assert_eq!((of(60), of(30), of(1), of(0)), (QUIET, QUIET / 2, LEAST_QUIET, LEAST_QUIET));
        assert_eq!(quiet(Duration::from_secs(1), Duration::from_secs(1)), QUIET);
    }
}
