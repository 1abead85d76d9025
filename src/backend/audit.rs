//! The part of the store that keeps the audit and its seals.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Recorded, sealed};
use crate::approval::{AuditEntry, Seal};
use crate::error::Error;
use crate::task::TaskId;

/// An action of a user or a process on a task, for the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditAction {
    /// The name of the action: `replay`, `purge` and others.
    pub what: &'static str,
    /// The task, or `*` for all tasks of a queue.
    pub id: TaskId,
    /// The queue of the task's dead letter.
    pub queue: String,
    /// The process and host that acted.
    pub by: String,
}

impl AuditAction {
    /// A new message runs under the id of a task that failed or was revoked before.
    pub const SUPERSEDE: &'static str = "supersede";
}

/// The holder of the right to seal the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealLease {
    /// Another process holds it now.
    HeldByAnother,
    /// The caller holds it. Contains the newest seal.
    Acquired(Option<Seal>),
}

/// Keeps audit entries and seals. A part of [`super::Store`], and sealed like it.
///
/// Calls give up like those of [`super::Approvals`]. All may be repeated.
pub trait Audit: sealed::Sealed {
    /// Writes an audit entry for an action other than a decision. The proof allows a dead letter to be
    /// deleted.
    fn record_action(&self, action: AuditAction) -> BoxFuture<'_, Result<Recorded, Error>>;

    /// Returns the newest entries of all kinds, at most `limit`, newest first.
    fn audit_entries(&self, limit: usize) -> BoxFuture<'_, Result<Vec<AuditEntry>, Error>>;

    /// Returns the decisions after this entry (or from the oldest on), at most `limit`, the oldest
    /// first. Seals cover these.
    fn audit_after(
        &self,
        id: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<AuditEntry>, Error>>;

    /// Takes or renews the right to seal, for the duration `lease`, and adds a seal if it follows the
    /// newest.
    fn seal(
        &self,
        holder: &str,
        lease: Duration,
        seal: Option<Seal>,
    ) -> BoxFuture<'_, Result<SealLease, Error>>;

    /// Returns the seals after this number, at most `limit`, the oldest first.
    fn seals_after(&self, number: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Seal>, Error>>;

    /// Returns the newest seal.
    fn newest_seal(&self) -> BoxFuture<'_, Result<Option<Seal>, Error>>;
}
