//! Worker: consumes tasks from its queues, runs their handlers, and settles their outcomes.
//!
//! The files import each other without cycles: `state` and the types below it know no other part; on it
//! stand the ways to settle a message (`message_delivery`, `unsettled`, `dead_letter`, `copies`) and a task
//! (`task_delivery`, `canvas`, `final_result`, `settle`), then the execution of a task (`execute`, `run`,
//! `suspend`), the consumer, and the builder.

mod attempt;
mod builder;
mod canvas;
mod checks;
mod child_process;
mod claim;
mod claim_delivery;
mod concurrency_limit;
mod consumer;
mod copies;
mod dead_letter;
mod drain;
mod early_ack;
mod execute;
mod final_result;
mod first_claim;
mod handler;
mod health;
mod heartbeat;
mod isolation;
mod isolation_lock;
mod limits;
mod message_delivery;
mod middleware;
mod outbox;
mod outcome;
mod panics;
mod process;
mod publish;
mod quarantine;
mod register;
mod remote_control;
mod report;
mod results;
mod revoked;
mod run;
mod runs;
mod settle;
mod setup;
mod start_schedule;
mod state;
mod store_clock;
mod suspend;
mod suspension;
mod task_delivery;
mod unsettled;
mod watchdog;

pub use builder::Worker;
pub use checks::CheckResult;
pub use drain::DrainReport;
#[cfg(feature = "unstable")]
pub use drain::longest_drain;
pub use health::{Health, HealthHandle};
pub use middleware::{HandlerOutput, Next};
#[cfg(feature = "unstable")]
pub use report::RunReport;
