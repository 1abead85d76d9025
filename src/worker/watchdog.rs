//! Names the task that blocks the async runtime.
//!
//! Each poll of a handler leaves a note at its thread's seat; a plain thread looks at the seats, and
//! sleeps while nothing is polled.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::protocol::Envelope;

/// A poll longer than this is named.
const TOO_LONG: Duration = Duration::from_millis(100);

static SEATS: Mutex<Vec<Weak<Seat>>> = Mutex::new(Vec::new());
static WATCHING: OnceLock<Option<Thread>> = OnceLock::new();
/// Something was polled since the last look.
static POLLED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static HERE: Arc<Seat> = Seat::new();
}

/// What one thread polls right now.
#[derive(Default)]
struct Seat(Mutex<Option<Note>>);

struct Note {
    since: Instant,
    task: Arc<Envelope>,
    told: bool,
}

impl Seat {
    fn new() -> Arc<Self> {
        let seat = Arc::new(Self::default());
        let mut seats = SEATS.lock().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|seat| seat.strong_count() > 0);
        seats.push(Arc::downgrade(&seat));
        seat
    }

    fn note(&self, note: Option<Note>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = note;
    }

    /// Says whether something is polled there.
    fn look(&self) -> bool {
        let mut note = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        note.as_mut().map(Note::tell).is_some()
    }
}

impl Note {
    /// Warns, once, when the poll has taken too long by now.
    fn tell(&mut self) {
        if self.told || self.since.elapsed() <= TOO_LONG {
            return;
        }
        self.told = true;
        warn!(
            task.name = %self.task.name,
            task.id = %self.task.id,
            "blocks the async runtime for over 100 ms: make it `handle_blocking`, or await more often"
        );
    }
}

/// Starts the watching thread, once a process.
pub(super) fn start() {
    WATCHING.get_or_init(|| {
        let thread = thread::Builder::new().name("countersign-watchdog".into()).spawn(watch);
        thread
            .map(|running| running.thread().clone())
            .map_err(|error| warn!("no watchdog: {error}"))
            .ok()
    });
}

fn watch() {
    loop {
        thread::sleep(TOO_LONG);
        let seats = SEATS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let busy = seats.iter().filter_map(Weak::upgrade).filter(|seat| seat.look()).count();
        if !POLLED.swap(false, Ordering::AcqRel) && busy == 0 {
            thread::park();
        }
    }
}

fn wake() {
    if !POLLED.load(Ordering::Relaxed)
        && !POLLED.swap(true, Ordering::AcqRel)
        && let Some(Some(watcher)) = WATCHING.get()
    {
        watcher.unpark();
    }
}

/// A handler's future, watched while it is polled.
pub(super) struct Watched<F> {
    run: F,
    task: Arc<Envelope>,
}

impl<F> Watched<F> {
    pub(super) fn new(run: F, task: Arc<Envelope>) -> Self {
        Self { run, task }
    }
}

impl<F: Future + Unpin> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let note = Note { since: Instant::now(), task: Arc::clone(&self.task), told: false };
        let noted = HERE.try_with(|seat| {
            seat.note(Some(note));
            wake();
            Leave(Arc::clone(seat))
        });
        let polled = Pin::new(&mut self.run).poll(cx);
        drop(noted);
        polled
    }
}

/// Takes the note away, also when the poll panics.
struct Leave(Arc<Seat>);

impl Drop for Leave {
    fn drop(&mut self) {
        // It may have come and gone between two looks.
        self.0.look();
        self.0.note(None);
    }
}
