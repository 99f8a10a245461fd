//! `rustbalance circuit`: shows and closes the circuits of clients on this node.

use clap::{Args, Subcommand};

use super::Context;
use super::ask::{self, SHORT, ask, unexpected};
use super::output::print_line;
use crate::control::{CircuitList, CircuitStatus, Request, Response};
use crate::display::{bytes, plural, time};
use crate::tor::ExportedCircuitId;

/// Shows and closes the circuits on which clients reach this node. Each node has circuits and ids
/// of its own: ask the node whose application has logged the id (`proxy_protocol` in `[[port]]`).
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show the open circuits, those that have carried most bytes first
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Close a circuit with all its streams
    ///
    /// The client can come back on another circuit, and the application cannot know it again.
    Kill {
        /// The circuit as the application has it: the address fc00:dead:beef:4dad::XXXX:XXXX, or
        /// its last 32 bits as a number, in decimal or as 0xXXXXXXXX
        #[arg(value_name = "ID")]
        circuit: ExportedCircuitId,
    },
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    match options.action {
        Action::Kill { circuit } => ask::request_action(context, Request::KillCircuit { circuit }).await,
        Action::List { json } => {
            let Response::Circuits(list) = ask(context, Request::Circuits {}, SHORT).await? else {
                return Err(unexpected());
            };
            let text = if json { serde_json::to_string_pretty(&list)? } else { view(&list) };
            Ok(print_line(text)?)
        }
    }
}

fn view(list: &CircuitList) -> String {
    let mut lines = vec![format!("{:<29}  {:>8}  {:>7}  {:>10}", "CIRCUIT", "AGE", "STREAMS", "BYTES")];
    let line = |circuit: &CircuitStatus| {
        let CircuitStatus { address, age_seconds, streams_open, bytes: carried, .. } = circuit;
        format!("{:<29}  {:>8}  {streams_open:>7}  {:>10}", address.to_string(), time(*age_seconds), bytes(*carried))
    };
    lines.extend(list.circuits.iter().map(line));
    let shown = list.circuits.len() as u64;
    match list.open {
        0 => return "no client has a circuit to this node".into(),
        open if open > shown => lines.push(format!("and {} that carried less", open - shown)),
        open => lines.push(plural(usize::try_from(open).unwrap_or(usize::MAX), "circuit")),
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circuits_are_listed_with_what_they_carry() {
        assert_eq!(view(&CircuitList::default()), "no client has a circuit to this node");
        let circuit = |text: &str, age_seconds, streams_open, bytes| {
            let address: ExportedCircuitId = text.parse().unwrap();
            CircuitStatus { address, number: address.number(), age_seconds, streams_open, bytes }
        };
        let circuits = vec![circuit("0xffff0001", 7530, 12, 5 << 20), circuit("0x00010001", 4, 0, 812)];
        let text = view(&CircuitList { open: 3, circuits: circuits.clone() });
        insta::assert_snapshot!(text, @r"
        CIRCUIT                             AGE  STREAMS       BYTES
        fc00:dead:beef:4dad::ffff:1       2h 5m       12     5.0 MiB
        fc00:dead:beef:4dad::1:1             4s        0       812 B
        and 1 that carried less
        ");
        assert!(view(&CircuitList { open: 2, circuits }).ends_with("\n2 circuits"));
    }
}
