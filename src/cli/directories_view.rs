//! What each directory has confirmed to the publisher, for people.

use std::fmt::Write;

use super::output::Paint;
use super::status_view::{label, section as titled, table};
use crate::control::{DirectoryStatus, Status};
use crate::display::{moment, short};

/// The directories without the newest descriptor, or all. On other nodes than the publisher only a
/// hint, if all are asked for.
pub(super) fn section(text: &mut String, status: &Status, all: bool, paint: Paint) {
    let shown: Vec<_> = status.directories.iter().filter(|it| all || !it.current).collect();
    if shown.is_empty() {
        if all {
            let _ = writeln!(text, "\n{}", hint(status));
        }
        return;
    }
    let several = shown.iter().any(|it| it.service != shown[0].service);
    let mut titles = vec!["DIRECTORY", "PERIOD", "HOLDS", "REVISION", "CONFIRMED", "FAILURES"];
    titles.extend(several.then_some("SERVICE"));
    let mut table = table(&titles, &[5]);
    let dash = || "-".to_owned();
    for it in shown {
        let mut row = vec![
            it.relay.clone(),
            it.period.to_string(),
            holds(it).into(),
            it.revision.map_or_else(dash, |revision| revision.to_string()),
            it.confirmed_at.map_or_else(dash, moment),
            it.failures.to_string(),
        ];
        row.extend(several.then(|| short(&it.service).to_owned()));
        table.add_row(row);
    }
    let title =
        if all { "Directories" } else { "Directories without the newest descriptor (tried again by themselves)" };
    titled(text, title, &table, paint);
}

/// What a directory holds, as far as the publisher knows.
fn holds(it: &DirectoryStatus) -> &'static str {
    match (it.current, it.revision) {
        (true, _) => "newest",
        (false, Some(_)) => "older",
        (false, None) => "unknown",
    }
}

/// Where the directories are known.
fn hint(status: &Status) -> String {
    let own = "`rustbalance verify ADDRESS` asks the directories from any machine";
    match status.publisher.as_ref().filter(|it| !it.me) {
        Some(publisher) => {
            let node = label(status, &publisher.node);
            format!("What each directory has confirmed is known to the publisher, {node}: ask there. {own}.")
        }
        None => format!("No directory has confirmed anything to this node. {own}."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status_view::tests::well;
    use crate::control::PublisherStatus;

    fn directory(relay: &str, revision: Option<u64>, current: bool) -> DirectoryStatus {
        DirectoryStatus {
            service: "aa".repeat(28),
            period: 20_779,
            relay: relay.into(),
            revision,
            confirmed_at: revision.map(|_| 1_790_000_000),
            current,
            failures: u32::from(!current),
        }
    }

    fn shown(status: &Status, all: bool) -> String {
        let mut text = String::new();
        section(&mut text, status, all, Paint(false));
        text
    }

    #[test]
    fn only_directories_without_the_newest_descriptor_are_shown_unless_all_are_asked_for() {
        let directories =
            vec![directory("$AA", Some(9), true), directory("$BB", Some(8), false), directory("$CC", None, false)];
        let status = Status { directories, ..well() };
        let some = shown(&status, false);
        assert!(!some.contains("$AA") && some.contains("without the newest descriptor"), "{some}");
        let lines: Vec<_> = some.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert!(lines.contains(&"$BB 20779 older 8 2026-09-21 14:13:20 UTC 1".into()), "{lines:?}");
        assert!(lines.contains(&"$CC 20779 unknown - - 1".into()), "{lines:?}");
        let all = shown(&status, true);
        assert!(all.contains("$AA") && all.contains("newest") && !all.contains("SERVICE"), "{all}");
        let well = Status { directories: vec![directory("$AA", Some(9), true)], ..well() };
        assert_eq!(shown(&well, false), "");
    }

    #[test]
    fn other_nodes_say_where_directories_are_known() {
        let status = well();
        assert_eq!(shown(&status, false), "");
        assert!(shown(&status, true).contains("known to the publisher"), "{}", shown(&status, true));
        let publisher = status.publisher.clone().map(|it| PublisherStatus { me: true, ..it });
        let alone = shown(&Status { publisher, ..status }, true);
        assert!(alone.contains("nothing") || alone.contains("No directory"), "{alone}");
        assert!(alone.contains("rustbalance verify"), "{alone}");
    }
}
