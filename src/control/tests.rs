//! Client and server over a real socket.

use std::sync::Arc;

use async_trait::async_trait;
use strum::IntoEnumIterator;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Answers each request with its own text.
struct Echo;

#[async_trait]
impl Handler for Echo {
    async fn handle(&self, request: Request) -> Response {
        match request {
            Request::Drain {} => std::future::pending().await,
            other => Response::done(format!("{other:?}")),
        }
    }
}

fn start(dir: &Path) -> (CancellationToken, JoinHandle<()>) {
    let shutdown = CancellationToken::new();
    (shutdown.clone(), tokio::spawn(serve(bind(dir).unwrap(), Arc::new(Echo), shutdown)))
}

async fn ask_raw(dir: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(dir.join(SOCKET_NAME)).await.unwrap();
    // The daemon may answer and close before it has read all.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn a_request_is_answered_and_the_socket_is_removed_with_the_daemon() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (shutdown, served) = start(dir.path());
    let mode = std::fs::metadata(dir.path().join(SOCKET_NAME)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let invite = Request::Invite { role: Role::Worker, expires_seconds: 60, uses: 2 };
    let answer = call(dir.path(), &invite, SECOND * 10).await.unwrap();
    assert_eq!(answer, Response::done("Invite { role: Worker, expires_seconds: 60, uses: 2 }"));
    shutdown.cancel();
    served.await.unwrap();
    assert!(matches!(call(dir.path(), &Request::Status {}, SECOND).await, Err(ControlError::NotRunning(_))));
    assert!(!dir.path().join(SOCKET_NAME).exists());
}

#[tokio::test]
async fn an_invalid_request_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (_shutdown, _served) = start(dir.path());
    for garbage in [
        &b"\n"[..],
        b"{}\n",
        b"{\"request\":\"reboot\"}\n",
        b"{\"request\":\"leave\",\"unless\":\"alone\"}\n",
        b"\xff\xfe\n",
        b"{\"request\":\"evict\",\"node\":\"a/b\"}\n",
    ] {
        let answer = ask_raw(dir.path(), garbage).await;
        assert!(answer.starts_with("{\"response\":\"refused\""), "{answer}");
    }
    let endless = ask_raw(dir.path(), &[b'x'; 4097]).await;
    assert!(endless.contains("at most 4096 bytes"), "{endless}");
    assert!(ask_raw(dir.path(), b"no end").await.contains("one line"));
    assert!(matches!(call(dir.path(), &Request::Resume {}, SECOND * 10).await, Ok(Response::Done { .. })));
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_is_a_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let (_shutdown, _served) = start(dir.path());
    let limit = Duration::from_millis(50);
    assert!(matches!(call(dir.path(), &Request::Drain {}, limit).await, Err(ControlError::Timeout(_))));
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    drop(bind(dir.path()).unwrap());
    assert!(dir.path().join(SOCKET_NAME).exists(), "a killed daemon leaves its socket");
    assert!(matches!(call(dir.path(), &Request::Status {}, SECOND).await, Err(ControlError::NotRunning(_))));
    let _live = bind(dir.path()).unwrap();
    assert!(matches!(bind(dir.path()), Err(ControlError::AlreadyRunning(_))));
}

#[tokio::test]
async fn a_folder_in_the_place_of_the_socket_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join(SOCKET_NAME);
    std::fs::create_dir(&link).unwrap();
    assert!(bind(dir.path()).is_err());
    assert!(link.is_dir());
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_is_reported_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(100));
    let error = bind(&deep).unwrap_err().to_string();
    assert!(error.contains("at most 107: choose a shorter state directory with --dir"), "{error}");
    assert!(matches!(call(&deep, &Request::Status {}, SECOND).await, Err(ControlError::PathTooLong(_))));
}

#[test]
fn a_token_is_not_in_debug() {
    let token = TokenText("rb1-secret".into());
    let invited = Response::Invited { master: "m".into(), token, id: "00".into(), expires: 1, note: None };
    assert!(!format!("{invited:?}").contains("secret"));
    assert!(serde_json::to_string(&invited).unwrap().contains("rb1-secret"));
}

#[test]
fn a_node_is_named_by_the_beginning_of_its_address() {
    let nodes = [NodeId::from_public_key([1; 32]), NodeId::from_public_key([2; 32])];
    let whole: NodePrefix = nodes[0].to_string().to_uppercase().parse().unwrap();
    let unnamed = nodes.map(|node| (node, None));
    assert_eq!(whole.choose(unnamed.clone()), Ok(nodes[0]));
    let short: NodePrefix = nodes[1].short().parse().unwrap();
    assert_eq!(short.choose(unnamed.clone()), Ok(nodes[1]));
    assert!(short.choose([]).unwrap_err().contains("no member"));
    assert_eq!(whole.choose([]), Ok(nodes[0]), "a member that was never heard");
    assert!(short.choose([unnamed[1].clone(), unnamed[1].clone()]).unwrap_err().contains("several"));
    for wrong in ["", "a b c d", "../../etc", "\u{1b}[31m", &"-".repeat(33)] {
        assert!(wrong.parse::<NodePrefix>().is_err(), "{wrong:?}");
    }
}

/// A problem whose entry in the runbook is missing leaves an operator alone with it.
#[test]
fn the_runbook_has_an_entry_and_a_test_for_each_problem() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let runbook = std::fs::read_to_string(root.join("docs/OPERATIONS.md")).unwrap();
    let sources: String = ["src", "tests"].iter().flat_map(|folder| rust_files(&root.join(folder))).collect();
    for kind in ProblemKind::iter() {
        let name = serde_json::to_value(kind).unwrap();
        let name = name.as_str().unwrap();
        assert!(runbook.contains(&format!("### `{name}`\n")), "{name} has no entry");
        let row = runbook.lines().find_map(|line| line.strip_prefix(&format!("| `{name}` | `")));
        let test = row.unwrap_or_else(|| panic!("{name} has no test")).trim_end_matches("` |");
        assert!(sources.contains(&format!("fn {test}(")), "{name}: there is no test {test}");
    }
}

/// The contents of all Rust files below a folder.
fn rust_files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(std::fs::read_to_string(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_node_is_named_by_its_name_unless_that_fits_several() {
    let nodes = [1, 2, 3].map(|key| NodeId::from_public_key([key; 32]));
    let choose = |text: &str, names: [Option<&str>; 3]| {
        let named = nodes.into_iter().zip(names.map(|name| name.map(str::to_owned)));
        text.parse::<NodePrefix>().unwrap().choose(named)
    };
    let names = [Some("web-1"), Some("web-2.example"), None];
    assert_eq!(choose("WEB-1", names), Ok(nodes[0]));
    assert_eq!(choose("web-2.example", names), Ok(nodes[1]));
    assert!(choose("web", names).unwrap_err().contains("no member"));
    let two = choose("web-1", [Some("web-1"), Some("Web-1"), None]).unwrap_err();
    assert!(nodes[..2].iter().all(|node| two.contains(&node.to_string()[..16])) && two.contains("(Web-1)"), "{two}");
    // A hostile member takes the beginning of another's address for its name.
    let start = &nodes[0].to_string()[..8];
    let hostile = [None, None, Some(start)];
    assert!(choose(start, hostile).unwrap_err().contains("several"));
    assert_eq!(choose(&nodes[0].to_string(), hostile), Ok(nodes[0]));
    assert_eq!(choose(&nodes[0].to_string()[..40], hostile), Ok(nodes[0]), "longer than a name may be");
}
