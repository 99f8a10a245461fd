//! Requests to the daemon, over its control socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;

use super::output::print_line;
use super::{Context, SYSTEM_DIR};
use crate::control::{ControlError, Request, Response, SOCKET_NAME, call};

/// Time limit of a request that the daemon answers without waiting for other nodes.
pub(super) const SHORT: Duration = Duration::from_secs(15);
/// Time limit of an action: longer than the daemon's own limit of 120 s for an answer.
pub(super) const LONG: Duration = Duration::from_secs(130);

/// Sends a request. If the daemon refuses it, its message becomes the error.
pub(super) async fn ask(context: &Context, request: Request, limit: Duration) -> anyhow::Result<Response> {
    match call(&context.dir, &request, limit).await {
        Ok(Response::Refused { message }) => bail!(message),
        Ok(response) => Ok(response),
        Err(ControlError::NotRunning(dir)) if context.default_dir => Err(no_daemon(dir, Path::new(SYSTEM_DIR))),
        Err(error) => Err(error.into()),
    }
}

/// No daemon runs in this user's own state directory, but one may run in the system's.
#[derive(Debug, thiserror::Error)]
enum DaemonElsewhere {
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

/// The error for a state directory `own` in which no daemon runs. It names the directory `system`
/// if a daemon runs or may run there.
fn no_daemon(own: PathBuf, system: &Path) -> anyhow::Error {
    if own == system {
        return ControlError::NotRunning(own).into();
    }
    let system = system.to_owned();
    match UnixStream::connect(system.join(SOCKET_NAME)) {
        Ok(_) => DaemonElsewhere::Running { own, system }.into(),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => DaemonElsewhere::Hidden { own, system }.into(),
        Err(_) => ControlError::NotRunning(own).into(),
    }
}

/// Sends a request for an action, and prints the daemon's message about the result.
pub(super) async fn request_action(context: &Context, request: Request) -> anyhow::Result<()> {
    match ask(context, request, LONG).await? {
        Response::Done { message } => Ok(print_line(message)?),
        _ => Err(unexpected()),
    }
}

/// The error for an answer that does not belong to the request.
pub(super) fn unexpected() -> anyhow::Error {
    anyhow::anyhow!(
        "the daemon's answer does not fit the request: restart the daemon, so that both have the same version"
    )
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_system_daemon_is_named_if_the_users_own_daemon_does_not_run() {
        let home = tempfile::tempdir().unwrap();
        let (own, system) = (home.path().join("own"), home.path().join("system"));
        let error = |system: &Path| no_daemon(own.clone(), system);
        let is_none =
            |error: anyhow::Error| matches!(error.downcast_ref(), Some(ControlError::NotRunning(dir)) if *dir == own);
        assert!(is_none(error(&system)), "there is no such directory");
        std::fs::create_dir(&system).unwrap();
        assert!(is_none(error(&system)) && is_none(error(&own)), "no daemon runs there either");
        let listener = UnixListener::bind(system.join(SOCKET_NAME)).unwrap();
        let running = error(&system).to_string();
        assert!(running.contains(&format!("add `--dir {}`", system.display())), "{running}");
        drop(listener);
        assert!(is_none(error(&system)), "a socket that was left behind");
        // Root may read everything; tests/daemon.rs tests the command of another user.
        set_permissions(&system, Permissions::from_mode(0o000)).unwrap();
        if pwd_grp::geteuid() != 0 {
            let hidden = error(&system).to_string();
            assert!(hidden.contains(&system.display().to_string()) && hidden.contains("sudo"), "{hidden}");
        }
    }
}
