//! One node: a `rustbalance` daemon with its state directory, and the site that it serves.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use rustix::process::Signal;

use super::Status;
use super::disk::Disk;
use super::place::Place;
use super::vitals::Vitals;
use crate::cable::Cable;
use crate::keys;
use crate::process::{self, Exit, STATE};
use crate::site::Site;

/// How long a short command may take.
const COMMAND_PATIENCE: Duration = Duration::from_secs(20);
/// The file in a node's folder with the output of its daemon, over all its runs.
const LOG: &str = "log";
/// The file in a node's folder with the output of its other commands.
const TRANSCRIPT: &str = "transcript";

/// Lets other processes of the same user read the daemon's memory: for its vitals, and for tests
/// that search it for secrets.
const READABLE: &str = "RUSTBALANCE_READABLE_MEMORY=1";

/// What the nodes of a cluster have in common.
#[derive(Clone, Debug)]
pub(super) struct Common {
    pub(super) base: PathBuf,
    pub(super) record: String,
    pub(super) binary: PathBuf,
    pub(super) arti: PathBuf,
    /// Whether each node's Tor client is behind a cable that can be cut.
    pub(super) cabled: bool,
    pub(super) place: Place,
    /// Filters for the daemons' logs in the syntax of `tracing`; if empty, those of `-vv` apply.
    pub(super) log: String,
}

/// One node. Dropping it kills its daemon.
#[derive(Debug)]
pub struct Node {
    common: Arc<Common>,
    name: String,
    /// Its folder, relative to the network's.
    folder: String,
    site: Site,
    cable: Option<Cable>,
    disk: Mutex<Option<Disk>>,
    exit: Mutex<Option<Exit>>,
}

/// An invitation token, which lets a node join. It is never printed.
#[derive(Clone)]
pub struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Token(redacted)")
    }
}

/// The output of a command, and how it ended.
#[derive(Clone, Debug)]
pub struct CommandOutput {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
    /// How long it took.
    pub elapsed: Duration,
}

impl CommandOutput {
    /// Its standard output; an error if it failed. `what` names the command in the error.
    pub fn ok(self, what: &str) -> Result<String> {
        match self.code {
            Some(0) => Ok(self.output),
            code => bail!(
                "{what} failed ({}): {}{}",
                code.map_or_else(|| "killed".into(), |code| format!("exit code {code}")),
                self.output,
                self.errors.trim()
            ),
        }
    }
}

impl Node {
    /// A node that serves `site`. No daemon runs yet.
    pub(super) fn new(common: &Arc<Common>, name: &str, site: Site) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // A short name, because the path of a Unix socket has at most 107 bytes.
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = format!("nodes/{}-{number}-{name}", std::process::id());
        keys::create_private(&common.base.join(&folder))?;
        let cable = common.cabled.then(Cable::lay).transpose()?;
        let (common, name) = (Arc::clone(common), name.to_owned());
        let node = Self { common, name, folder, site, cable, disk: Mutex::new(None), exit: Mutex::new(None) };
        if let Some(cable) = &node.cable {
            let arti = fs::read_to_string(&node.common.arti).context("cannot read Arti's configuration")?;
            fs::write(node.arti(), arti + &cable.arti_toml())?;
        }
        Ok(node)
    }

    /// The file with Arti's configuration for this node, which `init` and `join` take.
    pub(super) fn arti(&self) -> PathBuf {
        if self.cable.is_some() { self.folder().join("arti.toml") } else { self.common.arti.clone() }
    }

    /// Cuts it off from the Tor network, or connects it again. Its cluster must be cabled.
    pub fn set_cut(&self, cut: bool) -> Result<()> {
        let cable = self.cable.as_ref().with_context(|| format!("{} has no cable to cut", self.name))?;
        if cut {
            cable.cut()
        } else {
            cable.mend()
        }
        Ok(())
    }

    /// Moves its state to a small disk of its own. Fails if it is running or no disk can be
    /// mounted.
    pub fn confine(&self) -> Result<()> {
        if self.is_running() {
            bail!("{} is running", self.name);
        }
        *self.disk.lock() = Some(Disk::mount(&self.state())?);
        Ok(())
    }

    /// Fills its disk to the last byte, or frees the space again. Fails if it has no disk of its
    /// own.
    pub fn set_disk_full(&self, full: bool) -> Result<()> {
        let disk = self.disk.lock();
        let disk = disk.as_ref().with_context(|| format!("{} has no disk of its own", self.name))?;
        if full { disk.fill() } else { disk.clear() }
    }

    /// The resources that its daemon uses; `None` if it does not run.
    pub fn vitals(&self) -> Option<Vitals> {
        Vitals::of(self.pid()?)
    }

    /// How the daemon that [`Node::run`] started has ended: its exit code, or `Some(None)` if a
    /// signal ended it. `None` if it has not ended.
    pub fn ended(&self) -> Option<Option<i32>> {
        let exit = self.exit.lock().clone()?;
        exit.get().map(|status| status.code())
    }

    /// The name that the harness gave it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The site that it serves, which answers the node's name.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The folder with its state and its logs.
    pub fn folder(&self) -> PathBuf {
        self.common.base.join(&self.folder)
    }

    /// Its state directory, the value of `--dir`.
    pub fn state(&self) -> PathBuf {
        self.folder().join(STATE)
    }

    /// Everything that its daemon has logged, over all its runs.
    pub fn log(&self) -> String {
        read_lossy(&self.folder().join(LOG))
    }

    /// The last line that its daemon has logged.
    pub fn last_log_line(&self) -> String {
        self.log().lines().last().unwrap_or_default().to_owned()
    }

    /// The files with the output of its daemon and of its commands.
    pub fn output_files(&self) -> [PathBuf; 2] {
        [LOG, TRANSCRIPT].map(|name| self.folder().join(name))
    }

    /// Starts its daemon.
    pub fn run(&self) -> Result<()> {
        if self.is_running() {
            bail!("{} is running already", self.name);
        }
        let state = self.state();
        let filter = format!("RUSTBALANCE_LOG={}", self.common.log);
        let entry = self.common.place.entry(&self.name);
        let mut words: Vec<&OsStr> = entry.iter().map(AsRef::as_ref).collect();
        words.extend::<[&OsStr; 8]>([
            "env".as_ref(),
            filter.as_ref(),
            READABLE.as_ref(),
            self.common.binary.as_os_str(),
            "--dir".as_ref(),
            state.as_os_str(),
            "-vv".as_ref(),
            "run".as_ref(),
        ]);
        let exit = process::launch_program(&self.common.base, &self.folder, &self.common.record, LOG, &words)
            .with_context(|| format!("cannot run {}", self.name))?;
        *self.exit.lock() = Some(exit);
        Ok(())
    }

    /// Whether its daemon's process exists. A frozen one does.
    pub fn is_running(&self) -> bool {
        process::running(&self.common.base, &self.folder).is_some()
    }

    /// Its daemon's pid; `None` if it does not run.
    pub fn pid(&self) -> Option<i32> {
        process::running(&self.common.base, &self.folder).map(|pid| pid.as_raw_nonzero().get())
    }

    /// Kills its daemon, as a power failure would, and waits until the last of its threads has
    /// released its files. Does nothing if it is not running.
    pub fn kill9(&self) -> Result<()> {
        process::kill(&self.common.base, &self.folder)
    }

    /// Freezes its daemon: its connections stay up, but it answers nothing.
    pub fn stop(&self) -> Result<()> {
        process::signal(&self.common.base, &self.folder, Signal::STOP)
    }

    /// Lets a frozen daemon go on.
    pub fn cont(&self) -> Result<()> {
        process::signal(&self.common.base, &self.folder, Signal::CONT)
    }

    /// Asks its daemon to end, as systemd does.
    pub fn term(&self) -> Result<()> {
        process::signal(&self.common.base, &self.folder, Signal::TERM)
    }

    /// Waits until the daemon that [`Node::run`] started has ended. Returns its exit code, `None`
    /// if a signal ended it.
    pub fn await_exit(&self, limit: Duration) -> Result<Option<i32>> {
        let exit = self.exit.lock().clone();
        let exit = exit.with_context(|| format!("{} has not been run", self.name))?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = exit.get() {
                return Ok(status.code());
            }
            if Instant::now() > deadline {
                bail!("{} did not end within {limit:?}; {}", self.name, self.diagnosis());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs `rustbalance --dir STATE` with more arguments and this standard input. Its output is
    /// also appended to the transcript.
    pub fn command(&self, words: &[&str], input: &str, limit: Duration) -> Result<CommandOutput> {
        let result = self.command_without_transcript(words, input, limit)?;
        let text = format!("$ rustbalance {}\n{}{}", words.join(" "), result.output, result.errors);
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder().join(TRANSCRIPT))
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write the transcript of {}", self.name))?;
        Ok(result)
    }

    /// Like [`Node::command`], but without a transcript, for commands that print a secret.
    pub fn command_without_transcript(&self, words: &[&str], input: &str, limit: Duration) -> Result<CommandOutput> {
        let started = Instant::now();
        let record = &self.common.record;
        let mut child = process::recorded(&self.common.base, &self.folder, record)
            .args(self.common.place.entry(&self.name))
            .arg(&self.common.binary)
            .arg("--dir")
            .arg(self.state())
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run rustbalance")?;
        if let Some(mut stdin) = child.stdin.take() {
            // If the command ends early, its exit status says more than a broken pipe.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = drain(child.stdout.take());
        let errors = drain(child.stderr.take());
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if started.elapsed() > limit {
                let _ = child.kill();
                let _ = child.wait();
                bail!(
                    "`rustbalance {}` of {} did not end within {limit:?}; it said: {}{}",
                    words.join(" "),
                    self.name,
                    collect(output),
                    collect(errors)
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Ok(CommandOutput {
            code: status.code(),
            output: collect(output),
            errors: collect(errors),
            elapsed: started.elapsed(),
        })
    }

    /// The status that its daemon reports.
    pub fn status(&self) -> Result<Status> {
        let text = self.command_without_transcript(&["status", "--json"], "", COMMAND_PATIENCE)?.ok("status --json")?;
        serde_json::from_str(&text).with_context(|| format!("cannot read the status of {}: {text}", self.name))
    }

    /// What its daemon answers a monitor: the text of `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        let mut stream = UnixStream::connect(self.state().join("metrics.sock")).context("no metrics are served")?;
        stream.set_read_timeout(Some(COMMAND_PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("the answer to a scrape is not HTTP")?;
        if !head.contains(" 200 ") {
            bail!("a scrape of {} failed: {head}", self.name);
        }
        Ok(body.to_owned())
    }

    /// Makes an invitation. `expires` is the value of `--expires`, such as `24h`.
    pub fn invite(&self, role: &str, uses: u16, expires: &str) -> Result<Token> {
        let uses = uses.to_string();
        let words = ["invite", "--quiet", "--role", role, "--uses", &uses, "--expires", expires];
        let token = self.command_without_transcript(&words, "", COMMAND_PATIENCE)?.ok("invite")?;
        Ok(Token(token.trim().to_owned()))
    }

    /// Its status and the end of its log, for error messages.
    pub fn diagnosis(&self) -> String {
        let status = match self.is_running() {
            true => self.status().map_or_else(|error| format!("no status: {error:#}"), |status| status.summary()),
            false => "it is not running".into(),
        };
        format!("{} ({}): {status}; its log ends with:\n{}", self.name, self.folder().display(), self.log_tail())
    }

    /// The end of its log: the last 12 lines above the level debug, then the last lines of any
    /// level.
    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(4)..];
        format!("    {}\n    ...\n    {}", self.last_news(12).join("\n    "), last.join("\n    "))
    }

    /// The last lines of its log above the level debug, `most` at most.
    pub fn last_news(&self, most: usize) -> Vec<String> {
        let log = self.log();
        let is_news = |line: &&str| !line.contains("TRACE") && !line.contains("DEBUG");
        let mut news: Vec<String> = log.lines().rev().filter(is_news).take(most).map(str::to_owned).collect();
        news.reverse();
        news
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.kill9();
        drop(self.disk.get_mut().take());
        if std::thread::panicking() || std::env::var_os(crate::ENV_KEEP).is_some() {
            return;
        }
        let _ = fs::remove_dir_all(self.folder());
    }
}

/// A thread that reads a pipe to its end.
type Drained = std::thread::JoinHandle<Vec<u8>>;

/// Reads a pipe to its end in a thread, so that the writer never waits.
fn drain(pipe: Option<impl Read + Send + 'static>) -> Drained {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut text);
        }
        text
    })
}

fn collect(drained: Drained) -> String {
    String::from_utf8_lossy(&drained.join().unwrap_or_default()).into_owned()
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
