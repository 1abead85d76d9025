//! `countersign queues`: what waits in them, who consumes them.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::output::{Format, plain};
use super::{exit, streams};
use crate::backend::{Queue, QueueState};
use crate::client::Client;
use crate::config::QueueType;
use crate::error::Error;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  countersign queues                      # those of the settings and of workers, also of stopped ones
  countersign queues list billing mail -o json
  countersign queues purge billing --yes
  countersign queues delete billing          # says what would be lost")]
pub(super) struct Queues {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show these queues; without any, those of the settings and of workers, also of stopped ones
    List { queues: Vec<String> },
    /// Throw away every task that waits in a queue. Who waits for their results is not told
    Purge {
        /// The queue
        queue: String,
        /// Do it; without this, only say how many there are
        #[arg(long)]
        yes: bool,
    },
    /// Delete a queue that no worker consumes, with every task that waits in it. Delayed tasks of it
    /// become dead letters when they are due. Clients that wait for results are not notified
    Delete {
        /// The queue
        queue: String,
        /// Do it; without this, only say what would be lost
        #[arg(long)]
        yes: bool,
    },
}

impl Queues {
    pub(super) async fn perform(self, client: &Client, format: Format) -> Result<ExitCode, Error> {
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
                format.print(&[json!({ "queue": queue, "purged": purged })]);
                Ok(ExitCode::SUCCESS)
            }
            Verb::Delete { queue, yes: false } => {
                let state = client.backends().broker.inspect(&queue).await?;
                let ready = state.map_or(0, |state| state.ready);
                streams::note(format_args!(
                    "countersign: {ready} tasks wait in {queue} and would be deleted with it; delayed \
                     tasks would go to {queue}.dead when they are due, and retries of running tasks, \
                     too; to delete the queue, add --yes"
                ));
                Ok(ExitCode::from(exit::USAGE))
            }
            Verb::Delete { queue, yes: true } => {
                let configured = Queue::configured(&queue, client.config());
                let deleted = client.backends().broker.delete(&configured).await?;
                format.print(&[json!({
                    "queue": queue, "deleted": deleted.is_some(), "tasks": deleted.unwrap_or(0),
                })]);
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// The queues that this installation is known to use: those of the settings, of live workers, and of
/// workers of the last 30 days. RabbitMQ lists all of its own only over its
/// management plugin.
pub(super) async fn known(client: &Client) -> BTreeSet<String> {
    let config = client.config();
    let mut queues: BTreeSet<_> = config.queues.keys().cloned().collect();
    queues.insert(config.queue.clone());
    queues.extend(config.worker.queues.iter().cloned());
    let workers = client.backends().store.present().await.unwrap_or_default();
    queues.extend(workers.into_iter().flat_map(|worker| worker.queues));
    queues.extend(client.backends().store.seen_queues().await.unwrap_or_default());
    queues
}

/// Says on standard error in which of the known queues tasks wait that nothing consumes.
pub(super) async fn warn_unconsumed(client: &Client) {
    for (queue, ready) in unconsumed(client).await {
        let queue = plain(&queue);
        streams::note(format_args!(
            "countersign: {ready} tasks wait in {queue}, and no worker consumes it"
        ));
    }
}

/// The known queues in which tasks wait without a consumer, with how many. A queue that cannot be
/// looked at is left out.
pub(super) async fn unconsumed(client: &Client) -> Vec<(String, u64)> {
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

async fn print(
    client: &Client,
    queues: BTreeSet<String>,
    format: Format,
) -> Result<ExitCode, Error> {
    let workers = client.backends().store.present().await?;
    let mut records = Vec::new();
    for name in queues {
        let queue = Queue::configured(&name, client.config());
        let state = client.backends().broker.inspect(&name).await?;
        let dead = client.backends().broker.inspect(&queue.dead().name).await?;
        let kind = match queue.kind {
            QueueType::Classic => "classic",
            QueueType::Quorum => "quorum",
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
    let names = ["queue", "ready", "consumers", "workers", "dead", "configured", "max_priority"];
    format.print_list(&names, &records);
    warn_unconsumed(client).await;
    Ok(ExitCode::SUCCESS)
}
