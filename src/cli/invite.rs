//! `rustbalance invite`: makes a token for another machine, lists the invitations, or revokes one.
//! A token is printed with the command that uses it, or alone with `--quiet`, for a script to pipe.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rustbalance_gossip::record::{Invitation, Role};

use super::Context;
use super::ask::{SHORT, ask, request_action, unexpected};
use super::output::{print_line, print_note};
use super::status::fetch;
use super::status_view::invitation_table;
use crate::control::{InvitationPrefix, Request, Response};
use crate::display::{moment, plural, short};
use crate::join::MAX_LIFETIME;

/// Bounds of `--expires`.
const EXPIRES: RangeInclusive<Duration> = Duration::from_secs(60)..=MAX_LIFETIME;
/// Options that apply only when a token is made.
const TOKEN_OPTIONS: [&str; 4] = ["role", "expires", "uses", "quiet"];

#[derive(Args)]
pub(super) struct Options {
    /// Role of the new node
    #[arg(long, value_enum, default_value_t = RoleOption::Worker)]
    role: RoleOption,
    /// How long the token is valid, from 1m to 30d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = expires)]
    expires: Duration,
    /// Number of nodes that may join with it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(Invitation::MAX_USES)))]
    uses: u16,
    /// Print only the token
    #[arg(short, long)]
    quiet: bool,
    /// Make no token; list the invitations, and the nodes that joined with them
    #[arg(long, conflicts_with_all = TOKEN_OPTIONS)]
    list: bool,
    /// With --list: print JSON, for programs
    #[arg(long, requires = "list")]
    json: bool,
    /// Make no token; revoke the invitation with this id, or the beginning of it as --list shows it
    #[arg(long, value_name = "ID", conflicts_with_all = TOKEN_OPTIONS, conflicts_with = "list")]
    revoke: Option<InvitationPrefix>,
}

/// The values of `--role`.
#[derive(Clone, Copy, ValueEnum)]
enum RoleOption {
    /// Serves clients; never holds a secret of the address
    Worker,
    /// May publish and admit others; holds the address's key. Two or three are enough
    Publisher,
}

impl From<RoleOption> for Role {
    fn from(option: RoleOption) -> Self {
        match option {
            RoleOption::Publisher => Self::Publisher,
            RoleOption::Worker => Self::Worker,
        }
    }
}

/// The consequence of inviting a node with this role.
fn meaning(role: Role) -> &'static str {
    match role {
        Role::Publisher => {
            "A publisher holds the address's key and admits others: anyone who controls the machine controls the address."
        }
        Role::Worker => "A worker serves clients and never receives the address's key.",
    }
}

fn expires(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|_| "write it with its unit, as in 24h or 30m".to_owned())?;
    if EXPIRES.contains(&time) { Ok(time) } else { Err("it must be from 1m to 30d".into()) }
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    if let Some(invitation) = options.revoke {
        return request_action(context, Request::RevokeInvitation { invitation }).await;
    }
    if options.list {
        return list(context, options.json).await;
    }
    let role = Role::from(options.role);
    let request = Request::Invite { role, expires_seconds: options.expires.as_secs(), uses: options.uses };
    let Response::Invited { master, token, id, expires, note: why_not_admitted } = ask(context, request, SHORT).await?
    else {
        return Err(unexpected());
    };
    if let Some(why_not_admitted) = why_not_admitted {
        print_note(why_not_admitted);
    }
    if options.quiet {
        return Ok(print_line(&token.0)?);
    }
    let nodes = plural(usize::from(options.uses), &format!("new {role}"));
    print_line(format_args!(
        "An invitation for {nodes}, valid until {}.\n\
         {}\n\n\
         On the new machine, with TARGET for the place of your site there (such as 127.0.0.1:8080):\n\n  \
         rustbalance join {master} --target TARGET\n\n\
         The command asks for this token. Keep it secret: anyone who has it can join.\n\n  {}\n\n\
         To revoke it: {}",
        moment(expires),
        meaning(role),
        token.0,
        context.suggest(&format!("invite --revoke {}", short(&id))),
    ))?;
    Ok(())
}

async fn list(context: &Context, json: bool) -> anyhow::Result<()> {
    let invitations = fetch(context).await?.invitations;
    match (json, invitations.is_empty()) {
        (true, _) => print_line(serde_json::to_string_pretty(&invitations)?)?,
        (false, true) => print_line("This node knows no invitation.")?,
        (false, false) => print_line(invitation_table(&invitations, true))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_address_is_given_away_only_where_that_was_asked_for() {
        use clap::Parser;
        let role = |line: &[&str]| match super::super::Cli::try_parse_from(line).map(|cli| cli.command) {
            Ok(super::super::Command::Invite(options)) => Role::from(options.role),
            _ => panic!("{line:?} cannot be parsed"),
        };
        assert_eq!(role(&["rustbalance", "invite"]), Role::Worker);
        assert_eq!(role(&["rustbalance", "invite", "--role", "publisher"]), Role::Publisher);
    }

    #[test]
    fn invite_says_what_it_gives_away() {
        assert!(meaning(Role::Publisher).contains("holds the address's key"));
        assert!(meaning(Role::Worker).contains("never receives the address's key"));
    }
}
