//! A machine is lost, and its node comes back from a backup. While the lost machine is not lost
//! after all, the restored node gives way to it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::ensure;
use rustbalance::node::NodeError;
use rustbalance_gossip::record::Role;

use crate::returning::evict_and_change_the_key_twice;
use crate::test_cluster::{TestCluster, until};

/// Runs a command of `rustbalance` on the state directory `dir`, with the passphrase in a file.
fn command(dir: &Path, arguments: &[&str]) -> Output {
    let secret = dir.with_file_name("passphrase");
    std::fs::write(&secret, "correct horse battery staple\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rustbalance"));
    let output = command.arg("--dir").arg(dir).args(arguments).arg("--passphrase-file").arg(secret).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Makes a backup of a running node.
fn backup(test_cluster: &TestCluster, name: &str) -> PathBuf {
    let dir = test_cluster.named(name).dir();
    let file = dir.with_extension("age");
    command(dir, &["backup", &file.display().to_string(), "--work-factor", "12"]);
    file
}

/// Restores a backup of the node `name` and starts it, under the name of its new directory.
async fn restore(test_cluster: &mut TestCluster, name: &str, file: &Path, to: &str) {
    let (id, dir) = (test_cluster.named(name).id, test_cluster.named(name).dir().with_file_name(to));
    command(&dir, &["restore", &file.display().to_string()]);
    test_cluster.add(to, id, dir).await;
}

/// Waits until a restored node has refused to start; returns the reason.
async fn refusal(test_cluster: &mut TestCluster, name: &str) -> String {
    until("the restored node refuses to start", async || {
        ensure!(test_cluster.named(name).has_ended(), "{name} runs");
        Ok(())
    })
    .await;
    let why = test_cluster.named_mut(name).end().await;
    test_cluster.daemons.retain(|daemon| daemon.name != name);
    assert!(matches!(why, NodeError::OlderSelf(_)) && why.is_permanent(), "{why}");
    why.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_machine_comes_back_from_its_backup_and_gives_way_if_it_was_not_lost() {
    let mut test_cluster = TestCluster::start("").await;
    let files = ["alpha", "gamma"].map(|name| backup(&test_cluster, name));

    // The machine still runs: only the restored node ends.
    let visitors = test_cluster.visitors();
    restore(&mut test_cluster, "alpha", &files[0], "hasty").await;
    let why = refusal(&mut test_cluster, "hasty").await;
    assert!(why.contains("another machine runs with the key of this node"), "{why}");
    test_cluster.healthy().await;
    visitors.all_served().await;
    let alpha = test_cluster.named("alpha").status().await.unwrap();
    assert!(alpha.isolated.is_none(), "{:?}", alpha.isolated);
    let shown = test_cluster.named("beta").shown();
    assert!(!shown.contains("two processes run"), "{shown}");

    // The keys of the backup are too old to reach any member, the machine's own service too.
    let token = test_cluster.invite(Role::Worker, 1).await;
    let evicted = test_cluster.join("evicted", &token).await.node_id();
    evict_and_change_the_key_twice(&test_cluster, evicted).await;
    restore(&mut test_cluster, "gamma", &files[1], "stale").await;
    let why = refusal(&mut test_cluster, "stale").await;
    assert!(why.contains("changed its discovery key since"), "{why}");
    test_cluster.healthy().await;

    // Both machines are lost.
    for (name, file, to) in [("alpha", &files[0], "delta"), ("gamma", &files[1], "epsilon")] {
        test_cluster.named_mut(name).kill().await;
        restore(&mut test_cluster, name, file, to).await;
    }
    test_cluster.daemons.retain(|daemon| !["alpha", "gamma"].contains(&daemon.name.as_str()));
    test_cluster.healthy().await;
    for name in ["delta", "epsilon"] {
        until("the restored node has learned what it missed", async || {
            let status = test_cluster.named(name).status().await?;
            let generation = status.discovery_generation;
            ensure!(generation >= 2, "{name} has the discovery key of generation {generation}");
            ensure!(status.isolated.is_none(), "{name} is isolated: {:?}", status.isolated);
            let evicted = evicted.to_string();
            ensure!(!status.members.iter().any(|member| member.node == evicted), "{name} lists the evicted node");
            Ok(())
        })
        .await;
    }
    // The restored publisher has the key of the address.
    test_cluster.named_mut("beta").kill().await;
    test_cluster.healthy().await;
}
