//! Runs the operator's command for an alert.
//!
//! Without a shell: the arguments are those of the configuration, and the alert is on standard
//! input. The environment has PATH alone, because the daemon's own may name credentials. The
//! command runs in a process group of its own, which is killed when its time is up.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Most arguments, the program among them.
const MOST_ARGUMENTS: usize = 64;
/// Most bytes of all arguments together.
const MOST_BYTES: usize = 4096;
/// Bytes of standard error that are kept for the log.
const SHOWN: u64 = 400;
/// How long standard error is read after the end of the command, for what was on its way. A program
/// that the command left behind may hold it open.
const REST: Duration = Duration::from_millis(200);
/// PATH, if the daemon has none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argv(Vec<String>);

/// Why a list of arguments cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgvError {
    /// No program, or one that depends on the working directory.
    #[error("the first entry is the program, with its path from the root, as in [\"/usr/local/bin/page\", \"--ops\"]")]
    Program,
    /// Too much of it.
    #[error("at most {MOST_ARGUMENTS} entries of together {MOST_BYTES} bytes are allowed")]
    TooLong,
    /// No program can be given such an argument.
    #[error("an entry has a NUL byte")]
    Nul,
}

impl TryFrom<Vec<String>> for Argv {
    type Error = ArgvError;

    fn try_from(list: Vec<String>) -> Result<Self, ArgvError> {
        if list.first().is_none_or(|program| !program.starts_with('/')) {
            return Err(ArgvError::Program);
        }
        if list.len() > MOST_ARGUMENTS || list.iter().map(String::len).sum::<usize>() > MOST_BYTES {
            return Err(ArgvError::TooLong);
        }
        match list.iter().any(|entry| entry.contains('\0')) {
            true => Err(ArgvError::Nul),
            false => Ok(Self(list)),
        }
    }
}

impl Argv {
    /// The program.
    pub fn program(&self) -> &str {
        self.0.first().map(String::as_str).unwrap_or_default()
    }

    /// The program and its arguments.
    pub fn entries(&self) -> &[String] {
        &self.0
    }
}

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It cannot be run.
    #[error("cannot run {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// It took too long.
    #[error("{program} did not end within {limit:?} and was killed{said}")]
    TimedOut {
        /// The program.
        program: String,
        /// The limit.
        limit: Duration,
        /// The beginning of its standard error, with an introduction.
        said: String,
    },
    /// It ended with a failure.
    #[error("{program} ended with {status}{said}")]
    Failed {
        /// The program.
        program: String,
        /// Its exit code, or the signal that ended it.
        status: ExitStatus,
        /// The beginning of its standard error, with an introduction.
        said: String,
    },
    /// The system does not say how it ended.
    #[error("cannot wait for {program}: {source}")]
    Wait {
        /// The program.
        program: String,
        /// The cause.
        source: io::Error,
    },
}

/// The process group of a running command. Dropping it kills the group, unless the command has
/// ended: then the number may belong to another group.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.take() {
            // The group may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Runs a command with this text on its standard input, within `limit`.
pub(super) async fn run(argv: &Argv, input: &str, limit: Duration) -> Result<(), CommandError> {
    let program = || argv.program().to_owned();
    let mut child = start(argv).map_err(|source| CommandError::Start { program: program(), source })?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let mut errors = Vec::new();
    let outcome = {
        let writing = async {
            if let Some(mut stdin) = stdin {
                // A command need not read what it does not want.
                let _ = stdin.write_all(format!("{input}\n").as_bytes()).await;
            }
        };
        let reading = async {
            let Some(mut stderr) = stderr else { return };
            // What is beyond the part for the log is read, too: the command must not block.
            let _ = (&mut stderr).take(SHOWN).read_to_end(&mut errors).await;
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        };
        let running = async {
            let mut both = std::pin::pin!(async { tokio::join!(writing, reading) });
            let ended = tokio::select! {
                ended = child.wait() => ended,
                _ = &mut both => return child.wait().await,
            };
            let _ = timeout(REST, both).await;
            ended
        };
        timeout(limit, running).await
    };
    let said = said(&errors);
    let status = match outcome {
        Err(_) => {
            drop(group);
            // Killed, it ends at once. If not, the runtime waits for it.
            let _ = timeout(REST, child.wait()).await;
            return Err(CommandError::TimedOut { program: program(), limit, said });
        }
        Ok(Err(source)) => return Err(CommandError::Wait { program: program(), source }),
        Ok(Ok(status)) => status,
    };
    group.0 = None;
    match status.success() {
        true => Ok(()),
        false => Err(CommandError::Failed { program: program(), status, said }),
    }
}

fn start(argv: &Argv) -> io::Result<Child> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| PATH.into());
    Command::new(argv.program())
        .args(argv.entries().iter().skip(1))
        .env_clear()
        .env("PATH", path)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

/// The beginning of a command's standard error on one line, for the end of a message.
fn said(errors: &[u8]) -> String {
    let text = String::from_utf8_lossy(errors);
    let parts: Vec<_> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|part| !part.is_empty()).collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!("; its standard error begins with: {}", parts.join(" ")),
    }
}
