//! Alerts of a whole daemon, without a hostile peer: by a command, by a webhook on this host, and
//! by one that is an onion service.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, ensure};
use rustbalance::clock::unix_now;
use rustbalance::control::{Request, Response};
use rustbalance::join::found;
use rustbalance::store::Store;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::test_cluster::{TestCluster, until};

type Requests = Arc<Mutex<Vec<String>>>;

/// A web server that accepts every request that ends in `}`, and keeps it.
async fn web_server() -> (SocketAddr, Requests) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, all) = (listener.local_addr().unwrap(), Requests::default());
    let kept = Arc::clone(&all);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"}") {
                    // The check of a target asks nothing.
                    if stream.read_buf(&mut request).await? == 0 {
                        return Ok(());
                    }
                }
                kept.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await
            });
        }
    });
    (address, all)
}

/// The alerts in these requests.
fn posted(requests: &Requests) -> Vec<Value> {
    let body = |request: &String| serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
    requests.lock().unwrap().iter().map(body).collect()
}

/// The alerts that the command has written, one on each line.
fn piped(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// A cluster of one node, and a folder for what belongs to it.
async fn alone() -> TestCluster {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("alpha");
    let store = found(Store::create(&dir).unwrap(), None, unix_now(), &mut rand::rng()).unwrap();
    let (cluster, id) = (store.cluster(), store.node_id());
    drop(store);
    let mut test_cluster = TestCluster::without_nodes(cluster, folder);
    test_cluster.add("alpha", id, dir).await;
    test_cluster.healthy().await;
    test_cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_fails_and_recovers_is_reported_by_command_and_webhook() {
    let cluster = alone().await;
    let alpha = cluster.named("alpha");
    let path = alpha.dir().join("rustbalance.toml");
    let (file, script) = (alpha.dir().join("alerts"), alpha.dir().join("alert.sh"));
    std::fs::write(&script, "cat >> \"$1\"\n").unwrap();
    let (hook, requests) = web_server().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target_address = target.local_addr().unwrap();
    let first = std::fs::read_to_string(&path).unwrap();
    let configure = async |webhook: &str| {
        let text = format!(
            "{first}[[port]]\nvirtual = 81\ntarget = \"{target_address}\"\n[[port]]\nvirtual = 82\ntarget = \"{hook}\"\n\
             [alerts]\ncommand = [\"/bin/sh\", {script:?}, {file:?}]\nwebhook = \"{webhook}\"\nafter = \"500ms\"\n\
             events = [\"target_down\"]\n"
        );
        std::fs::write(&path, text).unwrap();
        let answer = alpha.call(Request::Reload {}).await.unwrap();
        assert!(matches!(answer, Response::Reloaded { .. }), "{answer:?}");
    };

    let refused = alpha.call(Request::TestAlert {}).await.unwrap();
    let Response::Refused { message } = refused else { panic!("{refused:?}") };
    assert!(message.starts_with("no alerts are configured: "), "{message}");

    // The onion service is that of the cluster: its port 82 is the web server.
    configure(&format!("http://{}:82/hook", cluster.address())).await;
    let tested = until("the onion service takes an alert", async || match alpha.call(Request::TestAlert {}).await? {
        Response::Done { message } => Ok(message),
        other => anyhow::bail!("{other:?}"),
    })
    .await;
    assert!(tested.contains("command: delivered") && tested.contains("webhook: delivered"), "{tested}");
    let asked = requests.lock().unwrap().last().cloned().unwrap();
    assert!(asked.to_lowercase().contains(&format!("host: {}:82\r\n", cluster.address())), "{asked}");
    assert_eq!(piped(&file).last().unwrap()["event"], "test");

    configure(&format!("http://{hook}/hook")).await;
    std::fs::remove_file(&file).unwrap();
    requests.lock().unwrap().clear();
    drop(target);
    let both = async |count: usize| {
        until(&format!("{count} alerts arrive both ways"), async || {
            let (by_command, by_webhook) = (piped(&file), posted(&requests));
            ensure!(by_command.len() == count && by_command == by_webhook, "{by_command:?} {by_webhook:?}");
            by_command.last().cloned().context("none")
        })
        .await
    };
    let down = both(1).await;
    assert_eq!(
        (&down["event"], &down["state"], &down["subject"]),
        (&"target_down".into(), &"firing".into(), &"81".into())
    );
    assert!(down["text"].as_str().unwrap().contains("does not answer"), "{down}");
    assert_eq!(down["cluster"], cluster.cluster.to_string());
    let metrics = alpha.status().await.unwrap();
    assert!(metrics.problems.iter().any(|problem| problem.subject == "81"), "{metrics:?}");

    let _target = TcpListener::bind(target_address).await.unwrap();
    let back = both(2).await;
    assert_eq!(back["state"], "resolved");
    for same in ["event", "id", "dedup", "since", "subject", "node"] {
        assert_eq!(back[same], down[same], "{same}");
    }
    assert!(back["text"].as_str().unwrap().starts_with("over after "), "{back}");
}
