//! `join --target`: where this node sends clients, for the only port of the address or for each of
//! several.
//!
//! The node learns the ports of the address only when the cluster admits it, so a wrong target must
//! not use up the token. If a target is missing, the person at the terminal is asked. If there is
//! no terminal, either the same command can be run again with more targets, or the port is written
//! to the configuration as a comment.

use std::io::{self, BufRead, IsTerminal, Write};
use std::str::FromStr;

use rustbalance_gossip::id::OnionAddress;

use super::Usage;
use crate::config::check_virtual_port;
use crate::proxy::{PortTarget, Target};

/// The value of one `--target`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TargetOption {
    /// The virtual port; `None` for the only port of the address.
    port: Option<u16>,
    target: Target,
}

impl FromStr for TargetOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let (port, target) = match text.trim().split_once('=') {
            Some((port, target)) if number(port) => (Some(port), target),
            _ => (None, text),
        };
        let parse = |port: &str| port.parse().map_err(|_| format!("there is no port {port}"));
        let port = port.map(|port| parse(port).and_then(check_virtual_port)).transpose()?;
        Ok(Self { port, target: without_consent(target)? })
    }
}

/// Reads a target that needs no consent. One in a private network is written to the configuration
/// by hand, with its consent.
///
/// # Errors
/// The reason, for the operator.
pub(super) fn without_consent(text: &str) -> Result<Target, String> {
    let target: Target = text.parse().map_err(|error: crate::proxy::TargetError| error.to_string())?;
    if target.leaves_host() { Err(target.consent_refusal()) } else { Ok(target) }
}

/// The ports of the address, with and without a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AssignedTargets {
    pub(super) served: Vec<PortTarget>,
    /// Ports without a target.
    pub(super) unserved: Vec<u16>,
}

/// Fails if the options contradict each other, whatever ports the address has.
pub(super) fn check(options: &[TargetOption], cluster: OnionAddress) -> Result<(), Usage> {
    if options.iter().any(|option| matches!(option.target, Target::Onion(address, _) if address == cluster)) {
        let why = "the target is the address itself, so a client's stream would go round in a loop";
        return Err(Usage(format!("{why}: give where your application listens")));
    }
    let plain = options.iter().filter(|option| option.port.is_none()).count();
    if plain > 0 && options.len() > 1 {
        return Err(Usage("with several --target, each must name its port, as in --target 80=127.0.0.1:8080".into()));
    }
    let mut ports: Vec<_> = options.iter().filter_map(|option| option.port).collect();
    ports.sort_unstable();
    match ports.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Usage(format!("--target names port {} twice: a port has one target", pair[0]))),
        None => Ok(()),
    }
}

/// Assigns each port of the address its target. `ask` is called for a port that has none; it
/// returns `None` if the node is not to serve that port. Without `ask`, no person can be asked.
///
/// # Errors
/// There is one target for several ports, or a target for a port that the address does not have.
/// The same command can be run again with other targets.
pub(super) fn assign(
    options: &[TargetOption],
    ports: &[u16],
    mut ask: Option<&mut dyn FnMut(u16) -> io::Result<Option<Target>>>,
) -> anyhow::Result<AssignedTargets> {
    let stranger = options.iter().filter_map(|option| option.port).find(|port| !ports.contains(port));
    if let Some(port) = stranger {
        return Err(
            retry_with_targets(format!("the address has no port {port}; its ports are {}", listed(ports))).into()
        );
    }
    let plain = options.iter().find(|option| option.port.is_none());
    if plain.is_some() && ports.len() > 1 && ask.is_none() {
        return Err(retry_with_targets(format!(
            "the address has the ports {}, and one --target cannot serve them all",
            listed(ports)
        ))
        .into());
    }
    let mut assigned = AssignedTargets { served: Vec::new(), unserved: Vec::new() };
    for &port in ports {
        let named = options.iter().find(|option| option.port == Some(port));
        let given = named.or(plain.filter(|_| ports.len() == 1)).map(|option| option.target.clone());
        let target = match (given, &mut ask) {
            (Some(target), _) => Some(target),
            (None, Some(ask)) => ask(port)?,
            (None, None) => None,
        };
        match target {
            Some(target) => assigned.served.push(PortTarget::new(port, target)),
            None => assigned.unserved.push(port),
        }
    }
    match assigned.served.is_empty() {
        true => Err(retry_with_targets(format!(
            "no port of the address has a target here; its ports are {}",
            listed(ports)
        ))
        .into()),
        false => Ok(assigned),
    }
}

/// The error if the targets do not fit the address. The cluster has admitted the node already.
fn retry_with_targets(why: String) -> Usage {
    Usage(format!(
        "{why}: run the same command again with a target for each port, as in --target 80=127.0.0.1:8080 --target \
         22=127.0.0.1:22 (that does not use up the token)"
    ))
}

fn listed(ports: &[u16]) -> String {
    Vec::from_iter(ports.iter().map(u16::to_string)).join(", ")
}

/// True if a person can be asked.
pub(super) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks the person at the terminal.
pub(super) fn ask(port: u16) -> io::Result<Option<Target>> {
    let mut lines = io::stdin().lock().lines();
    loop {
        write!(
            io::stderr(),
            "Target for port {port} of the address on this machine, such as 127.0.0.1:{port} (empty for none): "
        )?;
        let Some(line) = lines.next().transpose()? else { return Ok(None) };
        match line.trim() {
            "" => return Ok(None),
            text => match without_consent(text) {
                Ok(target) => return Ok(Some(target)),
                Err(error) => writeln!(io::stderr(), "{error}")?,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(texts: &[&str]) -> Vec<TargetOption> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn shown(assigned: &AssignedTargets) -> (String, Vec<u16>) {
        let served = assigned.served.iter().map(|port| format!("{}={}", port.port, port.target));
        (Vec::from_iter(served).join(" "), assigned.unserved.clone())
    }

    #[test]
    fn each_port_goes_to_its_own_target_only() {
        let one = assign(&options(&["127.0.0.1:8080"]), &[80], None).unwrap();
        assert_eq!(shown(&one), ("80=127.0.0.1:8080".into(), vec![]));
        let both = options(&["22=127.0.0.1:22", "80=unix:/run/a=b.sock"]);
        let both = assign(&both, &[80, 22], None).unwrap();
        assert_eq!(shown(&both), ("80=unix:/run/a=b.sock 22=127.0.0.1:22".into(), vec![]));
        let some = assign(&options(&["80=127.0.0.1:8080"]), &[80, 22], None).unwrap();
        assert_eq!(shown(&some), ("80=127.0.0.1:8080".into(), vec![22]));
        assert_eq!("unix:/run/80=x".parse::<TargetOption>().unwrap().port, None);
    }

    #[test]
    fn one_target_for_several_ports_is_refused_with_their_list_and_the_way_out() {
        let refused = |given: &[&str]| assign(&options(given), &[80, 22], None).unwrap_err();
        for error in [refused(&["127.0.0.1:8080"]), refused(&["443=127.0.0.1:8443"])] {
            assert!(error.is::<Usage>());
            let text = error.to_string();
            assert!(text.contains("80, 22") && text.contains("the same command again"), "{text}");
        }
    }

    #[test]
    fn a_person_at_a_terminal_is_asked_for_missing_targets() {
        let mut asked = Vec::new();
        let mut answer = |port| {
            asked.push(port);
            Ok((port == 22).then(|| "127.0.0.1:2222".parse().unwrap()))
        };
        let assigned = assign(&options(&["127.0.0.1:8080"]), &[80, 22], Some(&mut answer)).unwrap();
        assert_eq!(shown(&assigned), ("22=127.0.0.1:2222".into(), vec![80]));
        assert_eq!(asked, [80, 22]);
        let mut none = |_| Ok(None);
        assert!(assign(&options(&["127.0.0.1:8080"]), &[80, 22], Some(&mut none)).is_err());
    }

    #[test]
    fn options_that_contradict_each_other_are_refused_before_anything_is_done() {
        let [own, other] = [1, 2].map(|key| OnionAddress::from_public_key([key; 32]));
        let check = |texts: &[&str]| check(&options(texts), own);
        assert!(check(&["127.0.0.1:1"]).is_ok());
        assert!(check(&["80=127.0.0.1:1", "22=127.0.0.1:2"]).is_ok());
        assert!(check(&["80=127.0.0.1:1", "80=127.0.0.1:2"]).is_err());
        assert!(check(&[&format!("{other}:80")]).is_ok());
        assert!(check(&[&format!("{own}:80")]).is_err_and(|error| error.to_string().contains("loop")));
        assert!(check(&["127.0.0.1:1", "22=127.0.0.1:2"]).is_err());
        for wrong in ["0=127.0.0.1:1", "7441=127.0.0.1:1", "99999=127.0.0.1:1", "80=example.com:80", "10.0.0.7:80"] {
            assert!(wrong.parse::<TargetOption>().is_err(), "{wrong}");
        }
    }
}
