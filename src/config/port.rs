//! The tables `[[port]]` and `[port.health]`.

use std::path::Path;

use rustbalance_gossip::id::ServiceId;

use super::keys::Effect::Running;
use super::keys::KeyVisitor;
use super::tables::{millis, seconds};
use super::{FurtherPorts, check_virtual_port};
use crate::join::MAX_PORTS;
use crate::proxy::{CheckKind, Pin, PortCheck, PortTarget, ProxyProtocol, StatusRange, Target};

/// A `[[port]]` while it is read. A complete one has `port` and `target`.
#[derive(Default)]
struct PortKeys {
    port: Option<u16>,
    target: Option<Target>,
    allow_private: Option<bool>,
    proxy_protocol: Option<ProxyProtocol>,
    /// `None`: the first service of the cluster.
    service: Option<ServiceId>,
    check: PortCheck,
}

impl PortKeys {
    fn of(service: Option<ServiceId>, port: PortTarget) -> Self {
        let PortTarget { port, target, allow_private, proxy_protocol, check } = port;
        let allow_private = allow_private.then_some(true);
        Self { port: Some(port), target: Some(target), allow_private, proxy_protocol, service, check }
    }
}

pub(super) fn ports<K: KeyVisitor>(keys: &mut K, ports: &mut Vec<PortTarget>, further: &mut FurtherPorts) {
    let mut tables: Vec<_> = std::mem::take(ports).into_iter().map(|port| PortKeys::of(None, port)).collect();
    for (service, ports) in std::mem::take(further) {
        tables.extend(ports.into_iter().map(|port| PortKeys::of(Some(service), port)));
    }
    let meaning = "A port of the onion address, and its target. For more ports, repeat the table.";
    keys.each("port", &["virtual", "service"], meaning, &mut tables, port::<K>);
    keys.require("port", !tables.is_empty(), || {
        "no port is configured: add [[port]] with \"virtual\" and \"target\"".into()
    });
    let of = |service| tables.iter().filter(|table| table.service == service).count();
    keys.require("port", tables.is_empty() || of(None) > 0, || {
        "every [[port]] has a \"service\": the first address of the cluster needs a [[port]] without that key".into()
    });
    let most = tables.iter().map(|table| of(table.service)).max().unwrap_or(0);
    keys.require("port", most <= MAX_PORTS, || {
        format!("one address has {most} ports, and at most {MAX_PORTS} are allowed")
    });
    for PortKeys { port, target, allow_private, proxy_protocol, service, check } in tables {
        let (Some(port), Some(target)) = (port, target) else { continue };
        let of = match service {
            Some(service) => further.entry(service).or_default(),
            None => &mut *ports,
        };
        let allow_private = allow_private.unwrap_or_default();
        of.push(PortTarget { port, target, allow_private, proxy_protocol, check });
    }
}

fn port<K: KeyVisitor>(keys: &mut K, it: &mut PortKeys, before: &[PortKeys]) {
    keys.optional("virtual", Running, 1..=u16::MAX, &mut it.port, 80, "The port that clients connect to.");
    let refused = it.port.map(check_virtual_port).and_then(Result::err);
    keys.require("virtual", it.port.is_some(), || "is missing: which port of the onion address is it?".into());
    keys.require("virtual", refused.is_none(), || refused.unwrap_or_default());
    let example = Target::Tcp(([127, 0, 0, 1], 8080).into());
    let meaning = "Where this node sends the streams of clients: \"127.0.0.1:8080\", \"[::1]:8080\", \"localhost:8080\" or \
                   \"unix:/run/app.sock\" on this host; \"<address>.onion:80\" for another onion service, over Tor; with \
                   allow_private also an address or a name in a private network.";
    keys.optional("target", Running, .., &mut it.target, example, meaning);
    keys.require("target", it.target.is_some(), || {
        "is missing: where do the streams of this port go, as in \"127.0.0.1:8080\"?".into()
    });
    let meaning = "Consent to a target in a private network, such as \"10.0.0.7:80\" or \"web:80\": the streams of clients \
                   leave this host unencrypted. Each address of a name must be private.";
    keys.optional("allow_private", Running, .., &mut it.allow_private, true, meaning);
    let leaves = it.target.as_ref().filter(|target| target.leaves_host());
    keys.require("target", leaves.is_none() || it.allow_private == Some(true), || {
        leaves.map(Target::consent_refusal).unwrap_or_default()
    });
    let example = ServiceId::from_public_key([0x5a; 32]);
    let meaning =
        "The onion address that has this port, if the cluster serves several. Leave it out for the first one.";
    keys.optional("service", Running, .., &mut it.service, example, meaning);
    let meaning = "Begin each connection to the target with a header of HAProxy's PROXY protocol, \"v1\" or \"v2\", whose \
                   source address stands for the client's circuit. The target must expect it.";
    keys.optional("proxy_protocol", Running, .., &mut it.proxy_protocol, ProxyProtocol::V2, meaning);
    // The same port may belong to several addresses.
    let twice = it.port.is_some() && before.iter().any(|other| (other.port, other.service) == (it.port, it.service));
    keys.require("virtual", !twice, || {
        format!("{} is configured twice: a port has one target", it.port.unwrap_or_default())
    });
    let meaning = "How the target of this port is checked. A node whose target fails takes no new clients.";
    keys.inside("health", meaning, &mut it.check, check::<K>);
}

/// Bytes of a path or of another text in `[port.health]`.
const TEXT: usize = 1024;

fn check<K: KeyVisitor>(keys: &mut K, it: &mut PortCheck) {
    let meaning = "\"connect\": that the target accepts a connection (the default). \"http\": that it answers a GET request as \
                   the keys below say. \"https\": the same over TLS, with a certificate as ca_file or pin says.";
    keys.optional("check", Running, .., &mut it.kind, CheckKind::Http, meaning);
    let is_http = it.kind() != CheckKind::Connect;
    let needs_http = || "needs check = \"http\" or \"https\"".to_owned();
    let meaning = "Path of the request, with its query if any. \"/\" unless set.";
    keys.optional("path", Running, 1..=TEXT, &mut it.path, "/health".into(), meaning);
    keys.require("path", it.path.is_none() || is_http, needs_http);
    let is_path = |path: &str| path.starts_with('/') && path.parse::<hyper::Uri>().is_ok();
    keys.require("path", it.path.as_deref().is_none_or(is_path), || {
        "it begins with \"/\" and has no spaces, as in \"/health\"".into()
    });
    let meaning =
        "Value of the header Host, and the name that the certificate must have. Unless set, those of the target.";
    keys.optional("host", Running, 1..=TEXT, &mut it.host, "shop.example".into(), meaning);
    keys.require("host", it.host.is_none() || is_http, needs_http);
    let is_host = |host: &str| host.parse::<hyper::http::uri::Authority>().is_ok() && !host.contains('@');
    keys.require("host", it.host.as_deref().is_none_or(is_host), || {
        "it is a name or an address, perhaps with a port".into()
    });
    request(keys, it, is_http);
    tls(keys, it);
    let times = || millis(100)..=seconds(600);
    let (interval, healthy) = (seconds(5), seconds(30));
    let meaning = "As in [health], for this port.";
    keys.optional("interval", Running, times(), &mut it.interval, interval, meaning);
    keys.optional("healthy_interval", Running, times(), &mut it.healthy_interval, healthy, meaning);
    keys.optional("timeout", Running, millis(100)..=seconds(120), &mut it.timeout, seconds(2), meaning);
    keys.optional("successes", Running, 1..=100, &mut it.successes, 2, meaning);
    keys.optional("failures", Running, 1..=100, &mut it.failures, 3, meaning);
}

/// The rest of the request, and the answer that is expected.
fn request<K: KeyVisitor>(keys: &mut K, it: &mut PortCheck, is_http: bool) {
    let needs_http = || "needs check = \"http\" or \"https\"".to_owned();
    let mut headers = (!it.headers.is_empty()).then(|| std::mem::take(&mut it.headers));
    let example = "Accept-Language: en".parse().into_iter().collect();
    keys.optional("headers", Running, .., &mut headers, example, "Further headers of the request.");
    it.headers = headers.unwrap_or_default();
    keys.require("headers", it.headers.is_empty() || is_http, needs_http);
    let meaning =
        "The status that the answer must have, or a range. \"200-399\" unless set. Redirects are not followed.";
    keys.optional("expect_status", Running, .., &mut it.expect_status, StatusRange::default(), meaning);
    keys.require("expect_status", it.expect_status.is_none() || is_http, needs_http);
    let mut expected = (!it.expect_headers.is_empty()).then(|| std::mem::take(&mut it.expect_headers));
    let example = "Content-Type: application/json".parse().into_iter().collect();
    let meaning = "Headers that the answer must have: \"Name: value\", or \"Name\" for any value.";
    keys.optional("expect_headers", Running, .., &mut expected, example, meaning);
    it.expect_headers = expected.unwrap_or_default();
    keys.require("expect_headers", it.expect_headers.is_empty() || is_http, needs_http);
    let meaning = "A text that the first 64 KiB of the answer's body must contain.";
    keys.optional("expect_body", Running, 1..=TEXT, &mut it.expect_body, "\"status\":\"ok\"".into(), meaning);
    keys.require("expect_body", it.expect_body.is_none() || is_http, needs_http);
}

/// The certificate that is expected.
fn tls<K: KeyVisitor>(keys: &mut K, it: &mut PortCheck) {
    let is_https = it.kind() == CheckKind::Https;
    let needs_https = || "needs check = \"https\"".to_owned();
    let meaning =
        "A file (PEM) with the authorities that may have signed the target's certificate. Name and dates are checked.";
    keys.optional("ca_file", Running, .., &mut it.ca_file, "/etc/rustbalance/ca.pem".into(), meaning);
    keys.require("ca_file", it.ca_file.is_none() || is_https, needs_https);
    keys.require("ca_file", it.ca_file.as_deref().is_none_or(Path::is_absolute), || {
        "it is a path from the root, as in \"/etc/rustbalance/ca.pem\"".into()
    });
    let meaning = "In place of ca_file: the SHA-256 of the certificate's public key (SubjectPublicKeyInfo), as \
                   \"spki-sha256:\" and hexadecimal digits, or of the whole certificate, as \"certificate-sha256:\". Name and \
                   dates then do not matter.";
    keys.optional("pin", Running, .., &mut it.pin, Pin::Spki([0xab; 32]), meaning);
    keys.require("pin", it.pin.is_none() || is_https, needs_https);
    keys.require("pin", it.pin.is_none() || it.ca_file.is_none(), || {
        "there is a ca_file too: keep one of the two".into()
    });
    keys.require("check", !is_https || it.pin.is_some() || it.ca_file.is_some(), || {
        "\"https\" needs a ca_file or a pin: the certificates of the web's authorities are not trusted here".into()
    });
}
