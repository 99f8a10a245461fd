//! Asking the daemon.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;

use super::output::say;
use super::{Context, SYSTEM_DIR};
use crate::control::{ControlError, Request, Response, SOCKET_NAME, call};

/// For an answer the daemon has at hand.
pub(super) const SHORT: Duration = Duration::from_secs(15);
/// For what takes the daemon its time.
pub(super) const LONG: Duration = Duration::from_secs(130);

/// Asks; a refusal is an error in the daemon's words.
pub(super) async fn ask(context: &Context, request: Request, limit: Duration) -> anyhow::Result<Response> {
    match call(&context.dir, &request, limit).await {
        Ok(Response::Refused { message }) => bail!(message),
        Ok(response) => Ok(response),
        Err(ControlError::NotRunning(dir)) if context.default_dir => Err(no_daemon(dir, Path::new(SYSTEM_DIR))),
        Err(error) => Err(error.into()),
    }
}

/// No daemon runs where this user's own would be, but the machine's service may have one.
#[derive(Debug, thiserror::Error)]
enum Elsewhere {
    #[error(
        "no daemon runs in {}, this user's state directory, but there is {}, which this user may not read: if you mean \
         the node in there, run the command as root (sudo)", .own.display(), .system.display()
    )]
    Hidden { own: PathBuf, system: PathBuf },
    #[error(
        "no daemon runs in {}, this user's state directory, but one runs in {}: if you mean that one, add `--dir {}`",
        .own.display(), .system.display(), .system.display()
    )]
    Running { own: PathBuf, system: PathBuf },
}

/// The error for a state directory `own` in which no daemon runs: it names the daemon of `system`,
/// if there may be one.
fn no_daemon(own: PathBuf, system: &Path) -> anyhow::Error {
    if own == system {
        return ControlError::NotRunning(own).into();
    }
    let system = system.to_owned();
    match UnixStream::connect(system.join(SOCKET_NAME)) {
        Ok(_) => Elsewhere::Running { own, system }.into(),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Elsewhere::Hidden { own, system }.into(),
        Err(_) => ControlError::NotRunning(own).into(),
    }
}

/// Asks for something to be done, and prints what the daemon says of it.
pub(super) async fn order(context: &Context, request: Request) -> anyhow::Result<()> {
    match ask(context, request, LONG).await? {
        Response::Done { message } => Ok(say(message)?),
        _ => Err(unexpected()),
    }
}

/// The daemon answered something else than what it was asked.
pub(super) fn unexpected() -> anyhow::Error {
    anyhow::anyhow!("the daemon answered something else than it was asked: restart it, so that both are of one version")
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_daemon_of_the_machines_service_is_named_where_the_users_own_does_not_run() {
        let home = tempfile::tempdir().unwrap();
        let (own, system) = (home.path().join("own"), home.path().join("system"));
        let told = |system: &Path| no_daemon(own.clone(), system);
        let is_none =
            |error: anyhow::Error| matches!(error.downcast_ref(), Some(ControlError::NotRunning(dir)) if *dir == own);
        assert!(is_none(told(&system)), "there is no such directory");
        std::fs::create_dir(&system).unwrap();
        assert!(is_none(told(&system)) && is_none(told(&own)), "no daemon runs there either");
        let listener = UnixListener::bind(system.join(SOCKET_NAME)).unwrap();
        let running = told(&system).to_string();
        assert!(running.contains(&format!("add `--dir {}`", system.display())), "{running}");
        drop(listener);
        assert!(is_none(told(&system)), "a socket that was left behind");
        // Root may read all; the command of a plain user is tried in tests/daemon.rs.
        set_permissions(&system, Permissions::from_mode(0o000)).unwrap();
        if pwd_grp::geteuid() != 0 {
            let hidden = told(&system).to_string();
            assert!(hidden.contains(&system.display().to_string()) && hidden.contains("sudo"), "{hidden}");
        }
    }
}
