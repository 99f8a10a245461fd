//! Takes events from `tracing`, counts those that repeat themselves, and writes the lines.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::format;
use super::journal::Journal;
use super::line::{Field, Fields, Line, Span};
use super::recent::RecentLines;
use super::repeats::{self, Entry, Repeats};

/// The log of a process.
pub(super) struct Log {
    /// Whether lines are written with shortened addresses.
    safe: AtomicBool,
    origin: Instant,
    recent: RecentLines,
    /// Notified when a report of repeated lines has become due earlier.
    earlier: Notify,
    /// One lock for both, so that lines are written in the order in which they were counted.
    writing: Mutex<Writing>,
}

struct Writing {
    repeats: Repeats,
    sink: Sink,
}

/// Where lines go, and in which format.
pub(super) enum Sink {
    /// Text with the time.
    Text { to: Box<dyn Write + Send>, ansi: bool },
    /// JSON, an object a line.
    Json(Box<dyn Write + Send>),
    /// Text for standard error that is the journal's.
    JournalText(Box<dyn Write + Send>),
    /// Entries of the journal, and text as above for those that it does not take.
    Journal { journal: Journal, instead: Box<dyn Write + Send> },
}

impl Sink {
    fn write(&mut self, Entry { shown, repeated, .. }: &Entry, time: &str) {
        // There is no other place to which a failure could be reported.
        let _ = match self {
            Self::Text { to, ansi } => to.write_all(format::timed_text(shown, *repeated, *ansi, time).as_bytes()),
            Self::Journal { journal, instead } => journal
                .send(shown, *repeated)
                .or_else(|_| instead.write_all(format::journal_text(shown, *repeated).as_bytes())),
            Self::JournalText(to) => to.write_all(format::journal_text(shown, *repeated).as_bytes()),
            Self::Json(to) => match format::json(shown, *repeated, time) {
                Ok(line) => to.write_all(line.as_bytes()),
                Err(_) => Ok(()),
            },
        };
    }
}

impl Log {
    pub(super) fn new(sink: Sink) -> Self {
        Self {
            safe: AtomicBool::new(true),
            origin: Instant::now(),
            recent: RecentLines::new(),
            earlier: Notify::new(),
            writing: Mutex::new(Writing { repeats: Repeats::default(), sink }),
        }
    }

    pub(super) fn set_safe(&self, safe: bool) {
        self.safe.store(safe, Ordering::Relaxed);
    }

    /// The last lines, the oldest first.
    pub(super) fn recent(&self) -> Vec<String> {
        self.recent.all()
    }

    fn take(&self, whole: Line) {
        let whole = Arc::new(whole);
        let shown = match self.safe.load(Ordering::Relaxed) {
            true => Arc::new(whole.shortened()),
            false => Arc::clone(&whole),
        };
        self.handle(repeats::Event::Line { shown, whole });
    }

    fn handle(&self, event: repeats::Event) {
        let mut writing = self.writing.lock();
        let before = writing.repeats.next_timeout();
        let entries = writing.repeats.handle(event, self.origin.elapsed());
        if !entries.is_empty() {
            let time = format::now();
            for entry in entries {
                writing.sink.write(&entry, &time);
                self.recent.push(&format::timed_text(&entry.whole, entry.repeated, false, &time));
            }
        }
        let after = writing.repeats.next_timeout();
        drop(writing);
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            self.earlier.notify_one();
        }
    }

    /// Writes how often lines were repeated, when that is due. Runs without end.
    pub(super) async fn report_repeated(&self) {
        loop {
            let due = self.writing.lock().repeats.next_timeout();
            let pause = due.map(|due| due.saturating_sub(self.origin.elapsed()));
            tokio::select! {
                () = self.earlier.notified() => {}
                () = sleep(pause.unwrap_or_default()), if pause.is_some() => {
                    self.handle(repeats::Event::Tick);
                }
            }
        }
    }

    /// Writes how often lines were repeated, before the process ends.
    pub(super) fn finish(&self) {
        self.handle(repeats::Event::End);
    }
}

/// Hands events to the log, with the spans around them.
pub(super) struct LogLayer(pub(super) Arc<Log>);

/// The fields of a span, kept with it.
struct SpanFields(Vec<Field>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(SpanFields(fields.others));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        let Some(SpanFields(known)) = extensions.get_mut() else { return };
        let mut fields = Fields::known(std::mem::take(known));
        values.record(&mut fields);
        *known = fields.others;
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = Line::of(event);
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            let fields = span.extensions().get::<SpanFields>().map(|SpanFields(fields)| fields.clone());
            line.spans.push(Span { name: span.name(), fields: fields.unwrap_or_default() });
        }
        self.0.take(line);
    }
}
