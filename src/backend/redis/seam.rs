//! The store's part that is about approvals, by the names of its seam.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::broadcast;

use super::RedisStore;
use super::parks::Caller;
use crate::approval::{Answer, ApprovalId, Decision, Question};
use crate::backend::{Approvals, Found, Parked, Parking, Resume, Taken};
use crate::error::Error;
use crate::protocol::{TaskDigest, Ticket};
use crate::task::TaskId;

impl Approvals for RedisStore {
    fn take_parked(
        &self,
        id: &TaskId,
        ticket: Ticket,
        digest: Option<&TaskDigest>,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<Taken, Error>> {
        let caller = Caller { holder: holder.to_owned(), digest: digest.cloned(), lease };
        Box::pin(self.take_ticket(id.clone(), ticket, caller))
    }

    fn begin_park(
        &self,
        id: &TaskId,
        digest: &TaskDigest,
        starts_anew: bool,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<Taken, Error>> {
        let caller = Caller { holder: holder.to_owned(), digest: Some(digest.clone()), lease };
        Box::pin(self.take_run(id.clone(), ("begin", 0, starts_anew), caller))
    }

    fn park(&self, parking: Parking) -> BoxFuture<'_, Result<Parked, Error>> {
        Box::pin(self.park_run(parking))
    }

    fn renew_claim(
        &self,
        id: &TaskId,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(self.lease(id.clone(), holder.to_owned(), Some(lease)))
    }

    fn release_claim(&self, id: &TaskId, holder: &str) -> BoxFuture<'_, Result<(), Error>> {
        let released = self.lease(id.clone(), holder.to_owned(), None);
        Box::pin(async move { released.await.map(drop) })
    }

    fn end_parked(
        &self,
        id: &TaskId,
        digest: Option<&TaskDigest>,
    ) -> BoxFuture<'_, Result<Vec<ApprovalId>, Error>> {
        Box::pin(self.end_park(id.clone(), digest.cloned()))
    }

    fn ask(&self, question: Question) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.ask_outside(question))
    }

    fn asked(&self, ids: &[ApprovalId]) -> BoxFuture<'_, Result<Vec<Found>, Error>> {
        Box::pin(self.read_asked(ids.to_vec()))
    }

    fn pending(
        &self,
        from: usize,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<(ApprovalId, i64)>, Error>> {
        Box::pin(self.read_pending(from, limit))
    }

    fn decide(
        &self,
        decision: &Decision,
    ) -> BoxFuture<'_, Result<(Answer, Option<Resume>), Error>> {
        Box::pin(self.take_decision(decision.clone()))
    }

    fn extend(
        &self,
        id: &ApprovalId,
        by: &str,
        is_operator: bool,
        time: Duration,
    ) -> BoxFuture<'_, Result<Answer, Error>> {
        Box::pin(self.extend_question(id.clone(), by.to_owned(), is_operator, time))
    }

    fn warn(&self, id: &ApprovalId, percent: u8) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(self.note_warning(id.clone(), percent))
    }

    fn resume_sent(&self, resume: &Resume) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.clear_resume(resume.entry.clone()))
    }

    fn overdue_resumes(&self) -> BoxFuture<'_, Result<Vec<Resume>, Error>> {
        Box::pin(self.sweep_outbox())
    }

    fn decisions(&self) -> broadcast::Receiver<Option<ApprovalId>> {
        self.bells.decided.subscribe()
    }

    fn questions(&self) -> broadcast::Receiver<Option<ApprovalId>> {
        self.bells.hear_asked()
    }
}
