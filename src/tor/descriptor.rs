//! A service's descriptors: the keys of a time period, building a descriptor, reading one.
//!
//! [`PeriodCredentials`] hold all keys that sign descriptors in one time period. [`build`] makes a
//! descriptor from them and from the members' introduction points. [`read`] is its inverse and
//! needs only the address, so it can check the answer of a directory. Neither does I/O: they draw
//! random keys and nonces, and take the time as a parameter.
//!
//! Introduction points come from other members. A publisher must filter them with [`check_point`]
//! first, because [`build`] refuses the whole descriptor for one bad point.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use rustbalance_gossip::bytes::{FixedBytes, VarBytes};
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::{IntroPoint, MAX_INTRO_POINTS, MAX_SPECIFIED, PeriodId, RelayId, Subprotocol};
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

use super::{TorError, subprotocols};
use crate::keys::IdentitySecret;

/// Largest descriptor that directories accept, in bytes, unless the consensus sets a lower limit
/// (`HSV3MaxDescriptorSize`).
pub const MAX_DESCRIPTOR: usize = 50_000;
/// How long directories keep a descriptor, in minutes (rend-spec-v3, section 2.4:
/// `descriptor-lifetime`).
const LIFETIME_MINUTES: u16 = 180;
/// Validity of the certificates in a descriptor: 48 hours of use plus 6 of slack, as in C tor and
/// Arti.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(54 * 3600);
/// Upper bound of the revision clock, in seconds: the order-preserving encryption takes time linear
/// in it. No shared-random run lasts 30 days.
const MAX_REVISION_CLOCK: u32 = 30 * 24 * 3600;
/// Most link specifiers of one point.
const MAX_LINK_SPECIFIERS: usize = 8;
/// Longest encoded link specifier, in bytes.
const MAX_LINK_SPECIFIER: usize = 64;

/// The network's parameters for descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorParameters {
    /// Largest descriptor that directories accept, in bytes.
    pub max_size: usize,
    /// `cc_sendme_inc`, in cells; `None` does not advertise congestion control. It applies to the
    /// whole descriptor, so every member must support it.
    pub sendme_increment: Option<u8>,
}

impl Default for DescriptorParameters {
    fn default() -> Self {
        Self { max_size: MAX_DESCRIPTOR, sendme_increment: Some(31) }
    }
}

/// The content of a descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DescriptorContent {
    /// The revision counter. Directories refuse an upload whose revision is not higher than that
    /// of the descriptor they hold.
    pub revision: u64,
    /// The introduction points: at least one, at most [`MAX_INTRO_POINTS`]. [`read`] sorts them.
    pub points: Vec<IntroPoint>,
    /// The subprotocols that clients may request at each of the points, of those that this node
    /// knows.
    pub subprotocols: BTreeSet<Subprotocol>,
}

/// The keys that sign a service's descriptors in one time period. The service key itself is not
/// among them, so the credentials can later come from elsewhere than this process.
pub struct PeriodCredentials {
    period: PeriodId,
    blinded: HsBlindIdKey,
    subcredential: Subcredential,
    /// `KS_hs_desc_sign`: each publisher generates its own.
    signing: ed25519::Keypair,
    /// Certifies `signing` with the blinded key.
    certificate: EncodedEd25519Cert,
    expires: SystemTime,
    /// Follows from the blinded key, so it is the same at every publisher: their clocks then give
    /// comparable revisions.
    revisions: AesOpeKey,
}

impl std::fmt::Debug for PeriodCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeriodCredentials({:?}, redacted)", self.period)
    }
}

impl PeriodCredentials {
    /// The credentials of `period`, with a new descriptor-signing key whose certificate is valid
    /// for 54 hours from `now`.
    pub fn derive(master: &IdentitySecret, period: PeriodId, now: SystemTime) -> Result<Self, TorError> {
        let (blinded, blinded_pair, subcredential) = blinded_pair(master, period)?;
        let signing = ed25519::Keypair::generate(&mut rand::rng());
        let expires = now + CERTIFICATE_LIFETIME;
        let certificate =
            create_desc_sign_key_cert(&signing.verifying_key(), &blinded_pair, expires).map_err(|error| {
                TorError::Invalid("cannot certify the descriptor-signing key".into(), Some(error.into()))
            })?;
        let secret = Zeroizing::new(ed25519::ExpandedKeypair::from(blinded_pair).to_secret_key_bytes());
        let revisions = AesOpeKey::from_secret(&secret[..32]);
        Ok(Self { period, blinded, subcredential, signing, certificate, expires, revisions })
    }

    /// The period in which these credentials sign.
    pub fn period(&self) -> PeriodId {
        self.period
    }

    /// When the certificate ends. [`build`] refuses these credentials already three hours before (a
    /// descriptor's lifetime).
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// The revision for `clock`, which is [`super::Period::revision_clock`]. It rises every second
    /// by a secret amount, and is the same at every publisher.
    pub fn revision(&self, clock: Duration) -> u64 {
        let seconds = u32::try_from(clock.as_secs()).unwrap_or(MAX_REVISION_CLOCK).min(MAX_REVISION_CLOCK);
        self.revisions.encrypt(seconds.into())
    }
}

/// Builds and signs a descriptor. No two of its points may be at one relay.
///
/// It offers only the subprotocols that this node knows, and none on a network without congestion
/// control, which they need.
///
/// # Errors
/// If a point or the number of points is not valid, the descriptor exceeds the size limit, or the
/// credentials expire within a descriptor's lifetime.
pub fn build(
    credentials: &PeriodCredentials,
    content: &DescriptorContent,
    parameters: DescriptorParameters,
    now: SystemTime,
) -> Result<String, TorError> {
    build_for(credentials, content, parameters, now, None)
}

/// Like [`build`]; if `clients` is set, only these clients can decrypt the introduction points.
fn build_for(
    credentials: &PeriodCredentials,
    content: &DescriptorContent,
    parameters: DescriptorParameters,
    now: SystemTime,
    clients: Option<&[curve25519::PublicKey]>,
) -> Result<String, TorError> {
    let minutes = Duration::from_secs(u64::from(LIFETIME_MINUTES) * 60);
    if now + minutes > credentials.expires {
        return Err(TorError::Invalid("the period's credentials expire: derive new ones".into(), None));
    }
    let points = descriptor_points(&content.points)?;
    let flow_control = parameters
        .sendme_increment
        .map(|increment| ([FLOWCTRL_AUTH_SENDME, FLOWCTRL_CC].into_iter().collect(), increment));
    let offer = parameters.sendme_increment.map(|_| subprotocols::offer(&content.subprotocols)).unwrap_or_default();
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
        .revision_counter(RevisionCounter::from(content.revision))
        .subcredential(credentials.subcredential)
        .flow_control(flow_control)
        .supported_protocols(offer)
        .max_generated_len(parameters.max_size.min(MAX_DESCRIPTOR))
        .build_sign(&mut rand::rng())
        .map_err(|error| {
            TorError::Invalid(format!("cannot build a descriptor of {} points", points.len()), Some(error.into()))
        })
}

/// Decrypts a descriptor of `service` in `period`, and checks its chain of signatures up to the
/// address and the validity of its certificates. The text is untrusted.
pub fn read(text: &str, service: ServiceId, period: PeriodId, now: SystemTime) -> Result<DescriptorContent, TorError> {
    if text.len() > MAX_DESCRIPTOR {
        return Err(TorError::Invalid(format!("a descriptor of {} bytes is too long", text.len()), None));
    }
    let (blinded, subcredential) = blinded(service, time_period(period)?)?;
    let unreadable = |cause| TorError::Invalid(format!("cannot read a descriptor of {service}"), Some(cause));
    let descriptor = HsDesc::parse_decrypt_validate(text, &blinded.id(), &subcredential, None)
        .map_err(|error| unreadable(error.into()))?
        .if_valid_at(&now)
        .map_err(|error| unreadable(error.into()))?;
    let mut points = descriptor.intro_points().iter().map(point_of_descriptor).collect::<Result<Vec<_>, _>>()?;
    points.sort();
    let subprotocols = subprotocols::offered(descriptor.declared_capabilities());
    Ok(DescriptorContent { revision: descriptor.revision().into(), points, subprotocols })
}

/// The revision of a descriptor, from its outer layer, which is readable even if the inner layers
/// are encrypted for authorized clients. Checks the outer layer as [`read`] does.
pub fn read_revision(text: &str, service: ServiceId, period: PeriodId, now: SystemTime) -> Result<u64, TorError> {
    if text.len() > MAX_DESCRIPTOR {
        return Err(TorError::Invalid(format!("a descriptor of {} bytes is too long", text.len()), None));
    }
    let (blinded, _) = blinded(service, time_period(period)?)?;
    let unreadable = |cause| TorError::Invalid(format!("cannot read a descriptor of {service}"), Some(cause));
    HsDesc::parse(text, &blinded.id())
        .map_err(|error| unreadable(error.into()))?
        .check_signature()
        .map_err(|error| unreadable(error.into()))?
        .if_valid_at(&now)
        .map_err(|error| unreadable(error.into()))?;
    // `HsDesc::parse` does not expose the revision, but has checked that the line occurs once.
    let line = text.lines().find_map(|line| line.strip_prefix("revision-counter "));
    line.and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| TorError::Invalid(format!("a descriptor of {service} has no revision"), None))
}

/// A descriptor as any client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicReading {
    /// Its revision.
    pub revision: u64,
    /// Its introduction points; `None` if only authorized clients can decrypt them.
    pub points: Option<Vec<IntroPoint>>,
}

/// Reads a descriptor as [`read`] does, or its outer layer alone if only authorized clients can
/// decrypt the rest.
///
/// # Errors
/// That of [`read`], if the outer layer is not valid either.
pub fn read_public(
    text: &str,
    service: ServiceId,
    period: PeriodId,
    now: SystemTime,
) -> Result<PublicReading, TorError> {
    match read(text, service, period, now) {
        Ok(content) => Ok(PublicReading { revision: content.revision, points: Some(content.points) }),
        Err(unreadable) => match read_revision(text, service, period, now) {
            Ok(revision) => Ok(PublicReading { revision, points: None }),
            Err(_) => Err(unreadable),
        },
    }
}

/// Checks that this point can be part of a descriptor: its link specifiers are well-formed, within
/// bounds and name the same relay as the point, and its keys are valid.
pub fn check_point(point: &IntroPoint) -> Result<(), TorError> {
    descriptor_point(point).map(|_| ())
}

/// The blinded public key and the subcredential of a period, which introductions and directories
/// need. Both follow from public data.
pub(super) fn blinded(service: ServiceId, period: TimePeriod) -> Result<(HsBlindIdKey, Subcredential), TorError> {
    let no_key = |cause| TorError::Invalid(format!("{service} cannot be an onion service: bad key"), Some(cause));
    let identity = ed25519::PublicKey::from_bytes(service.public_key()).map_err(|error| no_key(error.into()))?;
    HsIdKey::from(identity).compute_blinded_key(period).map_err(|error| no_key(error.into()))
}

/// The result of [`blinded`], with the blinded key pair, which signs the certificates of this
/// period. Never sign the same message with the keys of two periods: they share the nonce prefix
/// (rend-spec-v3, appendix A.2). Certificates are safe, because each names its signing key.
fn blinded_pair(
    master: &IdentitySecret,
    period: PeriodId,
) -> Result<(HsBlindIdKey, HsBlindIdKeypair, Subcredential), TorError> {
    ed25519::ExpandedKeypair::from_secret_key_bytes(*master.expanded())
        .map(HsIdKeypair::from)
        .ok_or_else(|| TorError::Invalid("the master key is not a valid Ed25519 key".into(), None))?
        .compute_blinded_key(time_period(period)?)
        .map_err(|error| TorError::Invalid("cannot blind the master key".into(), Some(error.into())))
}

/// Converts to Arti's type.
pub(super) fn time_period(period: PeriodId) -> Result<TimePeriod, TorError> {
    if period.length_minutes == 0 || period.length_minutes > PeriodId::MAX_MINUTES {
        return Err(TorError::Invalid(format!("no time period lasts {} minutes", period.length_minutes), None));
    }
    Ok(TimePeriod::from_parts(period.length_minutes, period.number, period.offset_seconds))
}

/// Converts from Arti's type.
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
        return Err(bad("its encryption key is not a valid key"));
    }
    let session =
        ed25519::PublicKey::from_bytes(&point.session_key.0).map_err(|_| bad("its session key is not a valid key"))?;
    IntroPointDesc::builder()
        .link_specifiers(specifiers)
        .ipt_kp_ntor(curve25519::PublicKey::from(point.onion_key.0))
        .kp_hs_ipt_sid(session.into())
        .kp_hss_ntor(encryption.into())
        .build()
        .map_err(|error| TorError::Invalid(format!("introduction point at {}", point.relay), Some(error.into())))
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

/// The relay that link specifiers lead to; `None` unless they contain both of its identities, each
/// once, and an address.
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

/// A descriptor that only one authorized client can read, as another program that holds the same
/// service key may publish it.
#[cfg(test)]
pub(crate) fn build_restricted(credentials: &PeriodCredentials, points: &[IntroPoint], revision: u64) -> String {
    let clients = [curve25519::PublicKey::from(&curve25519::StaticSecret::from([5; 32]))];
    let content = DescriptorContent { revision, points: points.to_vec(), subprotocols: BTreeSet::new() };
    build_for(credentials, &content, DescriptorParameters::default(), SystemTime::now(), Some(&clients)).unwrap()
}

#[cfg(test)]
mod nonces;
#[cfg(test)]
mod tests;
