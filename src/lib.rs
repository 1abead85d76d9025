//! Countersign: a worker pool that speaks Celery's protocol over RabbitMQ and Redis.
//!
//! A [`Task`] is a type of work, a [`Worker`] runs it with a handler, which has a [`Context`], and a
//! [`Client`] enqueues it and awaits its result:
//!
//! ```no_run
//! use countersign::{Client, Config, Context, Task, TaskResult, Worker};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Refund { order: String, cents: u64 }
//!
//! impl Task for Refund {
//!     const NAME: &'static str = "billing.refund";
//!     const QUEUE: Option<&'static str> = Some("billing");
//!     type Output = String;
//! }
//!
//! async fn refund(ctx: Context, task: Refund) -> TaskResult<String> {
//!     Ok(format!("{} cents of {} refunded, attempt {}", task.cents, task.order, ctx.attempt()))
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), countersign::Error> {
//!     let config = Config::load()?;                      // or "sqlite:tasks.db"
//!     let client = Client::connect(&config).await?;
//!     let receipt = client.enqueue(Refund { order: "o-1".into(), cents: 500 }).await?;
//!
//!     // A graceful shutdown: when its argument completes, `run` finishes the running tasks and closes the
//!     // connections of the client that it was given.
//!     let worker = Worker::new(&Client::connect(&config).await?).queue("billing").handle(refund);
//!     let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
//!     let worker = tokio::spawn(worker.run(async { drop(stopped.await) }));
//!     println!("{}", receipt.await?);
//!
//!     drop(stop);
//!     if let Ok(report) = worker.await {
//!         println!("drained in {:?}", report?.elapsed);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! In a program, the worker runs until `shutdown_signal`, or `run_worker` is the whole `main` function of its
//! binary. By subject:
//!
//! | subject | where |
//! |---|---|
//! | state that handlers share | [`ContextWith`] |
//! | middleware | [`Worker::wrap`], `examples/middleware.rs` |
//! | retries by error type | [`Retry`] |
//! | batches, and their results | [`Client::enqueue_all`], [`gather`] |
//! | durable steps | [`Context::step`], `examples/step.rs` |
//! | streams | [`Context::stream`], [`Follow`], `examples/stream.rs` |
//! | approvals | [`Context::approval`], `examples/approval.rs` |
//! | tests of handlers | `testing` |
//! | synchronous programs | [`blocking`] |
//! | graceful shutdown | [`Worker::run`] |
//!
//! | module | contents |
//! |---|---|
//! | [`task`], [`client`], [`blocking`], [`handle`], [`context`], [`retry`], [`breaker`], [`error`], [`config`] | the public types, one module for each |
//! | `protocol` | Celery's messages and result documents as types; no I/O |
//! | `lifecycle` | pure transitions of suspensions, decisions and acks; no I/O, no clock |
//! | `backend` | the traits `Broker` and `Store`, and their implementations |
//! | `worker` | the stages of a worker: concurrency limit, execute, settle, drain |
//! | `cli` | the command line of worker binaries |
//!
//! | feature | default | contents |
//! |---|---|---|
//! | `rabbitmq` | yes | the backend of RabbitMQ and Redis |
//! | `embedded` | yes | the backend of one SQLite database instead of both |
//! | `cli` | no | `run_worker` and `shutdown_signal`: flags, logs, signals and exit codes of worker binaries |
//! | `testing` | no | a pool in memory, for tests of handlers |
//! | `compression` | no | bodies that producers compressed with bz2, brotli, lzma or zstd; zlib always works |
//! | `schema` | no | JSON Schemas for edited arguments of approval requests |
//! | `unstable` | no | internals, for this repository's own packages: any release may change them |

#![cfg_attr(
    not(all(feature = "embedded", feature = "rabbitmq", feature = "unstable")),
    allow(
        dead_code,
        unused_imports,
        reason = "each backend, and `unstable`, has its own part of what all share"
    )
)]
#![cfg_attr(
    not(feature = "unstable"),
    allow(unreachable_pub, reason = "`unstable` makes the modules of these items public")
)]
// These macros panic when standard output or error cannot be written; `cli/streams.rs` does not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod address;
pub mod approval;
#[cfg(not(feature = "unstable"))]
mod backend;
#[cfg(feature = "unstable")]
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
mod failpoints;
pub mod handle;
mod journal;
mod keyed_notify;
#[cfg(not(feature = "unstable"))]
mod lifecycle;
#[cfg(feature = "unstable")]
pub mod lifecycle;
#[cfg(not(feature = "unstable"))]
mod protocol;
#[cfg(feature = "unstable")]
pub mod protocol;
pub mod retry;
pub mod task;
#[cfg(feature = "testing")]
pub mod testing;
mod trace;
#[cfg(feature = "unstable")]
pub mod unstable;
pub mod worker;

pub use approval::{ApprovalId, ApprovalRequest};
pub use backend::{ApprovalRecord, EntryKind, StreamEntry};
pub use breaker::CircuitBreaker;
#[cfg(feature = "cli")]
pub use cli::{run_worker, shutdown_signal};
pub use client::{Client, Enqueue, Follow};
pub use config::Config;
pub use context::{Approval, Context, ContextWith, Decided, Verdict};
pub use error::{Error, Failure, TaskError, TaskResult};
pub use handle::{Handle, gather, gather_within};
pub use protocol::{Arguments, EnvelopeForm, Kwargs};
pub use retry::Retry;
pub use task::{Policy, Rate, Revoke, Task, TaskId};
pub use worker::{DrainReport, HandlerOutput, HealthHandle, Next, Worker};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../docs/approvals.md")]
    mod approvals {}
    #[doc = include_str!("../docs/celery-migration.md")]
    mod celery_migration {}
    #[doc = include_str!("../docs/durable-steps.md")]
    mod durable_steps {}
    #[doc = include_str!("../docs/getting-started.md")]
    mod getting_started {}
    #[doc = include_str!("../docs/operations.md")]
    mod operations {}
    #[doc = include_str!("../docs/wire-format.md")]
    mod wire_format {}
}
