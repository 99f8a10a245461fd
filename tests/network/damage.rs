//! Damaged state files: the daemon names the file and the way out, and overwrites nothing. Damaged
//! files of Arti are set aside, and the node serves again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustbalance_testnet::cluster::{Cluster, Node};

use crate::support::{Nodes, Progress, scenario};

/// Entries of the state directory that are not checked: Arti's own files, the lock, and the
/// sockets.
const NOT_STATE: [&str; 4] = ["arti", "lock", "control.sock", "metrics.sock"];

#[test]
fn damaged_state_is_named_and_never_overwritten() {
    scenario("damage", &["alpha"], every_file);
}

fn every_file(progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    let node = &nodes.0[0];
    node.kill9()?;
    let whole = files(&node.state())?;
    let mut damaged_files = 0;
    for (path, content) in &whole {
        let name = path.file_name().context("a file has a name")?.to_string_lossy().into_owned();
        // Files written by people have no checksum, and every whole entry of a replay log is valid
        // by itself.
        if name.ends_with(".toml") || name.ends_with(".replays") {
            continue;
        }
        let mut flipped = content.clone();
        let middle = flipped.len() / 2;
        let byte = flipped.get_mut(middle).with_context(|| format!("{name} is empty"))?;
        *byte ^= 0x15;
        let cut = content[..content.len() / 2].to_vec();
        for (how, damaged) in [("changed", flipped), ("cut short", cut), ("emptied", Vec::new())] {
            fs::write(path, &damaged)?;
            let errors = refuses_to_run(node).with_context(|| format!("with {name} {how}"))?;
            ensure!(errors.contains(&name), "with {name} {how} the daemon says: {errors}");
            let mut expected = whole.clone();
            expected.insert(path.clone(), damaged);
            ensure!(files(&node.state())? == expected, "with {name} {how} the daemon wrote to its state directory");
        }
        fs::write(path, content)?;
        damaged_files += 1;
    }
    ensure!(damaged_files >= 9, "only {damaged_files} files of state were found: {:?}", whole.keys());
    progress.report(format_args!("{damaged_files} files were damaged in three ways, and named"));

    // An unknown key in the configuration is named, with the one that was probably meant.
    let path = node.state().join("rustbalance.toml");
    let text = fs::read_to_string(&path)?;
    ensure!(text.contains("\n[cluster]\n"), "the configuration has no table [cluster]: {text}");
    fs::write(&path, text.replace("\n[cluster]\n", "\n[cluster]\nhartbeat = \"2s\"\n"))?;
    let errors = refuses_to_run(node)?;
    ensure!(errors.contains("hartbeat") && errors.contains("heartbeat"), "the daemon says: {errors}");
    fs::write(&path, text)?;

    // With all files restored, the daemon runs.
    node.run()?;
    cluster.await_served(&nodes.0)?;
    tors_files(progress, cluster, node, nodes)
}

/// Maps a file's content to the damaged content.
type Damage<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;

/// Damages the Arti files of a node that has served: they are set aside, and the node serves again
/// by itself.
fn tors_files(progress: &mut Progress, cluster: &Cluster<'_>, node: &Node, nodes: &Nodes) -> Result<()> {
    let arti = node.state().join("arti");
    let noise = |content: &[u8]| content.iter().enumerate().map(|(at, byte)| byte ^ (at as u8 | 1)).collect();
    let half = |content: &[u8]| content[..content.len() / 2].to_vec();
    let cases: [(&str, &str, Damage<'_>); 4] = [
        ("all files emptied", "", &|_| Vec::new()),
        ("all files cut short", "", &half),
        ("all files made of noise", "", &noise),
        ("the consensus cut short", "dir_blobs", &half),
    ];
    ensure!(!node.log().contains("is set aside"), "an undamaged file was set aside: {}", node.log());
    for (how, which, damage) in cases {
        node.kill9()?;
        let mut damaged_files = 0;
        for (path, content) in files_below(&arti)? {
            let of_tor = !path.starts_with(arti.join("damaged")) && !path.to_string_lossy().ends_with("lock");
            if of_tor && path.to_string_lossy().contains(which) {
                fs::write(&path, damage(&content))?;
                damaged_files += 1;
            }
        }
        ensure!(damaged_files > 0, "with {how}: no file matches");
        let before = node.log().len();
        node.run()?;
        cluster.await_served(&nodes.0).with_context(|| format!("with {how}"))?;
        let log = node.log();
        let new_log = log.get(before..).unwrap_or(&log);
        ensure!(new_log.contains("is set aside"), "with {how} the daemon says: {new_log}");
        progress.report(format_args!("{how}: {damaged_files} files of Arti, and the node serves again"));
    }
    Ok(())
}

/// Runs the daemon, which must end with exit code 4, after which systemd does not restart it.
/// Returns its errors.
fn refuses_to_run(node: &Node) -> Result<String> {
    let result = node.command(&["run"], "", Duration::from_secs(20))?;
    ensure!(result.code == Some(4), "the daemon ended with {:?}: {}", result.code, result.errors);
    Ok(result.errors)
}

/// All files of a state directory that are checked.
fn files(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = files_below(folder)?;
    found.retain(|path, _| !NOT_STATE.iter().any(|other| path.starts_with(folder.join(other))));
    Ok(found)
}

/// All regular files below a folder.
fn files_below(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            found.extend(files_below(&path)?);
        } else if entry.file_type()?.is_file() {
            let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            found.insert(path, content);
        }
    }
    Ok(found)
}
