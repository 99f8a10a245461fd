//! A real Prometheus scrapes a cluster, with the alerts and the dashboard of `scripts/monitoring`.
//! There is no attacker.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::monitor::{check_metrics, connect, get_tcp, get_unix};
use crate::test_cluster::{TestCluster, until};

/// Address of a server of this process: an own loopback address, so that no port is taken.
fn address(number: u8) -> SocketAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    SocketAddr::from(([127, 100 + number, high, low], 9441))
}

fn number(node: &str) -> u8 {
    ["alpha", "beta", "gamma"].iter().zip(1..).find(|(name, _)| **name == node).map_or(0, |(_, number)| number)
}

/// A running Prometheus; killed when dropped.
struct Prometheus {
    address: SocketAddr,
    child: Child,
    _folder: TempDir,
}

impl Prometheus {
    /// Scrapes the nodes four times a second, and evaluates the alerts.
    fn start() -> Self {
        let (folder, listen) = (tempfile::tempdir().unwrap(), address(0));
        let targets = [1, 2, 3].map(|node| format!("\"{}\"", address(node))).join(", ");
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/monitoring/rules.yml");
        let config = format!(
            "global: {{scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 500ms}}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs: [{{job_name: rustbalance, static_configs: [{{targets: [{targets}]}}]}}]\n",
            rules.display()
        );
        let path = folder.path().join("prometheus.yml");
        fs::write(&path, config).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={listen}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus is missing: `./scripts/install.sh tests` installs it");
        Self { address: listen, child, _folder: folder }
    }

    /// Asks its API; returns the data of the answer.
    fn api(&self, path: &str) -> Result<Value> {
        ensure!(connect(self.address).is_ok(), "it does not listen yet");
        let (status, body) = get_tcp(self.address, path);
        let answer: Value = serde_json::from_str(&body).with_context(|| format!("{status}: {body}"))?;
        ensure!(answer["status"] == "success", "{path}: {body}");
        Ok(answer["data"].clone())
    }

    /// The series that a query gives.
    fn query(&self, query: &str) -> Result<Vec<Value>> {
        let data = self.api(&format!("/api/v1/query?query={}", escaped(query)))?;
        data["result"].as_array().cloned().context("the answer is not a vector")
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A query as a part of a URL.
fn escaped(query: &str) -> String {
    query.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// The titles and queries of the dashboard, with its variables filled in.
fn dashboard() -> Vec<(String, String)> {
    let text = include_str!("../../scripts/monitoring/dashboard.json");
    let dashboard: Value = serde_json::from_str(text).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$instance", ".*").replace("$__rate_interval", "1m");
            let query = query.replace("$__range", "1m").replace("$__interval", "1s");
            assert!(!query.contains("$_"), "{query}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), query));
        }
    }
    assert!(!queries.is_empty());
    queries
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prometheus_runs_every_query_of_the_dashboard_and_every_alert_over_a_cluster() {
    let listen = |name: &str| format!("[metrics]\nlisten = \"{}\"\n", address(number(name)));
    let cluster = TestCluster::start_each(listen).await;
    let prometheus = Prometheus::start();
    until("prometheus has scraped every node", async || {
        let scraped = prometheus.query("count(rustbalance_ready)")?;
        ensure!(scraped.first().is_some_and(|count| count["value"][1] == "3"), "{scraped:?}");
        Ok(())
    })
    .await;
    for _ in 0..3 {
        cluster.visit().await.unwrap();
    }
    for daemon in &cluster.daemons {
        let (status, text) = get_unix(&daemon.dir.join("metrics.sock"), "/metrics");
        assert_eq!(status, 200, "{text}");
        check_metrics(&text);
        assert_eq!(get_tcp(address(number(&daemon.name)), "/health").0, 200);
    }
    until("the clients are seen", async || {
        let met = prometheus.query("sum(increase(tor_hs_rdv_num_total[1m]))")?;
        let met = met.first().and_then(|met| met["value"][1].as_str()?.parse::<f64>().ok());
        ensure!(met.is_some_and(|met| met > 0.0), "{met:?}");
        Ok(())
    })
    .await;
    for (title, query) in dashboard() {
        let found = prometheus.query(&query).unwrap();
        // A cluster that is well may have refused nothing.
        assert!(!found.is_empty() || title.starts_with("Refused"), "{title} shows nothing: {query}");
    }
    until("every alert was evaluated", async || {
        let groups = prometheus.api("/api/v1/rules")?;
        let rules = groups["groups"][0]["rules"].as_array().cloned().context("there are no rules")?;
        ensure!(!rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok"), "{rules:?}");
        Ok(())
    })
    .await;
    let ready = prometheus.query("rustbalance_ready == 1 and on (instance) up{job=\"rustbalance\"} == 1").unwrap();
    assert_eq!(ready.len(), 3);
}
