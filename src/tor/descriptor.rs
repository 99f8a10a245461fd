//! The master address's descriptors: the keys of a time period, building one, reading one.
//!
//! [`PeriodCredentials`] are all that signing in one time period takes. [`build`] makes a descriptor of them and of
//! the members' introduction points; [`read`] is its inverse and needs nothing but the address, so that it also checks
//! what a directory gives back. Both are pure but for the randomness of keys and nonces; the time is a parameter.
//!
//! Introduction points come from other members: [`check_point`] says whether one may stand in a descriptor. A
//! publisher filters with it first, because [`build`] refuses the whole descriptor for one bad point.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use rustbalance_gossip::bytes::{FixedBytes, VarBytes};
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::{IntroPoint, MAX_INTRO_POINTS, MAX_SPECIFIED, PeriodId, RelayId};
use tor_bytes::{Readable, Reader, Writeable};
use tor_cell::chancell::msg::HandshakeType;
use tor_cert::EncodedEd25519Cert;
use tor_checkable::{SelfSigned, TimeBound};
use tor_hscrypto::ope::AesOpeKey;
use tor_hscrypto::pk::{HsBlindIdKey, HsBlindIdKeypair, HsIdKey, HsIdKeypair};
use tor_hscrypto::time::TimePeriod;
use tor_hscrypto::{RevisionCounter, Subcredential};
use tor_linkspec::{EncodedLinkSpec, LinkSpec};
use tor_llcrypto::pk::keymanip::convert_curve25519_to_ed25519_public;
use tor_llcrypto::pk::{curve25519, ed25519};
use tor_netdoc::NetdocBuilder;
use tor_netdoc::doc::hsdesc::{HsDesc, HsDescBuilder, IntroPointDesc, create_desc_sign_key_cert};
use tor_protover::named::{FLOWCTRL_AUTH_SENDME, FLOWCTRL_CC};
use zeroize::Zeroizing;

use super::TorError;
use crate::keys::MasterSecret;

/// Largest descriptor that directories take, in bytes, unless the consensus says less (`HSV3MaxDescriptorSize`).
pub const MAX_DESCRIPTOR: usize = 50_000;
/// How long directories keep a descriptor, in minutes (rend-spec-v3, section 2.4: `descriptor-lifetime`).
const LIFETIME_MINUTES: u16 = 180;
/// How long the certificates in a descriptor are good: 48 hours of use and 6 of slack, as C tor and Arti have it.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(54 * 3600);
/// The revision counter's encryption costs time linear in the clock; no shared-random run is that long.
const MAX_REVISION_CLOCK: u32 = 30 * 24 * 3600;
/// Most link specifiers of one point.
const MAX_LINK_SPECIFIERS: usize = 8;
/// Longest encoded link specifier, in bytes.
const MAX_LINK_SPECIFIER: usize = 64;

/// What the network's directory says about descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorParameters {
    /// The largest that directories take, in bytes.
    pub max_size: usize,
    /// `cc_sendme_inc`, in cells, where congestion control is advertised. A flag of the whole descriptor: every member
    /// answers for it.
    pub sendme_increment: Option<u8>,
}

impl Default for DescriptorParameters {
    fn default() -> Self {
        Self { max_size: MAX_DESCRIPTOR, sendme_increment: Some(31) }
    }
}

/// What a descriptor says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescriptorContent {
    /// Directories keep the highest.
    pub revision: u64,
    /// At least one, at most [`MAX_INTRO_POINTS`], sorted.
    pub points: Vec<IntroPoint>,
}

/// All that it takes to sign the master address's descriptors in one time period. Not the master key: where these
/// come from can change.
pub struct PeriodCredentials {
    period: PeriodId,
    blinded: HsBlindIdKey,
    subcredential: Subcredential,
    /// `KS_hs_desc_sign`, of this node alone: each publisher may have its own.
    signing: ed25519::Keypair,
    /// The blinded key's certificate for it.
    certificate: EncodedEd25519Cert,
    expires: SystemTime,
    /// Alike for all who hold the master key, so that their clocks give comparable revisions.
    revisions: AesOpeKey,
}

impl std::fmt::Debug for PeriodCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeriodCredentials({:?}, redacted)", self.period)
    }
}

impl PeriodCredentials {
    /// Those of `period`, with a fresh descriptor-signing key that is certified for 54 hours from `now`.
    pub fn derive(master: &MasterSecret, period: PeriodId, now: SystemTime) -> Result<Self, TorError> {
        let (blinded, blinded_pair, subcredential) = blinded_pair(master, period)?;
        let signing = ed25519::Keypair::generate(&mut rand::rng());
        let expires = now + CERTIFICATE_LIFETIME;
        let certificate = create_desc_sign_key_cert(&signing.verifying_key(), &blinded_pair, expires)
            .map_err(|e| TorError::Invalid("cannot certify the descriptor-signing key".into(), Some(e.into())))?;
        let secret = Zeroizing::new(ed25519::ExpandedKeypair::from(blinded_pair).to_secret_key_bytes());
        let revisions = AesOpeKey::from_secret(&secret[..32]);
        Ok(Self { period, blinded, subcredential, signing, certificate, expires, revisions })
    }

    /// Which period they are for.
    pub fn period(&self) -> PeriodId {
        self.period
    }

    /// When their certificate ends. They are of no use within the last three hours, a descriptor's lifetime.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// The revision that the clock alone gives: `clock` is [`super::Period::revision_clock`]. Rises with every second,
    /// by a secret amount, and alike at every publisher.
    pub fn revision(&self, clock: Duration) -> u64 {
        let seconds = u32::try_from(clock.as_secs()).unwrap_or(MAX_REVISION_CLOCK).min(MAX_REVISION_CLOCK);
        self.revisions.encrypt(seconds.into())
    }
}

/// Builds and signs a descriptor of these points, one to [`MAX_INTRO_POINTS`] of them, no two at one relay.
pub fn build(
    credentials: &PeriodCredentials,
    points: &[IntroPoint],
    revision: u64,
    parameters: DescriptorParameters,
    now: SystemTime,
) -> Result<String, TorError> {
    build_for(credentials, points, revision, parameters, now, None)
}

/// The same, and only these clients can read its inner layers.
fn build_for(
    credentials: &PeriodCredentials,
    points: &[IntroPoint],
    revision: u64,
    parameters: DescriptorParameters,
    now: SystemTime,
    clients: Option<&[curve25519::PublicKey]>,
) -> Result<String, TorError> {
    let minutes = Duration::from_secs(u64::from(LIFETIME_MINUTES) * 60);
    if now + minutes > credentials.expires {
        return Err(TorError::Invalid("the period's credentials expire: derive new ones".into(), None));
    }
    let points = descriptor_points(points)?;
    let flow_control = parameters
        .sendme_increment
        .map(|increment| ([FLOWCTRL_AUTH_SENDME, FLOWCTRL_CC].into_iter().collect(), increment));
    HsDescBuilder::default()
        .blinded_id(&credentials.blinded)
        .hs_desc_sign(&credentials.signing)
        .hs_desc_sign_cert(credentials.certificate.clone())
        .create2_formats(&[HandshakeType::NTOR])
        .auth_required(None)
        .auth_clients(clients)
        .is_single_onion_service(false)
        .intro_points(&points)
        .intro_auth_key_cert_expiry(now + CERTIFICATE_LIFETIME)
        .intro_enc_key_cert_expiry(now + CERTIFICATE_LIFETIME)
        .lifetime(LIFETIME_MINUTES.into())
        .revision_counter(RevisionCounter::from(revision))
        .subcredential(credentials.subcredential)
        .flow_control(flow_control)
        .max_generated_len(parameters.max_size.min(MAX_DESCRIPTOR))
        .build_sign(&mut rand::rng())
        .map_err(|e| TorError::Invalid(format!("cannot build a descriptor of {} points", points.len()), Some(e.into())))
}

/// Reads a descriptor of `service` in `period`: checks its signatures up to the address and its certificates' times,
/// decrypts it. The text may be anything.
pub fn read(text: &str, service: ServiceId, period: PeriodId, now: SystemTime) -> Result<DescriptorContent, TorError> {
    if text.len() > MAX_DESCRIPTOR {
        return Err(TorError::Invalid(format!("a descriptor of {} bytes is too long", text.len()), None));
    }
    let (blinded, subcredential) = blinded(service, time_period(period)?)?;
    let unreadable = |cause| TorError::Invalid(format!("cannot read a descriptor of {service}"), Some(cause));
    let descriptor = HsDesc::parse_decrypt_validate(text, &blinded.id(), &subcredential, None)
        .map_err(|e| unreadable(e.into()))?
        .if_valid_at(&now)
        .map_err(|e| unreadable(e.into()))?;
    let mut points = descriptor.intro_points().iter().map(point_of_descriptor).collect::<Result<Vec<_>, _>>()?;
    points.sort();
    Ok(DescriptorContent { revision: descriptor.revision().into(), points })
}

/// The revision of a descriptor, from its outer layer: readable also where the inner ones are for
/// authorized clients alone. Checks what [`read`] checks of that layer.
pub fn read_revision(text: &str, service: ServiceId, period: PeriodId, now: SystemTime) -> Result<u64, TorError> {
    if text.len() > MAX_DESCRIPTOR {
        return Err(TorError::Invalid(format!("a descriptor of {} bytes is too long", text.len()), None));
    }
    let (blinded, _) = blinded(service, time_period(period)?)?;
    let unreadable = |cause| TorError::Invalid(format!("cannot read a descriptor of {service}"), Some(cause));
    HsDesc::parse(text, &blinded.id())
        .map_err(|e| unreadable(e.into()))?
        .check_signature()
        .map_err(|e| unreadable(e.into()))?
        .if_valid_at(&now)
        .map_err(|e| unreadable(e.into()))?;
    // Arti does not give it out; it has checked that the line stands there once.
    let line = text.lines().find_map(|line| line.strip_prefix("revision-counter "));
    line.and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| TorError::Invalid(format!("a descriptor of {service} has no revision"), None))
}

/// Whether this point may stand in a descriptor: its link specifiers can be read, are within bounds and name the
/// relay that the point names, and its keys are keys.
pub fn check_point(point: &IntroPoint) -> Result<(), TorError> {
    descriptor_point(point).map(|_| ())
}

/// The blinded public key and the subcredential: what introductions and directories need. Public.
pub(super) fn blinded(service: ServiceId, period: TimePeriod) -> Result<(HsBlindIdKey, Subcredential), TorError> {
    let no_key = |cause| TorError::Invalid(format!("{service} cannot be an onion service: bad key"), Some(cause));
    let identity = ed25519::PublicKey::from_bytes(service.public_key()).map_err(|e| no_key(e.into()))?;
    HsIdKey::from(identity).compute_blinded_key(period).map_err(|e| no_key(e.into()))
}

/// The key pair that certifies in this period, with what [`blinded`] gives. Never sign one message
/// with those of two periods: they share the prefix that nonces come from (rend-spec-v3, appendix
/// A.2). A certificate names the key it is signed with.
fn blinded_pair(
    master: &MasterSecret,
    period: PeriodId,
) -> Result<(HsBlindIdKey, HsBlindIdKeypair, Subcredential), TorError> {
    ed25519::ExpandedKeypair::from_secret_key_bytes(*master.expanded())
        .map(HsIdKeypair::from)
        .ok_or_else(|| TorError::Invalid("the master key is no Ed25519 key".into(), None))?
        .compute_blinded_key(time_period(period)?)
        .map_err(|e| TorError::Invalid("cannot blind the master key".into(), Some(e.into())))
}

/// Arti's name for a period.
pub(super) fn time_period(period: PeriodId) -> Result<TimePeriod, TorError> {
    if period.length_minutes == 0 || period.length_minutes > PeriodId::MAX_MINUTES {
        return Err(TorError::Invalid(format!("no time period lasts {} minutes", period.length_minutes), None));
    }
    Ok(TimePeriod::from_parts(period.length_minutes, period.number, period.offset_seconds))
}

/// Our name for a period.
pub(super) fn period_id(period: TimePeriod) -> PeriodId {
    PeriodId {
        number: period.interval_num(),
        length_minutes: period.length().as_minutes(),
        offset_seconds: period.epoch_offset_in_sec(),
    }
}

fn descriptor_points(points: &[IntroPoint]) -> Result<Vec<IntroPointDesc>, TorError> {
    if points.is_empty() || points.len() > MAX_INTRO_POINTS {
        let why = format!("a descriptor has 1 to {MAX_INTRO_POINTS} introduction points, not {}", points.len());
        return Err(TorError::Invalid(why, None));
    }
    let rsa: BTreeSet<_> = points.iter().map(|point| point.relay.rsa).collect();
    let ed25519: BTreeSet<_> = points.iter().map(|point| point.relay.ed25519).collect();
    if rsa.len() != points.len() || ed25519.len() != points.len() {
        return Err(TorError::Invalid("two introduction points are at one relay".into(), None));
    }
    points.iter().map(descriptor_point).collect()
}

fn descriptor_point(point: &IntroPoint) -> Result<IntroPointDesc, TorError> {
    let bad = |what: &str| TorError::Invalid(format!("introduction point at {}: {what}", point.relay), None);
    let specifiers = point
        .link_specifiers
        .iter()
        .map(|encoded| decode_specifier(&encoded.0))
        .collect::<Option<Vec<_>>>()
        .filter(|all| all.len() <= MAX_LINK_SPECIFIERS)
        .ok_or_else(|| bad("its link specifiers cannot be read"))?;
    if point.specified() > MAX_SPECIFIED {
        return Err(bad("its link specifiers are too long"));
    }
    if specified_relay(&specifiers) != Some(point.relay) {
        return Err(bad("its link specifiers do not lead to that relay"));
    }
    let encryption = curve25519::PublicKey::from(point.encryption_key.0);
    if convert_curve25519_to_ed25519_public(&encryption, 0).is_none() {
        return Err(bad("its encryption key is no key"));
    }
    let session = ed25519::PublicKey::from_bytes(&point.session_key.0).map_err(|_| bad("its session key is no key"))?;
    IntroPointDesc::builder()
        .link_specifiers(specifiers)
        .ipt_kp_ntor(curve25519::PublicKey::from(point.onion_key.0))
        .kp_hs_ipt_sid(session.into())
        .kp_hss_ntor(encryption.into())
        .build()
        .map_err(|e| TorError::Invalid(format!("introduction point at {}", point.relay), Some(e.into())))
}

fn decode_specifier(encoded: &[u8]) -> Option<EncodedLinkSpec> {
    if encoded.len() > MAX_LINK_SPECIFIER {
        return None;
    }
    let mut reader = Reader::from_slice(encoded);
    let specifier = EncodedLinkSpec::take_from(&mut reader).ok()?;
    reader.should_be_exhausted().ok()?;
    Some(specifier)
}

/// The relay that link specifiers lead to; `None` unless they name both its identities, each once, and an address.
fn specified_relay(specifiers: &[EncodedLinkSpec]) -> Option<RelayId> {
    let (mut rsa, mut ed25519, mut addressed) = (None, None, false);
    for specifier in specifiers {
        let again = match specifier.parse().ok()? {
            LinkSpec::RsaId(id) => rsa.replace(id.to_bytes()).is_some(),
            LinkSpec::Ed25519Id(id) => ed25519.replace(<[u8; 32]>::from(id)).is_some(),
            LinkSpec::OrPort(..) => {
                addressed = true;
                false
            }
            _ => false,
        };
        if again {
            return None;
        }
    }
    let relay = RelayId { rsa: FixedBytes(rsa?), ed25519: FixedBytes(ed25519?) };
    addressed.then_some(relay)
}

fn point_of_descriptor(point: &IntroPointDesc) -> Result<IntroPoint, TorError> {
    let unreadable = || TorError::Invalid("an introduction point's link specifiers cannot be read".into(), None);
    let encode = |specifier: &EncodedLinkSpec| {
        let mut bytes = Vec::new();
        specifier.write_onto(&mut bytes).ok().filter(|()| bytes.len() <= MAX_LINK_SPECIFIER)?;
        Some(VarBytes(bytes))
    };
    if point.link_specifiers().len() > MAX_LINK_SPECIFIERS {
        return Err(unreadable());
    }
    Ok(IntroPoint {
        relay: specified_relay(point.link_specifiers()).ok_or_else(unreadable)?,
        link_specifiers: point.link_specifiers().iter().map(encode).collect::<Option<_>>().ok_or_else(unreadable)?,
        onion_key: FixedBytes(point.ipt_ntor_key().to_bytes()),
        session_key: FixedBytes(point.ipt_sid_key().to_bytes()),
        encryption_key: FixedBytes(point.svc_ntor_key().to_bytes()),
    })
}

/// One that a single client alone can read, as of another program with this key.
#[cfg(test)]
pub(crate) fn build_restricted(credentials: &PeriodCredentials, points: &[IntroPoint], revision: u64) -> String {
    let clients = [curve25519::PublicKey::from(&curve25519::StaticSecret::from([5; 32]))];
    let parameters = DescriptorParameters::default();
    build_for(credentials, points, revision, parameters, SystemTime::now(), Some(&clients)).unwrap()
}

#[cfg(test)]
mod nonces;
#[cfg(test)]
mod tests;
