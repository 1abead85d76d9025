//! Notifications within this process. They are hints: a subscriber always re-reads the stored state.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, broadcast};

use crate::approval::ApprovalId;
use crate::backend::early_results::EarlyResults;
use crate::backend::waiters::{ResultSender, Waiters};
use crate::backend::{Origin, Revocation};
use crate::keyed_notify::KeyedNotify;
use crate::protocol::{Document, State};
use crate::task::TaskId;

/// The number of events that a slow subscriber may lag behind.
const CHANNEL_CAPACITY: usize = 1024;

/// An event.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A message arrived in this queue, or was requeued.
    Queue(i64),
    /// A message may have arrived in any queue.
    Queues,
    /// A task has ended with this document.
    Ended(Box<Document>),
    /// The data of a task were deleted.
    Forgotten(TaskId),
    /// A request was decided; `None`: any may have been.
    Decided(Option<ApprovalId>),
    /// A request was made; `None`: any may have been.
    NewRequest(Option<ApprovalId>),
    /// These tasks were revoked; if empty, read all marks.
    Revoked(Vec<Revocation>),
    /// A stream has grown.
    Stream(TaskId),
}

/// All subscriptions in this process.
#[derive(Debug)]
pub(super) struct Notifications {
    arrivals: Mutex<HashMap<i64, Vec<Weak<Notify>>>>,
    waiters: Mutex<Waiters>,
    /// Successes that no caller has waited for yet. Locked after `waiters`.
    early: Mutex<EarlyResults>,
    /// Whether this process waits for results at all. One that only runs tasks keeps no early results.
    is_awaiting: AtomicBool,
    /// A wait was added that may end before all others, or is the first one.
    pub(super) waited: Notify,
    /// Wakes the waits for a decision on a request.
    pub(super) decided: KeyedNotify<ApprovalId>,
    pub(super) new_requests: broadcast::Sender<Option<ApprovalId>>,
    pub(super) revoked: broadcast::Sender<Vec<Revocation>>,
    followed: Mutex<HashMap<TaskId, Weak<Notify>>>,
}

impl Default for Notifications {
    fn default() -> Self {
        Self {
            arrivals: Mutex::default(),
            waiters: Mutex::default(),
            early: Mutex::default(),
            is_awaiting: AtomicBool::new(false),
            waited: Notify::new(),
            decided: KeyedNotify::default(),
            new_requests: broadcast::Sender::new(CHANNEL_CAPACITY),
            revoked: broadcast::Sender::new(CHANNEL_CAPACITY),
            followed: Mutex::default(),
        }
    }
}

impl Notifications {
    /// Returns a `Notify` for messages that may have arrived in this queue. It keeps one permit for a
    /// waiter that comes later.
    pub(super) fn arrivals(&self, queue: i64) -> Arc<Notify> {
        let waiter = Arc::new(Notify::new());
        let mut arrivals = lock(&self.arrivals);
        let waiting = arrivals.entry(queue).or_default();
        waiting.retain(|waiter| waiter.strong_count() > 0);
        waiting.push(Arc::downgrade(&waiter));
        waiter
    }

    /// Returns a `Notify` for new entries of this task's stream.
    pub(super) fn stream(&self, task: &TaskId) -> Arc<Notify> {
        let mut followed = lock(&self.followed);
        if let Some(waiter) = followed.get(task).and_then(Weak::upgrade) {
            return waiter;
        }
        followed.retain(|_, waiter| waiter.strong_count() > 0);
        let waiter = Arc::new(Notify::new());
        followed.insert(task.clone(), Arc::downgrade(&waiter));
        waiter
    }

    /// Returns the registered waits for results.
    pub(super) fn waiters(&self) -> MutexGuard<'_, Waiters> {
        lock(&self.waiters)
    }

    /// Registers a wait, or ends it at once by an early result. Returns whether the stored result must be
    /// read: the task may have ended before.
    pub(super) fn watch(
        &self,
        id: TaskId,
        origin: Origin,
        timeout: Option<Duration>,
        sender: ResultSender,
    ) -> bool {
        self.is_awaiting.store(true, Ordering::Relaxed);
        let mut waiters = self.waiters();
        if origin == Origin::Own
            && let Some(document) = lock(&self.early).take(&id)
        {
            // The send fails if the caller has dropped its receiver.
            let _ = sender.send(Ok(Box::new(document)));
            return false;
        }
        let is_first = waiters.is_empty();
        waiters.add(id, origin, timeout, sender);
        drop(waiters);
        if is_first || timeout.is_some() {
            self.waited.notify_one();
        }
        true
    }

    /// Resolves the waits for a task that has ended. Keeps the result if there is none yet.
    fn end(&self, document: &Document) {
        let mut waiters = self.waiters();
        if waiters.is_waited(&document.id) {
            waiters.resolve(document);
        } else if self.is_awaiting.load(Ordering::Relaxed) && document.state == State::Success {
            lock(&self.early).keep(document.id.clone(), document.json.clone());
        }
    }

    pub(super) fn notify(&self, event: Event) {
        match event {
            Event::Queue(queue) => {
                let arrivals = lock(&self.arrivals);
                arrivals.get(&queue).into_iter().flatten().for_each(notify);
            }
            Event::Queues => lock(&self.arrivals).values().flatten().for_each(notify),
            Event::Ended(document) => self.end(&document),
            Event::Forgotten(id) => lock(&self.early).forget(&id),
            Event::Decided(Some(id)) => self.decided.notify(&id),
            Event::Decided(None) => self.decided.notify_all(),
            // The send fails if there are no subscribers.
            Event::NewRequest(id) => drop(self.new_requests.send(id)),
            Event::Revoked(marks) => drop(self.revoked.send(marks)),
            Event::Stream(task) => {
                if let Some(waiter) = lock(&self.followed).get(&task).and_then(Weak::upgrade) {
                    waiter.notify_waiters();
                }
            }
        }
    }

    /// Sends all events except results, because some may have been missed.
    pub(super) fn notify_all(&self) {
        self.notify(Event::Queues);
        self.notify(Event::Decided(None));
        self.notify(Event::NewRequest(None));
        self.notify(Event::Revoked(Vec::new()));
        let followed: Vec<_> = lock(&self.followed).values().filter_map(Weak::upgrade).collect();
        followed.iter().for_each(|waiter| waiter.notify_waiters());
    }
}

fn notify(waiter: &Weak<Notify>) {
    if let Some(waiter) = waiter.upgrade() {
        waiter.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
