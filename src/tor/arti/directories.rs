//! The directories responsible for a service: which they are, uploads to them, downloads from them.
//!
//! This module keeps no state: each call computes the responsible directories from the network's
//! directory, and each transfer has its own circuit. Building the circuit is tried a few times,
//! because the first ones after a start fail often (guards are tried speculatively, vanguards are
//! not chosen yet). The request is sent only once: an upload whose answer was lost may have been
//! accepted, and then the same revision would be refused.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::{PeriodId, RelayId};
use tokio::time::{sleep, timeout};
use tor_circmgr::hspool::HsCircPool;
use tor_dirclient::request::{HsDescDownloadRequest, HsDescUploadRequest, Requestable};
use tor_dirclient::{DirResponse, SourceInfo, send_request};
use tor_linkspec::{OwnedCircTarget, RelayIds};
use tor_netdir::{NetDir, NetDirProvider, Relay, Timeliness};
use tor_proto::ClientTunnel;
use tor_proto::client::stream::DataStream;
use tor_protover::named::FLOWCTRL_CC;
use tor_rtcompat::{PreferredRuntime, Runtime};

use super::attempts::Attempts;
use super::disaster;
use crate::backoff::Backoff;
use crate::tor::descriptor::{self, DescriptorParameters, MAX_DESCRIPTOR};
use crate::tor::{Directory, Period, TorError};

/// Most attempts to build the circuit of one transfer.
const CIRCUIT_ATTEMPTS: u32 = 5;
/// Pauses between these attempts.
const CIRCUIT_PAUSES: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(8));

/// Direction of a transfer. It decides the kind of circuit, so that relays see the traffic pattern
/// they expect: uploads come from onion services, downloads from clients.
#[derive(Clone, Copy)]
enum Way {
    Upload,
    Download,
}

/// A stream to a directory, the source that its answers are attributed to, and the circuit, which
/// must not be dropped before the stream.
type Connection = (DataStream, Option<SourceInfo>, Box<dyn AsRef<ClientTunnel> + Send>);

/// Uploads and downloads over the circuits of `pool`.
pub(super) struct Directories<R: Runtime> {
    /// The network's directory.
    pub(super) netdir: Arc<dyn NetDirProvider>,
    /// Builds circuits of the kinds that onion services use.
    pub(super) pool: Arc<HsCircPool<R>>,
    /// Decides when an attempt to build a circuit may start.
    pub(super) attempts: Arc<Attempts>,
}

impl<R: Runtime> Directories<R> {
    /// See [`crate::tor::Engine::publication`].
    pub(super) async fn publication(&self, service: ServiceId) -> Result<Vec<Period>, TorError> {
        let netdir = self.netdir()?;
        let now = self.pool.wallclock();
        let parameters = parameters(&netdir);
        let period = |ring: tor_netdir::HsDirParams| {
            let time_period = ring.time_period();
            let (blinded, _) = descriptor::blinded(service, time_period)?;
            let relays = netdir
                .hs_dirs_upload(blinded.id(), time_period)
                .map_err(|error| TorError::NotReady(format!("no directories for {time_period}: {error}")))?;
            let mut seen = BTreeSet::new();
            let directories = relays
                .map(|relay| Directory { relay: relay_id(&relay) })
                .filter(|directory| seen.insert(directory.clone()))
                .collect();
            let revision_clock = now.duration_since(ring.start_of_shard_rand_period()).unwrap_or_default();
            Ok(Period { id: descriptor::period_id(time_period), directories, revision_clock, parameters })
        };
        let rings = netdir.hs_all_time_periods();
        let alone = match rings.as_slice() {
            [current] => current.time_period().next().map(|next| (current.time_period(), next)),
            _ => None,
        };
        let mut periods: Vec<Period> = rings.into_iter().map(period).collect::<Result<_, _>>()?;
        if let Some((current, next)) = alone {
            let (blinded, _) = descriptor::blinded(service, next)?;
            let directories = disaster::directories(&netdir, current, blinded.id().as_ref(), next);
            // The revision clock is zero until the period starts, so later revisions are higher.
            let (id, revision_clock) = (descriptor::period_id(next), Duration::ZERO);
            periods.push(Period { id, directories, revision_clock, parameters });
        }
        Ok(periods)
    }

    /// See [`crate::tor::Engine::client_directories`].
    pub(super) fn of_clients(&self, service: ServiceId) -> Result<(PeriodId, Vec<Directory>), TorError> {
        let netdir = self.netdir()?;
        let period = netdir.hs_time_period();
        let (blinded, _) = descriptor::blinded(service, period)?;
        let relays = netdir
            .hs_dirs_download(blinded.id(), period, &mut rand::rng())
            .map_err(|error| TorError::NotReady(format!("no directories for {period}: {error}")))?;
        let directories = relays.iter().map(|relay| Directory { relay: relay_id(relay) }).collect();
        Ok((descriptor::period_id(period), directories))
    }

    /// See [`crate::tor::Engine::upload`].
    pub(super) async fn upload(
        &self,
        to: &Directory,
        period: PeriodId,
        descriptor: &str,
        limit: Duration,
    ) -> Result<(), TorError> {
        if descriptor.len() > MAX_DESCRIPTOR {
            return Err(TorError::Invalid(format!("a descriptor of {} bytes is too long", descriptor.len()), None));
        }
        let request = HsDescUploadRequest::new(descriptor.into());
        let response = self.exchange(Way::Upload, to, &request, limit).await?;
        tracing::trace!(directory = %to.relay, period = period.number, status = response.status_code(), "upload");
        if response.status_code() == 200 {
            return Ok(());
        }
        Err(TorError::Refused { directory: to.relay.to_string(), status: status_line(&response) })
    }

    /// See [`crate::tor::Engine::fetch`].
    pub(super) async fn fetch(
        &self,
        from: &Directory,
        service: ServiceId,
        period: PeriodId,
        limit: Duration,
    ) -> Result<Option<String>, TorError> {
        let (blinded, _) = descriptor::blinded(service, descriptor::time_period(period)?)?;
        let mut request = HsDescDownloadRequest::new(blinded.id());
        request.set_max_len(MAX_DESCRIPTOR);
        let response = self.exchange(Way::Download, from, &request, limit).await?;
        match response.status_code() {
            200 => response
                .into_output_string()
                .map(Some)
                .map_err(|error| unreachable(from, "its answer is not valid", error)),
            404 => Ok(None),
            _ => Err(TorError::Unreachable {
                to: format!("directory {}", from.relay),
                why: format!("it answers {}", status_line(&response)),
                source: None,
            }),
        }
    }

    fn netdir(&self) -> Result<Arc<NetDir>, TorError> {
        self.netdir
            .netdir(Timeliness::Timely)
            .map_err(|error| TorError::NotReady(format!("the network's directory is missing or out of date: {error}")))
    }

    /// Sends one request to a directory and reads the answer, within `limit` (which includes the
    /// circuit).
    async fn exchange(
        &self,
        way: Way,
        with: &Directory,
        request: &impl Requestable,
        limit: Duration,
    ) -> Result<DirResponse, TorError> {
        let runtime = PreferredRuntime::current()
            .map_err(|error| TorError::Stopped(format!("there is no Tokio runtime: {error}")))?;
        let transfer = async {
            let (mut stream, source, _tunnel) = self.connect(way, with).await?;
            send_request(&runtime, request, &mut stream, source)
                .await
                .map_err(|error| unreachable(with, "the transfer failed", error))
        };
        let late = |_| {
            let what = match way {
                Way::Upload => "the upload to",
                Way::Download => "the download from",
            };
            TorError::Timeout { what: format!("{what} directory {}", with.relay), limit }
        };
        Box::pin(timeout(limit, transfer)).await.map_err(late)?
    }

    /// Opens a stream to a directory; tries up to [`CIRCUIT_ATTEMPTS`] circuits.
    async fn connect(&self, way: Way, to: &Directory) -> Result<Connection, TorError> {
        let netdir = self.netdir()?;
        let relay = netdir.by_ids(&relay_ids(&to.relay)?).ok_or_else(|| TorError::Unreachable {
            to: format!("directory {}", to.relay),
            why: "the network no longer lists it".into(),
            source: None,
        })?;
        let target = OwnedCircTarget::from_circ_target(&relay);
        let mut failures = 0;
        loop {
            let result = self.connect_once(way, to, &netdir, target.clone()).await;
            let Err(error) = &result else { return result };
            if failures + 1 == CIRCUIT_ATTEMPTS {
                return result;
            }
            tracing::debug!(directory = %to.relay, failures, %error, "no circuit to a directory yet");
            sleep(CIRCUIT_PAUSES.pause(failures)).await;
            failures += 1;
        }
    }

    async fn connect_once(
        &self,
        way: Way,
        to: &Directory,
        netdir: &NetDir,
        target: OwnedCircTarget,
    ) -> Result<Connection, TorError> {
        let no_circuit = |error| unreachable(to, "no circuit", error);
        let attempt = self.attempts.turn().await;
        match way {
            Way::Upload => {
                let made = self.pool.get_or_launch_svc_dir(netdir, target).await;
                attempt.ended(&made);
                let tunnel = made.map_err(no_circuit)?;
                let stream = tunnel.begin_dir_stream().await.map_err(no_circuit)?;
                let source = SourceInfo::from_tunnel(&tunnel).map_err(|error| unreachable(to, "no circuit", error))?;
                Ok((stream, source, Box::new(tunnel)))
            }
            Way::Download => {
                let made = self.pool.get_or_launch_client_dir(netdir, target).await;
                attempt.ended(&made);
                let tunnel = made.map_err(no_circuit)?;
                let stream = tunnel.begin_dir_stream().await.map_err(no_circuit)?;
                let source = SourceInfo::from_tunnel(&tunnel).map_err(|error| unreachable(to, "no circuit", error))?;
                Ok((stream, source, Box::new(tunnel)))
            }
        }
    }
}

fn parameters(netdir: &NetDir) -> DescriptorParameters {
    let congestion_control = tor_proto::supported_client_protocols().supports_named_subver(FLOWCTRL_CC);
    DescriptorParameters {
        max_size: usize::try_from(netdir.params().hsdir_max_desc_size.get()).unwrap_or(MAX_DESCRIPTOR),
        sendme_increment: congestion_control.then(|| netdir.params().cc_sendme_inc.into()),
    }
}

pub(super) fn relay_id(relay: &Relay<'_>) -> RelayId {
    RelayId { rsa: FixedBytes(relay.rsa_id().to_bytes()), ed25519: FixedBytes((*relay.id()).into()) }
}

fn relay_ids(relay: &RelayId) -> Result<RelayIds, TorError> {
    RelayIds::builder()
        .rsa_identity(relay.rsa.0.into())
        .ed_identity(relay.ed25519.0.into())
        .build()
        .map_err(|error| TorError::Invalid(format!("{relay} is not a valid relay identity"), Some(error.into())))
}

fn status_line(response: &DirResponse) -> String {
    // The relay chooses this text, and it ends up in logs and on terminals.
    let message = response.status_message().unwrap_or_default();
    let message: String = message.chars().filter(|character| !character.is_control()).take(100).collect();
    format!("{} {message}", response.status_code()).trim_end().into()
}

fn unreachable(directory: &Directory, what: &str, source: impl std::error::Error + Send + Sync + 'static) -> TorError {
    let mut why = format!("{what}: {source}");
    let mut cause = source.source();
    while let Some(next) = cause {
        why = format!("{why}: {next}");
        cause = next.source();
    }
    TorError::Unreachable { to: format!("directory {}", directory.relay), why, source: Some(source.into()) }
}
