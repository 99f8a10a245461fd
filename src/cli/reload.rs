//! `rustbalance reload`: has the running daemon apply its configuration.

use std::process::ExitCode;

use clap::Args;

use super::ask::{SHORT, ask, unexpected};
use super::output::print_line;
use super::{AFTER_RESTART, Context};
use crate::config::FILE_NAME;
use crate::control::{Request, Response};

/// Has the running daemon read its configuration again and apply it. No stream is dropped. If
/// something in the file is wrong, nothing of it is applied, and the running configuration stays.
///
/// Exit codes: 0 applied, 1 refused, 5 applied, but some changes need a restart.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {
    /// Exit with 0 also if some changes need a restart, as `systemctl reload` should
    #[arg(long)]
    lenient: bool,
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<ExitCode> {
    context.log_quietly()?;
    let Response::Reloaded { applied, after_restart } = ask(context, Request::Reload {}, SHORT).await? else {
        return Err(unexpected());
    };
    for change in &applied {
        print_line(format_args!("{change}: applied"))?;
    }
    for change in &after_restart {
        print_line(format_args!("{change}: takes effect after a restart"))?;
    }
    if applied.is_empty() && after_restart.is_empty() {
        print_line(format_args!("nothing has changed in {}", context.dir.join(FILE_NAME).display()))?;
    }
    let is_done = after_restart.is_empty() || options.lenient;
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::from(AFTER_RESTART) })
}
