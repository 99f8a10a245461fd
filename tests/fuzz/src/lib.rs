//! Every decoder of what comes from outside, each as a function of bytes that panics when a promise is broken.
//!
//! [`TARGETS`] is the list. libFuzzer feeds them (`fuzz_targets/`, by `./scripts/fuzz.sh`); the tests feed them the committed
//! corpus and changed pieces of it (`tests/decoders.rs`, which includes this file). Neither surviving nor refusing is all
//! that is asked: what is taken must be within its bounds, must be what it says, and must read the same when written
//! again. Keys are those of one small made-up cluster ([`world`]), so that inputs mean the same at every run.
#![forbid(unsafe_code)]
// A broken promise is told by a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::OnceCell;

use tokio::runtime::{Builder, Runtime};

mod control;
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
mod world;

pub use world::dictionary;

/// One decoder.
pub struct Target {
    /// Its name: of the fuzz target, of its folder in the corpus, for `./scripts/fuzz.sh`.
    pub name: &'static str,
    /// Puts bytes to it; true if they were taken for something. Panics where a promise is broken.
    pub run: fn(&[u8]) -> bool,
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Seed>,
}

/// An input that was made and not found.
pub struct Seed {
    /// Its name in the corpus.
    pub name: String,
    /// What is fed to the target.
    pub bytes: Vec<u8>,
    /// Whether it must be taken.
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

/// Runs to the end on this thread; what was spawned before goes on meanwhile.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
    RUNTIME.with(|cell| cell.get_or_init(runtime).block_on(future))
}

macro_rules! targets {
    ($($name:literal: $module:ident :: $function:ident, $seeds:ident;)*) => {
        /// All of them.
        pub const TARGETS: &[Target] = &[$(
            Target { name: $name, run: $module::$function, seeds: $module::$seeds },
        )*];
    };
}

targets! {
    "chain": records::chain, chain_seeds;
    "config": files::config, config_seeds;
    "control": control::request, request_seeds;
    "descriptor": tor::descriptor, descriptor_seeds;
    "discovery": link::discovery, discovery_seeds;
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
}

/// The one of that name.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("there is no target {name:?}"))
}
