//! TLS for checks: the target's certificate is signed by a given authority, or is known by its
//! hash. The certificates of the web's authorities are never trusted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::proxy::{Pin, PortCheck};
use crate::stream::BoxStream;

/// Largest `ca_file`, in bytes: room for all the authorities of the web.
const MOST_CA_BYTES: u64 = 1 << 20;

/// Why there is no TLS connection to a target.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    /// The file with the authority's certificates cannot be read.
    #[error("the certificates in ca_file {} cannot be read", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file with the authority's certificates holds none.
    #[error("ca_file {} does not hold a certificate (PEM) that can be used", .0.display())]
    NoCertificate(PathBuf),
    /// The configuration names neither an authority nor a hash.
    #[error("[port.health] has neither ca_file nor pin")]
    NoTrust,
    /// A certificate cannot have this name.
    #[error("{0:?} is not a name that a certificate may have: set \"host\" in [port.health]")]
    Name(String),
    /// TLS itself cannot be set up.
    #[error("it cannot be set up")]
    Setup(#[source] Error),
    /// The handshake failed, perhaps because the certificate is not the expected one.
    #[error("{0}")]
    Handshake(io::Error),
}

/// Makes a TLS connection over `stream` to the server `name`, whose certificate is as `check` says.
pub(super) async fn connect(
    stream: BoxStream,
    name: &str,
    check: &PortCheck,
) -> Result<TlsStream<BoxStream>, TlsError> {
    let server = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))?;
    let config = config(check).await?;
    TlsConnector::from(Arc::new(config)).connect(server, stream).await.map_err(TlsError::Handshake)
}

async fn config(check: &PortCheck) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?;
    Ok(match (&check.ca_file, check.pin) {
        (Some(path), _) => builder.with_root_certificates(authorities(path).await?).with_no_client_auth(),
        (None, Some(pin)) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PinVerifier { pin, provider }))
            .with_no_client_auth(),
        (None, None) => return Err(TlsError::NoTrust),
    })
}

/// Reads the certificates in a file. It is read for each check, so that a new one counts at once.
async fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let read = async {
        let mut text = Vec::new();
        tokio::fs::File::open(path).await?.take(MOST_CA_BYTES).read_to_end(&mut text).await?;
        Ok(text)
    };
    let text = read.await.map_err(|source| TlsError::CaFile { path: path.into(), source })?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).filter_map(Result::ok));
    if roots.is_empty() { Err(TlsError::NoCertificate(path.into())) } else { Ok(roots) }
}

/// Accepts one certificate, or one key, whatever name and dates the certificate has.
#[derive(Debug)]
struct PinVerifier {
    pin: Pin,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = match self.pin {
            Pin::Certificate(_) => Pin::Certificate(Sha256::digest(certificate).into()),
            Pin::Spki(_) => {
                let spki = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
                Pin::Spki(Sha256::digest(&spki).into())
            }
        };
        match found == self.pin {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::General(format!("the target has {found}, which is not the pin in [port.health]"))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
