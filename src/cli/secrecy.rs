//! Keeps what is in this process's memory, and the files it makes, from other users: keys, tokens.

use std::env;

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask};

/// Set, it leaves the process as it was started: for tests and debuggers, which read its memory.
pub(super) const ENV_READABLE: &str = "RUSTBALANCE_READABLE_MEMORY";

/// No file that this process makes from here on is open to other users, whatever umask(2) it
/// inherited: Arti makes its lock files with all the permissions that the umask leaves. Called
/// before the first thread starts.
pub(super) fn protect_files() {
    umask(Mode::RWXG | Mode::RWXO);
}

/// From here on there is no core dump of this process, and no process of the same user can read its
/// memory or trace it (prctl(2), `PR_SET_DUMPABLE`). Root still can. Where the kernel refuses, the
/// command goes on without.
pub(super) fn protect() {
    if env::var_os(ENV_READABLE).is_some() {
        return;
    }
    // Logging has not started, and there is nothing that an operator could do about either.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}
