//! `rustbalance join`: makes this machine a node of an existing address, with a token that `invite`
//! has printed on one of its nodes.
//!
//! Until the cluster has admitted this node, the state directory is incomplete. A join that fails
//! before it has sent its request removes it again. From then on the cluster may know the node's
//! key, whatever it answers, so the files stay, and the same command continues with them.

use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use rustbalance_gossip::coordinator::LISTEN_BEFORE_ADMITTING;
use rustbalance_gossip::id::ClusterId;
use tokio::time::sleep;
use zeroize::Zeroizing;

use super::output::{print_line, print_note};
use super::progress::{Progress, bootstrap};
use super::targets::{self, AssignedTargets, TargetOption};
use super::wireguard::{self, ListenOption};
use super::{Context, Usage, run, runtime};
use crate::bounded;
use crate::clock::unix_now;
use crate::config::{self, Config, Initial, JOIN_PORT};
use crate::display::plural;
use crate::join::{JoinError, JoinRefusal, Joined, Token, persist_joined, redeem};
use crate::keys::NodeSecret;
use crate::node::preflight;
use crate::proxy::{PortTarget, Target};
use crate::store::{Draft, SetupCommand, Store};
use crate::tor::arti::{ArtiConfig, ArtiEngine};
use crate::tor::{Engine, TorError};
use crate::typed;

/// Time limit for one attempt to connect to the cluster's address.
const DIAL_LIMIT: Duration = Duration::from_secs(90);
/// Pauses between attempts to reach the cluster.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(10), Duration::from_secs(20)];
/// Pause before the next attempt if a publisher does not admit nodes yet.
const NOT_YET_PAUSE: Duration = Duration::from_secs(5);
/// Most such pauses. Together they are a little longer than the time for which a publisher listens
/// after its start before it admits workers.
const NOT_YET_PAUSES: u64 = LISTEN_BEFORE_ADMITTING.as_secs() / NOT_YET_PAUSE.as_secs() + 2;
/// Largest token file, in bytes.
const MAX_TOKEN_FILE: usize = 4096;

#[derive(Args)]
pub(super) struct Options {
    /// The address to serve
    #[arg(value_name = "MASTER.ONION", value_parser = typed::address::<ClusterId>)]
    cluster: ClusterId,
    /// Read the token from this file; "-" is standard input. Without this option you are asked for
    /// it
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Where this node sends clients: a port of this host (127.0.0.1:8080) or a Unix socket
    /// (unix:/run/app.sock). If the address has several ports, give one for each, as in
    /// 80=127.0.0.1:8080
    #[arg(long, value_name = "[PORT=]TARGET", default_value = "127.0.0.1:8080")]
    target: Vec<TargetOption>,
    /// Configure Tor with this configuration file for Arti (TOML), which is copied
    #[arg(long, value_name = "FILE")]
    arti_config: Option<PathBuf>,
    /// Also reach other nodes that have it over WireGuard (UDP), which is faster: they learn this
    /// node's address. ADDRESS, with or without a port, is where to listen; or give an IPv4 and an
    /// IPv6 address with a comma between them [default: the addresses of the default routes, port
    /// 7440]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    wireguard: Option<ListenOption>,
    /// Run the node afterwards, as `rustbalance run` does
    #[arg(long)]
    run: bool,
}

pub(super) fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    match options.run {
        true => context.log_as_daemon()?,
        false => context.log_quietly()?,
    }
    // The token and the received secrets are dropped at the end of the join. Otherwise the daemon
    // would hold them for as long as it runs.
    runtime::run(join(context, &options))?;
    match options.run {
        true => run::serve(context),
        false => Ok(()),
    }
}

/// Joins, writes the state directory, and releases its lock.
async fn join(context: &Context, options: &Options) -> anyhow::Result<()> {
    targets::check(&options.target, options.cluster.first_service().address())?;
    let arti = options.arti_config.as_deref().map(config::read_arti).transpose()?;
    // Before the token is used, because a problem that stops `run` must be found before that.
    preflight(&context.dir, arti.as_deref().unwrap_or_default())?;
    let wireguard = wireguard::configure(options.wireguard.as_ref())?;
    let token = read_token(options.token_file.as_deref())?;
    if !token.is_for(options.cluster) {
        return Err(JoinError::ForeignToken(options.cluster).into());
    }

    let mut draft = Store::create(&context.dir)?;
    // An earlier attempt has left its files only if the cluster may know its key.
    let mut known = draft.unfinished_command() == Some((SetupCommand::Join, options.cluster));
    draft.begin(SetupCommand::Join, options.cluster)?;
    let config = arti.clone().unwrap_or_default();
    let joined = match Box::pin(redeem_over_tor(&draft, &token, options.cluster, config, &mut known)).await {
        Ok(joined) => joined,
        Err(error) => {
            clean_up(draft, known);
            return Err(error);
        }
    };
    let ask: Option<&mut dyn FnMut(u16) -> io::Result<Option<Target>>> =
        if targets::can_ask() { Some(&mut targets::ask) } else { None };
    let ports = joined.services.first().map_or(&[][..], |service| service.ports.as_slice());
    let AssignedTargets { served, unserved } = match targets::assign(&options.target, ports, ask) {
        Ok(assigned) => assigned,
        Err(error) => {
            clean_up(draft, true);
            return Err(error);
        }
    };
    // Before the node is complete, so that the same command can be run again if this fails.
    let initial = Initial { ports: served, unserved, arti, wireguard };
    Config::write_initial(&context.dir, &initial)?;
    drop(persist_joined(draft, &joined)?);
    report(context, options, &joined, &initial)
}

/// Cleans up after a failed join. The files on disk stay for another attempt if the cluster may
/// know the node's key (`known`). An error here is only printed, so that it does not hide why the
/// join failed.
fn clean_up(draft: Draft, known: bool) {
    let dir = draft.dir().to_owned();
    if known {
        print_note(format_args!(
            "the files of this join stay in {}, because the cluster may know this node's key by now: run the same command \
             again to continue, with this token or another",
            dir.display()
        ));
    } else if let Err(error) = draft.discard() {
        print_note(format_args!("the files of this join in {} could not be removed: {error}", dir.display()));
    }
}

/// Redeems the token over Tor. When this returns, Arti no longer uses its state directory and
/// cache. Sets `known` if the cluster may know the node's key.
async fn redeem_over_tor(
    draft: &Draft,
    token: &Token,
    cluster: ClusterId,
    arti: String,
    known: &mut bool,
) -> anyhow::Result<Joined> {
    let node = draft.node_secret(|| NodeSecret::generate(&mut rand::rng()))?;
    let engine = ArtiEngine::start(ArtiConfig {
        toml: arti,
        state_dir: draft.arti_state_dir(),
        cache_dir: draft.arti_cache_dir(),
    })?;
    let mut progress = Progress::new();
    let outcome = async {
        bootstrap(&engine, &mut progress).await?;
        connect_and_redeem(&engine, token, &node, cluster, known, &mut progress).await
    }
    .await;
    drop(progress);
    engine.shutdown().await;
    outcome
}

/// Connects to the cluster and redeems the token, repeatedly if that may help.
async fn connect_and_redeem(
    engine: &Arc<ArtiEngine>,
    token: &Token,
    node: &NodeSecret,
    cluster: ClusterId,
    known: &mut bool,
    progress: &mut Progress,
) -> anyhow::Result<Joined> {
    let mut pauses = Pauses::default();
    let mut telling: Option<anyhow::Error> = None;
    loop {
        progress.step(&format!("looking for {cluster}"), None);
        let (error, again) = match engine.dial(cluster.first_service().address(), JOIN_PORT, DIAL_LIMIT).await {
            Ok(stream) => {
                progress.step("the cluster answers: redeeming the token", None);
                match redeem(stream, token, node, cluster, unix_now).await {
                    Ok(joined) => return Ok(joined),
                    Err(error) => {
                        *known |= error.may_have_joined();
                        let again = pauses.after(&error);
                        (error.into(), again)
                    }
                }
            }
            Err(error) if error.is_transient() => (no_node_accepts_joins(error, cluster), pauses.next()),
            Err(error) => (error.into(), None),
        };
        let shown = format!("{error:#}");
        tracing::info!(name: "join_attempt_failed", error = shown, pause = ?again, "an attempt to join failed");
        let error = more_telling(telling, error);
        let Some(pause) = again else { return Err(error) };
        telling = Some(error);
        progress.step(&format!("trying again in {} s: {shown}", pause.as_secs()), None);
        sleep(pause).await;
    }
}

fn no_node_accepts_joins(error: TorError, cluster: ClusterId) -> anyhow::Error {
    anyhow::Error::from(error).context(format!(
        "no node of {cluster} accepts joins: nodes listen for joins only while there are invitations, and for a day \
         after the last one has expired, so the token may be too old, or no node may be running"
    ))
}

/// Of the errors of two attempts, the one that says more about the cluster; the later one if they
/// are equal in that. A later attempt that failed within Tor must not hide the answer that a
/// publisher gave to the earlier one.
fn more_telling(earlier: Option<anyhow::Error>, later: anyhow::Error) -> anyhow::Error {
    let weight = |error: &anyhow::Error| match error.downcast_ref() {
        // The attempt may have made this node a member.
        Some(JoinError::Unanswered(_)) => 2,
        Some(JoinError::Refused(_)) => 1,
        _ => 0,
    };
    match earlier {
        Some(earlier) if weight(&earlier) > weight(&later) => earlier,
        _ => later,
    }
}

/// The pauses before further attempts.
struct Pauses {
    left: std::array::IntoIter<Duration, 4>,
    not_yet: u64,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { left: PAUSES.into_iter(), not_yet: NOT_YET_PAUSES }
    }
}

impl Pauses {
    fn next(&mut self) -> Option<Duration> {
        self.left.next()
    }

    /// The pause after an answer; `None` if another attempt cannot succeed soon, or if there were
    /// enough attempts.
    fn after(&mut self, error: &JoinError) -> Option<Duration> {
        match error {
            JoinError::Refused(JoinRefusal::NotYet) => {
                self.not_yet = self.not_yet.checked_sub(1)?;
                Some(NOT_YET_PAUSE)
            }
            JoinError::Refused(refusal) if !refusal.is_transient() => None,
            JoinError::Refused(_) | JoinError::Connection(_) | JoinError::Timeout(_) | JoinError::Unanswered(_) => {
                self.next()
            }
            _ => None,
        }
    }
}

/// Reads the token from a file, from standard input, or typed without an echo. It is never on the
/// command line, which every user of the machine can read.
fn read_token(file: Option<&Path>) -> anyhow::Result<Token> {
    let text = match file {
        Some(path) if path == Path::new("-") => read_bounded(io::stdin(), "standard input")?,
        Some(path) => {
            let shown = path.display().to_string();
            let file = std::fs::File::open(path).with_context(|| format!("cannot open the token file {shown}"))?;
            read_bounded(file, &shown)?
        }
        None if io::stdin().is_terminal() => {
            Zeroizing::new(rpassword::prompt_password("Token (not shown): ").context("cannot read the token")?)
        }
        None => read_bounded(io::stdin(), "standard input")?,
    };
    if text.trim().is_empty() {
        return Err(
            Usage("there is no token: give it with --token-file FILE, on standard input, or typed".into()).into()
        );
    }
    Ok(Token::parse(&text)?)
}

fn read_bounded(from: impl Read, name: &str) -> anyhow::Result<Zeroizing<String>> {
    let Some(bytes) = bounded::read(from, MAX_TOKEN_FILE).with_context(|| format!("cannot read {name}"))? else {
        bail!("{name} holds more than a token: give the one line that `rustbalance invite` printed");
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| anyhow::anyhow!("{name} is not text, and so not a token"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn report(context: &Context, options: &Options, joined: &Joined, initial: &Initial) -> anyhow::Result<()> {
    let others = plural(joined.members.len(), "other member");
    print_line(format_args!("This machine is a {} of {} now, with {others}.", joined.member.role(), options.cluster))?;
    for PortTarget { port, target, .. } in &initial.ports {
        print_line(format_args!("Port {port} goes to {target} (in {}).", config::FILE_NAME))?;
    }
    for port in &initial.unserved {
        print_note(format_args!(
            "port {port} of the address has no target here: this node refuses clients of that port until you add a \
             target in {}",
            context.dir.join(config::FILE_NAME).display()
        ));
    }
    if !options.run {
        print_line(format_args!("\nNext: {}", context.suggest_start()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

    use super::*;
    use crate::keys::{IdentitySecret, TokenSecret};
    use crate::store::StoreError;

    fn token_text() -> Zeroizing<String> {
        let cluster = ClusterId::from_public_key([7; 32]);
        Token::new(TokenSecret::generate(&mut rand::rng()), cluster).text()
    }

    #[test]
    fn a_token_is_read_from_a_file_with_a_line_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{}\n", *token_text())).unwrap();
        assert!(read_token(Some(file.path())).is_ok());
    }

    #[test]
    fn an_invalid_token_is_refused_without_showing_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut text = token_text();
        text.truncate(40);
        std::fs::write(file.path(), text.as_bytes()).unwrap();
        let error = format!("{:#}", read_token(Some(file.path())).err().unwrap());
        assert!(!error.contains(&text[4..12]), "{error}");
        std::fs::write(file.path(), [b'a'; 5000]).unwrap();
        assert!(read_token(Some(file.path())).err().unwrap().to_string().contains("more than a token"));
        std::fs::write(file.path(), "\n").unwrap();
        assert!(read_token(Some(file.path())).err().unwrap().is::<Usage>());
    }

    #[test]
    fn a_node_key_that_the_cluster_may_know_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("node");
        let master = IdentitySecret::generate(&mut rand::rng());
        let begin = || {
            let mut draft = Store::create(&dir).unwrap();
            draft.begin(SetupCommand::Join, ClusterId::named_by(master.service_id())).unwrap();
            let key = draft.node_secret(|| NodeSecret::generate(&mut rand::rng())).unwrap();
            (draft, key.node_id())
        };
        let (draft, first) = begin();
        clean_up(draft, true);
        let (draft, again) = begin();
        assert_eq!(again, first);
        draft.discard().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        clean_up(begin().0, false);
        assert!(!dir.exists());
        assert!(JoinError::Unanswered(Box::new(JoinError::Timeout(90))).may_have_joined());
        assert!(JoinError::Refused(JoinRefusal::UnknownToken).may_have_joined());
        assert!(!JoinError::Timeout(90).may_have_joined());
    }

    #[test]
    fn temporary_refusals_are_tried_again_and_lasting_ones_are_reported_at_once() {
        // A new token is unknown to a publisher that has not received its record yet.
        let after = |refusal| Pauses::default().after(&JoinError::Refused(refusal));
        for passing in [JoinRefusal::UnknownToken, JoinRefusal::NoPublisher, JoinRefusal::Busy, JoinRefusal::NotYet] {
            assert!(after(passing.clone()).is_some(), "{passing}");
        }
        for lasting in [
            JoinRefusal::Revoked,
            JoinRefusal::Evicted,
            JoinRefusal::UsedUp { uses: 1 },
            JoinRefusal::Expired { ago: 1 },
        ] {
            assert!(after(lasting.clone()).is_none(), "{lasting}");
        }
    }

    #[test]
    fn a_publisher_that_has_just_started_is_asked_until_it_admits_workers() {
        let mut pauses = Pauses::default();
        let not_yet = || JoinError::Refused(JoinRefusal::NotYet);
        let waited: Duration = std::iter::from_fn(|| pauses.after(&not_yet())).sum();
        assert!(waited > LISTEN_BEFORE_ADMITTING && waited < LISTEN_BEFORE_ADMITTING * 2, "{waited:?}");
        assert!(pauses.after(&JoinError::Refused(JoinRefusal::Busy)).is_some(), "other refusals have their own pauses");
    }

    /// The identity key that an interrupted join has received stays, and the error of the join is
    /// still reported.
    #[test]
    fn a_failed_clean_up_does_not_hide_the_error_of_the_join() {
        let folder = tempfile::tempdir().unwrap();
        let mut draft = Store::create(&folder.path().join("node")).unwrap();
        let cluster = ClusterId::from_public_key([7; 32]);
        draft.begin(SetupCommand::Join, cluster).unwrap();
        let dir = draft.dir().to_owned();
        let label = cluster.to_string().trim_end_matches(".onion").to_owned();
        let key = dir.join("services").join(label).join("identity.key");
        std::fs::DirBuilder::new().mode(0o700).recursive(true).create(key.parent().unwrap()).unwrap();
        std::fs::write(&key, "x").unwrap();
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
        clean_up(draft, false);
        assert!(key.exists());
        let draft = Store::create(&dir).unwrap();
        assert!(matches!(draft.discard(), Err(StoreError::KeyInTheWay { .. })));
    }

    #[test]
    fn a_lost_answer_is_still_reported_after_later_attempts() {
        let lost = || Some(JoinError::Unanswered(Box::new(JoinError::Timeout(90))).into());
        for later in [anyhow::anyhow!("no node accepts joins"), JoinError::Refused(JoinRefusal::UnknownToken).into()] {
            let shown = more_telling(lost(), later);
            assert!(shown.to_string().contains("may have taken this node in"), "{shown:#}");
        }
        let shown = more_telling(None, JoinError::Refused(JoinRefusal::UnknownToken).into());
        assert!(shown.to_string().contains("does not know this token"), "{shown:#}");
    }

    #[test]
    fn an_answer_of_a_publisher_is_shown_though_a_later_attempt_found_no_way_to_the_cluster() {
        let refused = Some(JoinError::Refused(JoinRefusal::UnknownToken).into());
        let shown = more_telling(refused, anyhow::anyhow!("no node accepts joins"));
        assert!(shown.to_string().contains("does not know this token"), "{shown:#}");
    }
}
