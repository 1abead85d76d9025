//! `countersign run`: puts a task on its way, by its name; or many.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::batch::{self, Work};
use super::output::Format;
use super::worker::duration;
use super::{exit, route, streams, tasks};
use crate::client::{Client, Enqueue};
use crate::error::{Error, Kind};
use crate::protocol::Arguments;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  countersign run demo.add 2 3 -Q demo --wait
  countersign run demo.echo hello -k loud=true -Q demo --delay 10s
  countersign run demo.add 2 3 -Q demo --count 1000
  countersign run demo.add --from tasks.jsonl -Q demo     # lines such as [2, 3] or {\"x\": 2, \"y\": 3}

Exit codes: 0 taken by the broker, and with --wait succeeded; 1 failed; 3 what
it asked was not approved; 75 not ended within --timeout.")]
pub(super) struct Run {
    /// The task's registered name
    name: String,
    /// Positional arguments: JSON, or plain text
    arguments: Vec<String>,
    /// A keyword argument, as NAME=VALUE with a JSON or plain text value
    #[arg(short, long = "kwarg", value_name = "NAME=VALUE")]
    kwargs: Vec<String>,
    /// The queue [default: `client.queue` if it is consumed or set, else one whose live worker has a
    /// handler for the task]
    #[arg(short = 'Q', long)]
    queue: Option<String>,
    /// Start it only after this long
    #[arg(long, value_parser = duration)]
    delay: Option<Duration>,
    /// Do not start it any more after this long
    #[arg(long, value_parser = duration)]
    expires: Option<Duration>,
    /// Before tasks of its queue with a lower one; the queue must be configured for it
    #[arg(long, default_value_t = 0)]
    priority: u8,
    /// Idempotency key: the same key again gives the first task
    #[arg(long, conflicts_with_all = ["count", "from"])]
    key: Option<String>,
    /// Send it so many times
    #[arg(long, conflicts_with = "from")]
    count: Option<u64>,
    /// Send one task for each line of this file: a JSON array of positional arguments, or an
    /// object of keyword arguments
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["arguments", "kwargs"])]
    from: Option<PathBuf>,
    /// Wait for its result
    #[arg(long)]
    wait: bool,
    /// Wait at most this long
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

impl Run {
    pub(super) async fn perform(
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
            return tasks::print_end(&id, handle.result_within(self.timeout).await, format);
        }
        format.print(&[json!({ "id": handle.id(), "state": "SENT" })]);
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

/// What is no JSON is a text.
fn value(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned())
        .or_else(|_| RawValue::from_string(Value::from(text).to_string()))
        .unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// The exit code that says what became of an awaited task.
pub(super) fn verdict(error: &Error) -> Option<u8> {
    match &*error.0 {
        Kind::Failed { failure, .. } if failure.is_refusal() => Some(exit::REFUSED),
        Kind::Failed { .. } | Kind::Revoked { .. } => Some(exit::FAILURE),
        _ => None,
    }
}
