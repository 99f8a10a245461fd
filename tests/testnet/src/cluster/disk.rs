//! A small disk of a node's own for its state, which tests can fill.
//!
//! It is a `tmpfs` mounted on the state directory, which requires root, or the root of a user
//! namespace (`unshare -rm`). It is unmounted with the node. If the harness is killed, the reaper
//! unmounts everything that is mounted below the network's folder.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Size of the disk: many times that of the state and of Arti's files together.
const SIZE: &str = "48m";
/// The file that fills the rest of the disk.
const BALLAST: &str = "ballast";

/// A node's disk. Dropping it unmounts it and discards its contents.
#[derive(Debug)]
pub(super) struct Disk(PathBuf);

impl Disk {
    /// Moves the contents of `state` to a new disk, mounted there. If the disk cannot be mounted,
    /// nothing has changed.
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

    /// Fills the disk to the last byte.
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

    /// Removes the file that fills the disk.
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

/// Unmounts everything that is mounted below a folder, whose path must be canonical.
pub(crate) fn unmount_below(folder: &Path) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else { return };
    for place in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let place = Path::new(place);
        if place != folder && place.starts_with(folder) {
            unmount(place);
        }
    }
}

/// Unmounts lazily, because a process that is ending may still have files open.
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
