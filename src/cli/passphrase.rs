//! Reads the passphrase of a backup: typed without an echo, from a file, or from standard input.
//! Never from the command line or the environment, which other processes can read.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use zeroize::Zeroizing;

use super::Usage;
use super::output::print_note;
use crate::backup::{Passphrase, read_bounded};

/// Largest passphrase file, in bytes.
const MAX_FILE: usize = 4096;

/// Where the passphrase comes from.
#[derive(Args)]
pub(super) struct PassphraseOption {
    /// Read the passphrase from the first line of this file; "-" is standard input. Without this
    /// option you are asked for it
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl PassphraseOption {
    /// The passphrase for a new backup: strong enough, and typed twice.
    pub(super) fn read_new(&self) -> anyhow::Result<Passphrase> {
        let passphrase = self.read("Passphrase for the backup (not shown): ")?;
        passphrase.check_strength()?;
        if self.passphrase_file.is_none() && !ask("The same again: ")?.is_same(&passphrase) {
            bail!("the two passphrases differ: run the command again");
        }
        Ok(passphrase)
    }

    /// The passphrase of an existing backup.
    pub(super) fn read_existing(&self) -> anyhow::Result<Passphrase> {
        self.read("Passphrase of the backup (not shown): ")
    }

    fn read(&self, prompt: &str) -> anyhow::Result<Passphrase> {
        let bytes = match &self.passphrase_file {
            Some(path) if path == Path::new("-") => read_bounded(io::stdin(), Path::new("standard input"), MAX_FILE)?,
            Some(path) => {
                let shown = path.display();
                let file = File::open(path).with_context(|| format!("cannot open the passphrase file {shown}"))?;
                warn_if_shared(path, &file);
                read_bounded(file, path, MAX_FILE)?
            }
            None => return ask(prompt),
        };
        let text = std::str::from_utf8(&bytes).map_err(|_| anyhow::anyhow!("the passphrase is not text"))?;
        Ok(Passphrase::new(text))
    }
}

fn ask(prompt: &str) -> anyhow::Result<Passphrase> {
    if !io::stdin().is_terminal() {
        return Err(Usage("there is no terminal to ask for the passphrase: give --passphrase-file FILE".into()).into());
    }
    let typed = Zeroizing::new(rpassword::prompt_password(prompt).context("cannot read the passphrase")?);
    Ok(Passphrase::new(&typed))
}

/// Says that other users may read a file that they should not.
pub(super) fn warn_if_shared(path: &Path, file: &File) {
    if file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o077 != 0) {
        print_note(format_args!("other users may read or write {0}: `chmod 600 {0}`", crate::shell::path(path)));
    }
}
