//! `countersign run` for many tasks.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use countersign::cli::exit;
use countersign::client::{Client, Enqueue};
use countersign::error::Error;
use countersign::handle::{Handle, gather_within};
use countersign::protocol::{Arguments, Kwargs};
use countersign::task::TaskId;
use indicatif::ProgressBar;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::output::Format;
use crate::progress;
use crate::run::verdict;

/// The number of tasks that are sent, and with `--wait` awaited, before the next ones.
const CHUNK: usize = 1000;
const WAITS: usize = 1000;

/// The tasks to send.
pub(crate) enum Work {
    /// One task with the same arguments, this many times.
    Same(Arguments, u64),
    /// One task for each of these arguments.
    Each(Vec<Arguments>),
}

impl Work {
    /// Reads a file of JSON lines. The error lists every invalid line.
    pub(crate) fn read(file: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let (mut each, mut faults) = (Vec::new(), Vec::new());
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match arguments(line) {
                Some(arguments) => each.push(arguments),
                None => faults.push(format!(
                    "{}:{}: neither a JSON array of positional arguments nor an object of keyword \
                     arguments",
                    file.display(),
                    number + 1
                )),
            }
        }
        if faults.is_empty() { Ok(Self::Each(each)) } else { Err(faults.join("\n")) }
    }

    fn count(&self) -> u64 {
        match self {
            Self::Same(_, count) => *count,
            Self::Each(each) => each.len() as u64,
        }
    }

    fn into_iter(self) -> Box<dyn Iterator<Item = Arguments>> {
        match self {
            Self::Same(arguments, count) => Box::new((0..count).map(move |_| arguments.clone())),
            Self::Each(each) => Box::new(each.into_iter()),
        }
    }
}

fn arguments(line: &str) -> Option<Arguments> {
    let mut arguments = Arguments::default();
    if let Ok(args) = serde_json::from_str::<Vec<Box<RawValue>>>(line) {
        arguments.args = args;
    } else {
        arguments.kwargs = serde_json::from_str::<Kwargs>(line).ok()?;
    }
    Some(arguments)
}

/// Sends all tasks. With `wait`, waits that long for each thousand. Prints the result of each task, or, as a
/// table, a summary. Exit code 1 if a task was not accepted, or failed.
pub(crate) async fn send(
    client: &Client,
    work: Work,
    task: impl Fn(Arguments) -> Enqueue<Value>,
    wait: Option<Duration>,
    format: Format,
) -> Result<ExitCode, Error> {
    let bar = progress::bar(work.count(), "sending");
    let mut tally = Tally { done: 0, failed: 0, records: Vec::new(), format };
    let mut work = work.into_iter();
    loop {
        let chunk: Vec<_> = work.by_ref().take(CHUNK).map(&task).collect();
        if chunk.is_empty() {
            break;
        }
        let sent = client.enqueue_all(chunk).await;
        match wait {
            Some(timeout) => await_all(sent, timeout, &mut tally, &bar).await,
            None => {
                for sent in sent {
                    bar.inc(1);
                    tally.count(match &sent {
                        Ok(handle) => Ok(json!({ "id": handle.id(), "state": "SENT" })),
                        Err(error) => Err(json!({ "id": null, "state": error.to_string() })),
                    });
                }
            }
        }
    }
    bar.finish_and_clear();
    Ok(tally.end())
}

async fn await_all(
    sent: Vec<Result<Handle<Value>, Error>>,
    timeout: Duration,
    tally: &mut Tally,
    bar: &ProgressBar,
) {
    let (mut ids, mut handles) = (Vec::new(), Vec::new());
    for sent in sent {
        match sent {
            Ok(handle) => {
                ids.push(handle.id().clone());
                handles.push(handle);
            }
            Err(error) => tally.count(Err(json!({ "id": null, "state": error.to_string() }))),
        }
    }
    for (id, result) in ids.iter().zip(gather_within(handles, WAITS, timeout).await) {
        bar.inc(1);
        tally.count(record(id, result));
    }
}

fn record(id: &TaskId, result: Result<Value, Error>) -> Result<Value, Value> {
    match result {
        Ok(result) => Ok(json!({ "id": id, "state": "SUCCESS", "result": result })),
        Err(error) => {
            let state = match verdict(&error) {
                Some(_) if error.is_revoked() => "REVOKED",
                Some(_) => "FAILURE",
                None => "UNKNOWN",
            };
            let message = error.failure().map_or_else(|| error.to_string(), ToString::to_string);
            Err(json!({ "id": id, "state": state, "result": message }))
        }
    }
}

struct Tally {
    done: u64,
    failed: u64,
    /// Collected only for one JSON document.
    records: Vec<Value>,
    format: Format,
}

impl Tally {
    fn count(&mut self, record: Result<Value, Value>) {
        *(if record.is_ok() { &mut self.done } else { &mut self.failed }) += 1;
        let (Ok(record) | Err(record)) = record;
        match self.format {
            Format::Table => {}
            Format::Json => self.records.push(record),
            Format::Jsonl => self.format.print(&record),
        }
    }

    fn end(self) -> ExitCode {
        match self.format {
            Format::Table => {
                self.format.print(&json!({ "done": self.done, "failed": self.failed }));
            }
            Format::Json => self.format.print_list(&[], &self.records),
            Format::Jsonl => {}
        }
        ExitCode::from(if self.failed == 0 { 0 } else { exit::FAILURE })
    }
}
