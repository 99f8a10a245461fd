//! Shows and closes the circuits of clients on this node, for operators who handle abuse.

use tracing::info;

use super::control::{Daemon, not_yet};
use crate::control::Response;
use crate::counters::Counter;
use crate::tor::ExportedCircuitId;

impl Daemon {
    pub(super) fn circuits(&self) -> Response {
        match self.running.get() {
            Some(running) => Response::Circuits(running.engine.open_client_circuits().into()),
            None => not_yet(),
        }
    }

    /// The id is not logged: with the application's log it would say what a client has done.
    pub(super) fn kill_circuit(&self, circuit: ExportedCircuitId) -> Response {
        let Some(running) = self.running.get() else { return not_yet() };
        if !running.engine.close_client_circuit(circuit) {
            return Response::refused(format!(
                "no circuit {circuit} is open on this node: it may have ended, or be one of another node, each of which \
                 knows its own circuits alone"
            ));
        }
        self.counters.count(Counter::CircuitsKilled);
        info!(name: "circuit_killed", "the operator has closed a client's circuit");
        Response::done(format!("circuit {circuit} is closed, with all its streams"))
    }
}
