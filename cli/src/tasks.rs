//! `countersign tasks`: shows, awaits, follows, revokes and forgets tasks.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use countersign::backend::StreamEntry;
use countersign::cli::streams;
use countersign::client::{Client, Follow};
use countersign::error::Error;
use countersign::task::{Revoke, TaskId};
use serde_json::{Value, json};

use crate::duration::duration;
use crate::listing::{self, List};
use crate::output::{Format, Records};
use crate::run::verdict;
use crate::{ids, waiting};

#[derive(Debug, Subcommand)]
pub(crate) enum Tasks {
    /// List the running, suspended and failed tasks that the store knows
    List(List),
    /// Show the store's data on a task: its state, queue, worker and times, how it ended, or the requests
    /// that it waits for
    Get {
        /// The task's id, or the beginning of it
        id: String,
    },
    /// Wait for a task's result and print it
    Result {
        /// The task's id, or the beginning of it
        id: String,
        /// Wait at most this long
        #[arg(long, default_value = "60s", value_parser = duration)]
        timeout: Duration,
    },
    /// Print the entries that a running task writes, until it ends
    Follow {
        /// The task's id, or the beginning of it
        id: String,
        /// Begin at this entry [default: the first one]
        #[arg(long, value_name = "N", conflicts_with = "live")]
        from: Option<u64>,
        /// Begin with the next entry that is written
        #[arg(long)]
        live: bool,
    },
    /// Delete all stored data of tasks that have ended: results, steps, streams, attempt marks
    Forget {
        /// The tasks' ids, or the beginnings of them
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Revoke tasks: those that have not started never start
    Revoke {
        /// The tasks' ids, or the beginnings of them
        #[arg(required = true)]
        ids: Vec<String>,
        /// Also end running tasks: they are notified, and dropped two seconds later
        #[arg(long)]
        terminate: bool,
    },
}

impl Tasks {
    pub(crate) async fn perform(self, client: &Client, format: Format) -> Result<ExitCode, Error> {
        match self {
            Self::Get { id } => {
                let id = ids::task(client, &id).await?;
                listing::get(client, &id, format).await
            }
            Self::List(list) => list.perform(client, format).await,
            Self::Result { id, timeout } => {
                let id = ids::task(client, &id).await?;
                let result = client.handle::<Value>(id.clone()).result_within(timeout);
                print_end(&id, waiting::with_requests(client, &id, result).await, format)
            }
            Self::Follow { id, from, live } => {
                let id = ids::task(client, &id).await?;
                let follow = client.follow(&id).from(from.unwrap_or(1));
                let follow = if live { follow.live() } else { follow };
                waiting::with_requests(client, &id, print_entries(follow, format)).await
            }
            Self::Forget { ids } => {
                let ids = ids::tasks(client, &ids).await?;
                let mut records = Vec::new();
                let mut refused = None;
                for id in ids {
                    match client.forget(&id).await {
                        Ok(()) => records.push(json!({ "id": id, "forgotten": true })),
                        Err(error) if error.is_unfinished() => {
                            records.push(json!({ "id": id, "forgotten": false }));
                            refused = refused.or(Some(error));
                        }
                        Err(error) => return Err(error),
                    }
                }
                format.print_list(&["id", "forgotten"], &records);
                refused.map_or(Ok(ExitCode::SUCCESS), Err)
            }
            Self::Revoke { ids, terminate } => {
                let revoke = if terminate { Revoke::Terminate } else { Revoke::IfQueued };
                let ids = ids::tasks(client, &ids).await?;
                client.revoke(&ids, revoke).await?;
                let command = if terminate { "terminate" } else { "revoke" };
                let records = ids.iter().map(|id| json!({ "id": id, "asked": command }));
                format.print_list(&["id", "asked"], &records.collect::<Vec<_>>());
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Prints entries as they arrive: one line each for people, else as JSON.
async fn print_entries(mut follow: Follow, format: Format) -> Result<ExitCode, Error> {
    let mut records = Records::new(format);
    while !streams::is_broken()
        && let Some(entry) = follow.next().await
    {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                records.end();
                return Err(error);
            }
        };
        let StreamEntry { number, kind, step, run, value } = entry;
        let kind = kind.as_str();
        records.print(&json!({
            "number": number, "said": kind, "step": step, "run": run, "value": value,
        }));
    }
    records.end();
    Ok(ExitCode::SUCCESS)
}

/// Prints how an awaited task ended. A failed task is a result, with exit code 1.
pub(crate) fn print_end(
    id: &TaskId,
    ended: Result<Value, Error>,
    format: Format,
) -> Result<ExitCode, Error> {
    let (record, code) = match ended {
        Ok(result) => (json!({ "id": id, "state": "SUCCESS", "result": result }), 0),
        Err(error) => match verdict(&error) {
            Some(code) => {
                let state = if error.is_revoked() { "REVOKED" } else { "FAILURE" };
                let message =
                    error.failure().map_or_else(|| error.to_string(), ToString::to_string);
                (json!({ "id": id, "state": state, "result": message }), code)
            }
            None => return Err(error),
        },
    };
    format.print_ordered(&["id", "state", "result"], &record);
    Ok(ExitCode::from(code))
}
