//! `countersign queues`: shows queues and their consumers, purges and deletes queues.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use countersign::backend::{Queue, QueueState};
use countersign::cli::plain::plain;
use countersign::cli::{exit, streams};
use countersign::client::Client;
use countersign::config::QueueType;
use countersign::error::Error;
use serde_json::json;

use crate::output::Format;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  countersign queues                      # those of the settings and of workers, also of stopped ones
  countersign queues list billing mail -o json
  countersign queues purge billing --yes
  countersign queues delete billing          # prints what would be lost")]
pub(crate) struct Queues {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show these queues [default: those of the settings and of workers, including stopped ones]
    List { queues: Vec<String> },
    /// Delete every task that waits in a queue. Clients that wait for results are not notified
    Purge {
        /// The queue
        queue: String,
        /// Perform it; without this, only print the number of tasks
        #[arg(long)]
        yes: bool,
    },
    /// Delete a queue without consumers, and every task that waits in it. Its delayed tasks become dead
    /// letters when they are due. Clients that wait for results are not notified
    Delete {
        /// The queue
        queue: String,
        /// Perform it; without this, only print the tasks that would be lost
        #[arg(long)]
        yes: bool,
    },
}

impl Queues {
    pub(crate) async fn perform(self, client: &Client, format: Format) -> Result<ExitCode, Error> {
        match self.verb.unwrap_or(Verb::List { queues: Vec::new() }) {
            Verb::List { queues } if queues.is_empty() => {
                print(client, known(client).await, format).await
            }
            Verb::List { queues } => print(client, queues.into_iter().collect(), format).await,
            Verb::Purge { queue, yes: false } => {
                let state = client.backends().broker.inspect(&queue).await?;
                let ready = state.map_or(0, |state| state.ready);
                streams::note(format_args!(
                    "countersign: {ready} tasks wait in {queue}; to delete them, add --yes"
                ));
                Ok(ExitCode::from(exit::USAGE))
            }
            Verb::Purge { queue, yes: true } => {
                let purged = client.backends().broker.purge(&queue).await?;
                format.print(&json!({ "queue": queue, "purged": purged }));
                Ok(ExitCode::SUCCESS)
            }
            Verb::Delete { queue, yes: false } => {
                let state = client.backends().broker.inspect(&queue).await?;
                let ready = state.map_or(0, |state| state.ready);
                streams::note(format_args!(
                    "countersign: {ready} tasks wait in {queue} and would be deleted with it; delayed \
                     tasks and retries of running tasks would be dead-lettered to {queue}.dead when they \
                     are due; to delete the queue, add --yes"
                ));
                Ok(ExitCode::from(exit::USAGE))
            }
            Verb::Delete { queue, yes: true } => {
                let configured = Queue::configured(&queue, client.config());
                let deleted = client.backends().broker.delete(&configured).await?;
                format.print(&json!({
                    "queue": queue, "deleted": deleted.is_some(), "tasks": deleted.unwrap_or(0),
                }));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Returns the queues that this installation is known to use: those of the settings, of live workers, and of
/// workers of the last 30 days. RabbitMQ lists all of its queues only through its management plugin.
pub(crate) async fn known(client: &Client) -> BTreeSet<String> {
    let config = client.config();
    let mut queues: BTreeSet<_> = config.queues.keys().cloned().collect();
    queues.insert(config.queue.clone());
    queues.extend(config.worker.queues.iter().cloned());
    let workers = client.backends().store.list_workers().await.unwrap_or_default();
    queues.extend(workers.into_iter().flat_map(|worker| worker.queues));
    queues.extend(client.backends().store.seen_queues().await.unwrap_or_default());
    queues
}

/// Prints on standard error each known queue with waiting tasks and no consumer.
pub(crate) async fn warn_unconsumed(client: &Client) {
    for (queue, ready) in unconsumed(client).await {
        let queue = plain(&queue);
        streams::note(format_args!(
            "countersign: {ready} tasks wait in {queue}, and no worker consumes it"
        ));
    }
}

/// Returns the known queues with waiting tasks and no consumer, each with the number of tasks. Skips a queue
/// that cannot be inspected.
pub(crate) async fn unconsumed(client: &Client) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for queue in known(client).await {
        if let Ok(Some(QueueState { ready: ready @ 1.., consumers: 0 })) =
            client.backends().broker.inspect(&queue).await
        {
            found.push((queue, ready));
        }
    }
    found
}

/// Prints the queues that could not be inspected.
///
/// # Errors
/// The first error, if no queue could be inspected: then the broker does not answer.
pub(crate) fn note_failed(failed: Vec<(String, Error)>, are_all: bool) -> Result<(), Error> {
    for (queue, error) in failed {
        if are_all {
            return Err(error);
        }
        let queue = plain(&queue);
        streams::note(format_args!("countersign: cannot inspect queue {queue}: {error}"));
    }
    Ok(())
}

/// Returns the states of a queue and of its dead-letter queue.
async fn inspect(
    client: &Client,
    queue: &Queue,
) -> Result<(Option<QueueState>, Option<QueueState>), Error> {
    let broker = &client.backends().broker;
    Ok((broker.inspect(&queue.name).await?, broker.inspect(&queue.dead().name).await?))
}

async fn print(
    client: &Client,
    queues: BTreeSet<String>,
    format: Format,
) -> Result<ExitCode, Error> {
    let workers = client.backends().store.list_workers().await?;
    let (mut records, mut failed) = (Vec::new(), Vec::new());
    for name in queues {
        let queue = Queue::configured(&name, client.config());
        let (state, dead) = match inspect(client, &queue).await {
            Ok(states) => states,
            Err(error) => {
                failed.push((name, error));
                continue;
            }
        };
        let kind = match queue.kind {
            QueueType::Classic => "classic",
            QueueType::Quorum => "quorum",
            _ => "other",
        };
        let ours = workers.iter().filter(|worker| worker.queues.contains(&name)).count();
        records.push(json!({
            "queue": name,
            "ready": state.map(|state| state.ready),
            "consumers": state.map(|state| state.consumers),
            "workers": ours,
            "dead": dead.map_or(0, |dead| dead.ready),
            "configured": kind,
            "max_priority": queue.max_priority,
        }));
    }
    note_failed(failed, records.is_empty())?;
    let names = ["queue", "ready", "consumers", "workers", "dead", "configured", "max_priority"];
    format.print_list(&names, &records);
    warn_unconsumed(client).await;
    Ok(ExitCode::SUCCESS)
}
