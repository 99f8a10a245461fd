//! A disk that was remounted read-only after an error: the daemon treats it like a full disk.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::test_cluster::{TestCluster, until};

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
    let mut test_cluster = TestCluster::start("").await;
    let (publisher, term) = test_cluster.publisher().await;
    let dir = test_cluster.daemons.iter().find(|daemon| daemon.id.to_string() == publisher).unwrap().dir().to_owned();
    let read_only = match ReadOnly::make(&dir) {
        Ok(read_only) => read_only,
        Err(error) => return eprintln!("skipped, because nothing can be mounted here: {error:#}"),
    };
    assert!(std::fs::write(dir.join("x"), "x").is_err());
    let visitors = test_cluster.visitors();
    test_cluster.named_mut("gamma").kill().await;
    until("the other publisher has removed the dead node's points from every directory", async || {
        test_cluster.is_healthy().await?;
        let (now, later) = test_cluster.publisher().await;
        ensure!(now != publisher && later > term, "the lease did not move");
        Ok(())
    })
    .await;
    visitors.all_served().await;
    drop(read_only);
    let net = test_cluster.net.clone();
    test_cluster.named_mut("gamma").run(&net);
    test_cluster.healthy().await;
}
