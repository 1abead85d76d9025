//! Who is to be told when something has happened. A bell is never the truth: whoever hears one
//! reads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, broadcast};

use crate::approval::ApprovalId;
use crate::backend::Revocation;
use crate::backend::waiters::Waiters;
use crate::protocol::Document;
use crate::task::TaskId;

/// Rings that a slow listener may lag behind.
const BACKLOG: usize = 1024;

/// What has happened.
#[derive(Clone, Debug)]
pub(super) enum Ring {
    /// Something arrived in this queue, or came back to it.
    Queue(i64),
    /// Perhaps in any.
    Queues,
    /// A task has ended like this.
    Ended(Box<Document>),
    /// A question was decided, or none is known to have been.
    Decided(Option<ApprovalId>),
    /// Likewise asked.
    Asked(Option<ApprovalId>),
    /// These were revoked; none: read them all.
    Revoked(Vec<Revocation>),
    /// A stream has grown.
    Stream(TaskId),
}

/// Everyone who listens in this process.
#[derive(Debug)]
pub(super) struct Bells {
    arrivals: Mutex<HashMap<i64, Vec<Weak<Notify>>>>,
    waiters: Mutex<Waiters>,
    /// A wait was added: it may end before all others, or be the first one.
    pub(super) waited: Notify,
    pub(super) decided: broadcast::Sender<Option<ApprovalId>>,
    pub(super) asked: broadcast::Sender<Option<ApprovalId>>,
    pub(super) revoked: broadcast::Sender<Vec<Revocation>>,
    followed: Mutex<HashMap<TaskId, Weak<Notify>>>,
}

impl Default for Bells {
    fn default() -> Self {
        Self {
            arrivals: Mutex::default(),
            waiters: Mutex::default(),
            waited: Notify::new(),
            decided: broadcast::Sender::new(BACKLOG),
            asked: broadcast::Sender::new(BACKLOG),
            revoked: broadcast::Sender::new(BACKLOG),
            followed: Mutex::default(),
        }
    }
}

impl Bells {
    /// Is told whenever something may have arrived in this queue. A permit is kept for who listens
    /// later.
    pub(super) fn arrivals(&self, queue: i64) -> Arc<Notify> {
        let bell = Arc::new(Notify::new());
        let mut arrivals = lock(&self.arrivals);
        let bells = arrivals.entry(queue).or_default();
        bells.retain(|bell| bell.strong_count() > 0);
        bells.push(Arc::downgrade(&bell));
        bell
    }

    /// Is told whenever this task's stream grows.
    pub(super) fn stream(&self, task: &TaskId) -> Arc<Notify> {
        let mut followed = lock(&self.followed);
        if let Some(bell) = followed.get(task).and_then(Weak::upgrade) {
            return bell;
        }
        followed.retain(|_, bell| bell.strong_count() > 0);
        let bell = Arc::new(Notify::new());
        followed.insert(task.clone(), Arc::downgrade(&bell));
        bell
    }

    /// The book of who waits for results.
    pub(super) fn waiters(&self) -> MutexGuard<'_, Waiters> {
        lock(&self.waiters)
    }

    pub(super) fn ring(&self, ring: Ring) {
        match ring {
            Ring::Queue(queue) => {
                let arrivals = lock(&self.arrivals);
                arrivals.get(&queue).into_iter().flatten().for_each(notify);
            }
            Ring::Queues => lock(&self.arrivals).values().flatten().for_each(notify),
            Ring::Ended(document) => drop(self.waiters().resolve(&document)),
            // Nobody may listen.
            Ring::Decided(id) => drop(self.decided.send(id)),
            Ring::Asked(id) => drop(self.asked.send(id)),
            Ring::Revoked(marks) => drop(self.revoked.send(marks)),
            Ring::Stream(task) => {
                if let Some(bell) = lock(&self.followed).get(&task).and_then(Weak::upgrade) {
                    bell.notify_waiters();
                }
            }
        }
    }

    /// Rings everything but results: some rings may have been missed.
    pub(super) fn ring_all(&self) {
        self.ring(Ring::Queues);
        self.ring(Ring::Decided(None));
        self.ring(Ring::Asked(None));
        self.ring(Ring::Revoked(Vec::new()));
        let followed: Vec<_> = lock(&self.followed).values().filter_map(Weak::upgrade).collect();
        followed.iter().for_each(|bell| bell.notify_waiters());
    }
}

fn notify(bell: &Weak<Notify>) {
    if let Some(bell) = bell.upgrade() {
        bell.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
