//! The two backend traits: a [`Broker`] moves messages, a [`Store`] keeps results, journals, approvals and
//! all other task data. `Store` has no methods of its own: each of its parts is a trait in a file here, and
//! each backend implements it in a file of the same name.
//!
//! Rights are values: [`Recorded`] proves that the outcome of a task is durable, and [`Delivery::ack`]
//! requires one. Only the modules below this one can create it.

#[cfg(feature = "embedded")]
mod embedded;
#[cfg(all(feature = "embedded", feature = "faults"))]
pub use embedded::{FaultChances, SimulatedProcess, Simulation};
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(all(feature = "rabbitmq", feature = "faults"))]
pub use rabbitmq::{guard_frames, read_message};
#[cfg(feature = "rabbitmq")]
mod redis;

/// What `countersign db` and `countersign doctor` do with a database file.
#[cfg(all(feature = "embedded", feature = "unstable"))]
pub mod database {
    pub use crate::backend::embedded::{back_up, check, compact, file_of};
}

mod approvals;
mod attempts;
mod audit;
mod backends;
#[cfg(any(feature = "embedded", feature = "rabbitmq"))]
mod backoff;
mod broker;
mod capability;
mod connect;
mod connection;
mod delivery;
#[cfg(any(feature = "embedded", feature = "rabbitmq"))]
mod early_results;
mod idempotency;
mod index;
mod journal;
#[cfg(any(feature = "embedded", feature = "rabbitmq"))]
mod milliseconds;
mod outbox;
mod pool;
mod queue;
mod recorded;
mod results;
mod revocations;
mod run_owner;
mod sealed;
mod store;
mod store_info;
mod streams;
mod suspensions;
#[cfg(any(feature = "embedded", feature = "rabbitmq"))]
mod waiters;
mod workers;

pub use approvals::{ApprovalRecord, Approvals, Lookup};
pub use attempts::{Attempts, Crashes};
pub use audit::{Audit, AuditAction, SealLease};
pub use backends::Backends;
pub use broker::{Broker, PublishRequest, QueueState};
pub use capability::Capability;
pub use connect::connect;
pub use connection::Connection;
#[cfg(any(feature = "embedded", feature = "rabbitmq"))]
pub(in crate::backend) use delivery::Receipt;
pub use delivery::{Control, Deliveries, Delivery, Fetched, SettleBarrier, Settled};
pub use idempotency::{IdempotencyEntry, IdempotencyKeys};
pub use index::{FailedTask, SuspendedTask, TaskIndex};
pub use journal::{Journals, TaskHistory};
pub use outbox::{Outbox, Resume};
pub(crate) use pool::PoolSettings;
pub use pool::PoolState;
pub use queue::{Expiry, Queue};
pub use recorded::Recorded;
pub use results::{Forget, Origin, Results, StoreResult};
pub use revocations::{Revocation, Revocations};
pub use run_owner::RunOwner;
pub use store::Store;
pub use store_info::{StoreInfo, StoreServer};
pub use streams::{EntryKind, Scope, StreamAppend, StreamEntry, Streams};
pub use suspensions::{ClaimResult, SuspendRequest, SuspendResult, Suspensions};
pub use workers::{RunningTask, WorkerInfo, Workers};
