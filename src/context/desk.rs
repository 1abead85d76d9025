//! What a run asks, between its handler, which waits, and its worker, which parks it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::approval::{ApprovalId, Question, Ruling};
use crate::error::TaskError;

/// The questions of one run.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    papers: Mutex<Papers>,
    asked: Notify,
}

#[derive(Debug, Default)]
struct Papers {
    /// What is known to be decided.
    rulings: HashMap<ApprovalId, Ruling>,
    /// In the order in which they were asked.
    waiting: Vec<Waiting>,
    /// Long sleeps of the handler, by number.
    naps: HashMap<u64, (Instant, Waker)>,
    naps_begun: u64,
    /// Asked in this run, and dropped undecided.
    abandoned: Vec<ApprovalId>,
    occurrences: HashMap<String, u32>,
    /// Why nothing can be asked any more.
    closed: Option<&'static str>,
}

#[derive(Debug)]
struct Waiting {
    question: Question,
    waker: Waker,
}

impl Desk {
    fn papers(&self) -> MutexGuard<'_, Papers> {
        self.papers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which approval of this name it is that begins now, from 0.
    pub(super) fn occurrence(&self, name: &str) -> u32 {
        let mut papers = self.papers();
        let next = papers.occurrences.entry(name.to_owned()).or_default();
        let this = *next;
        *next += 1;
        this
    }

    /// How `question` was decided; until that is known, `waker` is woken.
    pub(super) fn poll(
        &self,
        question: &Question,
        waker: &Waker,
    ) -> Poll<Result<Ruling, TaskError>> {
        let mut papers = self.papers();
        if let Some(why) = papers.closed {
            return Poll::Ready(Err(TaskError::fatal(format!("{}: {why}", question.name))));
        }
        let known = papers.rulings.get(&question.id).cloned();
        if let Some(ruling) = known.filter(|ruling| question.has_digest(&ruling.digest)) {
            papers.waiting.retain(|waiting| waiting.question.id != question.id);
            return Poll::Ready(Ok(ruling));
        }
        match papers.waiting.iter_mut().find(|waiting| waiting.question.id == question.id) {
            Some(waiting) => waiting.waker.clone_from(waker),
            None => {
                papers.abandoned.retain(|id| *id != question.id);
                let waiting = Waiting { question: question.clone(), waker: waker.clone() };
                papers.waiting.push(waiting);
                self.asked.notify_one();
            }
        }
        Poll::Pending
    }

    /// Nobody waits for this one any more. Parking drops handlers too: that is no change of mind.
    pub(super) fn abandon(&self, id: &ApprovalId) {
        let mut papers = self.papers();
        let before = papers.waiting.len();
        papers.waiting.retain(|waiting| waiting.question.id != *id);
        if papers.closed.is_none() && papers.waiting.len() < before {
            tracing::info!(approval = %id, "dropped undecided: it is withdrawn");
            papers.abandoned.push(id.clone());
        }
    }

    /// Begins a sleep until then, or goes on with the one that has this number.
    pub(super) fn nap(
        &self,
        number: Option<u64>,
        until: Instant,
        waker: &Waker,
    ) -> Result<u64, TaskError> {
        let mut papers = self.papers();
        if let Some(why) = papers.closed {
            return Err(TaskError::fatal(why));
        }
        let number = number.unwrap_or_else(|| {
            self.asked.notify_one();
            papers.naps_begun += 1;
            papers.naps_begun
        });
        papers.naps.insert(number, (until, waker.clone()));
        Ok(number)
    }

    pub(super) fn wake_up(&self, nap: u64) {
        self.papers().naps.remove(&nap);
    }

    /// How long until the first sleep ends; `None` when there is none.
    pub(crate) fn first_nap(&self) -> Option<Duration> {
        let first = self.papers().naps.values().map(|(until, _)| *until).min();
        first.map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// Whether something is waited for that is worth a park.
    pub(crate) fn waits(&self) -> bool {
        let papers = self.papers();
        !papers.waiting.is_empty() || !papers.naps.is_empty()
    }

    /// Completes when something is waited for. Cancel safe.
    pub(crate) async fn asked(&self) {
        while !self.waits() {
            self.asked.notified().await;
        }
    }

    /// Everything that is waited for.
    pub(crate) fn questions(&self) -> Vec<Question> {
        self.papers().waiting.iter().map(|waiting| waiting.question.clone()).collect()
    }

    /// What was asked and is not waited for any more.
    pub(crate) fn abandoned(&self) -> Vec<ApprovalId> {
        self.papers().abandoned.clone()
    }

    /// These are decided: whoever waits for one goes on.
    pub(crate) fn tell(&self, rulings: Vec<Ruling>) {
        let mut papers = self.papers();
        for ruling in rulings {
            let decided = |waiting: &mut Waiting| waiting.question.id == ruling.approval;
            let woken: Vec<_> = papers.waiting.extract_if(.., decided).collect();
            papers.rulings.insert(ruling.approval.clone(), ruling);
            woken.into_iter().for_each(|waiting| waiting.waker.wake());
        }
    }

    /// From now on every approval ends with an error that says why: also in what was spawned.
    pub(crate) fn close(&self, why: &'static str) {
        let mut papers = self.papers();
        papers.closed = Some(why);
        papers.waiting.drain(..).for_each(|waiting| waiting.waker.wake());
        papers.naps.drain().for_each(|(_, (_, waker))| waker.wake());
    }
}
