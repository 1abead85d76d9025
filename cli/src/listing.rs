//! `countersign tasks list` and `tasks get`: show the store's data on tasks.

use std::process::ExitCode;

use clap::Args;
use countersign::approval::ApprovalStatus;
use countersign::backend::{ApprovalRecord, FailedTask, Lookup, RunningTask, SuspendedTask};
use countersign::client::Client;
use countersign::error::Error;
use countersign::protocol::{Document, SUSPENDED, State};
use countersign::task::TaskId;
use countersign::unstable::now;
use futures_util::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::output::Format;
use crate::paste;
use crate::table::{relative, short_id};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  countersign tasks list                # running, suspended and failed ones
  countersign tasks list --failed --limit 20
  countersign tasks list --suspended -o json

A task is listed as running once it has run for a second. With Redis, at most the latest 10,000
failures are listed.")]
pub(crate) struct List {
    /// List tasks that have run for over a second, the oldest first
    #[arg(long)]
    running: bool,
    /// List tasks that wait for a decision or a time
    #[arg(long)]
    suspended: bool,
    /// List tasks that failed and are not retried, the latest first
    #[arg(long)]
    failed: bool,
    /// List at most this many of each
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

const COLUMNS: [&str; 6] = ["id", "state", "name", "queue", "at", "detail"];
const FIELDS: [&str; 13] = [
    "id",
    "state",
    "name",
    "queue",
    "worker",
    "attempt",
    "started",
    "ended",
    "result",
    "error",
    "waits_for",
    "to_approve",
    "wakes_at",
];

impl List {
    pub(crate) async fn perform(self, client: &Client, format: Format) -> Result<ExitCode, Error> {
        let all = !(self.running || self.suspended || self.failed);
        let mut records = Vec::new();
        if self.running || all {
            records.extend(running(client, self.limit).await?);
        }
        if self.suspended || all {
            records.extend(suspended(client, self.limit).await?);
        }
        if self.failed || all {
            records.extend(failed(client, self.limit).await?);
        }
        format.print_list(&COLUMNS, &records);
        Ok(ExitCode::SUCCESS)
    }
}

async fn running(client: &Client, limit: usize) -> Result<Vec<Value>, Error> {
    let workers = client.backends().store.list_workers().await?;
    let named = workers.into_iter().flat_map(|worker| {
        let name = worker.name;
        worker.long_running.into_iter().map(move |task| (name.clone(), task))
    });
    let mut named: Vec<_> = named.collect();
    named.sort_by_key(|(_, task)| task.started);
    let states = states(client, named.iter().map(|(_, task)| &task.id)).await;
    // A worker reports its tasks every few seconds: some may have ended by now.
    let named = named.into_iter().zip(states);
    let named = named.filter(|(_, state)| state.as_ref().is_none_or(|it| !it.is_terminal()));
    let records = named.take(limit).map(|((worker, task), _)| {
        let RunningTask { id, name, queue, attempt, started } = task;
        json!({
            "id": id, "state": "STARTED", "name": name, "queue": queue, "worker": worker,
            "attempt": attempt, "at": started,
        })
    });
    Ok(records.collect())
}

async fn suspended(client: &Client, limit: usize) -> Result<Vec<Value>, Error> {
    let tasks = client.backends().store.suspended_tasks(limit).await?;
    let records = join_all(tasks.into_iter().map(|task| async move {
        let requests = open_requests(client, &task).await;
        let SuspendedTask { id, name, queue, approvals, wakes_at } = task;
        let title = requests.first().map(|approval| {
            let request = &approval.request;
            format!("{} {}", short_id(request.id.as_str()), request.title)
        });
        let detail = title.or_else(|| Some(format!("wakes {}", relative(wakes_at?, now()))));
        let since = requests.first().map(|approval| approval.requested_at);
        json!({
            "id": id, "state": SUSPENDED, "name": name, "queue": queue, "approvals": approvals,
            "wakes_at": wakes_at, "at": since, "detail": detail,
        })
    }));
    Ok(records.await)
}

async fn failed(client: &Client, limit: usize) -> Result<Vec<Value>, Error> {
    let tasks = client.backends().store.failed_tasks(limit).await?;
    let states = states(client, tasks.iter().map(|task| &task.id)).await;
    // A task that was sent again may have another state by now, or none.
    let still = |(task, state): &(FailedTask, Option<State>)| match state {
        Some(state) => *state == State::Failure,
        None => !task.has_result,
    };
    let records = tasks.into_iter().zip(states).filter(still).map(|(task, _)| {
        let FailedTask { id, name, queue, worker, attempt, error, at, .. } = task;
        json!({
            "id": id, "state": "FAILURE", "name": name, "queue": queue, "worker": worker,
            "attempt": attempt, "at": at, "error": error, "detail": error,
        })
    });
    Ok(records.collect())
}

/// Returns the stored states of these tasks. An unreadable state counts as none.
async fn states<'t>(client: &Client, ids: impl Iterator<Item = &'t TaskId>) -> Vec<Option<State>> {
    let reads = ids.map(|id| client.backends().store.read_result(id));
    let read = join_all(reads).await.into_iter();
    read.map(|found| found.ok().flatten().map(|document| document.state)).collect()
}

/// Returns the open requests that a task waits for.
async fn open_requests(client: &Client, task: &SuspendedTask) -> Vec<ApprovalRecord> {
    let found = client.backends().store.approvals(&task.approvals).await.unwrap_or_default();
    let found = found.into_iter().filter_map(|found| match found {
        Lookup::Found(approval) if matches!(approval.status, ApprovalStatus::Open(_)) => {
            Some(*approval)
        }
        _ => None,
    });
    found.collect()
}

/// Prints the store's data on a task.
pub(crate) async fn get(client: &Client, id: &TaskId, format: Format) -> Result<ExitCode, Error> {
    let store = &client.backends().store;
    let document = store.read_result(id).await?;
    let state = document.as_ref().map(|document| document.state.clone());
    let is_over = state.as_ref().is_some_and(State::is_terminal);
    let mut record = json!({ "id": id, "state": state.as_ref().map_or("PENDING", State::as_str) });
    if let Some(document) = &document {
        add_end(&mut record, document);
    }
    if let Some(task) = store.failed_task(id).await?.filter(|_| state == Some(State::Failure)) {
        let FailedTask { name, queue, worker, attempt, .. } = task;
        add(
            &mut record,
            json!({
                "name": name, "queue": queue, "worker": worker, "attempt": attempt,
            }),
        );
    }
    if !is_over && let Some(task) = store.suspended_task(id).await? {
        let waits: Vec<_> = open_requests(client, &task).await.iter().map(request).collect();
        let SuspendedTask { name, queue, wakes_at, .. } = task;
        add(
            &mut record,
            json!({
                "state": SUSPENDED, "name": name, "queue": queue, "wakes_at": wakes_at,
                "waits_for": waits,
            }),
        );
    } else if !is_over && let Some((worker, task)) = find_running(client, id).await? {
        let RunningTask { name, queue, attempt, started, .. } = task;
        add(
            &mut record,
            json!({
                "state": "STARTED", "name": name, "queue": queue, "worker": worker,
                "attempt": attempt, "started": started,
            }),
        );
    }
    if format == Format::Table {
        show_requests(&mut record);
    }
    format.print_ordered(&FIELDS, &record);
    Ok(ExitCode::SUCCESS)
}

/// For people: shows each request's title, and the command that decides it.
fn show_requests(record: &mut Value) {
    let Some(waits) = record["waits_for"].as_array() else { return };
    let text = |it: &Value, name: &str| it[name].as_str().unwrap_or_default().to_owned();
    let titles = waits.iter().map(|it| {
        let until = text(it, "deadline").parse::<Timestamp>();
        let until = until.map_or_else(|_| String::new(), |at| relative(at, now()));
        format!("{} (deadline {until})", text(it, "title"))
    });
    let titles: Vec<_> = titles.collect();
    let commands = waits.iter().map(|it| paste::approve(&text(it, "approval")));
    let commands: Vec<_> = commands.collect();
    record["waits_for"] = titles.into();
    record["to_approve"] = commands.into();
}

fn add_end(record: &mut Value, document: &Document) {
    match document.state {
        State::Success => record["result"] = document.output::<Value>().unwrap_or_default(),
        State::Failure | State::Retry => record["error"] = document.failure().to_string().into(),
        State::Revoked => record["error"] = document.reason().into(),
        _ => {}
    }
    if let Some(at) = document.date_done() {
        record["ended"] = json!(at);
    }
    if document.state == State::Started
        && let Ok(stored) = serde_json::from_slice::<Value>(&document.json)
    {
        // Celery workers store the host name as well.
        record["worker"] = stored["result"]["hostname"].clone();
    }
}

fn add(record: &mut Value, fields: Value) {
    if let (Value::Object(record), Value::Object(fields)) = (record, fields) {
        record.extend(fields);
    }
}

fn request(approval: &ApprovalRecord) -> Value {
    json!({
        "approval": approval.request.id, "title": approval.request.title,
        "deadline": approval.at,
    })
}

async fn find_running(
    client: &Client,
    id: &TaskId,
) -> Result<Option<(String, RunningTask)>, Error> {
    let workers = client.backends().store.list_workers().await?;
    let named = workers.into_iter().find_map(|worker| {
        let task = worker.long_running.into_iter().find(|task| task.id == *id)?;
        Some((worker.name, task))
    });
    Ok(named)
}
