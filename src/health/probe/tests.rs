//! Single checks of real HTTP and HTTPS servers on this host. The certificates are in
//! `tests/fixtures/tls`; `make.sh` there has made them.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::*;

/// Time limit for one check: generous, because the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

/// What a server does after it has read a request.
#[derive(Clone)]
enum Answer {
    Bytes(String),
    /// This text, and then bytes without end.
    Endless(&'static str),
    Silence,
}

fn ok(body: &str) -> Answer {
    Answer::Bytes(format!("HTTP/1.1 200 OK\r\nServer: test\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
}

fn status(line: &str) -> Answer {
    Answer::Bytes(format!("HTTP/1.1 {line}\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n"))
}

/// Serves one certificate.
fn acceptor(certificate: &str) -> TlsAcceptor {
    let chain = vec![CertificateDer::from_pem_file(fixture(certificate)).unwrap()];
    let key = PrivateKeyDer::from_pem_file(fixture("site.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// A server on loopback, with TLS if there is a certificate; and the requests that reach it.
async fn serve(answer: Answer, certificate: Option<&str>) -> (Target, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    let (seen, requests) = mpsc::unbounded_channel();
    let tls = certificate.map(acceptor);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, tls, seen) = (answer.clone(), tls.clone(), seen.clone());
            tokio::spawn(async move {
                let mut stream: BoxStream = match tls {
                    Some(tls) => Box::new(tls.accept(stream).await?),
                    None => Box::new(stream),
                };
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await?);
                }
                seen.send(String::from_utf8(request).unwrap()).ok();
                match answer {
                    Answer::Bytes(text) => stream.write_all(text.as_bytes()).await?,
                    Answer::Silence => std::future::pending().await,
                    Answer::Endless(text) => {
                        stream.write_all(text.as_bytes()).await?;
                        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
                    }
                }
                stream.shutdown().await
            });
        }
    });
    (target, requests)
}

async fn outcome(target: &Target, check: PortCheck) -> Result<(), String> {
    let port = PortTarget { check, ..PortTarget::new(80, target.clone()) };
    ask(&port, LIMIT, &Connector::without_tor()).await.expect("there are file descriptors")
}

fn http() -> PortCheck {
    PortCheck { kind: Some(CheckKind::Http), ..PortCheck::default() }
}

async fn answered(answer: Answer, check: PortCheck) -> Result<(), String> {
    outcome(&serve(answer, None).await.0, check).await
}

#[tokio::test]
async fn a_request_says_what_it_is_and_carries_what_is_configured() {
    let (target, mut requests) = serve(ok(""), None).await;
    let check = PortCheck {
        path: Some("/health?key=1".into()),
        host: Some("shop.example".into()),
        headers: vec!["X-Token: 42".parse().unwrap()],
        ..http()
    };
    outcome(&target, check).await.unwrap();
    let request = requests.recv().await.unwrap().to_ascii_lowercase();
    assert!(request.starts_with("get /health?key=1 http/1.1\r\n"), "{request}");
    let agent = format!("user-agent: rustbalance/{} health check", env!("CARGO_PKG_VERSION"));
    for line in [agent.as_str(), "host: shop.example", "x-token: 42", "connection: close"] {
        assert!(request.contains(&format!("\r\n{line}\r\n")), "{request}");
    }
    outcome(&target, http()).await.unwrap();
    let request = requests.recv().await.unwrap();
    assert!(request.to_ascii_lowercase().contains(&format!("\r\nhost: {target}\r\n")), "{request}");
}

#[tokio::test]
async fn a_wrong_status_header_or_body_fails_and_the_reason_says_so() {
    let error = answered(status("500 Internal Server Error"), http()).await.unwrap_err();
    assert_eq!(error, "HTTP GET /: the answer has status 500 Internal Server Error, and 200-399 is expected");
    let only_200 = PortCheck { expect_status: Some("200".parse().unwrap()), ..http() };
    answered(status("302 Found"), http()).await.expect("a redirect is an answer");
    let error = answered(status("302 Found"), only_200).await.unwrap_err();
    assert!(error.contains("302") && error.contains("does not follow redirects"), "{error}");
    let header = |text: &str| PortCheck { expect_headers: vec![text.parse().unwrap()], ..http() };
    for text in ["Server", "server: test"] {
        answered(ok(""), header(text)).await.unwrap();
    }
    for text in ["Server: other", "X-Other"] {
        let error = answered(ok(""), header(text)).await.unwrap_err();
        assert!(error.contains(&text.to_ascii_lowercase()), "{error}");
    }
    let body = |text: &str| PortCheck { expect_body: Some(text.into()), ..http() };
    answered(ok("all is well"), body("is well")).await.unwrap();
    let error = answered(ok("maintenance"), body("is well")).await.unwrap_err();
    assert!(error.contains("\"is well\" is not in the body"), "{error}");
    let secret = PortCheck { path: Some("/x?secret".into()), ..body("is well") };
    assert!(!answered(ok(""), secret).await.unwrap_err().contains("secret"));
}

#[tokio::test]
async fn a_text_is_found_across_the_parts_in_which_a_body_comes() {
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nis \r\n4\r\nwell\r\n0\r\n\r\n";
    let check = PortCheck { expect_body: Some("is well".into()), ..http() };
    answered(Answer::Bytes(chunks.into()), check).await.unwrap();
}

#[tokio::test]
async fn an_answer_without_end_costs_a_bounded_amount() {
    let body = "HTTP/1.1 200 OK\r\n\r\nok";
    answered(Answer::Endless(body), http()).await.expect("the body is not read");
    let found = PortCheck { expect_body: Some("okx".into()), ..http() };
    answered(Answer::Endless(body), found.clone()).await.unwrap();
    let missing = PortCheck { expect_body: Some("oky".into()), ..http() };
    let error = answered(Answer::Endless(body), missing).await.unwrap_err();
    assert!(error.contains("at most 65536 bytes"), "{error}");
    let error = answered(Answer::Endless("HTTP/1.1 200 OK\r\nX: "), http()).await.unwrap_err();
    assert!(error.contains("larger than 8192 bytes"), "{error}");
    let error = answered(Answer::Endless("SSH-2.0-other\r\n"), http()).await.unwrap_err();
    assert!(error.contains("does not answer in HTTP"), "{error}");
}

#[tokio::test]
async fn a_target_that_accepts_and_stays_silent_fails_in_time() {
    let (target, _requests) = serve(Answer::Silence, None).await;
    let port = PortTarget { check: http(), ..PortTarget::new(80, target.clone()) };
    let limit = Duration::from_millis(200);
    let outcome = ask(&port, limit, &Connector::without_tor()).await.unwrap();
    assert_eq!(outcome, Err("HTTP GET /: no answer within 200ms".into()));
    // It does accept connections.
    assert_eq!(ask(&PortTarget::new(80, target), LIMIT, &Connector::without_tor()).await, Some(Ok(())));
}

fn https(host: Option<&str>, ca_file: Option<&str>, pin: Option<String>) -> PortCheck {
    PortCheck {
        kind: Some(CheckKind::Https),
        host: host.map(str::to_owned),
        ca_file: ca_file.map(fixture),
        pin: pin.map(|pin| pin.parse().unwrap()),
        ..PortCheck::default()
    }
}

#[tokio::test]
async fn a_certificate_of_the_given_authority_is_accepted_by_name_and_date() {
    let (target, mut requests) = serve(ok(""), Some("site.pem")).await;
    // It is for 127.0.0.1, too.
    outcome(&target, https(None, Some("ca.pem"), None)).await.unwrap();
    outcome(&target, https(Some("site.example:8443"), Some("ca.pem"), None)).await.unwrap();
    assert!(requests.recv().await.is_some() && requests.recv().await.is_some());
    let error = outcome(&target, https(Some("other.example"), Some("ca.pem"), None)).await.unwrap_err();
    assert!(error.contains("TLS fails") && error.contains("not valid for name"), "{error}");
    let error = outcome(&target, https(None, Some("other-ca.pem"), None)).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
    let error = outcome(&target, https(None, Some("none.pem"), None)).await.unwrap_err();
    assert!(error.contains("ca_file") && error.contains("none.pem"), "{error}");
    let error = outcome(&target, https(None, Some("site.key"), None)).await.unwrap_err();
    assert!(error.contains("does not hold a certificate"), "{error}");
    assert!(requests.try_recv().is_err(), "a target that is not trusted gets no request");
    let (expired, _requests) = serve(ok(""), Some("expired.pem")).await;
    let error = outcome(&expired, https(None, Some("ca.pem"), None)).await.unwrap_err();
    assert!(error.contains("expired"), "{error}");
}

#[tokio::test]
async fn a_certificate_is_known_by_its_hash_or_that_of_its_key() {
    let pins = std::fs::read_to_string(fixture("pins.txt")).unwrap();
    let [certificate, spki]: [&str; 2] = pins.lines().collect::<Vec<_>>().try_into().unwrap();
    let (target, _requests) = serve(ok(""), Some("site.pem")).await;
    for pin in [certificate, spki] {
        outcome(&target, https(Some("any.example"), None, Some(pin.into()))).await.unwrap();
        let digits = pin.rsplit_once(':').unwrap().1;
        let wrong = pin.replace(digits, &"00".repeat(32));
        let error = outcome(&target, https(None, None, Some(wrong))).await.unwrap_err();
        assert!(error.contains(pin) && error.contains("not the pin"), "{error}");
    }
    // The expired certificate has the same key, and dates do not matter.
    let (renewed, _requests) = serve(ok(""), Some("expired.pem")).await;
    outcome(&renewed, https(None, None, Some(spki.into()))).await.unwrap();
    assert!(outcome(&renewed, https(None, None, Some(certificate.into()))).await.is_err());
}

#[tokio::test]
async fn a_socket_that_the_unit_hides_is_distinguished_from_a_missing_one() {
    let asked = |path: &str| outcome_of_socket(path.to_owned());
    for hidden in ["/tmp/none/app.sock", "/home/none/app.sock", "/root/none/app.sock", "/run/user/0/none.sock"] {
        let error = asked(hidden).await;
        assert!(error.contains("PrivateTmp=") && error.contains("put the socket under /run"), "{hidden}: {error}");
    }
    let error = asked("/run/none/app.sock").await;
    assert!(error.contains("os error 2") && !error.contains("systemd"), "{error}");
}

async fn outcome_of_socket(path: String) -> String {
    outcome(&Target::Unix(path.into()), PortCheck::default()).await.unwrap_err()
}

#[test]
fn a_target_in_a_network_that_the_unit_denies_names_the_drop_in() {
    let text = explain_denied("no answer within 2s".into(), true);
    assert!(text.starts_with("no answer within 2s; ") && text.contains("private-network.conf"), "{text}");
    assert_eq!(explain_denied("no answer within 2s".into(), false), "no answer within 2s");
}
