//! Broker and store in one SQLite database, for one machine. Only this module names `rusqlite`.
//!
//! | file | content |
//! |---|---|
//! | `approvals` | approval requests and decisions, by the rules of `lifecycle/decision_rules.rs` |
//! | `attempts` | claimed attempts, and tasks that ran when a worker died |
//! | `audit` | the audit, and its seals |
//! | `availability` | whether the database takes writes |
//! | `backup` | copying a database, and rewriting it without its unused pages |
//! | `broker` | the broker |
//! | `check` | checking a database for damage |
//! | `clock` | the store's clock |
//! | `commit` | jobs that share a transaction, and its commit |
//! | `db` | the database: access to it, and when writes are durable |
//! | `documents` | the stored result documents |
//! | `fault` | why a job in a transaction failed |
//! | `file` | opening one; `schema.sql` has the tables |
//! | `idempotency` | idempotency keys |
//! | `identity` | whether the open file is still the one that its path names |
//! | `index` | finding failed tasks, suspended tasks, and ids by prefix |
//! | `journal` | the results of finished steps |
//! | `maintenance` | renewing sessions, deleting expired rows |
//! | `marks` | small values with a name and an expiry |
//! | `memory` | a database in memory |
//! | `message_head` | the stored part of a message without its body |
//! | `messages` | the rows of queues and messages |
//! | `notifications` | notifications within this process |
//! | `outbox` | resume messages that are not known to be sent |
//! | `open` | opening the database that a URL names |
//! | `packed` | the compressed messages of suspended tasks |
//! | `peers` | the events that processes write for each other |
//! | `queue_reader` | consuming a queue, and settling its deliveries |
//! | `read_pool` | the connections of a file that read |
//! | `requests` | storage of approval requests and votes |
//! | `result_waits` | the waits for results |
//! | `results` | results of tasks |
//! | `retention` | how long the data of a task are kept |
//! | `revocations` | marks on revoked tasks |
//! | `session` | the session under which a process holds messages |
//! | `session_rows` | the rows of sessions |
//! | `shared` | the state that all threads share |
//! | `simulated_process` | a process that a test stops or kills |
//! | `simulation` | several simulated processes |
//! | `store` | the store: its start, its retries, its end |
//! | `store_info` | information about the store |
//! | `streams` | streams of running tasks |
//! | `suspension_records` | the stored records of suspended tasks |
//! | `stored_clock` | the stored time of the clock |
//! | `suspensions` | suspended tasks, by the rules of `lifecycle/suspension.rs` |
//! | `txn` | a transaction |
//! | `wakes` | the wake messages of suspended tasks |
//! | `wal` | the write-ahead log: its size, and its checkpoint |
//! | `warnings` | warnings that repeat |
//! | `workers` | live workers, and the queues that they consume |
//! | `writer` | the writer thread of a file |

mod approvals;
mod attempts;
mod audit;
mod availability;
#[cfg(feature = "unstable")]
mod backup;
mod broker;
#[cfg(feature = "unstable")]
mod check;
mod clock;
mod commit;
mod db;
mod documents;
mod fault;
mod file;
mod idempotency;
mod identity;
mod index;
mod journal;
mod maintenance;
mod marks;
mod memory;
mod message_head;
mod messages;
mod notifications;
mod open;
mod outbox;
mod packed;
mod peers;
mod queue_reader;
mod read_pool;
mod requests;
mod result_waits;
mod results;
mod retention;
mod revocations;
mod session;
mod session_rows;
mod shared;
mod simulated_process;
#[cfg(feature = "faults")]
mod simulation;
mod store;
mod store_info;
mod stored_clock;
mod streams;
mod suspension_records;
mod suspensions;
mod txn;
mod wakes;
mod wal;
mod warnings;
mod workers;
mod writer;

#[cfg(test)]
mod tests;

#[cfg(feature = "unstable")]
pub use self::backup::{back_up, compact};
#[cfg(feature = "unstable")]
pub use self::check::check;
#[cfg(feature = "faults")]
pub use self::simulated_process::{FaultChances, SimulatedProcess};
#[cfg(feature = "faults")]
pub use self::simulation::Simulation;

pub use self::open::file_of;
pub(super) use self::open::open;
