//! `rustbalance drain`: withdraws this node's introduction points from the address. Connected
//! clients are still served. With `--wait` it watches what is left, until the node can be stopped.

use std::fmt;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use tokio::time::{Instant, sleep};

use super::Context;
use super::ask::request_action;
use super::output::print_line;
use super::status::fetch;
use crate::control::{Request, Status};
use crate::display::{plural, short, time};

/// Interval between two looks at what is left.
const LOOK: Duration = Duration::from_secs(1);

/// Withdraws this node's introduction points from the address, and hands over the right to publish.
/// Connected clients are still served. The node stays a member, and takes no new clients until
/// `rustbalance resume`, even after a restart.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {
    /// Wait until no stream is left and every directory holds a descriptor without this node. Each
    /// change is printed
    #[arg(short, long)]
    wait: bool,
    /// With --wait: fail (exit code 1) after this time. The node drains on
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration, requires = "wait")]
    timeout: Duration,
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    request_action(context, Request::Drain {}).await?;
    match options.wait {
        true => wait(context, options.timeout).await,
        false => Ok(()),
    }
}

async fn wait(context: &Context, limit: Duration) -> anyhow::Result<()> {
    let (began, mut shown) = (Instant::now(), None);
    loop {
        let left = Remaining::of(&fetch(context).await?);
        if left.is_nothing() {
            return Ok(print_line("drained: the node can be stopped")?);
        }
        if began.elapsed() >= limit {
            bail!(
                "not drained within {}: {left}; the node drains on until `rustbalance resume`",
                time(limit.as_secs())
            );
        }
        if shown.as_ref() != Some(&left) {
            print_line(format_args!("waiting: {left}"))?;
            shown = Some(left);
        }
        sleep(LOOK).await;
    }
}

/// What keeps a draining node from being stopped without a loss.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Remaining {
    /// Streams that are open, and clients that are about to be met.
    streams: u64,
    coming: u64,
    /// Introduction points of this node that the newest descriptor names.
    published: usize,
    /// Directories that hold the newest descriptor, of those that should, over all periods.
    confirmed: (u64, u64),
    publisher: Publisher,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Publisher {
    Unknown,
    This,
    Other(String),
}

impl Remaining {
    fn of(status: &Status) -> Self {
        let points = status.publication.iter().flat_map(|publication| &publication.intro_points);
        let periods = || status.publication.iter().flat_map(|publication| &publication.periods);
        Self {
            streams: status.traffic.streams_open,
            coming: status.usage.circuits_making,
            published: points.filter(|point| point.node == status.node).count(),
            confirmed: (
                periods().map(|period| u64::from(period.confirmed)).sum(),
                periods().map(|period| u64::from(period.directories)).sum(),
            ),
            publisher: match &status.publisher {
                None => Publisher::Unknown,
                Some(publisher) if publisher.me => Publisher::This,
                Some(publisher) => Publisher::Other(short(&publisher.node).to_owned()),
            },
        }
    }

    fn is_nothing(&self) -> bool {
        let (confirmed, directories) = self.confirmed;
        let handed_over = matches!(self.publisher, Publisher::Other(_));
        (self.streams, self.coming, self.published) == (0, 0, 0) && handed_over && confirmed == directories
    }
}

impl fmt::Display for Remaining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |number| plural(usize::try_from(number).unwrap_or(usize::MAX), "stream");
        write!(f, "{} left", count(self.streams))?;
        if self.coming > 0 {
            write!(f, " and {} about to begin", self.coming)?;
        }
        let (confirmed, directories) = self.confirmed;
        match self.published {
            0 => write!(f, ", the descriptor without this node is on {confirmed} of {directories} directories")?,
            points => write!(f, ", the descriptor still names {} of this node", plural(points, "introduction point"))?,
        }
        match &self.publisher {
            Publisher::Unknown => f.write_str(", no node publishes"),
            Publisher::This => f.write_str(", this node publishes, because no other one can"),
            Publisher::Other(node) => write!(f, ", {node} publishes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained() -> Remaining {
        let publisher = Publisher::Other("bbbbbbbb".into());
        Remaining { streams: 0, coming: 0, published: 0, confirmed: (12, 12), publisher }
    }

    #[test]
    fn a_node_is_drained_when_nothing_is_left_of_it_anywhere() {
        assert!(drained().is_nothing());
        for (left, says) in [
            (Remaining { streams: 1, ..drained() }, "1 stream left, the descriptor without this node is on 12 of 12"),
            (Remaining { coming: 2, ..drained() }, "0 streams left and 2 about to begin"),
            (Remaining { published: 3, ..drained() }, "the descriptor still names 3 introduction points of this node"),
            (Remaining { confirmed: (7, 12), ..drained() }, "is on 7 of 12 directories, bbbbbbbb publishes"),
            (Remaining { publisher: Publisher::This, ..drained() }, "this node publishes, because no other one can"),
            (Remaining { publisher: Publisher::Unknown, ..drained() }, "no node publishes"),
        ] {
            assert!(!left.is_nothing() && left.to_string().contains(says), "{left}");
        }
    }
}
