//! A small disk of its own for a node's state, which can be filled.
//!
//! A `tmpfs` mounted on the state directory; that needs root, or the root of a user namespace (`unshare -rm`). It goes
//! with the node; should the harness be killed, the reaper unmounts whatever is mounted below the network's folder.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Its size: room for the state and for Arti's, many times over.
const SIZE: &str = "48m";
/// The file that takes the rest of it.
const BALLAST: &str = "ballast";

/// A node's disk; dropped, it is unmounted and its content is gone.
#[derive(Debug)]
pub(super) struct Disk(PathBuf);

impl Disk {
    /// Moves what is in `state` to a new disk, mounted there. The error says why not; then all is as it was.
    pub(super) fn mount(state: &Path) -> Result<Self> {
        let aside = state.with_extension("aside");
        fs::rename(state, &aside).with_context(|| format!("cannot move {}", state.display()))?;
        let mounted = crate::keys::create_private(state).and_then(|()| {
            run(Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={SIZE},mode=700"), "rustbalance-testnet"])
                .arg(state))
        });
        if let Err(error) = mounted {
            let _ = fs::remove_dir(state);
            fs::rename(&aside, state)?;
            return Err(error.context("cannot mount a small disk"));
        }
        let disk = Self(state.to_path_buf());
        run(Command::new("cp").arg("-a").arg(aside.join(".")).arg(state))?;
        fs::remove_dir_all(&aside)?;
        Ok(disk)
    }

    /// Fills it to the last byte.
    pub(super) fn fill(&self) -> Result<()> {
        let mut ballast = File::create(self.0.join(BALLAST))?;
        for chunk in [vec![0; 1 << 16], vec![0; 1]] {
            loop {
                match ballast.write_all(&chunk) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("cannot fill the disk"),
                }
            }
        }
        Ok(())
    }

    /// Makes room again.
    pub(super) fn clear(&self) -> Result<()> {
        match fs::remove_file(self.0.join(BALLAST)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("cannot clear the disk"),
            _ => Ok(()),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

/// Unmounts all that is mounted below a folder, in canonical form.
pub(crate) fn unmount_below(folder: &Path) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else { return };
    for place in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let place = Path::new(place);
        if place != folder && place.starts_with(folder) {
            unmount(place);
        }
    }
}

/// Lazily: a process that is ending may still have files open.
fn unmount(place: &Path) {
    let _ = run(Command::new("umount").arg("--lazy").arg(place));
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
