//! Starts processes, and makes sure that they end.
//!
//! A process is recorded as a line `PID NAME` in a file of the folder `pids`. A shell writes that
//! line and then becomes the program, so that no process ever runs unrecorded. The process has the
//! folder `NAME` below the network's. It is ours as long as its command line names the `torrc` (a
//! tor) or the `state` (one of our daemons) in that folder.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::disk::unmount_below;

/// The folder of the files that record pids.
const RECORDS: &str = "pids";

/// This file marks a temporary folder that must not be removed.
pub(crate) const KEEP_MARKER: &str = "kept";

/// By this file in its folder, the command line of a tor shows that it is ours.
const TORRC: &str = "torrc";
/// By this state directory in its folder, the command line of a daemon shows that it is ours.
pub(crate) const STATE: &str = "state";

/// Records itself, then becomes the program that follows.
const LAUNCHER: &str = r#"
echo "$$ $2" >>"$1" && shift 2 && exec "$@"
"#;

/// Waits for the end of its input, then kills the recorded processes that are still ours. A line on
/// its input dismisses it instead. It sweeps three times, in case a launcher has not recorded
/// itself yet.
const REAPER: &str = r#"
trap '' HUP INT TERM
base=$1 records=$2 wipe=$3
read -r word && exit 0
sweep() {
    cat "$base/pids/"$records 2>/dev/null | while read -r pid name; do
        tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" |
            grep -qxF -e "$base/$name/torrc" -e "$base/$name/state" && kill -9 "$pid"
    done
}
sweep; sleep 0.2; sweep; sleep 1; sweep
[ "$records" = '*' ] && while read -r _ place _; do
    case "$place" in "$base"/*) umount -l "$place" ;; esac
done </proc/self/mounts
[ "$records" = '*' ] && rm -f -- "$base/facts.json"
rm -f -- "$base/pids/"$records
[ "$wipe" = wipe ] && rm -rf -- "$base"
exit 0
"#;

/// Which records a keeper answers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All: this process owns the network.
    Everything,
    /// Its own: this process is attached to a network of another.
    Own,
}

/// Starts processes for one user of a network, and ends them when it goes.
#[derive(Debug)]
pub(crate) struct Keeper {
    base: PathBuf,
    scope: Scope,
    wipe: bool,
    own_record: String,
    reaper: Mutex<Option<Child>>,
}

impl Keeper {
    /// Takes charge of the processes that `scope` names, in the network's folder.
    pub(crate) fn new(base: &Path, scope: Scope, wipe: bool) -> Result<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let records = base.join(RECORDS);
        fs::create_dir_all(&records).with_context(|| format!("cannot create {}", records.display()))?;
        // If the folder is to be kept, the reaper learns that from its argument, and a later boot,
        // which removes abandoned temporary folders, from the file `kept`.
        let keep = std::env::var_os(crate::ENV_KEEP).is_some();
        if wipe && keep {
            fs::write(base.join(KEEP_MARKER), "")?;
        }
        let wipe = wipe && !keep;
        let own_record = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let pattern = match scope {
            Scope::Everything => "*",
            Scope::Own => own_record.as_str(),
        };
        let reaper = Command::new("sh")
            .args(["-c", REAPER, "testnet-reaper"])
            .arg(base)
            .args([pattern, if wipe { "wipe" } else { "keep" }])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start the shell that cleans up after us")?;
        Ok(Self { base: base.to_path_buf(), scope, wipe, own_record, reaper: Mutex::new(Some(reaper)) })
    }

    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    /// The file that records what this keeper starts.
    pub(crate) fn own_record(&self) -> &str {
        &self.own_record
    }

    /// Starts tor in the folder `name`, which holds its `torrc`; tor ends with this keeper.
    pub(crate) fn start(&self, name: &str) -> Result<()> {
        launch(&self.base, name, &self.own_record)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let mine = match self.scope {
            Scope::Everything => None,
            Scope::Own => Some(self.own_record.as_str()),
        };
        sweep(&self.base, mine);
        if self.scope == Scope::Everything {
            unmount_below(&self.base);
        }
        if self.wipe {
            let _ = fs::remove_dir_all(&self.base);
        }
        let reaper = self.reaper.get_mut().take();
        if let Some(mut reaper) = reaper {
            if let Some(mut input) = reaper.stdin.take() {
                let _ = input.write_all(b"dismissed\n");
            }
            let _ = reaper.wait();
        }
    }
}

/// The record of the relays. They belong to the network, no matter which process restarts them.
pub(crate) const NETWORK_RECORD: &str = "network";

/// How long a killed process may take to end: a thread that waits for the disk ends only after that
/// wait.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// How a process ended; empty while it runs.
pub(crate) type Exit = Arc<OnceLock<ExitStatus>>;

/// Starts tor in `base/name` and records it.
pub(crate) fn launch(base: &Path, name: &str, record: &str) -> Result<()> {
    let torrc = base.join(name).join(TORRC);
    let _ = fs::remove_file(base.join(name).join("stdout"));
    let words = ["tor".as_ref(), "--defaults-torrc".as_ref(), "/dev/null".as_ref(), "-f".as_ref(), torrc.as_os_str()];
    launch_program(base, name, record, "stdout", &words).map(|_| ())
}

/// Starts a program for `base/name` and records it. Its output is appended to the file `output` in
/// that folder.
pub(crate) fn launch_program(base: &Path, name: &str, record: &str, output: &str, words: &[&OsStr]) -> Result<Exit> {
    let folder = base.join(name);
    let output = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join(output))
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    let mut child = recorded(base, name, record)
        .args(words)
        .stdin(Stdio::null())
        .stderr(output.try_clone()?)
        .stdout(output)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    // The launcher records itself in case this process is killed now. This process records it too,
    // because it may look before the launcher has run.
    let pid = child.id();
    // Renamed into place: a file that is half written would look as if no process ran.
    fs::write(folder.join("pid.new"), pid.to_string())?;
    fs::rename(folder.join("pid.new"), folder.join("pid"))?;
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(base.join(RECORDS).join(record))?
        .write_all(format!("{pid} {name}\n").as_bytes())?;
    // The process is a zombie until its status is collected. The thread that collects it ends with
    // it.
    let exit = Exit::default();
    let for_thread = Arc::clone(&exit);
    std::thread::Builder::new()
        .name(format!("wait-{name}"))
        .stack_size(64 * 1024)
        .spawn(move || {
            if let Ok(status) = child.wait() {
                let _ = for_thread.set(status);
            }
        })
        .context("cannot start a thread")?;
    Ok(exit)
}

/// A command that records itself for `base/name` and then becomes the program that the caller adds.
/// It has a process group of its own, so that a Ctrl-C reaches only this process, which acts on it.
pub(crate) fn recorded(base: &Path, name: &str, record: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", LAUNCHER, "testnet-launcher"])
        .arg(base.join(RECORDS).join(record))
        .arg(name)
        .current_dir("/")
        .process_group(0);
    command
}

/// The pid of the process that runs in `base/name`; `None` if none does.
pub(crate) fn running(base: &Path, name: &str) -> Option<Pid> {
    let pid = fs::read_to_string(base.join(name).join("pid")).ok()?;
    let pid = Pid::from_raw(pid.trim().parse().ok()?)?;
    is_ours(base, name, pid).then_some(pid)
}

/// Signals the process that runs in `base/name`.
pub(crate) fn signal(base: &Path, name: &str, signal: Signal) -> Result<()> {
    let Some(pid) = running(base, name) else {
        bail!("{name} of the network in {} is not running", base.display());
    };
    kill_process(pid, signal).with_context(|| format!("cannot signal {name}, process {pid:?}"))
}

/// Kills the process that runs in `base/name`, and waits until the last of its threads has released
/// its ports and files.
pub(crate) fn kill(base: &Path, name: &str) -> Result<()> {
    let Some(pid) = running(base, name) else {
        return Ok(());
    };
    let _ = kill_process(pid, Signal::KILL);
    let deadline = Instant::now() + KILL_PATIENCE;
    while !has_ended(pid) {
        if Instant::now() > deadline {
            bail!("{name}, process {pid:?}, did not end within {KILL_PATIENCE:?} of being killed");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Kills all processes in `record`, or in every record if that is `None`, and removes the records.
pub(crate) fn sweep(base: &Path, record: Option<&str>) {
    let folder = base.join(RECORDS);
    let files = match record {
        Some(record) => vec![folder.join(record)],
        None => match fs::read_dir(&folder) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(_) => return,
        },
    };
    let mut left: Vec<(Pid, String)> = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|text| text.lines().filter_map(parse_record).collect::<Vec<_>>())
        .collect();
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        left.retain(|(pid, name)| is_ours(base, name, *pid));
        for (pid, _) in &left {
            let _ = kill_process(*pid, Signal::KILL);
        }
        if left.is_empty() || Instant::now() > deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for file in files {
        let _ = fs::remove_file(file);
    }
}

/// How many recorded processes run.
pub(crate) fn count(base: &Path) -> usize {
    let Ok(entries) = fs::read_dir(base.join(RECORDS)) else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .flat_map(|text| text.lines().filter_map(parse_record).collect::<Vec<_>>())
        .filter(|(pid, name)| is_ours(base, name, *pid))
        .collect::<std::collections::HashSet<_>>()
        .len()
}

fn parse_record(line: &str) -> Option<(Pid, String)> {
    let (pid, name) = line.split_once(' ')?;
    Some((Pid::from_raw(pid.parse().ok()?)?, name.to_owned()))
}

/// Whether the process exists and its command line names the `torrc` or the `state` of `base/name`.
/// A zombie has no command line, so it does not count.
fn is_ours(base: &Path, name: &str, pid: Pid) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let marks = [TORRC, STATE].map(|mark| base.join(name).join(mark));
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        let Ok(line) = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) else {
            return false;
        };
        if !line.is_empty() {
            return line
                .split(|byte| *byte == 0)
                .any(|word| marks.iter().any(|mark| word == mark.as_os_str().as_bytes()));
        }
        // While the launcher becomes the program, the command line is empty for a moment.
        if has_ended(pid) || Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether the process has ended with all of its threads, or does not exist.
fn has_ended(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).map_or(true, |stat| is_over(&stat))
}

/// Whether this `/proc/PID/stat` shows that the process holds no ports or files any longer. It is a
/// zombie as soon as its first thread has ended, but its ports and locks go with the last one.
fn is_over(stat: &str) -> bool {
    let Some(mut fields) = stat_fields(stat) else { return true };
    let is_zombie = matches!(fields.next(), Some("Z" | "X"));
    let threads = fields.nth(16).and_then(|count| count.parse::<u32>().ok());
    is_zombie && threads.is_none_or(|count| count <= 1)
}

/// The fields of a `/proc/PID/stat` from the third (the state) on, see proc(5). The twentieth is
/// the number of threads.
pub(crate) fn stat_fields(stat: &str) -> Option<std::str::Split<'_, char>> {
    // They follow the name, which is in parentheses and may contain parentheses itself.
    stat.rsplit_once(") ").map(|(_, rest)| rest.split(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_over_once_its_last_thread_is() {
        let stat = |state: &str, threads: u32| {
            format!(
                "25014 (a ) Z) {state} 25009 25009 24290 0 -1 4227084 3016 0 8 0 6 4 5 4 20 0 {threads} 0 3893081 0 0"
            )
        };
        assert!(!is_over(&stat("R", 1)));
        assert!(!is_over(&stat("T", 3)));
        assert!(!is_over(&stat("Z", 2)));
        assert!(is_over(&stat("Z", 1)));
        assert!(is_over(&stat("X", 0)));
        assert!(is_over(""));
    }
}
