//! The registered waits for results, and their deadlines. Does no I/O. It holds up to 100,000 waits at
//! a time, so its entries are kept small.

use std::cmp::Reverse;
use std::collections::hash_map::Entry as Slot;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::backend::Origin;
use crate::error::{Error, Kind};
use crate::protocol::Document;
use crate::task::TaskId;

/// The sending half of a wait. The document is boxed because the channel reserves space for it at once.
pub(in crate::backend) type ResultSender = oneshot::Sender<Result<Box<Document>, Error>>;

/// All registered waits.
#[derive(Debug, Default)]
pub(in crate::backend) struct Waiters {
    tasks: HashMap<TaskId, Waited>,
    deadlines: BinaryHeap<Reverse<Deadline>>,
    last_token: u64,
}

/// One awaited task; most have one waiter.
#[derive(Debug)]
struct Waited {
    first: Waiter,
    more: Vec<Waiter>,
    /// Whether a waiter expects the result on the reply channel.
    own: bool,
    /// Whether a waiter needs the task's own channel.
    foreign: bool,
}

#[derive(Debug)]
struct Waiter {
    token: u64,
    sender: ResultSender,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Deadline {
    at: Instant,
    token: u64,
    id: TaskId,
    after: Duration,
}

impl Waiters {
    /// Adds a wait that ends after `timeout`. A timeout beyond the range of the clock counts as none.
    pub(in crate::backend) fn add(
        &mut self,
        id: TaskId,
        origin: Origin,
        timeout: Option<Duration>,
        sender: ResultSender,
    ) {
        self.last_token += 1;
        let token = self.last_token;
        if let Some(after) = timeout
            && let Some(at) = Instant::now().checked_add(after)
        {
            self.deadlines.push(Reverse(Deadline { at, token, id: id.clone(), after }));
        }
        let (own, foreign) = (origin == Origin::Own, origin == Origin::Foreign);
        let waiter = Waiter { token, sender };
        match self.tasks.entry(id) {
            Slot::Vacant(slot) => {
                slot.insert(Waited { first: waiter, more: Vec::new(), own, foreign });
            }
            Slot::Occupied(mut slot) => {
                let waited = slot.get_mut();
                waited.more.push(waiter);
                waited.own |= own;
                waited.foreign |= foreign;
            }
        }
    }

    pub(in crate::backend) fn is_waited(&self, id: &TaskId) -> bool {
        self.tasks.contains_key(id)
    }

    pub(in crate::backend) fn is_own(&self, id: &TaskId) -> bool {
        self.tasks.get(id).is_some_and(|waited| waited.own)
    }

    pub(in crate::backend) fn is_foreign(&self, id: &TaskId) -> bool {
        self.tasks.get(id).is_some_and(|waited| waited.foreign)
    }

    /// Returns whether no task is awaited.
    #[cfg(feature = "embedded")]
    pub(in crate::backend) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Returns every awaited task.
    pub(in crate::backend) fn ids(&self) -> impl Iterator<Item = &TaskId> {
        self.tasks.keys()
    }

    /// Returns every task whose own channel is needed.
    pub(in crate::backend) fn foreign_ids(&self) -> impl Iterator<Item = &TaskId> {
        self.tasks.iter().filter(|(_, waited)| waited.foreign).map(|(id, _)| id)
    }

    /// Sends the document to all waiters of the task. Returns whether the task's own channel was needed.
    pub(in crate::backend) fn resolve(&mut self, document: &Document) -> bool {
        let Some(waited) = self.tasks.remove(&document.id) else {
            return false;
        };
        let foreign = waited.foreign;
        for waiter in waited.into_waiters() {
            // The send fails if the waiter has dropped its receiver.
            let _ = waiter.sender.send(Ok(Box::new(document.clone())));
        }
        self.compact();
        foreign
    }

    /// Returns the nearest deadline.
    pub(in crate::backend) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.peek().map(|Reverse(deadline)| deadline.at)
    }

    /// Ends the waits whose deadline has passed. Returns the tasks whose channel is no longer needed.
    pub(in crate::backend) fn expire(&mut self, now: Instant) -> Vec<TaskId> {
        let mut left = Vec::new();
        while self.next_deadline().is_some_and(|at| at <= now) {
            let Some(Reverse(deadline)) = self.deadlines.pop() else {
                break;
            };
            let Slot::Occupied(slot) = self.tasks.entry(deadline.id) else {
                continue;
            };
            let id = slot.key().clone();
            let (id_again, waited) = slot.remove_entry();
            let foreign = waited.foreign;
            let (passed, others) = waited.split(|waiter| waiter.token == deadline.token);
            for waiter in passed {
                let what = format!("waiting for the result of task {id}");
                let timeout = Kind::Timeout { what, after: deadline.after };
                let _ = waiter.sender.send(Err(timeout.into()));
            }
            match others {
                Some(others) => drop(self.tasks.insert(id_again, others)),
                None if foreign => left.push(id),
                None => {}
            }
        }
        left
    }

    /// Removes waits whose receiver was dropped. Returns the tasks whose channel is no longer needed.
    pub(in crate::backend) fn forget_dropped(&mut self) -> Vec<TaskId> {
        let mut left = Vec::new();
        let dropped = |waiter: &Waiter| waiter.sender.is_closed();
        let affected: Vec<TaskId> = self
            .tasks
            .iter()
            .filter(|(_, waited)| dropped(&waited.first) || waited.more.iter().any(dropped))
            .map(|(id, _)| id.clone())
            .collect();
        for id in affected {
            let Some(waited) = self.tasks.remove(&id) else {
                continue;
            };
            let foreign = waited.foreign;
            match waited.split(dropped).1 {
                Some(others) => drop(self.tasks.insert(id, others)),
                None if foreign => left.push(id),
                None => {}
            }
        }
        self.compact();
        left
    }

    /// Ends every wait with the error "closed".
    pub(in crate::backend) fn close(&mut self) {
        self.deadlines.clear();
        for (_, waited) in self.tasks.drain() {
            for waiter in waited.into_waiters() {
                let _ = waiter.sender.send(Err(Kind::Closed.into()));
            }
        }
    }

    /// Removes deadlines of ended waits once they outnumber the others.
    fn compact(&mut self) {
        if self.deadlines.len() <= 2 * self.tasks.len() + 1024 {
            return;
        }
        let tasks = &self.tasks;
        self.deadlines.retain(|Reverse(deadline)| {
            tasks.get(&deadline.id).is_some_and(|waited| waited.has(deadline.token))
        });
        self.deadlines.shrink_to(1024);
        self.tasks.shrink_to(1024);
    }
}

impl Waited {
    fn has(&self, token: u64) -> bool {
        self.first.token == token || self.more.iter().any(|waiter| waiter.token == token)
    }

    fn into_waiters(self) -> impl Iterator<Item = Waiter> {
        std::iter::once(self.first).chain(self.more)
    }

    /// Splits off the waiters for which `leaves` is true. Returns them, and the rest if any remain.
    fn split(self, leaves: impl Fn(&Waiter) -> bool) -> (Vec<Waiter>, Option<Self>) {
        let (own, foreign) = (self.own, self.foreign);
        let (removed, mut remaining): (Vec<_>, Vec<_>) = self.into_waiters().partition(leaves);
        let rest = remaining.pop().map(|first| Self { first, more: remaining, own, foreign });
        (removed, rest)
    }
}
