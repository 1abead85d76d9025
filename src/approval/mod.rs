//! Approval requests and the decisions on them. Pure: no I/O, no clock. All times are times of the store's
//! clock, to the millisecond.

mod action;
mod audit;
mod decide_result;
mod decision;
mod decision_kind;
mod digest;
mod id;
mod milliseconds;
#[cfg(not(feature = "schema"))]
mod no_schema;
mod outcome;
mod policy;
mod request;
#[cfg(feature = "schema")]
mod schema;
mod timestamp;

pub use action::{Action, Risk};
#[cfg(feature = "embedded")]
pub(crate) use audit::REFUSED_NAME;
pub use audit::{AuditEntry, AuditKind, Seal, SealKey, Verified};
pub(crate) use audit::{MAX_AUDIT_ENTRIES, MAX_REFUSED_ENTRIES, Verifier, merged};
pub use decide_result::DecideResult;
pub(crate) use decision::MAX_REASON;
pub use decision::{Decision, is_policy};
pub use decision_kind::DecisionKind;
pub use digest::Digest;
pub use id::ApprovalId;
pub use outcome::{ApprovalOutcome, ApprovalStatus};
pub use policy::{AutoPolicy, PolicyAction, RuleCheck};
pub use request::{ApprovalRequest, OnTimeout, name_fault};
pub(crate) use timestamp::timestamp;
