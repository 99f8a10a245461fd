//! `rustbalance vanity`: searches addresses that begin with given characters, on all cores, and
//! writes each key to a folder that C tor and `init --import-key` read. `vanity --from` searches
//! with a public key alone; `vanity apply` then makes the secret key at home.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use rustbalance_gossip::id::ServiceId;
use rustbalance_vanity::{Path, Prefix, Prefixes};
use tokio::signal::unix::SignalKind;
use tokio::time::sleep_until;

use super::output::{print_line, print_note};
use super::vanity_view::{Odds, View};
use super::{Context, Usage, signals};
use crate::keys::IdentitySecret;
use crate::shell;
use crate::store::{export_distance, export_key, import_identity_key, make_export_dir};
use crate::typed;
use crate::vanity::{Distance, DistanceError, Engine, Found, Origin, Plan, Session, measure};

/// By how much a search lowers its priority, unless the operator says otherwise: all programs that
/// serve come first.
const NICE: i32 = 10;
/// Interval between two looks at the progress, and between attempts to write a key.
const TICK: Duration = Duration::from_secs(1);
/// Largest offset file, in bytes.
const MAX_OFFSET_FILE: u64 = 1024;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, disable_help_subcommand = true)]
pub(super) struct Options {
    #[command(flatten)]
    search: SearchOptions,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct SearchOptions {
    /// The beginning of the address: any of a to z and 2 to 7. Several are searched as quickly as
    /// one. For the beginning "apply", give `-- apply`
    #[arg(value_name = "PREFIX", required = true)]
    prefixes: Vec<Prefix>,
    /// Directory in which each key gets a folder of its own
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Stop after this number of keys
    #[arg(long, value_name = "N", default_value = "1")]
    count: NonZeroUsize,
    /// Stop after this time, as in 90s or 12h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    deadline: Option<Duration>,
    /// Number of threads [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// By how much the search lowers its priority, from 0 to 19
    #[arg(long, value_name = "N", default_value_t = NICE, value_parser = clap::value_parser!(i32).range(0..=19))]
    nice: i32,
    /// Implementation: avx512ifma, avx2 or portable [default: the fastest that the processor can
    /// run]
    #[arg(long, value_name = "NAME")]
    path: Option<Path>,
    /// Search on a graphics processor, or on the one whose name contains NAME. Without one, the
    /// processor searches
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, default_missing_value = "", conflicts_with_all = ["path", "threads"])]
    gpu: Option<String>,
    /// Search for the owner of this address, whose secret key stays at home. Writes offsets for
    /// `vanity apply`, which are worthless without that key
    #[arg(long, value_name = "ADDRESS", value_parser = typed::address::<ServiceId>)]
    from: Option<ServiceId>,
    /// Print JSON, one object per line, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Make the secret keys of offsets that `vanity --from` has found
    Apply(ApplyOptions),
}

#[derive(Args)]
struct ApplyOptions {
    /// The files that `vanity --from` has written
    #[arg(value_name = "OFFSET", required = true)]
    offsets: Vec<PathBuf>,
    /// The secret key whose address was given to `--from`: a file or folder, as for `init
    /// --import-key`
    #[arg(long, value_name = "PATH")]
    key: PathBuf,
    /// Directory in which each key gets a folder of its own
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    match options.command {
        Some(Command::Apply(options)) => apply(&options),
        None => search_and_export(options.search).await,
    }
}

/// Searches one key, for `init`.
pub(super) async fn search_key(prefixes: &[Prefix]) -> anyhow::Result<IdentitySecret> {
    let plan = plan(prefixes, processor(None, None)?, NICE, Origin::Fresh);
    let mut result = None;
    search(&plan, Limits { count: 1, deadline: None }, &mut View::new(false), |found, _| {
        if let Found::Key(key) = found {
            result = Some(key.duplicate());
        }
        Ok(())
    })
    .await?;
    result.context("the search has ended without a key")
}

async fn search_and_export(options: SearchOptions) -> anyhow::Result<()> {
    let origin = options.from.map_or(Origin::Fresh, Origin::Public);
    let plan = plan(&options.prefixes, engine(&options)?, options.nice, origin);
    make_export_dir(&options.out)?;
    let limits = Limits { count: options.count.get(), deadline: options.deadline };
    search(&plan, limits, &mut View::new(options.json), |found, view| {
        let path = match found {
            Found::Key(key) => export_key(&options.out, key)?,
            Found::Distance(distance) => export_distance(&options.out, distance)?,
        };
        Ok(view.found(found.address(), &path)?)
    })
    .await
}

fn engine(options: &SearchOptions) -> anyhow::Result<Engine> {
    if let Some(named) = &options.gpu {
        match Engine::gpu(named) {
            Ok(engine) => return Ok(engine),
            Err(error) => print_note(format_args!("{error}. The processor searches instead")),
        }
    }
    processor(options.path, options.threads)
}

fn processor(path: Option<Path>, threads: Option<NonZeroUsize>) -> anyhow::Result<Engine> {
    let path = path.unwrap_or_else(Path::best);
    if !path.is_available() {
        bail!(Usage(format!(
            "this processor cannot run `--path {path}`: without the option the search takes the fastest"
        )));
    }
    let threads = threads.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    Ok(Engine::Processor { path, threads })
}

fn plan(prefixes: &[Prefix], engine: Engine, nice: i32, origin: Origin) -> Plan {
    Plan { prefixes: Arc::new(Prefixes::new(prefixes)), engine, nice, origin }
}

/// When a search ends.
struct Limits {
    /// Keys to find.
    count: usize,
    /// `None` if it may take any time.
    deadline: Option<Duration>,
}

/// Searches until enough keys are found and `keep` has kept them. A key that cannot be kept (a full
/// disk) is tried again until it can, or until the search is interrupted.
async fn search(
    plan: &Plan,
    limits: Limits,
    view: &mut View,
    mut keep: impl FnMut(&Found, &mut View) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let ignored = signals::ignored_at_start();
    let mut terminate = signals::listen(SignalKind::terminate(), &ignored)?;
    let mut interrupt = signals::listen(SignalKind::interrupt(), &ignored)?;
    let mut hangup = signals::listen(SignalKind::hangup(), &ignored)?;

    let odds = Odds::new(&plan.prefixes, limits.count);
    view.begin(plan, odds, measure(plan)? * plan.engine.threads() as f64)?;
    let begun = Instant::now();
    let deadline = limits.deadline.and_then(|deadline| begun.checked_add(deadline)).map(tokio::time::Instant::from_std);
    let mut session = Session::start(plan)?;
    let mut tick = tokio::time::interval(TICK);
    let (mut waiting, mut found) = (VecDeque::new(), 0);
    let mut reported = String::new();

    let stopped = loop {
        while let Some(first) = waiting.front() {
            match keep(first, view) {
                Ok(()) => drop(waiting.pop_front()),
                Err(error) => {
                    let error =
                        format!("{error:#}; the key is kept in memory, and written as soon as that is possible");
                    if error != reported {
                        print_note(&error);
                        reported = error;
                    }
                    break;
                }
            }
        }
        if found == limits.count && waiting.is_empty() {
            break None;
        }
        tokio::select! {
            next = session.next(), if found < limits.count => {
                waiting.push_back(next?);
                found += 1;
                if found == limits.count {
                    session.stop();
                }
            }
            _ = tick.tick() => view.progress(session.tested(), begun.elapsed())?,
            () = signals::next(&mut terminate) => break Some("SIGTERM"),
            () = signals::next(&mut interrupt) => break Some("SIGINT"),
            () = signals::next(&mut hangup) => break Some("SIGHUP"),
            () = sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() && found < limits.count => break Some("deadline"),
        }
    };

    if found < limits.count {
        // Found while the threads were stopping.
        let late = session.stop();
        found += late.len();
        waiting.extend(late);
    }
    let mut lost = None;
    for last in &waiting {
        if let Err(error) = keep(last, view) {
            lost = Some(error);
        }
    }
    view.end(session.tested(), begun.elapsed(), found, stopped)?;
    if let Some(error) = lost {
        return Err(error
            .context(format!("found keys are lost, because the search was ended by {}", stopped.unwrap_or_default())));
    }
    match stopped {
        Some(reason) if found < limits.count => {
            bail!("{}", odds.stopped(reason, found, session.tested()))
        }
        _ => Ok(()),
    }
}

fn apply(options: &ApplyOptions) -> anyhow::Result<()> {
    let key = import_identity_key(&options.key)?;
    make_export_dir(&options.out)?;
    for path in &options.offsets {
        let distance = read_distance(path)?;
        if distance.origin != key.service_id() {
            bail!(
                "{} was searched for {}, but the key in {} is that of {}: give the other key with --key",
                path.display(),
                distance.origin,
                options.key.display(),
                key.service_id()
            );
        }
        let found = distance.offset.from_secret(&key, &mut rand::rng());
        print_line(shell::path(&export_key(&options.out, &found)?))?;
    }
    Ok(())
}

fn read_distance(path: &std::path::Path) -> anyhow::Result<Distance> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_OFFSET_FILE + 1).read_to_string(&mut text))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let distance = if text.len() as u64 > MAX_OFFSET_FILE { Err(DistanceError::Form) } else { text.parse() };
    distance.map_err(|error| anyhow::anyhow!("{} {error}", path.display()))
}
