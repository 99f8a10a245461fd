//! The loop, with a machine that repeats work until it has been done three times.

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;

/// Pause before the work is done again.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Tick,
    Begin,
    Done,
    Settled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Work,
    Rest,
}

/// Works on [`Event::Begin`], and again after a pause, three times in all.
#[derive(Default)]
struct Worker {
    due: Option<Duration>,
    done: u32,
    seen: Vec<(Event, Duration)>,
}

impl Machine for Worker {
    type Event = Event;
    type Action = Action;

    fn tick() -> Event {
        Event::Tick
    }

    fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        self.seen.push((event, now.mono));
        match event {
            Event::Begin => self.due = Some(now.mono),
            Event::Done => {
                self.done += 1;
                self.due = (self.done < 3).then_some(now.mono + PAUSE);
            }
            Event::Tick | Event::Settled => {}
        }
        if self.due.is_some_and(|due| due <= now.mono) {
            self.due = None;
            return vec![Action::Work];
        }
        if self.done == 3 { vec![Action::Rest] } else { Vec::new() }
    }

    fn next_timeout(&self, _: Now) -> Option<Duration> {
        self.due
    }
}

/// How a job of the shell behaves.
#[derive(Clone, Copy)]
enum Work {
    Takes(Duration),
    Panics,
    IsAborted,
}

struct Factory {
    orders: mpsc::Receiver<Event>,
    work: Work,
    rests: u32,
    settled: u32,
    /// Events that [`Shell::settle`] gives once.
    after: Vec<Event>,
}

impl Shell<Worker> for Factory {
    type Input = Event;

    async fn next(&mut self) -> Option<Event> {
        self.orders.recv().await
    }

    fn take(&mut self, input: Event, _: &mut Jobs<Event>) -> Vec<Event> {
        vec![input]
    }

    fn act(&mut self, action: Action, jobs: &mut Jobs<Event>) {
        let work = self.work;
        match action {
            Action::Rest => self.rests += 1,
            Action::Work => {
                let job = jobs.spawn(async move {
                    match work {
                        Work::Takes(time) => tokio::time::sleep(time).await,
                        Work::Panics => panic!("on purpose, for the test"),
                        Work::IsAborted => std::future::pending().await,
                    }
                    Event::Done
                });
                if matches!(work, Work::IsAborted) {
                    job.abort();
                }
            }
        }
    }

    fn settle(&mut self, _: &Worker, _: Now) -> Vec<Event> {
        self.settled += 1;
        std::mem::take(&mut self.after)
    }
}

fn driver(work: Work) -> (Driver<Worker, Factory>, mpsc::Sender<Event>) {
    let (order, orders) = mpsc::channel(8);
    let factory = Factory { orders, work, rests: 0, settled: 0, after: Vec::new() };
    (Driver::new(Worker::default(), factory, Clock::start()), order)
}

/// Runs the driver for `time`; an error if a job panics meanwhile.
async fn run_for(driver: &mut Driver<Worker, Factory>, time: Duration) -> Result<(), JobPanicked> {
    timeout(time, driver.run(&CancellationToken::new())).await.unwrap_or(Ok(()))
}

#[tokio::test(start_paused = true)]
async fn inputs_results_and_ticks_reach_the_machine_in_time() {
    let (mut driver, orders) = driver(Work::Takes(Duration::from_secs(1)));
    orders.send(Event::Begin).await.unwrap();
    run_for(&mut driver, Duration::from_secs(15)).await.unwrap();
    // Interrupted during a job, it loses nothing.
    run_for(&mut driver, Duration::from_millis(6500)).await.unwrap();
    run_for(&mut driver, Duration::from_secs(60)).await.unwrap();
    let seen: Vec<_> = driver.machine.seen.iter().map(|(event, at)| (*event, at.as_secs())).collect();
    let expected = [
        (Event::Begin, 0),
        (Event::Done, 1),
        (Event::Tick, 11),
        (Event::Done, 12),
        (Event::Tick, 22),
        (Event::Done, 23),
    ];
    assert_eq!(seen, expected);
    assert_eq!(driver.shell.rests, 1);
    assert_eq!(driver.shell.settled, 6, "once after each input or tick");
}

#[tokio::test(start_paused = true)]
async fn events_that_settling_causes_are_handled_before_other_inputs() {
    let (mut driver, orders) = driver(Work::IsAborted);
    driver.shell.after = vec![Event::Settled];
    orders.send(Event::Begin).await.unwrap();
    driver.handle([Event::Tick, Event::Tick]);
    run_for(&mut driver, Duration::from_secs(1)).await.unwrap();
    let seen: Vec<_> = driver.machine.seen.iter().map(|(event, _)| *event).collect();
    assert_eq!(seen, [Event::Tick, Event::Tick, Event::Settled, Event::Begin]);
    assert_eq!(driver.into_shell().settled, 3, "after each batch of events");
}

#[tokio::test(start_paused = true)]
async fn a_driver_ends_if_stopped_or_without_inputs_but_not_if_a_job_is_aborted() {
    let (mut stopped, _orders) = driver(Work::IsAborted);
    stopped.handle([Event::Begin]);
    let stop = CancellationToken::new();
    assert!(timeout(Duration::from_secs(60), stopped.run(&stop)).await.is_err(), "it has ended by itself");
    stop.cancel();
    stopped.run(&stop).await.unwrap();

    let (mut without_input, orders) = driver(Work::IsAborted);
    drop(orders);
    timeout(Duration::from_secs(60), without_input.run(&CancellationToken::new())).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_job_that_panics_ends_the_driver() {
    let (mut driver, _orders) = driver(Work::Panics);
    driver.handle([Event::Begin]);
    let failed = run_for(&mut driver, Duration::from_secs(60)).await.unwrap_err();
    assert!(failed.0.is_panic());
}
