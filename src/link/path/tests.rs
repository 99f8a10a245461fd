//! Paths whose peers answer, fall silent and come back.

use super::*;
use proptest::prelude::*;

const FAST: RouteKind = RouteKind::new(200);
const SECOND: RouteKind = RouteKind::new(201);
const BASE: RouteKind = RouteKind::TOR;

/// A path to a peer that answers probes at once on the routes in `answering`.
struct Run {
    path: Path,
    now: Instant,
    answering: Vec<RouteKind>,
    /// The probes sent, with their times.
    probes: Vec<(RouteKind, Instant)>,
    /// The routes that frames have left, in order.
    left: Vec<RouteKind>,
    /// The missing answers, and whether they were noticed late.
    missed: Vec<bool>,
}

impl Run {
    fn new(routes: &[RouteKind]) -> Self {
        let path = Path::new(&routes.to_vec().into());
        Self {
            path,
            now: Instant::now(),
            answering: routes.to_vec(),
            probes: Vec::new(),
            left: Vec::new(),
            missed: Vec::new(),
        }
    }

    fn handle(&mut self, event: PathEvent) {
        let mut actions = self.path.handle(event, self.now);
        while !actions.is_empty() {
            let mut answers = Vec::new();
            for action in actions {
                match action {
                    PathAction::Probe(route, number) => {
                        self.probes.push((route, self.now));
                        if self.answering.contains(&route) {
                            answers.push(PathEvent::Answered(route, number));
                        }
                    }
                    PathAction::Missed { late } => self.missed.push(late),
                    PathAction::Close(route) => {
                        assert_eq!(self.path.state(route), RouteState::Unproven);
                        answers.push(PathEvent::LinkEnd(route));
                    }
                    PathAction::Leave(route) => {
                        assert_ne!(self.path.chosen(), Some(route));
                        self.left.push(route);
                    }
                }
            }
            actions = answers.into_iter().flat_map(|answer| self.path.handle(answer, self.now)).collect();
        }
        self.check();
    }

    /// Checks the invariants, which hold at any time.
    fn check(&self) {
        let open = |progress: &&RouteProgress| progress.state != RouteState::Unproven;
        assert_eq!(self.path.chosen().is_some(), self.path.routes.iter().any(|progress| open(&progress)));
        let Some(chosen) = self.path.chosen() else { return };
        let state = self.path.state(chosen);
        assert_ne!(state, RouteState::Unproven, "frames go by a route without a link");
        let base_is_open = self.path.state(BASE) != RouteState::Unproven;
        assert!(!base_is_open || state == RouteState::Proven, "{state} is preferred to the base");
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.path.next_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.handle(PathEvent::Tick);
        }
        self.now = end;
    }

    fn seconds(&mut self, seconds: u64) {
        self.wait(Duration::from_secs(seconds));
    }
}

#[test]
fn a_route_that_answers_takes_the_frames_over_and_gives_them_back_when_it_falls_silent() {
    let mut run = Run::new(&[FAST, BASE]);
    run.handle(PathEvent::Opened(BASE));
    assert_eq!(run.path.chosen(), Some(BASE));
    run.handle(PathEvent::Opened(FAST));
    assert_eq!((run.path.chosen(), &run.left[..]), (Some(FAST), &[BASE][..]));
    run.seconds(100);
    assert_eq!(run.path.state(FAST), RouteState::Proven);
    run.answering.clear();
    assert!(run.missed.is_empty());
    run.seconds(2);
    assert_eq!((run.path.state(FAST), run.path.chosen()), (RouteState::Degraded, Some(BASE)));
    assert_eq!(run.left, [BASE, FAST]);
    run.seconds(2);
    assert_eq!(run.missed, [false; 3]);
    assert_eq!(run.path.state(FAST), RouteState::Unproven, "the dead link is still open");
}

#[test]
fn a_route_must_prove_itself_for_longer_after_each_failure() {
    let mut run = Run::new(&[FAST, BASE]);
    run.handle(PathEvent::Opened(BASE));
    run.handle(PathEvent::Opened(FAST));
    for required in [5, 10, 20, 40, 40] {
        run.answering.clear();
        run.seconds(2);
        assert_eq!(run.path.chosen(), Some(BASE));
        run.answering.push(FAST);
        run.seconds(required - 1);
        assert_eq!(run.path.chosen(), Some(BASE), "back before {required} answers");
        run.seconds(2);
        assert_eq!(run.path.chosen(), Some(FAST));
    }
    run.seconds(STEADY.as_secs());
    run.handle(PathEvent::LinkEnd(FAST));
    run.handle(PathEvent::Opened(FAST));
    run.seconds(ANSWERS_TO_RETURN.0.into());
    assert_eq!(run.path.chosen(), Some(FAST), "a route that was proven for a minute is not forgiven");
}

#[test]
fn a_late_answer_keeps_the_link_and_does_not_prove_it() {
    let mut run = Run::new(&[FAST, BASE]);
    run.answering.clear();
    run.handle(PathEvent::Opened(BASE));
    run.handle(PathEvent::Opened(FAST));
    for _ in 0..20 {
        let number = run.path.routes[0].probe;
        run.seconds(1);
        run.handle(PathEvent::Answered(FAST, number));
    }
    assert_eq!(run.path.state(FAST), RouteState::Probing);
    // Numbers of probes that were never sent.
    for number in [0, run.path.routes[0].probe + 1, u64::MAX] {
        run.handle(PathEvent::Answered(FAST, number));
    }
    assert_eq!(run.path.state(FAST), RouteState::Probing);
}

#[test]
fn a_missing_answer_that_a_stopped_process_notices_late_is_told_from_others() {
    let mut run = Run::new(&[FAST, BASE]);
    run.handle(PathEvent::Opened(FAST));
    run.answering.clear();
    run.seconds(1);
    run.now += Duration::from_secs(30);
    run.handle(PathEvent::Tick);
    run.seconds(1);
    assert_eq!(run.missed, [true, false]);
}

#[test]
fn frames_take_any_open_link_before_they_wait() {
    let mut run = Run::new(&[FAST, BASE]);
    run.answering.clear();
    run.handle(PathEvent::Opened(FAST));
    assert_eq!((run.path.state(FAST), run.path.chosen()), (RouteState::Probing, Some(FAST)));
    run.handle(PathEvent::Opened(BASE));
    assert_eq!(run.path.chosen(), Some(BASE));
    run.handle(PathEvent::LinkEnd(BASE));
    assert_eq!(run.path.chosen(), Some(FAST));
    run.seconds(10);
    assert_eq!(run.path.chosen(), None);
    // This path does not have the route.
    run.handle(PathEvent::Opened(SECOND));
    assert_eq!(run.path.chosen(), None);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Open(RouteKind),
    End(RouteKind),
    Answer(RouteKind, bool),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let route = || prop::sample::select(vec![FAST, SECOND, BASE]);
    prop_oneof![
        route().prop_map(Step::Open),
        route().prop_map(Step::End),
        (route(), any::<bool>()).prop_map(|(route, answers)| Step::Answer(route, answers)),
        (0..8000u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn frames_always_have_a_route_and_a_dead_route_is_left_in_time(
        steps in prop::collection::vec(step(), 0..60),
        dies in prop::sample::select(vec![FAST, SECOND]),
    ) {
        let mut run = Run::new(&[FAST, SECOND, BASE]);
        for step in steps {
            match step {
                Step::Open(route) => run.handle(PathEvent::Opened(route)),
                Step::End(route) => run.handle(PathEvent::LinkEnd(route)),
                Step::Answer(route, true) => run.answering.push(route),
                Step::Answer(route, false) => run.answering.retain(|other| *other != route),
                Step::Wait(millis) => run.wait(Duration::from_millis(millis)),
            }
        }
        run.handle(PathEvent::Opened(BASE));
        run.answering.retain(|route| *route != dies);
        run.seconds(2);
        prop_assert_ne!(run.path.chosen(), Some(dies));
        run.seconds(2);
        prop_assert_eq!(run.path.state(dies), RouteState::Unproven);
        // The route comes back: whatever happened before, the longest proof is enough.
        run.answering.extend([dies, FAST]);
        run.handle(PathEvent::Opened(dies));
        run.handle(PathEvent::Opened(FAST));
        run.seconds(u64::from(ANSWERS_TO_RETURN.1));
        prop_assert_eq!(run.path.chosen(), Some(FAST));
    }

    #[test]
    fn a_route_is_probed_once_a_second(seconds in 1..50u64, answers in any::<bool>()) {
        let mut run = Run::new(&[FAST, BASE]);
        run.answering.retain(|route| answers && *route == FAST);
        run.handle(PathEvent::Opened(FAST));
        run.seconds(seconds);
        let expected = if answers { seconds + 1 } else { (seconds + 1).min(MOST_MISSED.into()) };
        prop_assert_eq!(run.probes.len() as u64, expected);
    }
}
