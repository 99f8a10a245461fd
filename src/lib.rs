//! RustBalance: one onion address, served by many machines.
//!
//! This crate is the daemon and its commands. What nodes must agree on is in `rustbalance_gossip`,
//! how their records spread is in `rustbalance_mesh`. The way in:
//!
//! * [`node::run`] runs the node of a state directory over Tor; [`node::run_on`] does so over any
//!   [`tor::Engine`], such as the network in memory, [`tor::fake::FakeNet`].
//! * [`join`] makes clusters and members, [`store`] is what they keep on disk.
//! * [`control`] is how the commands in [`cli`] ask a running daemon.
//!
//! `docs/ARCHITECTURE.md` has the glossary, the floors and the way of a client's stream.
//!
//! # Examples
//!
//! Two daemons on a network in memory: the first founds a cluster, the second joins with a token,
//! and clients of the one address are sent to both.
//!
//! ```
//! use std::collections::BTreeSet;
//! use std::path::PathBuf;
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use rustbalance::clock::unix_now;
//! use rustbalance::config::{Config, JOIN_PORT, LiveConfig};
//! use rustbalance::control::{Request, Response, call};
//! use rustbalance::join::{Token, found, persist_joined, redeem};
//! use rustbalance::keys::NodeSecret;
//! use rustbalance::node::run_on;
//! use rustbalance::store::{SetupCommand, Store};
//! use rustbalance::tor::Engine;
//! use rustbalance::tor::fake::FakeNet;
//! use rustbalance_gossip::id::OnionAddress;
//! use rustbalance_gossip::record::Role;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tokio::net::TcpListener;
//! use tokio::time::sleep;
//! use tokio_util::sync::CancellationToken;
//!
//! const LIMIT: Duration = Duration::from_secs(10);
//! const PAUSE: Duration = Duration::from_millis(200);
//!
//! /// Runs the node of a state directory. Its application answers each client with `name`.
//! async fn run(
//!     net: &FakeNet,
//!     dir: PathBuf,
//!     name: &'static str,
//!     stop: CancellationToken,
//! ) -> anyhow::Result<()> {
//!     let application = TcpListener::bind("127.0.0.1:0").await?;
//!     let target = application.local_addr()?;
//!     let config = format!("[[port]]\nvirtual = 80\ntarget = \"{target}\"\n");
//!     std::fs::write(dir.join("rustbalance.toml"), config)?;
//!     tokio::spawn(async move {
//!         while let Ok((mut client, _)) = application.accept().await {
//!             // A health check does not wait for the answer.
//!             let _ = client.write_all(name.as_bytes()).await;
//!         }
//!     });
//!     let (engine, store) = (net.engine(), Arc::new(Store::open(&dir)?));
//!     let live = Arc::new(LiveConfig::new(Config::load(&dir)?));
//!     tokio::spawn(async move { Box::pin(run_on(engine, store, live, stop)).await });
//!     Ok(())
//! }
//!
//! /// One client: gives the name of the node that has served it.
//! async fn visit(net: &FakeNet, address: OnionAddress) -> anyhow::Result<String> {
//!     let client = net.engine();
//!     let (mut stream, mut name) = (client.dial(address, 80, LIMIT).await?, String::new());
//!     stream.read_to_string(&mut name).await?;
//!     Ok(name)
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! let (net, folder, stop) = (FakeNet::new(1, 30), tempfile::tempdir()?, CancellationToken::new());
//!
//! // What `rustbalance init` does, then `run`.
//! let alpha = folder.path().join("alpha");
//! let store = found(Store::create(&alpha)?, None, unix_now(), &mut rand::rng())?;
//! let cluster = store.cluster();
//! let address = cluster.first_service().address();
//! drop(store);
//! run(&net, alpha.clone(), "alpha", stop.clone()).await?;
//! while visit(&net, address).await.is_err() {
//!     sleep(PAUSE).await;
//! }
//!
//! // `invite` on the first node, `join` on the second.
//! let invite = Request::Invite { role: Role::Worker, expires_seconds: 3600, uses: 1 };
//! let Response::Invited { token, .. } = call(&alpha, &invite, LIMIT).await? else {
//!     anyhow::bail!("no token")
//! };
//! let token = Token::parse(&token.0)?;
//! let beta = folder.path().join("beta");
//! let mut draft = Store::create(&beta)?;
//! draft.begin(SetupCommand::Join, cluster)?;
//! let key = draft.node_secret(|| NodeSecret::generate(&mut rand::rng()))?;
//! let joiner = net.engine();
//! let joined = loop {
//!     // The join port opens a moment after the invitation.
//!     if let Ok(stream) = joiner.dial(address, JOIN_PORT, LIMIT).await {
//!         break redeem(stream, &token, &key, cluster, unix_now).await?;
//!     }
//!     sleep(PAUSE).await;
//! };
//! drop(persist_joined(draft, &joined)?);
//! run(&net, beta, "beta", stop.clone()).await?;
//!
//! let mut served_by = BTreeSet::new();
//! while served_by.len() < 2 {
//!     // A client that comes while the descriptor changes tries again, as Tor's clients do.
//!     served_by.extend(visit(&net, address).await.ok());
//!     sleep(PAUSE).await;
//! }
//! assert_eq!(served_by, BTreeSet::from(["alpha".to_owned(), "beta".to_owned()]));
//! stop.cancel();
//! # Ok(())
//! # }
//! ```

// Tests connect to their own targets on loopback.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod alerts;
pub mod backoff;
pub mod backup;
pub mod balance;
pub mod blocking;
mod bounded;
pub mod bucket;
pub mod canary;
mod causes;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod counters;
pub mod discovery;
mod display;
pub mod drive;
pub mod frame;
pub mod health;
pub mod join;
pub mod keys;
pub mod link;
pub mod log;
mod memory;
pub mod metrics;
mod new_file;
pub mod node;
pub mod open_files;
mod places;
pub mod proxy;
pub mod publish;
mod redact;
mod shell;
pub mod store;
pub mod stream;
mod sync;
mod syntax;
pub mod systemd;
pub mod tor;
pub mod typed;
pub mod vanity;
pub mod verify;
pub mod wireguard;

// The conformance suites are compiled into this crate and into the network tests, and name it
// `rustbalance` in both.
#[cfg(test)]
extern crate self as rustbalance;
