//! `countersign run`: puts a task on its way, by its name.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::output::Format;
use super::worker::duration;
use super::{exit, tasks};
use crate::client::Client;
use crate::error::{Error, Kind};
use crate::protocol::Arguments;

#[derive(Debug, Args)]
pub(super) struct Run {
    /// The task's registered name
    name: String,
    /// Positional arguments: JSON, or plain text
    arguments: Vec<String>,
    /// A keyword argument, as NAME=VALUE with a JSON or plain text value
    #[arg(short, long = "kwarg", value_name = "NAME=VALUE")]
    kwargs: Vec<String>,
    /// The queue
    #[arg(short = 'Q', long)]
    queue: Option<String>,
    /// Start it only after this long
    #[arg(long, value_parser = duration)]
    delay: Option<Duration>,
    /// Do not start it any more after this long
    #[arg(long, value_parser = duration)]
    expires: Option<Duration>,
    /// Wait for its result
    #[arg(long)]
    wait: bool,
    /// Wait at most this long
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

impl Run {
    pub(super) async fn perform(self, client: &Client, format: Format) -> Result<ExitCode, Error> {
        let mut arguments = Arguments::default();
        for text in &self.arguments {
            arguments.args.push(value(text));
        }
        for text in &self.kwargs {
            let Some((name, text)) = text.split_once('=') else {
                eprintln!("countersign: -k {text}: a keyword argument is written NAME=VALUE");
                return Ok(ExitCode::from(exit::USAGE));
            };
            arguments.kwargs.insert(name.to_owned(), value(text));
        }
        let mut task = client.enqueue_named(&self.name, arguments);
        if let Some(queue) = self.queue {
            task = task.queue(queue);
        }
        if let Some(delay) = self.delay {
            task = task.delay(delay);
        }
        if let Some(expires) = self.expires {
            task = task.expires_in(expires);
        }
        let handle = task.await?;
        if self.wait {
            let id = handle.id().clone();
            return tasks::print_end(&id, handle.result_within(self.timeout).await, format);
        }
        format.print(&[json!({ "id": handle.id(), "state": "SENT" })]);
        Ok(ExitCode::SUCCESS)
    }
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
        Kind::Failed { .. } | Kind::Revoked { .. } => Some(exit::FAILURE),
        _ => None,
    }
}
