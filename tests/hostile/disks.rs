//! A disk that was remounted read-only after an error: the daemon treats it like a full disk.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::town::{Town, until};

/// Makes a directory read-only until it is dropped. Files that are already open for writing stay
/// writable.
struct ReadOnly(PathBuf);

impl ReadOnly {
    /// Fails where mounting is not allowed.
    fn make(dir: &Path) -> Result<Self> {
        mount(&["--bind"], &[dir, dir])?;
        let made = Self(dir.to_owned());
        mount(&["-o", "remount,bind,ro"], &[dir])?;
        Ok(made)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

fn mount(options: &[&str], paths: &[&Path]) -> Result<()> {
    let output = Command::new("mount").args(options).args(paths).output().context("cannot run mount")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_whose_disk_is_read_only_hands_over_and_serves_on() {
    let mut town = Town::start("").await;
    let (publisher, term) = town.publisher().await;
    let dir = town.daemons.iter().find(|daemon| daemon.id.to_string() == publisher).unwrap().dir().to_owned();
    let read_only = match ReadOnly::make(&dir) {
        Ok(read_only) => read_only,
        Err(error) => return eprintln!("skipped, because nothing can be mounted here: {error:#}"),
    };
    assert!(std::fs::write(dir.join("x"), "x").is_err());
    let visitors = town.visitors();
    town.named_mut("gamma").kill().await;
    until("the other publisher has removed the dead node's points from every directory", async || {
        town.is_healthy().await?;
        let (now, later) = town.publisher().await;
        ensure!(now != publisher && later > term, "the lease did not move");
        Ok(())
    })
    .await;
    visitors.all_served().await;
    drop(read_only);
    let net = town.net.clone();
    town.named_mut("gamma").run(&net);
    town.healthy().await;
}
