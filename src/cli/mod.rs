//! The `rustbalance` command: one file for each subcommand, and separate files for formatting.
//!
//! [`main`] is the entry point. The commands decide nothing: they read the options, call the
//! library or ask the daemon over its control socket, and print the result. Exit codes: 0 done, 1
//! failed, 2 wrong usage, 3 no daemon runs, 4 the daemon cannot run until the operator has fixed
//! something, so a supervisor need not try again, 5 done, but some of it takes effect only after a
//! restart.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::causes::with_causes;
use crate::control::ControlError;
use crate::log::{self, LogFormat};
use crate::node::NodeError;
use crate::shell;

mod acknowledge;
mod alert;
mod ask;
mod backup;
mod bugreport;
mod canary;
mod canary_view;
mod check;
mod circuit;
mod directories_view;
mod drain;
mod evict;
mod init;
mod invite;
mod join;
mod leave;
mod output;
mod passphrase;
mod progress;
mod reload;
mod restore;
mod resume;
mod run;
mod runtime;
mod secrecy;
mod signals;
mod status;
mod status_view;
mod targets;
mod temporary_tor;
mod vanity;
mod vanity_view;
mod verify;
mod wireguard;
mod wireguard_view;

/// Exit code of a command that failed.
const FAILED: u8 = 1;
/// Exit code of a command that was used wrongly; clap has the same.
const USAGE: u8 = 2;
/// Exit code of a command that needs a daemon where none runs.
const NOT_RUNNING: u8 = 3;
/// Exit code of a daemon that cannot run until the operator has fixed something.
/// `rustbalance.service` names it, so that systemd does not start the daemon again.
const NEEDS_OPERATOR: u8 = 4;
/// Exit code of `reload` if some changes take effect only after a restart.
const AFTER_RESTART: u8 = 5;

/// The state directory of the machine's own node: root's, and that of `rustbalance.service`.
const SYSTEM_DIR: &str = "/var/lib/rustbalance";
/// The unit of scripts/packaging, where README installs it.
const UNIT: &str = "/etc/systemd/system/rustbalance.service";

/// One .onion address, served by many machines, with no machine that matters more than another.
#[derive(Parser)]
#[command(name = "rustbalance", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// State directory: keys, configuration and control socket [default: /var/lib/rustbalance for
    /// root, else rustbalance in the XDG state directory]
    #[arg(long, global = true, value_name = "DIR", env = "RUSTBALANCE_DIR", hide_env_values = true)]
    dir: Option<PathBuf>,
    /// Format of the log on standard error
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    log_format: Format,
    /// Log more; repeat it to log still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// The values of `--log-format`.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// Lines for a person or systemd's journal
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Create a new onion address, with this machine as its first node
    Init(init::Options),
    /// Run this machine's node (the daemon, in the foreground)
    Run(run::Options),
    /// Make a token with which another machine can join
    Invite(invite::Options),
    /// Make this machine a node of an existing address
    Join(join::Options),
    /// Show how the running node sees the cluster
    Status(status::Options),
    /// Inspect what this machine's node needs: files, configuration, clock, limits, targets
    Check(check::Options),
    /// Use the address as a client would, through every introduction point, and show what failed
    Canary(canary::Options),
    /// Write a report about this machine's node that shows no secret and no address
    Bugreport(bugreport::Options),
    /// Apply the changed configuration to the running node, without dropping a stream
    Reload(reload::Options),
    /// Say goodbye to the other nodes, and stop this one; it stays a member
    Leave(leave::Options),
    /// Take no new clients on this node until `resume`, even after a restart
    Drain(drain::Options),
    /// Take clients again after `drain`
    Resume(resume::Options),
    /// Evict another node from the cluster
    Evict(evict::Options),
    /// Show or close the circuits of clients on this node
    Circuit(circuit::Options),
    /// Search an address that begins with given characters
    Vanity(vanity::Options),
    /// Say what each directory holds of an onion address, from any machine
    Verify(verify::Options),
    /// Show or switch the faster route between nodes that know each other's addresses
    Wireguard(wireguard::Options),
    /// Write this node to one encrypted file, or show what such a file holds
    Backup(backup::Options),
    /// Make the node of a backup on this machine
    Restore(restore::Options),
    /// Try out whom the running node alerts when something is wrong
    Alert(alert::Options),
    /// End an alarm that more nodes have received the address's key than you wanted
    Acknowledge(acknowledge::Options),
}

/// The global options, as every command gets them.
struct Context {
    dir: PathBuf,
    /// True if `dir` is the default directory.
    default_dir: bool,
    format: LogFormat,
    verbose: u8,
}

impl Context {
    /// Starts logging for a command that prints its own output to the operator.
    fn log_quietly(&self) -> Result<(), log::LogError> {
        log::init(self.format, self.verbose)
    }

    /// Starts logging for the daemon.
    fn log_as_daemon(&self) -> Result<(), log::LogError> {
        log::init(self.format, self.verbose.saturating_add(1))
    }

    /// A command line to suggest, with `--dir` if it needs one.
    fn suggest(&self, command: &str) -> String {
        match self.default_dir {
            true => format!("rustbalance {command}"),
            false => format!("rustbalance --dir {} {command}", shell::path(&self.dir)),
        }
    }

    /// The command line that starts the node: systemd's if its unit is installed for this
    /// directory.
    fn suggest_start(&self) -> String {
        match self.default_dir && Path::new(UNIT).exists() {
            true => "systemctl enable --now rustbalance".into(),
            false => self.suggest("run"),
        }
    }
}

/// The command line is wrong in a way that only the command can detect: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    secrecy::protect_files();
    secrecy::protect();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version also arrive here, with code 0.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(FAILED));
        }
    };
    let outcome = execute(cli);
    log::finish();
    match outcome {
        Ok(code) => code,
        // The reader of the output has closed the pipe, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {}", with_causes(error.as_ref()));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    let context = context(cli.global)?;
    let done = match cli.command {
        Command::Check(options) => return runtime::run(check::execute(&context, options)),
        Command::Verify(options) => return runtime::run(verify::execute(&context, options)),
        Command::Canary(options) => return runtime::run(canary::execute(&context, options)),
        Command::Reload(options) => return runtime::run(reload::execute(&context, options)),
        Command::Bugreport(options) => runtime::run(bugreport::execute(&context, options)),
        Command::Init(options) => runtime::run(init::execute(&context, options)),
        Command::Run(options) => run::execute(&context, options),
        Command::Invite(options) => runtime::run(invite::execute(&context, options)),
        Command::Join(options) => join::execute(&context, options),
        Command::Status(options) => runtime::run(status::execute(&context, options)),
        Command::Leave(options) => runtime::run(leave::execute(&context, options)),
        Command::Drain(options) => runtime::run(drain::execute(&context, options)),
        Command::Resume(options) => runtime::run(resume::execute(&context, options)),
        Command::Evict(options) => runtime::run(evict::execute(&context, options)),
        Command::Circuit(options) => runtime::run(circuit::execute(&context, options)),
        Command::Vanity(options) => runtime::run(vanity::execute(&context, options)),
        Command::Wireguard(options) => runtime::run(wireguard::execute(&context, options)),
        Command::Backup(options) => runtime::run(backup::execute(&context, options)),
        Command::Restore(options) => runtime::run(restore::execute(&context, options)),
        Command::Alert(options) => runtime::run(alert::execute(&context, options)),
        Command::Acknowledge(options) => runtime::run(acknowledge::execute(&context, options)),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn context(global: Global) -> anyhow::Result<Context> {
    let default = default_dir(is_root(), |name| std::env::var_os(name));
    let given = global.dir.map(std::path::absolute).transpose()?;
    let dir = given
        .or_else(|| default.clone())
        .ok_or_else(|| Usage("neither XDG_STATE_HOME nor HOME is set: give the state directory with --dir".into()))?;
    let format = match global.log_format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    };
    Ok(Context { default_dir: Some(&dir) == default.as_ref(), dir, format, verbose: global.verbose })
}

/// The state directory without `--dir`; `None` if no environment variable gives one.
fn default_dir(root: bool, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if root {
        return Some(SYSTEM_DIR.into());
    }
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("rustbalance"))
}

/// True if this process runs as root. Asks the kernel, not `/proc`, which a bare chroot lacks.
fn is_root() -> bool {
    pwd_grp::geteuid() == 0
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<Usage>()) {
        USAGE
    } else if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(ControlError::NotRunning(_)))) {
        NOT_RUNNING
    } else if error.chain().any(|cause| cause.downcast_ref().is_some_and(NodeError::is_permanent)) {
        NEEDS_OPERATOR
    } else {
        FAILED
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    // Only our own standard output: a socket's broken pipe comes wrapped in an error of its own.
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;
    use crate::tor::TorError;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn the_state_directory_is_where_it_is_expected() {
        let none = |_: &str| None;
        let home = |name: &str| (name == "HOME").then(|| "/home/a".into());
        let xdg = |name: &str| Some(if name == "HOME" { "/home/a".into() } else { "/state".into() });
        let relative = |name: &str| Some(if name == "HOME" { "/home/a".into() } else { "state".into() });
        assert_eq!(default_dir(true, home), Some("/var/lib/rustbalance".into()));
        assert_eq!(default_dir(false, home), Some("/home/a/.local/state/rustbalance".into()));
        assert_eq!(default_dir(false, xdg), Some("/state/rustbalance".into()));
        assert_eq!(default_dir(false, relative), Some("/home/a/.local/state/rustbalance".into()));
        assert_eq!(default_dir(false, none), None);
    }

    #[test]
    fn errors_have_their_exit_codes() {
        assert_eq!(exit_code(&ControlError::NotRunning("/x".into()).into()), NOT_RUNNING);
        assert_eq!(exit_code(&anyhow::Error::from(Usage("no".into())).context("while")), USAGE);
        assert_eq!(exit_code(&anyhow::anyhow!("no")), FAILED);
        let store = |error| exit_code(&NodeError::Store(error).into());
        assert_eq!(store(StoreError::NotForWorkers("/x".into())), NEEDS_OPERATOR);
        assert_eq!(store(StoreError::Full("/x".into())), FAILED);
        assert_eq!(exit_code(&NodeError::Excluded("evicted".into()).into()), NEEDS_OPERATOR);
        assert_eq!(exit_code(&NodeError::TaskEnded("a".into()).into()), FAILED);
        let tor = |error| exit_code(&NodeError::Tor(error).into());
        assert_eq!(tor(TorError::Config("a wrong key".into(), None)), NEEDS_OPERATOR);
        assert_eq!(tor(TorError::State { dir: "/x".into(), why: "no space".into() }), FAILED);
        let control = |error| exit_code(&NodeError::Control(error).into());
        assert_eq!(control(ControlError::PathTooLong("/x".into())), NEEDS_OPERATOR);
        assert_eq!(control(ControlError::AlreadyRunning("/x".into())), FAILED);
    }
}
