//! Deliveries: real commands, and a real listener for the webhook.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::*;
use crate::backoff::Backoff;
use crate::counters::{AlertOutcome, AlertState, Counters};
use crate::tor::fake::FakeNet;

/// Time limit for what is expected, generous because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A way out that is tried out.
struct Outlet {
    sender: Sender,
    settings: watch::Sender<AlertSettings>,
    counters: Counters,
    folder: TempDir,
}

impl Outlet {
    /// Delivers with hardly any pauses between attempts.
    fn new(change: impl FnOnce(&mut AlertSettings, &Path)) -> Self {
        let (outlet, deliveries) = Self::stopped(change);
        tokio::spawn(deliveries.run());
        outlet
    }

    /// One that delivers nothing until it is run.
    fn stopped(change: impl FnOnce(&mut AlertSettings, &Path)) -> (Self, Deliveries) {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = AlertSettings { timeout: Duration::from_secs(20), ..AlertSettings::default() };
        change(&mut settings, folder.path());
        let (settings, watch) = watch::channel(settings);
        let (counters, dir) = (Counters::default(), folder.path().to_owned());
        let inputs =
            SenderInputs { engine: FakeNet::new(1, 3).engine(), dir, settings: watch, counters: counters.clone() };
        let pauses = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        let (sender, deliveries) = Sender::with_retry(inputs, pauses);
        (Self { sender, settings, counters, folder }, deliveries)
    }

    /// With a shell script as the command. `$1` is a folder of its own.
    fn with_script(script: &str) -> Self {
        Self::new(|settings, folder| settings.command = Some(argv(script, folder)))
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !done(self) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never happened: {what}"));
    }

    fn count(&self, outcome: AlertOutcome) -> u64 {
        self.counters.alerts().get(AlertState::Notice, outcome)
    }

    /// The one result of one attempt.
    async fn try_now(&self) -> Result<(), String> {
        let [attempt] = self.sender.try_now(&alert()).await.try_into().unwrap();
        attempt.outcome
    }
}

fn argv(script: &str, folder: &Path) -> Argv {
    let path = folder.join("script");
    fs::write(&path, script).unwrap();
    let list = ["/bin/sh".into(), path.display().to_string(), folder.display().to_string()];
    Argv::try_from(Vec::from(list)).unwrap()
}

fn alert() -> Alert {
    Alert::test(&Origin { cluster: "c".into(), node: "n".into() }, 7)
}

/// Answers each request with the next of `answers`, then hangs; keeps what was asked.
async fn listener(answers: &[&str]) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let (answers, all): (Vec<String>, _) = (answers.iter().map(ToString::to_string).collect(), Arc::clone(&asked));
    tokio::spawn(async move {
        let mut open = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                stream.read_buf(&mut request).await.unwrap();
            }
            all.lock().push(String::from_utf8(request).unwrap());
            stream.write_all(answer.as_bytes()).await.unwrap();
            open.push(stream);
        }
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    });
    (address, asked)
}

fn status(code: u16) -> String {
    format!("HTTP/1.1 {code} Any\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n")
}

#[tokio::test]
async fn a_command_gets_the_alert_in_an_empty_environment() {
    let script = "cat > $1/input; pwd > $1/pwd; env | sed 's/=.*//' | sort > $1/env; echo \"$#\" > $1/arguments\n";
    let outlet = Outlet::with_script(script);
    assert_eq!(outlet.try_now().await, Ok(()));
    assert_eq!(outlet.read("input"), format!("{}\n", alert().to_json()));
    assert_eq!((outlet.read("pwd"), outlet.read("arguments")), ("/\n".into(), "1\n".into()));
    // A shell sets the others itself.
    let environment = outlet.read("env");
    let own: Vec<_> = environment.lines().filter(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name)).collect();
    assert_eq!(own, ["PATH"]);
}

#[tokio::test]
async fn a_command_that_fails_is_reported_with_the_beginning_of_its_errors() {
    let outlet = Outlet::with_script("printf 'no\\nroute\\033 x' >&2; yes x | head -c 1000000 >&2; exit 3\n");
    let why = outlet.try_now().await.unwrap_err();
    assert!(why.starts_with("/bin/sh ended with exit status: 3; its standard error begins with: no route x"), "{why}");
    assert!(why.len() < 600, "{} bytes", why.len());
    let missing = Argv::try_from(vec!["/none/page".to_owned()]).unwrap();
    outlet.settings.send_modify(|settings| settings.command = Some(missing));
    let why = outlet.try_now().await.unwrap_err();
    assert!(why.starts_with("cannot run /none/page: No such file"), "{why}");
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_with_all_that_it_started() {
    let outlet = Outlet::with_script("sleep 1000 & echo $! > $1/child; echo $$ > $1/parent; echo waiting >&2; wait\n");
    outlet.settings.send_modify(|settings| settings.timeout = Duration::from_secs(1));
    let why = outlet.try_now().await.unwrap_err();
    assert_eq!(why, "/bin/sh did not end within 1s and was killed; its standard error begins with: waiting");
    for name in ["child", "parent"] {
        let id = outlet.read(name);
        let runs = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", id.trim())).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        assert!(!id.trim().is_empty());
        outlet.until("the process is gone", |_| !runs()).await;
    }
}

#[tokio::test]
async fn what_a_command_leaves_running_does_not_hold_up_the_next_alert() {
    let outlet = Outlet::with_script("sleep 5 &\n");
    let began = Instant::now();
    assert_eq!(outlet.try_now().await, Ok(()));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_fails_is_tried_again_and_given_up_in_the_end() {
    let outlet = Outlet::with_script("echo x >> $1/runs; [ $(wc -l < $1/runs) = 3 ]\n");
    outlet.sender.send(&alert());
    outlet.until("the third attempt succeeds", |outlet| outlet.count(AlertOutcome::Delivered) == 1).await;
    assert_eq!(outlet.read("runs").lines().count(), 3);
    outlet.sender.send(&alert());
    outlet.until("the second alert is given up", |outlet| outlet.count(AlertOutcome::Failed) == 1).await;
    assert_eq!(outlet.read("runs").lines().count(), 3 + 8);
}

#[tokio::test]
async fn alerts_beyond_the_queue_are_dropped_and_counted() {
    let (outlet, deliveries) =
        Outlet::stopped(|settings, folder| settings.command = Some(argv("cat >> $1/all\n", folder)));
    for _ in 0..70 {
        outlet.sender.send(&alert());
    }
    assert_eq!(outlet.count(AlertOutcome::Dropped), 6);
    tokio::spawn(deliveries.run());
    outlet.until("the others are delivered", |outlet| outlet.count(AlertOutcome::Delivered) == 64).await;
    outlet.settings.send_modify(|settings| settings.command = None);
    outlet.sender.send(&alert());
    assert_eq!(outlet.sender.try_now(&alert()).await, [], "alerts are switched off");
}

#[tokio::test]
async fn a_webhook_gets_the_alert_with_the_secret_header() {
    let (address, asked) = listener(&[&status(204)]).await;
    let outlet = Outlet::new(|settings, folder| {
        settings.webhook = Some(format!("http://{address}/hook?a=b").parse().unwrap());
        settings.webhook_headers = Some("headers".into());
        let file = folder.join("headers");
        fs::write(&file, "Authorization: Bearer s3cret\n").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    });
    assert_eq!(outlet.try_now().await, Ok(()));
    let asked = asked.lock().pop().unwrap().to_ascii_lowercase();
    let (head, body) = asked.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, alert().to_json().to_ascii_lowercase());
    assert!(head.starts_with("post /hook?a=b http/1.1\r\n"), "{head}");
    for line in [
        &format!("host: {address}")[..],
        "authorization: bearer s3cret",
        "content-type: application/json",
        "user-agent: rustbalance/",
    ] {
        assert!(head.contains(line), "{line} is not in {head}");
    }
    fs::remove_file(outlet.folder.path().join("headers")).unwrap();
    let why = outlet.try_now().await.unwrap_err();
    assert!(why.contains("cannot read the webhook's headers in "), "nothing is sent without them: {why}");
}

/// A redirect would lead to another host.
#[tokio::test]
async fn a_webhook_that_does_not_accept_the_alert_has_failed() {
    let flood = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    let (address, asked) = listener(&[&status(500), &status(302), "SSH-2.0-x\r\n\r\n", &flood]).await;
    let url = format!("http://{address}/s3cret");
    let outlet = Outlet::new(|settings, _| settings.webhook = Some(url.parse().unwrap()));
    for why in
        ["answers with status 500", "answers with status 302", "does not answer with HTTP", "does not answer with HTTP"]
    {
        let error = outlet.try_now().await.unwrap_err();
        assert!(error.contains(why) && !error.contains("s3cret"), "{error}");
    }
    assert_eq!(asked.lock().len(), 4);
    outlet.settings.send_modify(|settings| settings.timeout = Duration::from_millis(300));
    assert_eq!(outlet.try_now().await, Err("the webhook has not answered within 300ms".into()));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    outlet.settings.send_modify(|settings| settings.webhook = format!("http://{free}/").parse().ok());
    let error = outlet.try_now().await.unwrap_err();
    assert!(error.starts_with("cannot reach the webhook on this host: "), "{error}");
}

#[tokio::test]
async fn an_onion_service_that_is_down_is_named_to_the_operator() {
    let address = rustbalance_gossip::id::OnionAddress::from_public_key([0x5a; 32]);
    let outlet = Outlet::new(|settings, _| settings.webhook = format!("http://{address}/").parse().ok());
    let error = outlet.try_now().await.unwrap_err();
    assert!(error.starts_with("cannot reach the webhook: ") && error.contains("descriptor"), "{error}");
}
