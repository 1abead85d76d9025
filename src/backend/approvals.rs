//! Approval requests and decisions.

use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::broadcast;

use super::{Resume, sealed};
use crate::approval::{ApprovalId, ApprovalRequest, ApprovalStatus, DecideResult, Decision};
use crate::error::{Error, Kind};
use crate::keyed_notify::KeyedWatch;

/// Approval requests of an ended task can be read for a week.
pub(in crate::backend) const REQUEST_RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A decision is kept longer than the runs of its task.
pub(in crate::backend) const DECISION_RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The number of overdue requests of services that are checked whenever a new request is made.
pub(in crate::backend) const TIDY_LIMIT: u32 = 32;

/// An approval request as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct ApprovalRecord {
    /// The approval request.
    pub request: ApprovalRequest,
    /// Identifies the request: one that is made again under the same id has another nonce. A request
    /// that version 0.1 made has none.
    pub nonce: Option<String>,
    /// The status of the request.
    pub status: ApprovalStatus,
    /// When it was requested.
    pub requested_at: Timestamp,
    /// When it was decided; if it is open or has expired, its deadline.
    pub at: Timestamp,
    /// When the record was read, by the store's clock.
    pub read_at: Timestamp,
    /// The decision that counts.
    pub decision: Option<Decision>,
    /// The number of approvals so far.
    pub votes: u32,
    /// The percentage of its time that had passed when the approvers were warned of its deadline.
    pub warned: Option<u8>,
}

/// The result of looking up an approval id.
#[derive(Debug)]
pub enum Lookup {
    /// There is no request with this id, or none recently.
    Nothing,
    /// An approval request.
    Found(Box<ApprovalRecord>),
    /// A request with this status whose document this version cannot read.
    Unreadable(ApprovalStatus, Error),
}

impl Lookup {
    /// Returns the request; `None` when there is none.
    ///
    /// # Errors
    /// The request cannot be read.
    pub fn readable(self) -> Result<Option<ApprovalRecord>, Error> {
        match self {
            Self::Nothing => Ok(None),
            Self::Found(record) => Ok(Some(*record)),
            Self::Unreadable(_, error) => Err(error),
        }
    }
}

/// Keeps approval requests and decisions. A part of [`super::Store`], and sealed like it.
///
/// Every call fails with a connection error when the store does not answer within three command
/// timeouts; it is then unknown whether the call took effect. All calls may be repeated.
pub trait Approvals: sealed::Sealed {
    /// Stores an approval request that no task waits for. An existing one with this id stays unchanged.
    fn request_approval(&self, request: ApprovalRequest) -> BoxFuture<'_, Result<(), Error>>;

    /// Looks up these approval requests; returns one result for each id.
    fn approvals(&self, ids: &[ApprovalId]) -> BoxFuture<'_, Result<Vec<Lookup>, Error>>;

    /// Returns open requests, and some that were decided or have just expired, the nearest deadline
    /// first. A request that was extended is listed by its first deadline until that has passed. Skips
    /// the first `from` requests, and returns at most `limit`.
    fn pending_approvals(
        &self,
        from: usize,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<(ApprovalId, i64)>, Error>>;

    /// Stores a decision, its audit entry and its outbox entry, atomically; see
    /// [`crate::lifecycle::decision_rules::decide`]. A caller that gets `Applied` publishes the returned
    /// resume message. A refused attempt is written to the audit, unless the request is unknown.
    fn decide(
        &self,
        decision: &Decision,
    ) -> BoxFuture<'_, Result<(DecideResult, Option<Resume>), Error>>;

    /// Sets the deadline of a request to `time` from now and writes the audit entry, atomically; see
    /// [`crate::lifecycle::decision_rules::extend`]. Refused attempts are audited as in
    /// [`Approvals::decide`].
    fn extend_approval(
        &self,
        id: &ApprovalId,
        by: &str,
        is_operator: bool,
        time: Duration,
    ) -> BoxFuture<'_, Result<DecideResult, Error>>;

    /// Records, with an audit entry, that approvers are warned after `percent` percent of a request's
    /// time. Returns false when they were warned already, it is too early, or the request is not open.
    fn record_warning(&self, id: &ApprovalId, percent: u8) -> BoxFuture<'_, Result<bool, Error>>;

    /// Watches these approval requests: completes when one of them may have been decided.
    fn watch_decisions(&self, ids: Vec<ApprovalId>) -> KeyedWatch<ApprovalId>;

    /// Sends the id of each new request, or `None` when some may have been missed.
    fn new_requests(&self) -> broadcast::Receiver<Option<ApprovalId>>;
}

/// Returns a random nonce that identifies one request.
pub(in crate::backend) fn nonce() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// The format version of a request, which is read before the other fields.
#[derive(Deserialize)]
struct Format {
    v: u32,
}

/// Parses a stored approval request.
///
/// # Errors
/// A newer version of Countersign or another program has written it.
pub(in crate::backend) fn stored_request(json: &str) -> Result<ApprovalRequest, Error> {
    if let Ok(Format { v }) = serde_json::from_str(json)
        && v > ApprovalRequest::VERSION
    {
        let cause =
            format!("it was requested by a newer Countersign (format {v}): upgrade this one");
        return Err(unreadable(&cause));
    }
    serde_json::from_str(json).map_err(|error| unreadable(&error.to_string()))
}

/// Returns the error for stored data that is not a valid approval request.
pub(in crate::backend) fn unreadable(cause: &str) -> Error {
    Kind::Codec { what: "an approval".into(), cause: cause.into() }.into()
}
