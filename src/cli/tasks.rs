//! `countersign tasks`: what became of a task.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::output::Format;
use super::run::verdict;
use super::streams;
use super::worker::duration;
use crate::backend::StreamEntry;
use crate::client::{Client, Follow};
use crate::error::Error;
use crate::task::{Revoke, TaskId};

#[derive(Debug, Subcommand)]
pub(super) enum Tasks {
    /// Show a task's state as it is stored now
    Get {
        /// The task's id
        id: String,
    },
    /// Wait for a task's result and print it
    Result {
        /// The task's id
        id: String,
        /// Wait at most this long
        #[arg(long, default_value = "60s", value_parser = duration)]
        timeout: Duration,
    },
    /// Print what a task says while it runs, entry by entry, until it ends
    Follow {
        /// The task's id
        id: String,
        /// Begin at this entry; without it, at the first
        #[arg(long, value_name = "N", conflicts_with = "live")]
        from: Option<u64>,
        /// Begin with what comes next
        #[arg(long)]
        live: bool,
    },
    /// Delete everything that is stored of tasks that have ended: results, steps, streams, marks
    Forget {
        /// The tasks' ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Take tasks back: those that have not started never will
    Revoke {
        /// The tasks' ids
        #[arg(required = true)]
        ids: Vec<String>,
        /// End those that run, too: told at first, dropped two seconds later
        #[arg(long)]
        terminate: bool,
    },
}

impl Tasks {
    pub(super) async fn perform(self, client: &Client, format: Format) -> Result<ExitCode, Error> {
        match self {
            Self::Get { id } => {
                let handle = client.handle::<Value>(id);
                let state = handle.state().await?;
                let state = state.as_ref().map_or("PENDING", |state| state.as_str());
                format.print(&[json!({ "id": handle.id(), "state": state })]);
                Ok(ExitCode::SUCCESS)
            }
            Self::Result { id, timeout } => {
                let handle = client.handle::<Value>(id);
                let id = handle.id().clone();
                print_end(&id, handle.result_within(timeout).await, format)
            }
            Self::Follow { id, from, live } => {
                let follow = client.follow(&id.into()).from(from.unwrap_or(1));
                print_entries(if live { follow.live() } else { follow }, format).await
            }
            Self::Forget { ids } => {
                let mut records = Vec::new();
                let mut refused = None;
                for id in ids.into_iter().map(TaskId::from) {
                    match client.forget(&id).await {
                        Ok(()) => records.push(json!({ "id": id, "forgotten": true })),
                        Err(error) if error.is_unfinished() => {
                            records.push(json!({ "id": id, "forgotten": false }));
                            refused = refused.or(Some(error));
                        }
                        Err(error) => return Err(error),
                    }
                }
                format.print(&records);
                refused.map_or(Ok(ExitCode::SUCCESS), Err)
            }
            Self::Revoke { ids, terminate } => {
                let revoke = if terminate { Revoke::EvenRunning } else { Revoke::IfQueued };
                let ids: Vec<_> = ids.into_iter().map(TaskId::from).collect();
                client.revoke(&ids, revoke).await?;
                let told = if terminate { "terminate" } else { "revoke" };
                let records = ids.iter().map(|id| json!({ "id": id, "asked": told }));
                format.print(&records.collect::<Vec<_>>());
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Prints entries as they come: for people a line each, else as JSON.
async fn print_entries(mut follow: Follow, format: Format) -> Result<ExitCode, Error> {
    while !streams::is_broken()
        && let Some(entry) = follow.next().await
    {
        let StreamEntry { number, said, step, run, value } = entry?;
        let said = said.as_str();
        format.print_line(&json!({
            "number": number, "said": said, "step": step, "run": run, "value": value,
        }));
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints how an awaited task ended. A failed task is an answer, with exit code 1.
pub(super) fn print_end(
    id: &TaskId,
    ended: Result<Value, Error>,
    format: Format,
) -> Result<ExitCode, Error> {
    let (record, code) = match ended {
        Ok(result) => (json!({ "id": id, "state": "SUCCESS", "result": result }), 0),
        Err(error) => match verdict(&error) {
            Some(code) => {
                let state = if error.is_revoked() { "REVOKED" } else { "FAILURE" };
                let told = error.failure().map_or_else(|| error.to_string(), ToString::to_string);
                (json!({ "id": id, "state": state, "result": told }), code)
            }
            None => return Err(error),
        },
    };
    format.print(&[record]);
    Ok(ExitCode::from(code))
}
