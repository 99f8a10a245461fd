//! What the canary found, for people.

use std::fmt::Write;

use super::output::Paint;
use super::status_view::{section, table};
use crate::control::{CanaryRunStatus, CanaryStatus};
use crate::display::{moment, plural, short};

/// The findings at all services; ends with a newline.
pub(super) fn canary_view(services: &[CanaryRunStatus], paint: Paint) -> String {
    let mut text = String::new();
    if services.is_empty() {
        return "no introduction points are published, so no client can reach the address\n".into();
    }
    for service in services {
        let _ = writeln!(text, "{}", paint.bold(&service.service));
        let verdict = match (&service.problem, service.faults()) {
            (Some(problem), _) => paint.bad(problem),
            (None, 0) => paint.good("A client reaches every introduction point."),
            (None, faults) => paint.bad(&plural(faults, "fault")),
        };
        let _ = writeln!(text, "{verdict}");
        let dash = || "-".to_owned();
        let mut directories = table(&["DIRECTORY", "FOUND", "REVISION", "SECONDS", "BECAUSE"], &[2, 3]);
        for it in &service.directories {
            directories.add_row([
                it.relay.clone(),
                it.state.to_string(),
                it.revision.map_or_else(dash, |revision| revision.to_string()),
                format!("{:.1}", it.seconds),
                it.why.clone().unwrap_or_else(dash),
            ]);
        }
        section(&mut text, "Directories that clients ask", &directories, paint);
        let mut points = table(&["NODE", "RELAY", "A CLIENT", "SECONDS", "BECAUSE"], &[3]);
        for it in &service.points {
            let node = it.node.as_deref().map_or("unknown", short);
            points.add_row([
                if it.me { format!("{node} (this)") } else { node.to_owned() },
                it.relay.clone(),
                it.state.to_string(),
                format!("{:.1}", it.seconds),
                it.why.clone().unwrap_or_else(dash),
            ]);
        }
        section(&mut text, "Introduction points", &points, paint);
        text.push('\n');
    }
    text
}

/// The section of `status`; nothing before the first run.
pub(super) fn summary(text: &mut String, status: &CanaryStatus) {
    let Some(last) = status.services.iter().map(|service| service.at).max() else { return };
    let by_itself = if status.enabled { "" } else { ", and does not run by itself" };
    let _ = writeln!(
        text,
        "\nCanary: last run {}, {} of {} found a fault{by_itself}",
        moment(last),
        status.failures,
        plural(usize::try_from(status.runs).unwrap_or(usize::MAX), "run")
    );
    if let Some(repair) = &status.last_repair {
        let all: u64 = status.repairs.values().sum();
        let _ = writeln!(
            text,
            "        {} in all, the last at {} ({}): {}",
            plural(usize::try_from(all).unwrap_or(usize::MAX), "repair"),
            moment(repair.at),
            repair.kind,
            repair.why
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{
        CanaryDirectoryState, CanaryDirectoryStatus, CanaryPointState, CanaryPointStatus, CanaryRepairStatus,
    };

    fn run(well: bool) -> CanaryRunStatus {
        let directory = |state, revision, why: Option<&str>| CanaryDirectoryStatus {
            relay: "$AB".repeat(3),
            period: 20_000,
            state,
            revision,
            why: why.map(str::to_owned),
            seconds: 0.41,
        };
        let point = |node: &str, me, state, why: Option<&str>| CanaryPointStatus {
            node: Some(node.repeat(56)),
            me,
            relay: "$CD".repeat(3),
            session_key: "00".into(),
            state,
            why: why.map(str::to_owned),
            seconds: 1.26,
        };
        let mut run = CanaryRunStatus {
            service: "d".repeat(56) + ".onion",
            at: 1_795_362_000,
            well,
            problem: None,
            directories: vec![directory(CanaryDirectoryState::Current, Some(41), None)],
            points: vec![point("a", true, CanaryPointState::Reached, None)],
        };
        if !well {
            let why = Some("revision 41 was announced");
            run.directories.push(directory(CanaryDirectoryState::Old, Some(40), why));
            let why = Some("introduction point $CD refuses: INTRODUCE_ACK NOT_RECOGNIZED");
            run.points.push(point("b", false, CanaryPointState::Introduction, why));
        }
        run
    }

    #[test]
    fn each_directory_and_each_point_has_a_line() {
        insta::assert_snapshot!(canary_view(&[run(true), run(false)], Paint(false)));
    }

    #[test]
    fn nothing_published_is_said() {
        assert!(canary_view(&[], Paint(false)).contains("no client can reach"));
    }

    #[test]
    fn status_shows_the_last_run_and_the_last_repair() {
        let why = "directory $AB: it has no descriptor".to_owned();
        let status = CanaryStatus {
            enabled: true,
            runs: 4,
            failures: 1,
            last_success: Some(1_795_361_000),
            repairs: [("republish".to_owned(), 2)].into(),
            last_repair: Some(CanaryRepairStatus { at: 1_795_362_000, kind: "republish".into(), why }),
            services: vec![run(false)],
        };
        let mut text = String::new();
        summary(&mut text, &status);
        assert_eq!(
            text,
            "\nCanary: last run 2026-11-22 15:40:00 UTC, 1 of 4 runs found a fault\n        2 repairs in all, the last at \
             2026-11-22 15:40:00 UTC (republish): directory $AB: it has no descriptor\n"
        );
        let mut nothing = String::new();
        summary(&mut nothing, &CanaryStatus::default());
        assert_eq!(nothing, "");
    }
}
