//! Results in Redis. Only this folder names the `redis` crate.
//!
//! | module | content |
//! |---|---|
//! | `store` | the store: its start and its end |
//! | `store_info` | information about the server |
//! | `keys` | the keys of results |
//! | `address` | the URL list, TLS, and the URL without secrets |
//! | `forget` | deletes the data that runs of a task have left |
//! | `index` | finds failed and suspended tasks, and ids by prefix |
//! | `journal` | results of finished steps; `journal.lua` decides which record wins |
//! | `approvals` | approval requests and decisions; `decide.lua` decides which decision counts |
//! | `connection` | one supervised connection |
//! | `approval_records` | the form of stored approval requests |
//! | `audit` | the audit log, and its seals |
//! | `outbox` | resume messages that are not known to be sent |
//! | `results` | results: storing, reading, waiting, deleting |
//! | `pipelined_writer` | writes many calls of scripts in one round trip |
//! | `result_writer` | the writer of results; `store_results.lua` decides which result wins |
//! | `idempotency` | maps idempotency keys to tasks |
//! | `attempts` | claimed attempts, and tasks that were running when a worker died |
//! | `suspensions` | suspended tasks; `claim_task.lua` decides who may run one |
//! | `workers` | live workers |
//! | `recent_results` | results of the last minute, for a server that lost them |
//! | `script` | the Lua scripts and their SHA-1 |
//! | `request` | one request and its reply |
//! | `reply` | errors in replies |
//! | `revocations` | marks on revoked tasks |
//! | `journal_writer` | the writer of journals and streams |
//! | `streams` | streams of running tasks; `stream.lua` writes each entry once |
//! | `stream_entries` | the keys and the form of stream entries |
//! | `pool` | the connections for large reads |
//! | `settings` | how to connect, and how long results are kept |
//! | `subscription` | the task that owns all waits: subscribes, reads, waits, re-reads |
//! | `stream_reader` | the reader of followed streams |

mod address;
mod approval_records;
mod approvals;
mod attempts;
mod audit;
mod connection;
mod early_results;
mod forget;
mod idempotency;
mod index;
mod journal;
mod journal_writer;
mod keys;
mod outbox;
mod pipelined_writer;
mod pool;
mod recent_results;
mod reply;
mod request;
mod result_writer;
mod results;
mod revocation_events;
mod revocations;
mod script;
mod settings;
mod store;
mod store_info;
mod stream_entries;
mod stream_reader;
mod streams;
mod subscription;
mod suspensions;
mod workers;

#[cfg(test)]
mod tests;

pub(crate) use self::settings::RedisSettings;
pub(crate) use self::store::RedisStore;
