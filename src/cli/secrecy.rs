//! Protects the memory of this process (keys, tokens) and the files that it creates.

use std::env;

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask};

/// If this variable is set, the memory is not protected: for tests and debuggers, which read it.
pub(super) const ENV_READABLE: &str = "RUSTBALANCE_READABLE_MEMORY";

/// Makes all files that this process creates from now on private to its user, whatever umask(2) it
/// has inherited. Arti creates its lock files with all permissions that the umask leaves. Called
/// before the first thread starts.
pub(super) fn protect_files() {
    umask(Mode::RWXG | Mode::RWXO);
}

/// From now on this process leaves no core dump, and no other process of its user can read its
/// memory or trace it (prctl(2), `PR_SET_DUMPABLE`). Root still can. If the kernel refuses, the
/// command runs without this protection.
pub(super) fn protect() {
    if env::var_os(ENV_READABLE).is_some() {
        return;
    }
    // Errors are ignored: logging has not started, and an operator could do nothing about them.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}
