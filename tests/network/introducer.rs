//! A Tor client that builds its introductions itself, because Arti's client code does not send
//! these: introductions that name a rendezvous point which never answers, and such that request
//! subprotocols.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use arti_client::TorClient;
use arti_client::config::TorClientConfigBuilder;
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::IntroPoint;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tor_bytes::{Reader, Writeable};
use tor_cell::relaycell::extend::{CcRequest, SubprotocolRequest};
use tor_cell::relaycell::hs::AuthKeyType;
use tor_cell::relaycell::hs::intro_payload::{IntroduceHandshakePayload, OnionKey};
use tor_cell::relaycell::msg::{AnyRelayMsg, Body, EstablishRendezvous, Introduce1};
use tor_circmgr::ClientOnionServiceIntroTunnel;
use tor_circmgr::build::onion_circparams_from_netparams;
use tor_hscrypto::RendCookie;
use tor_hscrypto::pk::{HsId, HsIdKey, HsIntroPtSessionIdKey, HsSvcNtorKey};
use tor_linkspec::{CircTarget, EncodedLinkSpec, LinkSpecType};
use tor_llcrypto::pk::{curve25519, ed25519};
use tor_proto::client::circuit::handshake::hs_ntor::{HsNtorClientState, HsNtorServiceInfo};
use tor_proto::client::circuit::handshake::{HandshakeRole, RelayProtocol};
use tor_proto::client::stream::DataStream;
use tor_proto::{MetaCellDisposition, MsgHandler, TargetHop};
use tor_protover::NamedSubver;
use tor_protover::named::FLOWCTRL_CC;
use tor_rtcompat::PreferredRuntime;

use crate::support::network;

/// Time limit for the circuit to an introduction point.
const LIMIT: Duration = Duration::from_secs(10);
/// Time limit from the introduction until the service has come to the rendezvous point.
const MEETING_LIMIT: Duration = Duration::from_secs(20);
/// Time limit for all attempts to meet, and the pause between two.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(500);
/// How long the circuit stays open afterwards, so that the introduction is delivered.
const LINGER: Duration = Duration::from_secs(2);

/// Sends introductions.
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

    /// Sends one introduction, with a rendezvous point that cannot be reached, to this introduction
    /// point of the service.
    pub(crate) async fn introduce(&self, to: ServiceId, point: &IntroPoint) -> Result<()> {
        let (_circuit, _) = self.send(to, point, self.unreachable()).await?;
        sleep(LINGER).await;
        Ok(())
    }

    /// Meets the service at a rendezvous point and opens a stream to `port`. The client requests
    /// congestion control and these subprotocols, and uses them as if they were granted.
    ///
    /// Arti gives up circuits that take longer than most, so it tries again, as any client does.
    pub(crate) async fn meet(
        &self,
        to: ServiceId,
        point: &IntroPoint,
        port: u16,
        subprotocols: &[NamedSubver],
    ) -> Result<DataStream> {
        let start = Instant::now();
        loop {
            match self.try_to_meet(to, point, port, subprotocols).await {
                Ok(stream) => return Ok(stream),
                Err(error) if start.elapsed() > PATIENCE => {
                    return Err(error.context("the client and the service do not meet"));
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    async fn try_to_meet(
        &self,
        to: ServiceId,
        point: &IntroPoint,
        port: u16,
        subprotocols: &[NamedSubver],
    ) -> Result<DataStream> {
        let netdir = self.tor.dirmgr()?.timely_netdir()?;
        let pool = self.tor.hs_circ_pool()?;
        let (tunnel, relay) = timeout(LIMIT, pool.get_or_launch_client_rend(&netdir)).await??;
        let cookie = RendCookie::from(rand::random::<[u8; 20]>());
        let (established, mut answers) = mpsc::unbounded_channel();
        let waits = EstablishRendezvous::new(cookie).into();
        tunnel.start_conversation(Some(waits), Answers(established), TargetHop::LastHop).await?;
        match timeout(LIMIT, answers.recv()).await? {
            Some(AnyRelayMsg::RendezvousEstablished(_)) => {}
            other => bail!("no rendezvous point: {other:?}"),
        }
        let key = OnionKey::NtorOnionKey(*relay.ntor_onion_key());
        let mut payload = IntroduceHandshakePayload::new(cookie, key, relay.linkspecs()?, None);
        payload.add_extension(CcRequest::default().into());
        payload.add_extension(subprotocols.iter().copied().collect::<SubprotocolRequest>().into());
        let (_circuit, handshake) = self.send(to, point, payload).await?;
        let answer = match timeout(MEETING_LIMIT, answers.recv()).await.context("the service does not come")? {
            Some(AnyRelayMsg::Rendezvous2(answer)) => answer,
            other => bail!("the rendezvous failed: {other:?}"),
        };
        let keys = handshake.client_receive_rend(answer.handshake_info())?;
        let params = onion_circparams_from_netparams(netdir.params())?;
        let capabilities = subprotocols.iter().copied().chain([FLOWCTRL_CC]).collect();
        tunnel.extend_virtual(RelayProtocol::HsV3, HandshakeRole::Initiator, keys, params, &capabilities).await?;
        Ok(timeout(LIMIT, tunnel.begin_stream("", port, None)).await??)
    }

    /// Sends an introduction to this introduction point. Returns its circuit, which must stay open
    /// until the introduction is delivered, and the handshake that it began.
    async fn send(
        &self,
        to: ServiceId,
        point: &IntroPoint,
        payload: IntroduceHandshakePayload,
    ) -> Result<(ClientOnionServiceIntroTunnel, HsNtorClientState)> {
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
        payload.write_onto(&mut plain)?;
        let identity = HsIdKey::try_from(HsId::from(*to.public_key())).context("the service id is not a valid key")?;
        let (_, subcredential) = identity.compute_blinded_key(netdir.hs_time_period())?;
        let encryption = HsSvcNtorKey::from(curve25519::PublicKey::from(point.encryption_key.0));
        let service = HsNtorServiceInfo::new(encryption, session.clone(), subcredential);
        let handshake = HsNtorClientState::new(&mut rand::rng(), service);
        let body = handshake.client_send_intro(&header, &plain)?;
        let hop = tunnel.last_hop()?;
        tunnel.send_raw_msg(message(body).into(), hop).await?;
        Ok((tunnel, handshake))
    }

    /// The payload of an introduction whose rendezvous point is an unknown relay at the silent
    /// listener.
    fn unreachable(&self) -> IntroduceHandshakePayload {
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

/// Passes on the two messages that arrive on a rendezvous circuit.
struct Answers(mpsc::UnboundedSender<AnyRelayMsg>);

impl MsgHandler for Answers {
    fn handle_msg(&mut self, message: AnyRelayMsg) -> tor_proto::Result<MetaCellDisposition> {
        let is_last = matches!(message, AnyRelayMsg::Rendezvous2(_));
        let wanted = self.0.send(message).is_ok();
        Ok(match (wanted, is_last) {
            (false, _) => MetaCellDisposition::CloseCirc,
            (true, true) => MetaCellDisposition::ConversationFinished,
            (true, false) => MetaCellDisposition::Consumed,
        })
    }
}
