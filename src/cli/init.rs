//! `rustbalance init`: creates, searches or imports an address, and makes this machine its first
//! node.

use std::path::PathBuf;

use clap::Args;
use rustbalance_vanity::Prefix;

use super::output::print_line;
use super::targets::without_consent;
use super::wireguard::{self, ListenOption};
use super::{Context, vanity};
use crate::clock::unix_now;
use crate::config::{self, Config, Initial};
use crate::join::found;
use crate::node::preflight;
use crate::proxy::{PortTarget, Target};
use crate::shell;
use crate::store::{Store, import_identity_key};

#[derive(Args)]
pub(super) struct Options {
    /// Where this node sends clients: a port of this host (127.0.0.1:8080) or a Unix socket
    /// (unix:/run/app.sock)
    #[arg(long, value_name = "TARGET", default_value = "127.0.0.1:8080", value_parser = without_consent)]
    target: Target,
    /// The port of the onion address that clients use
    #[arg(long, value_name = "PORT", default_value = "80", value_parser = virtual_port)]
    port: u16,
    /// Keep an existing address. PATH is its key, or the folder that holds the key: as C tor, Arti,
    /// mkp224o or onionbalance-config write it; as PEM, base64, hex or ED25519-V3:...; or as a copy
    /// of a publisher's identity.key
    #[arg(long, value_name = "PATH")]
    import_key: Option<PathBuf>,
    /// Search a new address that begins with PREFIX, which is any of a to z and 2 to 7. Give it
    /// again to take the first address that has one of them. `vanity` has more options
    #[arg(long, value_name = "PREFIX", conflicts_with = "import_key")]
    vanity: Vec<Prefix>,
    /// Configure Tor with this configuration file for Arti (TOML), which is copied
    #[arg(long, value_name = "FILE")]
    arti_config: Option<PathBuf>,
    /// Also reach other nodes that have it over WireGuard (UDP), which is faster: they learn this
    /// node's address. ADDRESS, with or without a port, is where to listen; or give an IPv4 and an
    /// IPv6 address with a comma between them [default: the addresses of the default routes, port
    /// 7440]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    wireguard: Option<ListenOption>,
    /// Print only the address
    #[arg(short, long)]
    quiet: bool,
}

fn virtual_port(text: &str) -> Result<u16, String> {
    let port = text.parse().map_err(|_| "a port is a number from 1 to 65535".to_owned())?;
    config::check_virtual_port(port)
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    let imported = options.import_key.as_deref().map(import_identity_key).transpose()?;
    let arti = options.arti_config.as_deref().map(config::read_arti).transpose()?;
    preflight(&context.dir, arti.as_deref().unwrap_or_default())?;
    let wireguard = wireguard::configure(options.wireguard.as_ref())?;

    let draft = Store::create(&context.dir)?;
    let identity = match options.vanity.as_slice() {
        [] => imported,
        prefixes => match vanity::search_key(prefixes).await {
            Ok(key) => Some(key),
            Err(error) => {
                draft.discard()?;
                return Err(error);
            }
        },
    };
    // Before the node is complete, so that `init` can be run again if this fails.
    let ports = vec![PortTarget::new(options.port, options.target.clone())];
    Config::write_initial(&context.dir, &Initial { ports, arti, wireguard, ..Initial::default() })?;
    let store = found(draft, identity, unix_now(), &mut rand::rng())?;

    if options.quiet {
        return Ok(print_line(store.cluster())?);
    }
    let dir = shell::path(&context.dir);
    let key = shell::path(&store.identity_path(store.cluster().first_service()));
    print_line(format_args!(
        "{}\n\n\
         is the address, and this machine its first node. Port {} goes to {}.\n\n\
         Next:\n  \
         {:<43} start this node, and leave it running\n  \
         {:<43} let another machine join, as a worker; with --role publisher it gets the address's key, too\n  \
         {:<43} show whether clients are served, and any problems\n\n\
         Configuration: {dir}/{}\n\
         Keep a copy of the file that holds the address's key in a safe place:\n  \
         {key}\n\
         Anyone with this file can take over the address (`init --import-key`); if you lose both the file and this machine, the address is lost.",
        store.cluster(),
        options.port,
        options.target,
        context.suggest_start(),
        context.suggest("invite"),
        context.suggest("status"),
        config::FILE_NAME,
    ))?;
    Ok(())
}
