//! The store: keeps the data of tasks.

use std::fmt;

use super::{
    Approvals, Attempts, Audit, Connection, IdempotencyKeys, Journals, Outbox, Results,
    Revocations, StoreInfo, Streams, Suspensions, TaskIndex, Workers,
};

/// Keeps the data of tasks. Sealed, like [`super::Broker`]: each of its parts is a trait of its own.
pub trait Store:
    Approvals
    + Attempts
    + Audit
    + Connection
    + IdempotencyKeys
    + Journals
    + Outbox
    + Results
    + Revocations
    + StoreInfo
    + Streams
    + Suspensions
    + TaskIndex
    + Workers
    + fmt::Debug
    + Send
    + Sync
{
}
