//! `rustbalance wireguard`, and the option `--wireguard` of `init` and `join`: a faster route
//! between nodes that are willing to know each other's addresses.

use std::net::SocketAddr;
use std::str::FromStr;

use clap::{Args, Subcommand};

use super::Context;
use super::ask::{self, SHORT, ask, unexpected};
use super::output::{Paint, print_line, print_note};
use super::wireguard_view::wireguard_view;
use crate::config::{WIREGUARD_PORT, WireguardConfig, socket_address};
use crate::control::{Request, Response};
use crate::wireguard::{default_addresses, is_possible};

/// A faster route for the cluster's own messages between nodes that have it, over WireGuard (UDP).
/// The other members learn this node's address. Clients are served over Tor alone, as before.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show for each other member whether it is reached over WireGuard, and if not, why
    Status,
    /// Switch it on until the daemon starts again: the key `enabled` decides then
    On,
    /// Switch it off until the daemon starts again, and withdraw this node's address
    Off,
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    match options.action {
        Action::On => {
            print_note(GIVEN_UP);
            ask::request_action(context, Request::WireguardOn {}).await
        }
        Action::Off => ask::request_action(context, Request::WireguardOff {}).await,
        Action::Status => match ask(context, Request::Status {}, SHORT).await? {
            Response::Status(status) => {
                let text = wireguard_view(&status.wireguard, Paint::for_stdout());
                Ok(print_line(text.trim_end())?)
            }
            _ => Err(unexpected()),
        },
    }
}

/// What a node gives up with WireGuard.
const GIVEN_UP: &str = "with WireGuard, the other members learn this node's IP addresses, and an observer of the network \
    sees which hosts belong together and when they talk. Without it, they see only Tor. Clients' data still goes over \
    Tor alone, and clients learn no address";

/// The value of `--wireguard`: where to listen; empty for the addresses of the default routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListenOption(Vec<SocketAddr>);

impl FromStr for ListenOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = |part: &str| {
            let address = socket_address(part).filter(is_possible);
            address.ok_or_else(|| {
                format!(
                    "{part:?} is not an address of this host, such as 203.0.113.7:{WIREGUARD_PORT} or [2001:db8::7]"
                )
            })
        };
        let listens = text.split(',').filter(|part| !part.is_empty()).map(read).collect::<Result<Vec<_>, _>>()?;
        match listens.as_slice() {
            [one, other] if one.is_ipv4() == other.is_ipv4() => {
                Err("give one IPv4 address, one IPv6 address, or one of each".into())
            }
            [] | [_] | [_, _] => Ok(Self(listens)),
            _ => Err("give one IPv4 address, one IPv6 address, or one of each".into()),
        }
    }
}

/// The configuration for `--wireguard`, and a note on standard error about what is given up with
/// it, before anything is shown to anyone. Without the option, WireGuard stays off.
///
/// # Errors
/// No address was given, and this host has no default route to learn one from.
pub(super) fn configure(option: Option<&ListenOption>) -> anyhow::Result<WireguardConfig> {
    let Some(ListenOption(given)) = option else { return Ok(WireguardConfig::default()) };
    let listens = if given.is_empty() { default_addresses(WIREGUARD_PORT) } else { given.clone() };
    if listens.is_empty() {
        anyhow::bail!(
            "this host has no default route to learn an address from: give one, as in --wireguard=203.0.113.7:{WIREGUARD_PORT}"
        );
    }
    print_note(GIVEN_UP);
    let shown: Vec<_> = listens.iter().map(ToString::to_string).collect();
    print_note(format_args!(
        "this node will listen on {} (UDP); other nodes reach it there only if a firewall or router lets them: for a \
         forwarded port set `endpoints` in [wireguard]",
        shown.join(" and ")
    ));
    Ok(WireguardConfig {
        enabled: Some(true),
        listen: Some(given.clone()).filter(|given| !given.is_empty()),
        ..WireguardConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_names_at_most_one_address_of_each_family() {
        let read = |text: &str| text.parse::<ListenOption>().map(|option| option.0);
        assert_eq!(read(""), Ok(Vec::new()));
        assert_eq!(read("203.0.113.7"), Ok(vec![SocketAddr::from(([203, 0, 113, 7], WIREGUARD_PORT))]));
        let both = vec!["203.0.113.7:9".parse().unwrap(), "[2001:db8::7]:7440".parse().unwrap()];
        assert_eq!(read("203.0.113.7:9,[2001:db8::7]"), Ok(both));
        for wrong in
            ["host", "203.0.113.7:0", "0.0.0.0:7440", "[::]:7440", "10.0.0.1,10.0.0.2", "10.0.0.1,[::2],10.0.0.3"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_given_addresses_are_configured_and_nothing_without_the_option() {
        assert_eq!(configure(None).unwrap(), WireguardConfig::default());
        let config = configure(Some(&"127.0.0.1:9".parse().unwrap())).unwrap();
        assert_eq!((config.enabled, config.listen), (Some(true), Some(vec!["127.0.0.1:9".parse().unwrap()])));
    }
}
