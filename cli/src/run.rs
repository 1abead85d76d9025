//! `countersign run`: enqueues one or many tasks by their name.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use countersign::cli::{exit, streams};
use countersign::client::{Client, Enqueue};
use countersign::error::Error;
use countersign::protocol::Arguments;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::batch::{self, Work};
use crate::duration::duration;
use crate::output::Format;
use crate::{route, tasks, waiting};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  countersign run demo.add 2 3 -Q demo --wait
  countersign run demo.echo hello -k loud=true -Q demo --delay 10s
  countersign run demo.add 2 3 -Q demo --count 1000
  countersign run demo.add --from tasks.jsonl -Q demo     # lines such as [2, 3] or {\"x\": 2, \"y\": 3}

Exit codes: 0 accepted by the broker, and with --wait succeeded; 1 failed; 3 an
approval request of the task was not approved; 75 not ended within --timeout.")]
pub(crate) struct Run {
    /// The task's registered name
    name: String,
    /// Positional arguments: JSON, or plain text
    arguments: Vec<String>,
    /// A keyword argument, as NAME=VALUE with a JSON or plain text value
    #[arg(short, long = "kwarg", value_name = "NAME=VALUE")]
    kwargs: Vec<String>,
    /// The queue [default: `client.queue` if it is consumed or set, else one whose live worker has a handler
    /// for the task]
    #[arg(short = 'Q', long)]
    queue: Option<String>,
    /// Start the task no earlier than after this time
    #[arg(long, value_parser = duration)]
    delay: Option<Duration>,
    /// Start the task no later than after this time
    #[arg(long, value_parser = duration)]
    expires: Option<Duration>,
    /// Deliver the task before tasks of its queue with a lower priority; the queue must be configured for
    /// priorities
    #[arg(long, default_value_t = 0)]
    priority: u8,
    /// An idempotency key: enqueueing again with the same key returns the first task
    #[arg(long, conflicts_with_all = ["count", "from"])]
    key: Option<String>,
    /// Send the task this many times
    #[arg(long, conflicts_with = "from")]
    count: Option<u64>,
    /// Send one task for each line of this file: a JSON array of positional arguments, or an
    /// object of keyword arguments
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["arguments", "kwargs"])]
    from: Option<PathBuf>,
    /// Wait for the result
    #[arg(long)]
    wait: bool,
    /// Wait at most this long
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

impl Run {
    pub(crate) async fn perform(
        mut self,
        client: &Client,
        format: Format,
    ) -> Result<ExitCode, Error> {
        if self.queue.is_none() {
            match route::queue_of(client, &self.name).await? {
                Ok(queue) => self.queue = Some(queue),
                Err(fault) => {
                    streams::note(format_args!("countersign: {fault}"));
                    return Ok(ExitCode::from(exit::FAILURE));
                }
            }
        }
        if let Some(queue) = &self.queue {
            route::warn_if_unconsumed(client, queue).await;
        }
        let wait = self.wait.then_some(self.timeout);
        let work = match (&self.from, self.count) {
            (Some(file), _) => match Work::read(file) {
                Ok(work) => work,
                Err(fault) => return Ok(usage(&fault)),
            },
            (None, Some(count)) => match self.arguments() {
                Ok(arguments) => Work::Same(arguments, count),
                Err(fault) => return Ok(usage(&fault)),
            },
            (None, None) => return self.send_one(client, format).await,
        };
        batch::send(client, work, |arguments| self.task(client, arguments), wait, format).await
    }

    async fn send_one(self, client: &Client, format: Format) -> Result<ExitCode, Error> {
        let arguments = match self.arguments() {
            Ok(arguments) => arguments,
            Err(fault) => return Ok(usage(&fault)),
        };
        let handle = self.task(client, arguments).await?;
        if self.wait {
            let id = handle.id().clone();
            let result = handle.result_within(self.timeout);
            return tasks::print_end(
                &id,
                waiting::with_requests(client, &id, result).await,
                format,
            );
        }
        format.print(&json!({ "id": handle.id(), "state": "SENT" }));
        Ok(ExitCode::SUCCESS)
    }

    fn arguments(&self) -> Result<Arguments, String> {
        let mut arguments = Arguments::default();
        for text in &self.arguments {
            arguments.args.push(value(text));
        }
        for text in &self.kwargs {
            let Some((name, text)) = text.split_once('=') else {
                return Err(format!("-k {text}: a keyword argument is written NAME=VALUE"));
            };
            arguments.kwargs.insert(name.to_owned(), value(text));
        }
        Ok(arguments)
    }

    fn task(&self, client: &Client, arguments: Arguments) -> Enqueue<Value> {
        let mut task = client.enqueue_named(&self.name, arguments).priority(self.priority);
        if let Some(queue) = &self.queue {
            task = task.queue(queue);
        }
        if let Some(delay) = self.delay {
            task = task.delay(delay);
        }
        if let Some(expires) = self.expires {
            task = task.expires_in(expires);
        }
        if let Some(key) = &self.key {
            task = task.idempotency_key(key);
        }
        task
    }
}

fn usage(fault: &str) -> ExitCode {
    streams::note(format_args!("countersign: {fault}"));
    ExitCode::from(exit::USAGE)
}

/// Parses JSON; any other text becomes a string.
fn value(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned())
        .or_else(|_| RawValue::from_string(Value::from(text).to_string()))
        .unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// Returns the exit code for the outcome of an awaited task.
pub(crate) fn verdict(error: &Error) -> Option<u8> {
    match error.failure() {
        Some(failure) if failure.is_refusal() => Some(exit::REFUSED),
        Some(_) => Some(exit::FAILURE),
        None => error.is_revoked().then_some(exit::FAILURE),
    }
}
