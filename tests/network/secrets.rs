//! No secret may appear in a log, a status, a command line or an error, and a worker may hold no
//! secret of the service.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustbalance::backup::{Backup, Passphrase};
use rustbalance::join::Token as JoinToken;
use rustbalance::store::Store;
use rustbalance_testnet::cluster::{Cluster, Node, Token};
use tempfile::TempDir;

use crate::needles::Needles;
use crate::support::{BINARY, ClusterPermit, Nodes, Progress, all_served, network};

const LIMIT: Duration = Duration::from_secs(30);
/// Time limit for a node to connect to Tor for the first time and find its older self.
const FIRST_START: Duration = Duration::from_secs(120);
/// Of the backup.
const PASSPHRASE: &str = "correct horse battery staple\n";

#[test]
fn no_secret_leaks_and_a_worker_holds_none_of_the_address() {
    let _turn = ClusterPermit::take();
    let mut progress = Progress::new("secrets");
    // All log levels of all crates, Arti and the async runtime included.
    let cluster = Cluster::logging(network(), BINARY, "trace").unwrap();
    let done = whole_life(&mut progress, &cluster);
    progress.ends(done);
}

/// Runs nodes through joining, serving and every way to end, then searches all output for secrets.
fn whole_life(progress: &mut Progress, cluster: &Cluster<'_>) -> Result<()> {
    let mut nodes = cluster.grow(&["alpha", "beta"], &["publisher", "worker"])?;
    let (alpha, beta) = (nodes[0].clone(), nodes[1].clone());
    let token = alpha.invite("publisher", 1, "1h")?;
    the_hint_does_not_contain_the_token(&alpha)?;
    // A join that fails for its token, one that receives the service's secrets, and one whose token
    // is used up.
    let mut mistyped = token.0.clone();
    mistyped.replace_range(10..11, if &mistyped[10..11] == "a" { "b" } else { "a" });
    ensure!(
        cluster.try_join(&*cluster.vacant("mistaken")?, &Token(mistyped))?.code == Some(1),
        "a mistyped token admits"
    );
    nodes.push(cluster.join("gamma", &token)?);
    nodes[2].run()?;
    cluster.await_served(&nodes)?;
    ensure!(cluster.try_join(&*cluster.vacant("late")?, &token)?.code == Some(1), "a used token admits");
    all_served(cluster, 3)?;
    for node in &nodes {
        node.command(&["status"], "", LIMIT)?.ok("status")?;
        node.command(&["status", "--json"], "", LIMIT)?.ok("status --json")?;
        let report = node.command(&["bugreport"], "", LIMIT)?.ok("bugreport")?;
        ensure!(report.contains("TRACE") && report.contains("(onion address 1)"), "the report has no log: {report}");
        ensure!(!report.contains(cluster.onion()?.trim_end_matches(".onion")), "the report shows the address");
    }
    progress.report(format_args!("three nodes are served, one a worker"));

    let nodes = Nodes(nodes);
    let mut needles = Needles::new();
    for node in &nodes.0 {
        opened_copy(node)?.add_to(&mut needles, node.name())?;
    }
    let seed = *JoinToken::parse(&token.0)?.secret().seed();
    needles.add("the token's seed", &seed);
    needles.add_exactly("the token", token.0.clone().into_bytes());

    for node in &nodes.0 {
        let (metrics, mut found) = (node.metrics()?, BTreeSet::new());
        ensure!(metrics.contains("rustbalance_ready 1"), "{} is not ready: {metrics}", node.name());
        needles.find(metrics.as_bytes(), &mut found);
        ensure!(found.is_empty(), "the metrics of {} show {found:?}", node.name());
    }
    command_lines_are_clean(&needles, &nodes)?;
    needles.add_exactly("the passphrase", PASSPHRASE.trim_end().into());
    let backup = a_backup_is_opaque(&needles, &alpha)?;
    a_restored_copy_gives_way(&needles, cluster, &alpha, &backup)?;
    fs::remove_file(backup)?;
    progress.report(format_args!("a backup shows nothing, and its node does not run twice"));
    a_worker_holds_nothing(&nodes, &beta)?;
    progress.report(format_args!("no command line shows a secret, and the worker holds none of the service"));

    // Every way to end: SIGTERM, SIGKILL with a restart, and refusal to start with a damaged key.
    alpha.term()?;
    ensure!(alpha.await_exit(LIMIT * 3)? == Some(0), "alpha did not end with exit code 0");
    beta.kill9()?;
    beta.run()?;
    let gamma = nodes.named("gamma")?;
    gamma.kill9()?;
    let service = opened_copy(gamma)?.store.cluster().first_service().to_string();
    let identity = format!("services/{}/identity.key", service.trim_end_matches(".onion"));
    for file in ["node.key", &*identity, "authority.key", "discovery.key"] {
        let path = gamma.state().join(file);
        let whole = fs::read(&path)?;
        fs::write(&path, &whole[..whole.len() - 1])?;
        ensure!(gamma.command(&["run"], "", LIMIT)?.code == Some(4), "a node runs with half of {file}");
        fs::write(&path, whole)?;
    }
    cluster.wait_until("the worker is back", LIMIT, || beta.status().map(|_| ()))?;
    beta.command(&["leave"], "", LIMIT)?.ok("leave")?;
    progress.report(format_args!("the nodes have ended in every way"));

    for node in &nodes.0 {
        let log = node.log();
        ensure!(log.contains("TRACE"), "the log of {} has no TRACE lines", node.name());
        for file in node.output_files() {
            let found = needles.find_in(&file)?;
            ensure!(found.is_empty(), "{} of {} shows {found:?}", file.display(), node.name());
        }
    }
    progress.report(format_args!("no log, status or error shows a secret"));
    Ok(())
}

/// The command line that `invite` suggests must not contain the token.
fn the_hint_does_not_contain_the_token(node: &Node) -> Result<()> {
    let output = node.command_without_transcript(&["invite"], "", LIMIT)?.ok("invite")?;
    let hint = output
        .lines()
        .find(|line| line.contains("rustbalance join"))
        .context("invite does not print the command to join")?;
    ensure!(!hint.contains("rb1-"), "the command line that invite suggests contains the token");
    ensure!(output.contains("rb1-"), "invite does not print the token");
    Ok(())
}

fn command_lines_are_clean(needles: &Needles, nodes: &Nodes) -> Result<()> {
    for node in &nodes.0 {
        let pid = node.pid().with_context(|| format!("{} is not running", node.name()))?;
        let mut found = BTreeSet::new();
        for file in ["cmdline", "environ"] {
            let text = fs::read(format!("/proc/{pid}/{file}"))?;
            ensure!(!text.is_empty(), "{} has no {file}", node.name());
            needles.find(&text, &mut found);
        }
        ensure!(found.is_empty(), "the command line or environment of {} shows {found:?}", node.name());
    }
    Ok(())
}

/// Searches the backup of a publisher. Decrypted, it must show the secrets; otherwise the search
/// would prove nothing.
fn a_backup_is_opaque(needles: &Needles, node: &Node) -> Result<PathBuf> {
    let file = node.state().with_extension("age");
    let path = file.display().to_string();
    let of = |arguments: &[&str]| node.command(arguments, PASSPHRASE, LIMIT);
    of(&["backup", &path, "--work-factor", "12", "--passphrase-file", "-"])?.ok("backup")?;
    of(&["backup", "--inspect", &path, "--passphrase-file", "-"])?.ok("backup --inspect")?;
    let found = needles.find_in(&file)?;
    ensure!(found.is_empty(), "the backup shows {found:?}");
    let (backup, mut found) = (Backup::open(&fs::read(&file)?, &Passphrase::new(PASSPHRASE))?, BTreeSet::new());
    backup.state.iter().for_each(|file| needles.find(&file.bytes, &mut found));
    ensure!(!found.is_empty(), "the decrypted backup shows no secret");
    Ok(file)
}

/// Restores the backup of a running node beside it: over Tor, the copy finds the node and ends.
fn a_restored_copy_gives_way(needles: &Needles, cluster: &Cluster<'_>, node: &Node, backup: &Path) -> Result<()> {
    let copy = cluster.vacant("copy")?;
    let path = backup.display().to_string();
    copy.command(&["restore", &path, "--passphrase-file", "-"], PASSPHRASE, LIMIT)?.ok("restore")?;
    let ended = copy.command(&["run"], "", FIRST_START)?;
    let why = "another machine runs with the key of this node";
    ensure!(ended.code == Some(4) && ended.errors.contains(why), "{:?}: {}", ended.code, ended.errors);
    let (mut found, status) = (BTreeSet::new(), node.status()?);
    needles.find(ended.errors.as_bytes(), &mut found);
    ensure!(found.is_empty(), "the log of the copy shows {found:?}");
    ensure!(node.is_running() && status.phase == "healthy", "the node was disturbed: it is {}", status.phase);
    Ok(())
}

/// Searches the folder and the memory of a worker for the service's secrets. The same search must
/// find them in a publisher, and the worker's own key in the worker; otherwise it would prove
/// nothing.
fn a_worker_holds_nothing(nodes: &Nodes, worker: &Node) -> Result<()> {
    let publisher = nodes.named("alpha")?;
    let mut of_address = Needles::new();
    let copy = opened_copy(publisher)?;
    copy.add_address_to(&mut of_address)?;
    let mut of_worker = Needles::new();
    let seed = *opened_copy(worker)?.store.node_secret()?.seed();
    of_worker.add("the worker's own key", &seed);

    ensure!(!of_address.find_in(&publisher.state())?.is_empty(), "the address's secrets are not found where they are");
    ensure!(!of_worker.find_in(&worker.state())?.is_empty(), "the worker's key is not found where it is");
    let found = of_address.find_in(&worker.state())?;
    ensure!(found.is_empty(), "the worker's folder holds {found:?}");

    let in_memory = |needles: &Needles, node: &Node| {
        let pid = node.pid().with_context(|| format!("{} is not running", node.name()))?;
        // The process is stopped, so that its memory does not change during the search.
        node.stop()?;
        let found = needles.find_in_memory(pid);
        node.cont()?;
        found
    };
    ensure!(!in_memory(&of_address, publisher)?.is_empty(), "the address's secrets are not found in a publisher");
    ensure!(!in_memory(&of_worker, worker)?.is_empty(), "the worker's key is not found in its memory");
    let found = in_memory(&of_address, worker)?;
    ensure!(found.is_empty(), "the worker's memory holds {found:?}");
    Ok(())
}

/// An opened copy of a state directory; the daemon may hold the lock of the original.
pub(crate) struct OpenedCopy {
    pub(crate) store: Store,
    _folder: TempDir,
}

/// Copies a node's state directory without Arti's files, and opens the copy.
pub(crate) fn opened_copy(node: &Node) -> Result<OpenedCopy> {
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("state");
    copy_state(&node.state(), &copy).with_context(|| format!("cannot copy the state of {}", node.name()))?;
    Ok(OpenedCopy { store: Store::open(&copy)?, _folder: folder })
}

/// Copies a state directory without Arti's files.
pub(crate) fn copy_state(from: &Path, to: &Path) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if entry.file_name() == "arti" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy_state(&path, &copy)?;
        } else if entry.file_type()?.is_file() {
            // The daemon may just be replacing the file.
            if let Ok(content) = fs::read(&path) {
                let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&copy)?;
                std::io::Write::write_all(&mut file, &content)?;
            }
        }
    }
    Ok(())
}

impl OpenedCopy {
    /// Adds all secrets of this node to the needles.
    pub(crate) fn add_to(&self, needles: &mut Needles, name: &str) -> Result<()> {
        self.add_address_to(needles)?;
        needles.add(&format!("{name}'s key"), self.store.node_secret()?.seed());
        needles.add("the discovery key", self.store.discovery()?.newest().secret.as_bytes());
        let seed = self.store.point_seed()?;
        needles.add(&format!("the seed of {name}'s points"), seed.as_bytes());
        for point in self.store.intro_points(self.store.cluster().first_service())? {
            let secrets = seed.secrets(point.nonce);
            needles.add(&format!("a point's session key of {name}"), &secrets.session);
            needles.add(&format!("a point's encryption key of {name}"), &secrets.encryption);
        }
        Ok(())
    }

    /// Adds the identity key of the first service and the key of the cluster's authority, if the
    /// node has them.
    fn add_address_to(&self, needles: &mut Needles) -> Result<()> {
        if let Some(secret) = self.store.identity_secret(self.store.cluster().first_service())? {
            let (scalar, prefix) = secret.expanded().split_at(32);
            needles.add("the address's scalar", scalar);
            needles.add("the address's hash prefix", prefix);
        }
        if let Some(secret) = self.store.authority_secret()? {
            needles.add("the authority's key", secret.seed());
        }
        Ok(())
    }
}
