//! Countersign: a worker pool that speaks Celery's protocol over RabbitMQ and Redis.
//!
//! | room | what is in it |
//! |---|---|
//! | [`task`], [`client`], [`blocking`], [`handle`], [`context`], [`retry`], [`breaker`], [`error`], [`config`] | the public nouns, one a file |
//! | `protocol` | Celery's messages and result documents as types; no I/O |
//! | `lifecycle` | pure transitions: what to ack, how a drain proceeds; no I/O, no clock |
//! | `backend` | the two seams, [`backend::Broker`] and [`backend::Store`], and what is behind them |
//! | `worker` | a worker's life: gate, execute, settle, drain |
//! | `cli` | what every worker binary does with its command line |
//!
//! Features, all on by default: `rabbitmq` (RabbitMQ and Redis), `embedded` (one SQLite database
//! instead of both), and `cli` (the command line of worker binaries). For tests of your own
//! handlers: `testing`.

#![cfg_attr(
    not(all(feature = "embedded", feature = "rabbitmq")),
    allow(dead_code, reason = "each backend has its own part of what both share")
)]
// They panic when standard output or standard error cannot be written; `cli/streams.rs` does not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

// The demo worker's tasks are built into `countersign dev`, and name this crate.
#[cfg(feature = "cli")]
extern crate self as countersign;

mod address;
pub mod approval;
pub mod backend;
pub mod blocking;
pub mod breaker;
#[cfg(feature = "cli")]
pub mod cli;
pub mod client;
mod clock;
pub mod config;
pub mod context;
pub mod error;
mod faults;
pub mod handle;
mod journal;
pub mod lifecycle;
pub mod protocol;
pub mod retry;
pub mod task;
#[cfg(feature = "testing")]
pub mod testing;
mod trace;
pub mod worker;

pub use approval::{ApprovalId, Question};
pub use backend::{Asked, Said, StreamEntry};
pub use breaker::CircuitBreaker;
#[cfg(feature = "cli")]
pub use cli::{run_worker, shutdown_signal};
pub use client::{Client, Enqueue, Follow};
pub use config::Config;
pub use context::{Approval, Context, Decided, Verdict};
pub use error::{Error, Failure, TaskError, TaskResult};
pub use handle::{Handle, gather, gather_within};
pub use protocol::Arguments;
pub use retry::Retry;
pub use task::{Policy, Rate, Revoke, Task, TaskId};
pub use worker::{Drained, Vitals, Worker};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
