//! `rustbalance backup`: writes what a node is made of to one encrypted file, or shows what such a
//! file holds.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use rustbalance_gossip::record::Role;

use super::output::{print_line, print_note};
use super::passphrase::{PassphraseOption, warn_if_shared};
use super::{Context, Usage};
use crate::backup::{Backup, DEFAULT_WORK, MAX_BACKUP, WORK, read_bounded, write_new};
use crate::clock::{date, unix_now};
use crate::config::Config;
use crate::display::{bytes, moment, plural};

/// Writes the node's keys, its state of the cluster and its configuration to a new file, encrypted
/// with a passphrase. Works whether the daemon runs or not. The file is in the age format:
/// `age -d FILE | tar x` opens it, too. A person who has the file and the passphrase has
/// this node, and for a publisher the key of the address.
#[derive(Args)]
pub(super) struct Options {
    /// The new file, which only you may read; "-" is standard output [default:
    /// rustbalance-NODE-DATE.age in the current directory]
    file: Option<PathBuf>,
    /// Show what is in an existing backup, without secrets
    #[arg(long, requires = "file")]
    inspect: bool,
    #[command(flatten)]
    passphrase: PassphraseOption,
    /// What a guess of the passphrase costs: 2^N steps, each with 1 KiB of memory
    #[arg(
        long,
        value_name = "N",
        default_value_t = DEFAULT_WORK,
        value_parser = clap::value_parser!(u8).range(i64::from(*WORK.start())..=i64::from(*WORK.end())),
        conflicts_with = "inspect"
    )]
    work_factor: u8,
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    match &options.file {
        Some(path) if options.inspect => inspect(path, &options.passphrase),
        _ => write(context, &options),
    }
}

fn write(context: &Context, options: &Options) -> anyhow::Result<()> {
    let to_stdout = options.file.as_deref() == Some(Path::new("-"));
    if to_stdout && io::stdout().is_terminal() {
        return Err(Usage("a backup is not text for a terminal: name a file, or a pipe".into()).into());
    }
    // Before the passphrase is asked for, so that it is not typed in vain.
    let node = Backup::of(&context.dir, unix_now())?.summary.node;
    let passphrase = options.passphrase.read_new()?;
    let backup = Backup::of(&context.dir, unix_now())?;
    let sealed = backup.seal(&passphrase, options.work_factor)?;
    if to_stdout {
        io::stdout().lock().write_all(&sealed)?;
        return Ok(io::stdout().flush()?);
    }
    let day = date(backup.summary.made).unwrap_or_default().replace([':', '-'], "");
    let path = options.file.clone().unwrap_or_else(|| format!("rustbalance-{}-{day}.age", node.short()).into());
    write_new(&path, &sealed)?;
    let (count, size) = (plural(backup.files().count(), "file"), bytes(sealed.len() as u64));
    print_line(format_args!(
        "{} holds node {} as of {}: {count}, {size}.",
        path.display(),
        backup.summary.node.short(),
        moment(backup.summary.made)
    ))?;
    if backup.summary.role == Role::Publisher {
        print_line(format_args!(
            "It holds the key of {}, too: anyone who has the file and the passphrase can take over the address.",
            backup.summary.cluster
        ))?;
    }
    note_what_is_missing(&context.dir);
    Ok(())
}

/// Names the files that the configuration refers to and that are elsewhere.
fn note_what_is_missing(dir: &Path) {
    let Ok((config, _)) = Config::read(dir) else { return };
    if let Some(file) = config.arti_file.filter(|file| file != Path::new(crate::config::ARTI_FILE_NAME)) {
        print_note(format_args!(
            "{} (`arti_config`) is not in the backup: keep a copy of it",
            dir.join(file).display()
        ));
    }
}

/// Reads the backup in a file, with its passphrase.
pub(super) fn open(path: &Path, passphrase: &PassphraseOption) -> anyhow::Result<Backup> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot open the backup {shown}"))?;
    warn_if_shared(path, &file);
    let sealed = read_bounded(file, path, MAX_BACKUP)?;
    Backup::open(&sealed, &passphrase.read_existing()?).with_context(|| format!("cannot use {shown}"))
}

fn inspect(path: &Path, passphrase: &PassphraseOption) -> anyhow::Result<()> {
    let backup = open(path, passphrase)?;
    let summary = &backup.summary;
    print_line(format_args!(
        "Address     {}\nNode        {}\nRole        {}\nMade        {}, by version {}\n\nFiles",
        summary.cluster,
        summary.node,
        summary.role,
        moment(summary.made),
        summary.version
    ))?;
    for (name, size) in backup.files() {
        print_line(format_args!("  {:>10}  {name}", bytes(size as u64)))?;
    }
    Ok(())
}
