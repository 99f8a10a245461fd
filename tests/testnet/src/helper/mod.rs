//! The helpers in Python that create network namespaces, and what is done in one.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use parking_lot::Mutex;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The part that all helpers have.
const COMMON: &str = include_str!("common.py");

/// A helper, which holds its namespaces while it runs. Dropping it ends it; daemons in the
/// namespaces go on running.
#[derive(Debug)]
pub(crate) struct Helper {
    process: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    /// The pids of processes in the namespaces, by which `/proc` names them.
    holders: Vec<i32>,
}

/// Why a namespace cannot be created here; `None` if it can.
pub(crate) fn impossible() -> Option<String> {
    match Command::new("unshare").args(["--net", "true"]).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("cannot run unshare: {error}")),
    }
}

impl Helper {
    /// Runs a helper of this text, and waits until its namespaces are made.
    pub(crate) fn start(script: &str, words: &[&str]) -> Result<Self> {
        let mut process = Command::new("/usr/bin/python3")
            .args(["-c", &format!("{COMMON}\n{script}")])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run python3")?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            bail!("python3 has no pipes");
        };
        let pipes = Mutex::new((input, BufReader::new(output)));
        let mut helper = Self { process, pipes, holders: Vec::new() };
        let first = helper.read().context("the namespace was not made; python3 says why above")?;
        let pids = first.split_whitespace().map(str::parse::<i32>).collect::<Result<Vec<_>, _>>();
        helper.holders = pids.with_context(|| format!("the namespace's helper printed {first:?}, not pids"))?;
        Ok(helper)
    }

    /// The folder in `/proc` of a process in a namespace.
    pub(crate) fn proc(&self, at: usize) -> PathBuf {
        format!("/proc/{}", self.holders.get(at).copied().unwrap_or_default()).into()
    }

    /// The path of a namespace, for `nsenter`.
    pub(crate) fn path(&self, at: usize) -> PathBuf {
        self.proc(at).join("ns/net")
    }

    /// Has the helper do a command, and returns its answer.
    pub(crate) fn ask(&self, command: &str) -> Result<String> {
        {
            let mut pipes = self.pipes.lock();
            writeln!(pipes.0, "{command}").context("the namespace's helper has ended")?;
        }
        self.read().with_context(|| format!("the namespace's helper did not do: {command}"))
    }

    /// Runs `work` on a thread in a namespace, and waits for its end. What it opens there stays
    /// there.
    pub(crate) fn within<T: Send>(&self, at: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path(at);
        let namespace = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let thread = || -> Result<T> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("cannot enter {}", path.display()))?;
            Ok(work())
        };
        std::thread::scope(|scope| scope.spawn(thread).join()).map_err(|_| anyhow!("panicked in a namespace"))?
    }

    fn read(&self) -> Result<String> {
        let mut line = String::new();
        let mut pipes = self.pipes.lock();
        match pipes.1.read_line(&mut line)? {
            0 => bail!("the namespace's helper has ended"),
            _ => Ok(line),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
