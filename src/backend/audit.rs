//! The part of the store that remembers who did what, and what seals it.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::sealed;
use crate::approval::{AuditEntry, Seal};
use crate::error::Error;

/// Who may seal the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sealing {
    /// Another process, for now.
    Held,
    /// Whoever asked. The newest seal is this one.
    Yours(Option<Seal>),
}

/// Remembers what people did. A part of [`super::Store`], and sealed like it.
///
/// Calls give up as those of [`super::Approvals`] do. All may be repeated.
pub trait Audit: sealed::Sealed {
    /// What was done lately, newest first, at most so many entries.
    fn audit_entries(&self, limit: usize) -> BoxFuture<'_, Result<Vec<AuditEntry>, Error>>;

    /// The entries after this one (or from the oldest on), at most so many, the oldest first.
    fn audit_after(
        &self,
        id: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<AuditEntry>, Error>>;

    /// Takes or renews the right to seal, for this long, and adds a seal if it follows the newest.
    fn seal(
        &self,
        holder: &str,
        lease: Duration,
        seal: Option<Seal>,
    ) -> BoxFuture<'_, Result<Sealing, Error>>;

    /// The seals after this one, at most so many, the oldest first.
    fn seals_after(&self, number: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Seal>, Error>>;

    /// The newest seal.
    fn newest_seal(&self) -> BoxFuture<'_, Result<Option<Seal>, Error>>;
}
