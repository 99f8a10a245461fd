//! `rustbalance restore`: makes the node of a backup on this machine.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

use super::output::{print_line, print_note};
use super::passphrase::PassphraseOption;
use super::{Context, backup};
use crate::config::Config;
use crate::display::moment;
use crate::node::preflight;
use crate::store::force_restored;

/// Makes the node of a backup in the state directory, which must be empty or missing. Before it
/// announces anything, the restored node looks for the machine that the backup was made on, and
/// refuses to start while that one runs: two machines must never run with one key.
///
/// For a machine that is lost, `evict` and a new `join` are usually better: see docs/OPERATIONS.md.
#[derive(Args)]
pub(super) struct Options {
    /// The backup
    #[arg(required_unless_present = "force")]
    file: Option<PathBuf>,
    /// The machine that the backup was made on is off for good: start without looking for it.
    /// Without FILE, for a node that is restored already
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    passphrase: PassphraseOption,
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    let Some(file) = &options.file else {
        if !force_restored(&context.dir)? {
            bail!("the node in {} was not restored lately, so it looks for no other machine", context.dir.display());
        }
        return Ok(print_line("This node starts without looking for the machine that its backup was made on.")?);
    };
    preflight(&context.dir, "")?;
    let backup = backup::open(file, &options.passphrase)?;
    drop(backup.restore(&context.dir, options.force)?);
    let summary = &backup.summary;
    print_line(format_args!(
        "{} holds node {} of {} as of {}.\n",
        context.dir.display(),
        summary.node.short(),
        summary.cluster,
        moment(summary.made)
    ))?;
    if !options.force {
        print_line(
            "At its first start it looks for the machine that the backup was made on, for one to three minutes. If that \
             one runs, this one ends with exit code 4 and the other goes on.\n",
        )?;
    }
    print_line(format_args!("Next: check rustbalance.toml, then {}", context.suggest_start()))?;
    if let Err(error) = Config::read(&context.dir) {
        print_note(format_args!("the restored configuration cannot be used on this machine yet: {error}"));
    }
    Ok(())
}
