//! The harness itself: a network that boots, serves and leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::time::{Duration, Instant};

use rustbalance_testnet::{Network, Site, Warmth, decrypt};

const TIMEOUT: Duration = Duration::from_secs(60);

#[test]
fn clients_reach_a_site_and_directories_show_what_they_hold() {
    let started = Instant::now();
    let mark = |what: &str| eprintln!("{:6.1} s {what}", started.elapsed().as_secs_f64());
    let network = Network::shared().unwrap();
    mark("booted");
    let site = Site::start("alpha").unwrap();
    let service = network.onion_service("alpha", 80, site.addr()).unwrap();
    let onion = service.hostname();
    mark("the onion service is published");

    let client = network.client("visitor", Warmth::Warm).unwrap();
    let answer = client.get(&format!("http://{onion}/"), TIMEOUT).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "alpha"));
    let answer = client.get(&format!("http://{onion}/bytes/1000000"), TIMEOUT).unwrap();
    assert_eq!(answer.body.len(), 1_000_000);
    let body = vec![7; 300_000];
    let answer = client.post(&format!("http://{onion}/echo"), &body, TIMEOUT).unwrap();
    assert_eq!(answer.body, body);
    mark("the first client was served");
    client.new_identity().unwrap();
    let answer = client.get(&format!("http://{onion}/"), TIMEOUT).unwrap();
    assert_eq!(answer.text(), "alpha");

    // A site outside of Tor, through an exit.
    let answer = client.get(&format!("http://{}/", site.addr()), TIMEOUT).unwrap();
    assert_eq!(answer.text(), "alpha");
    assert_eq!(site.requests(), 5);

    mark("with a new identity too");
    network.await_steady_period(Duration::from_secs(90));
    let published = network.published(onion).unwrap();
    mark("asked every directory");
    assert!(published.len() >= 4, "{}", published.len());
    let content = decrypt(onion, &published[0].text).unwrap();
    assert_eq!(content.revision, published[0].revision);
    assert!(!content.intro_points.is_empty());
    for point in &content.intro_points {
        let relay = network
            .relays()
            .iter()
            .find(|relay| Some(&relay.rsa_fingerprint) == point.rsa_fingerprint.as_ref())
            .unwrap();
        assert_eq!(Some(&relay.ed25519_id), point.ed25519_id.as_ref());
        assert_eq!(point.addresses, [format!("127.0.0.1:{}", relay.or_port)]);
    }
    let other = "a".repeat(56);
    assert!(decrypt(&other, &published[0].text).is_err());
    let broken = published[0].text.replace("revision-counter ", "revision-counter 1");
    assert!(decrypt(onion, &broken).is_err());
    // Repeated requests get the same answer.
    for _ in 0..5 {
        assert_eq!(network.published(onion).unwrap().len(), published.len());
    }
    mark("asked five times more");
    let fresh = network.client("newcomer", Warmth::Fresh).unwrap();
    let answer = fresh.get(&format!("http://{onion}/"), TIMEOUT).unwrap();
    assert_eq!(answer.text(), "alpha");
    mark("a fresh client was served");
    assert!(network.published(&other).unwrap().is_empty());
    drop(service);
    let error = fresh.get(&format!("http://{other}.onion/"), TIMEOUT).unwrap_err();
    assert!(format!("{error:#}").contains("SOCKS reply"), "{error:#}");
}
