//! The attacker's own Tor client: it sends introductions that name a rendezvous point which never
//! answers. Arti's client code always names a rendezvous point at which it waits, so the
//! introduction is built here.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arti_client::TorClient;
use arti_client::config::TorClientConfigBuilder;
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::IntroPoint;
use tokio::time::{sleep, timeout};
use tor_bytes::{Reader, Writeable};
use tor_cell::relaycell::hs::AuthKeyType;
use tor_cell::relaycell::hs::intro_payload::{IntroduceHandshakePayload, OnionKey};
use tor_cell::relaycell::msg::{Body, Introduce1};
use tor_hscrypto::pk::{HsId, HsIdKey, HsIntroPtSessionIdKey, HsSvcNtorKey};
use tor_linkspec::{EncodedLinkSpec, LinkSpecType};
use tor_llcrypto::pk::{curve25519, ed25519};
use tor_proto::client::circuit::handshake::hs_ntor::{HsNtorClientState, HsNtorServiceInfo};
use tor_rtcompat::PreferredRuntime;

use crate::support::network;

/// Time limit for the circuit to an introduction point.
const LIMIT: Duration = Duration::from_secs(10);
/// How long the circuit stays open afterwards, so that the introduction is delivered.
const LINGER: Duration = Duration::from_secs(2);

/// Sends introductions with a rendezvous point that cannot be reached.
pub(crate) struct Introducer {
    tor: Arc<TorClient<PreferredRuntime>>,
    /// A listener that accepts connections and never answers.
    silent: SocketAddr,
}

impl Introducer {
    /// Connects to the shared network and opens the silent listener.
    pub(crate) async fn start() -> Result<Self> {
        let folder = network().base().join(format!("arti/{}-introducer", std::process::id()));
        let text = format!(
            "{}\n[storage]\nstate_dir = {:?}\ncache_dir = {:?}\n",
            network().arti_toml(),
            folder.join("state"),
            folder.join("cache")
        );
        let config = toml::from_str::<TorClientConfigBuilder>(&text)?.build()?;
        let runtime = PreferredRuntime::current()?;
        let tor = TorClient::with_runtime(runtime).config(config).create_bootstrapped().await?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let silent = listener.local_addr()?;
        std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
        Ok(Self { tor, silent })
    }

    /// Sends one introduction to this introduction point of the service.
    pub(crate) async fn introduce(&self, to: ServiceId, point: &IntroPoint) -> Result<()> {
        let netdir = self.tor.dirmgr()?.timely_netdir()?;
        let specs = point.link_specifiers.iter().map(|bytes| {
            Reader::from_slice(&bytes.0).extract::<EncodedLinkSpec>().context("a link specifier cannot be read")
        });
        let specs = specs.collect::<Result<Vec<_>>>()?;
        let relay = netdir.circ_target_from_verbatim_linkspecs(&specs, &point.onion_key.0.into())?;
        let pool = self.tor.hs_circ_pool()?;
        let tunnel = timeout(LIMIT, pool.get_or_launch_client_intro(&netdir, relay)).await??;

        let session = ed25519::PublicKey::from_bytes(&point.session_key.0).context("the session key is not valid")?;
        let session = HsIntroPtSessionIdKey::from(session);
        let message =
            |body: Vec<u8>| Introduce1::new(AuthKeyType::ED25519_SHA3_256, session.as_ref().as_bytes().to_vec(), body);
        let mut header = Vec::new();
        message(Vec::new()).encode_onto(&mut header)?;
        let mut plain = Vec::new();
        self.payload().write_onto(&mut plain)?;
        let identity = HsIdKey::try_from(HsId::from(*to.public_key())).context("the service id is not a valid key")?;
        let (_, subcredential) = identity.compute_blinded_key(netdir.hs_time_period())?;
        let encryption = HsSvcNtorKey::from(curve25519::PublicKey::from(point.encryption_key.0));
        let service = HsNtorServiceInfo::new(encryption, session.clone(), subcredential);
        let body = HsNtorClientState::new(&mut rand::rng(), service).client_send_intro(&header, &plain)?;
        let hop = tunnel.last_hop()?;
        tunnel.send_raw_msg(message(body).into(), hop).await?;
        sleep(LINGER).await;
        Ok(())
    }

    /// An introduction whose rendezvous point is an unknown relay at the silent listener.
    fn payload(&self) -> IntroduceHandshakePayload {
        let SocketAddr::V4(address) = self.silent else { unreachable!("the listener is bound to an IPv4 address") };
        let place = [&address.ip().octets()[..], &address.port().to_be_bytes()].concat();
        let specs = vec![
            EncodedLinkSpec::new(LinkSpecType::ORPORT_V4, place),
            EncodedLinkSpec::new(LinkSpecType::RSAID, rand::random::<[u8; 20]>()),
            EncodedLinkSpec::new(LinkSpecType::ED25519ID, rand::random::<[u8; 32]>()),
        ];
        let key = OnionKey::NtorOnionKey(rand::random::<[u8; 32]>().into());
        IntroduceHandshakePayload::new(rand::random::<[u8; 20]>().into(), key, specs, None)
    }
}
