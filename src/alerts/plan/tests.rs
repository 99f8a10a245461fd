//! Sequences of observations, a second apart, and the alerts that follow.

use super::*;

const AFTER: u64 = 30;

/// A node that is looked at every second.
struct Watched {
    plan: Plan,
    rules: Rules,
    second: u64,
    problems: Vec<Problem>,
    publisher: Option<&'static str>,
}

fn problem(kind: ProblemKind, subject: &str) -> Problem {
    Problem { kind, subject: subject.into(), text: format!("{kind:?} of {subject}") }
}

impl Watched {
    /// A node whose first minute is over.
    fn settled(rules: Rules) -> Self {
        let mut watched = Self::started(rules);
        assert_eq!(watched.pass(2 * AFTER + 1), []);
        watched
    }

    fn started(rules: Rules) -> Self {
        let origin = Origin { cluster: "c".into(), node: "n".into() };
        let plan = Plan::new(origin, now(0));
        Self { plan, rules, second: 0, problems: Vec::new(), publisher: None }
    }

    /// Lets seconds pass. Returns for each alert the second, the event with its state, and the
    /// subject.
    fn pass(&mut self, seconds: u64) -> Vec<(u64, String)> {
        let mut seen = Vec::new();
        for _ in 0..seconds {
            self.second += 1;
            for alert in self.look() {
                let state: &str = alert.state.into();
                seen.push((self.second, format!("{} {} {}", alert.event, state, alert.subject)));
            }
        }
        seen
    }

    fn look(&mut self) -> Vec<Alert> {
        let seen = Observation { problems: &self.problems, publisher: self.publisher };
        self.plan.observe(seen, &self.rules, now(self.second))
    }
}

fn now(second: u64) -> Now {
    Now { mono: Duration::from_secs(1000 + second), unix: 1_800_000_000 + second }
}

fn rules() -> Rules {
    let (after, repeat) = (Duration::from_secs(AFTER), Some(Duration::from_secs(600)));
    Rules { after, repeat, per_hour: 30, events: None }
}

#[test]
fn a_problem_fires_once_it_lasts_is_repeated_and_is_resolved_once_it_is_gone() {
    let mut node = Watched::settled(rules());
    node.problems = vec![problem(ProblemKind::TargetDown, "80")];
    let start = node.second + 1;
    assert_eq!(
        node.pass(700),
        [
            (start + AFTER, "target_down firing 80".to_owned()),
            (start + AFTER + 600, "target_down firing 80".to_owned()),
        ]
    );
    node.problems.clear();
    let gone = node.second + 1;
    assert_eq!(node.pass(100), [(gone + AFTER, "target_down resolved 80".to_owned())]);
    assert_eq!(node.pass(1000), []);
}

#[test]
fn the_alerts_of_one_occurrence_have_one_id_and_the_next_has_another() {
    let mut node = Watched::settled(rules());
    let down = vec![problem(ProblemKind::TargetDown, "80")];
    let mut all = Vec::new();
    for _ in 0..2 {
        for problems in [down.clone(), Vec::new()] {
            node.problems = problems;
            for _ in 0..=AFTER {
                node.second += 1;
                all.extend(node.look());
            }
        }
    }
    let [first, over, again, _] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((&first.id, first.since), (&over.id, over.since));
    assert!(first.id != again.id && first.dedup == again.dedup, "{first:?} {again:?}");
    assert_eq!((over.time - over.since, over.text.as_str()), (61, "over after 31s: TargetDown of 80"));
}

#[test]
fn what_comes_and_goes_faster_makes_no_alert() {
    let mut node = Watched::settled(rules());
    for _ in 0..10 {
        node.problems = vec![problem(ProblemKind::NodeLost, "a")];
        assert_eq!(node.pass(AFTER), []);
        node.problems.clear();
        assert_eq!(node.pass(3), []);
    }
    node.problems = vec![problem(ProblemKind::NodeLost, "a")];
    assert_eq!(node.pass(AFTER + 1).len(), 1);
    for _ in 0..5 {
        node.problems.clear();
        assert_eq!(node.pass(AFTER), [], "it is not over yet");
        node.problems = vec![problem(ProblemKind::NodeLost, "a")];
        assert_eq!(node.pass(3), [], "it fires already");
    }
    node.problems.clear();
    assert_eq!(
        node.pass(AFTER + 1).iter().map(|(_, shown)| shown.as_str()).collect::<Vec<_>>(),
        ["node_back resolved a"]
    );
}

#[test]
fn kinds_differ_in_how_long_they_must_last() {
    let mut node = Watched::settled(rules());
    let kinds =
        [ProblemKind::OtherPublisher, ProblemKind::NoPublisher, ProblemKind::DirectoryBehind, ProblemKind::Draining];
    node.problems = kinds.map(|kind| problem(kind, "")).into();
    let start = node.second + 1;
    node.rules.repeat = None;
    let seen: Vec<_> = node.pass(2 * 3600).into_iter().map(|(at, _)| at - start).collect();
    assert_eq!(seen, [0, AFTER, 10 * AFTER, 3600]);
}

/// A restart must not repeat all that was there before it, and a node that starts knows little.
#[test]
fn what_is_over_within_a_minute_of_the_start_makes_no_alert() {
    let mut node = Watched::started(rules());
    node.problems = vec![problem(ProblemKind::TokenOverdrawn, "x"), problem(ProblemKind::NoPublisher, "")];
    assert_eq!(node.pass(59), []);
    node.problems.pop();
    assert_eq!(node.pass(10), [(60, "token_overdrawn firing x".to_owned())]);
}

#[test]
fn a_change_of_the_publisher_that_lasts_is_one_notice() {
    let mut node = Watched::started(rules());
    node.publisher = Some("a");
    assert_eq!(node.pass(100), [], "the first one is not a change");
    node.publisher = Some("b");
    assert_eq!(node.pass(AFTER), []);
    node.publisher = Some("a");
    assert_eq!(node.pass(100), [], "it came back");
    node.publisher = Some("b");
    assert_eq!(node.pass(10), []);
    node.publisher = None;
    assert_eq!(node.pass(10), []);
    node.publisher = Some("b");
    let [(_, shown)]: [_; 1] = node.pass(100).try_into().unwrap();
    assert_eq!(shown, "publisher_changed notice b");
}

#[test]
fn beyond_the_limit_alerts_wait_and_one_says_how_many() {
    let mut node = Watched::settled(Rules { per_hour: 4, repeat: None, ..rules() });
    node.problems = (0..9).map(|at| problem(ProblemKind::NodeLost, &at.to_string())).collect();
    let first = node.pass(AFTER + 1);
    let shown: Vec<_> = first.iter().map(|(_, shown)| shown.as_str()).collect();
    assert_eq!(shown, ["node_lost firing 0", "node_lost firing 1", "node_lost firing 2", "more_alerts notice "]);
    assert_eq!(node.pass(3500), []);
    // Two of those that were sent are over, and so is one that waits: only the former are news.
    node.problems.retain(|problem| !["0", "1", "8"].contains(&problem.subject.as_str()));
    let later = node.pass(200);
    let shown: Vec<_> = later.iter().map(|(_, shown)| shown.as_str()).collect();
    assert_eq!(shown, ["node_lost firing 3", "node_lost firing 4", "node_lost firing 5", "more_alerts notice "]);
    let last = node.pass(3700);
    let shown: Vec<_> = last.iter().map(|(_, shown)| shown.as_str()).collect();
    assert_eq!(shown, ["node_lost firing 6", "node_lost firing 7", "node_back resolved 0", "node_back resolved 1"]);
}

#[test]
fn a_node_whose_problems_come_and_go_leaves_room_for_those_of_others() {
    let mut node = Watched::settled(Rules { per_hour: 8, repeat: None, ..rules() });
    let hostile = "h.onion";
    let mut about_it = 0;
    for _ in 0..10 {
        node.problems = vec![problem(ProblemKind::DiskFull, hostile)];
        about_it += node.pass(AFTER + 1).len();
        node.problems.clear();
        about_it += node.pass(AFTER + 1).len();
    }
    assert_eq!(about_it, 2, "a quarter of eight");
    node.problems = vec![problem(ProblemKind::NodeLost, "b.onion")];
    assert_eq!(node.pass(AFTER + 1).len(), 1);
}

#[test]
fn the_summary_counts_what_waits() {
    let mut node = Watched::settled(Rules { per_hour: 2, ..rules() });
    node.problems = (0..9).map(|at| problem(ProblemKind::TokenOverdrawn, &at.to_string())).collect();
    let alerts = node.look();
    let [_, more] = alerts.as_slice() else { panic!("{alerts:?}") };
    assert!(more.text.starts_with("8 more alerts wait, because there were 2 within an hour"), "{}", more.text);
}

#[test]
fn only_selected_events_are_sent() {
    let selected = BTreeSet::from([AlertEvent::Problem(ProblemKind::TargetDown)]);
    let mut node = Watched::settled(Rules { events: Some(selected), ..rules() });
    node.publisher = Some("a");
    node.pass(100);
    node.problems = vec![problem(ProblemKind::NodeLost, "a"), problem(ProblemKind::TargetDown, "80")];
    node.publisher = Some("b");
    let [(_, shown)]: [_; 1] = node.pass(100).try_into().unwrap();
    assert_eq!(shown, "target_down firing 80");
    node.rules.events = Some(BTreeSet::new());
    node.problems.clear();
    assert_eq!(node.pass(100), [], "a reload has deselected it");
    node.rules.events = None;
    assert_eq!(node.pass(100), [], "what happened meanwhile is not news");
}

#[test]
fn problems_beyond_a_bound_are_not_followed() {
    let mut node = Watched::settled(Rules { per_hour: 5000, ..rules() });
    node.problems = (0..2000).map(|at| problem(ProblemKind::OtherPublisher, &at.to_string())).collect();
    assert_eq!(node.look().len(), MOST_PROBLEMS);
}
