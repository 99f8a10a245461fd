//! The fuzz targets, one for each decoder of untrusted input: functions of bytes that panic on a
//! broken promise.
//!
//! [`TARGETS`] lists them. libFuzzer runs them (`fuzz_targets/`, started by `./scripts/fuzz.sh`).
//! `tests/decoders.rs`, which includes this file, runs them on the committed corpus and on
//! mutations of it. A target checks more than the absence of panics: an accepted input must be
//! within its bounds, must be what it claims to be, and must decode to the same value after it is
//! encoded again. All keys belong to one small fixed cluster ([`world`]), so that an input means
//! the same in every run.
#![forbid(unsafe_code)]
// A target reports a broken promise by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::OnceCell;

use tokio::runtime::{Builder, Runtime};

mod backup;
mod control;
mod endpoint;
mod files;
mod frames;
mod gossip;
mod join;
mod link;
mod records;
mod script;
mod texts;
mod tor;
mod view;
mod wireguard;
mod world;

pub use world::dictionary;

/// A decoder under test.
pub struct Target {
    /// Name of the fuzz program, of the folder in the corpus, and of the argument of
    /// `./scripts/fuzz.sh`.
    pub name: &'static str,
    /// Decodes the bytes; true if they were accepted. Panics if the decoder breaks a promise.
    pub run: fn(&[u8]) -> bool,
    /// The inputs from which fuzzing starts.
    pub seeds: fn() -> Vec<Seed>,
}

/// An input that was constructed, not found by the fuzzer.
pub struct Seed {
    /// Name in the corpus, without the prefix `seed-`.
    pub name: String,
    /// The input of the target.
    pub bytes: Vec<u8>,
    /// Whether the target must accept it.
    pub taken: bool,
}

impl Seed {
    fn good(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), bytes: bytes.into(), taken: true }
    }

    fn bad(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), bytes: bytes.into(), taken: false }
    }
}

thread_local! {
    static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
}

/// Runs a future to its end on this thread. Tasks spawned by earlier calls continue meanwhile.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
    RUNTIME.with(|cell| cell.get_or_init(runtime).block_on(future))
}

macro_rules! targets {
    ($($name:literal: $module:ident :: $function:ident, $seeds:ident;)*) => {
        /// All fuzz targets.
        pub const TARGETS: &[Target] = &[$(
            Target { name: $name, run: $module::$function, seeds: $module::$seeds },
        )*];
    };
}

targets! {
    "backup": backup::archive, archive_seeds;
    "chain": records::chain, chain_seeds;
    "config": files::config, config_seeds;
    "control": control::request, request_seeds;
    "descriptor": tor::descriptor, descriptor_seeds;
    "discovery": link::discovery, discovery_seeds;
    "endpoint": endpoint::endpoint, endpoint_seeds;
    "frame": frames::frame, frame_seeds;
    "gossip": gossip::message, message_seeds;
    "handshake": link::handshake, handshake_seeds;
    "import": files::import, import_seeds;
    "introduction": tor::introduction, introduction_seeds;
    "join": join::join, join_seeds;
    "mesh": gossip::mesh, mesh_seeds;
    "points": tor::points, points_seeds;
    "record": records::record, record_seeds;
    "state": files::state, state_seeds;
    "status": control::status, status_seeds;
    "text": texts::text, text_seeds;
    "token": join::token, token_seeds;
    "view": view::view, view_seeds;
    "wireguard": wireguard::wireguard, wireguard_seeds;
}

/// The target of this name.
///
/// # Panics
///
/// If no target has this name.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("there is no target {name:?}"))
}
