//! Approval requests, for synchronous programs.

use std::time::Duration;

use super::Client;
use crate::approval::{ApprovalId, ApprovalRequest, DecideResult, Decision};
use crate::backend::ApprovalRecord;
use crate::client::{self, Pending, Resolution};
use crate::error::Error;

impl Client {
    /// Returns an approval request; see [`crate::Client::approval`].
    ///
    /// # Errors
    /// As [`crate::Client::approval`].
    pub fn approval(&self, id: &ApprovalId) -> Result<ApprovalRecord, Error> {
        let (client, id) = (self.client.clone(), id.clone());
        self.wait(async move { client.approval(&id).await })?
    }

    /// Returns the open requests with the nearest deadlines, at most `limit`; see
    /// [`crate::Client::pending_approvals`].
    ///
    /// # Errors
    /// As [`crate::Client::pending_approvals`].
    pub fn pending_approvals(&self, limit: usize) -> Result<Pending, Error> {
        let client = self.client.clone();
        self.wait(async move { client.pending_approvals(limit).await })?
    }

    /// Sends a decision; see [`crate::Client::decide`].
    ///
    /// ```no_run
    /// # fn example(client: countersign::blocking::Client) -> Result<(), countersign::Error> {
    /// for record in client.pending_approvals(10)?.requests {
    ///     println!("{}", record.request.title);
    ///     client.decide(&record.approve("ana"))?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`crate::Client::decide`].
    pub fn decide(&self, decision: &Decision) -> Result<DecideResult, Error> {
        let (client, decision) = (self.client.clone(), decision.clone());
        self.wait(async move { client.decide(&decision).await })?
    }

    /// Sets the deadline of a request to this long from now; see [`crate::Client::extend_approval`].
    ///
    /// # Errors
    /// As [`crate::Client::extend_approval`].
    pub fn extend_approval(
        &self,
        id: &ApprovalId,
        by: &str,
        time: Duration,
    ) -> Result<DecideResult, Error> {
        let (client, id, by) = (self.client.clone(), id.clone(), by.to_owned());
        self.wait(async move { client.extend_approval(&id, &by, time).await })?
    }

    /// Makes a request that no task waits for; see [`crate::Client::request_approval`].
    ///
    /// # Errors
    /// As [`crate::Client::request_approval`].
    pub fn request_approval(&self, request: ApprovalRequest) -> Result<ApprovalHandle<'_>, Error> {
        let client = self.client.clone();
        let handle = self.wait(async move { client.request_approval(request).await })??;
        Ok(ApprovalHandle { client: self, handle })
    }

    /// Returns a handle to an existing request, to wait for it again.
    #[must_use]
    pub fn requested_approval(&self, id: &ApprovalId) -> ApprovalHandle<'_> {
        ApprovalHandle { client: self, handle: self.client.requested_approval(id) }
    }
}

/// A handle to a request that no task waits for; see [`crate::client::ApprovalHandle`].
#[derive(Clone, Debug)]
pub struct ApprovalHandle<'c> {
    client: &'c Client,
    handle: client::ApprovalHandle,
}

impl ApprovalHandle<'_> {
    /// Returns the approval's id.
    #[must_use]
    pub fn id(&self) -> &ApprovalId {
        self.handle.id()
    }

    /// Waits for the outcome, for at most `timeout`; see [`crate::client::ApprovalHandle::wait`].
    ///
    /// # Errors
    /// As [`crate::client::ApprovalHandle::wait`].
    pub fn wait(&self, timeout: Duration) -> Result<Resolution, Error> {
        let handle = self.handle.clone();
        self.client.wait(async move { handle.wait(timeout).await })?
    }
}
