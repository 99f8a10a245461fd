//! Hostile peers against whole daemons on an in-memory Tor network, with real links, gossip and
//! joins.
//!
//! Each test runs one attack; the attacker has real keys where the attack needs them. The test
//! checks that the cluster stays healthy and serves during the attack, that no false record is
//! accepted, and that `status` counts the refusals. There is no attacker in [`tor`] (a node loses
//! its Tor client), [`alerts`], [`canary`], [`newcomer`] (a node joins), [`restored`],
//! [`operators`], [`upgrades`], [`later`], [`services`], [`targets`], [`monitors`], most of
//! [`circuits`] and parts of [`wireguard`], [`memberships`] and [`reports`]; in [`outages`] an
//! outsider only observes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]
#![allow(clippy::disallowed_methods)]

mod alerts;
mod authority;
mod away;
mod canary;
mod circuits;
mod clients;
mod clocks;
mod copies;
mod disks;
mod door;
mod evicted;
#[path = "../fixtures/state.rs"]
mod fixtures;
mod hand;
mod intruder;
mod later;
mod links;
mod member;
mod memberships;
#[path = "../fixtures/monitor.rs"]
mod monitor;
mod monitors;
mod newcomer;
mod operators;
mod outages;
mod raw_gossip;
mod records;
mod reports;
mod restored;
mod returning;
#[path = "../fixtures/schema.rs"]
mod schema;
mod services;
mod targets;
mod test_cluster;
mod tokens;
mod tor;
mod upgrades;
mod wireguard;
mod workers;
