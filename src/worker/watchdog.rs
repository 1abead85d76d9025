//! Logs the task that blocks the async runtime.
//!
//! Each poll of a handler records itself in a per-thread slot. A plain thread inspects the slots, and
//! sleeps while nothing is polled.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::protocol::Envelope;

/// A poll longer than this is logged.
const MAX_POLL: Duration = Duration::from_millis(100);

static SLOTS: Mutex<Vec<Weak<ThreadSlot>>> = Mutex::new(Vec::new());
static WATCHDOG: OnceLock<Option<Thread>> = OnceLock::new();
/// Whether a handler was polled since the last inspection.
static POLLED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static CURRENT_SLOT: Arc<ThreadSlot> = ThreadSlot::new();
}

/// The poll that one thread runs now.
#[derive(Default)]
struct ThreadSlot(Mutex<Option<PollRecord>>);

struct PollRecord {
    since: Instant,
    task: Arc<Envelope>,
    is_logged: bool,
}

impl ThreadSlot {
    fn new() -> Arc<Self> {
        let slot = Arc::new(Self::default());
        let mut slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(Arc::downgrade(&slot));
        slot
    }

    fn set(&self, record: Option<PollRecord>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = record;
    }

    /// Reports a poll that takes too long; returns whether one runs on the thread.
    fn inspect(&self) -> bool {
        let mut record = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        record.as_mut().map(PollRecord::report).is_some()
    }
}

impl PollRecord {
    /// Warns, once, when the poll has taken too long by now.
    fn report(&mut self) {
        if self.is_logged || self.since.elapsed() <= MAX_POLL {
            return;
        }
        self.is_logged = true;
        warn!(
            task.name = %self.task.name,
            task.id = %self.task.id,
            "blocks the async runtime for over 100 ms: make it `handle_blocking`, or await more often"
        );
    }
}

/// Starts the watchdog thread, once per process.
pub(super) fn start() {
    WATCHDOG.get_or_init(|| {
        let thread = thread::Builder::new().name("countersign-watchdog".into()).spawn(watch);
        thread
            .map(|running| running.thread().clone())
            .map_err(|error| warn!("cannot start the watchdog thread: {error}"))
            .ok()
    });
}

fn watch() {
    loop {
        thread::sleep(MAX_POLL);
        let slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let busy = slots.iter().filter_map(Weak::upgrade).filter(|slot| slot.inspect()).count();
        if !POLLED.swap(false, Ordering::AcqRel) && busy == 0 {
            thread::park();
        }
    }
}

fn wake() {
    if !POLLED.load(Ordering::Relaxed)
        && !POLLED.swap(true, Ordering::AcqRel)
        && let Some(Some(thread)) = WATCHDOG.get()
    {
        thread.unpark();
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
        let record =
            PollRecord { since: Instant::now(), task: Arc::clone(&self.task), is_logged: false };
        let guard = CURRENT_SLOT.try_with(|slot| {
            slot.set(Some(record));
            wake();
            ClearOnDrop(Arc::clone(slot))
        });
        let polled = Pin::new(&mut self.run).poll(cx);
        drop(guard);
        polled
    }
}

/// Removes the record, also when the poll panics.
struct ClearOnDrop(Arc<ThreadSlot>);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        // The poll may have begun and ended between two inspections.
        self.0.inspect();
        self.0.set(None);
    }
}
