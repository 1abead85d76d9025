//! `countersign workers`: those that are there.

use std::process::ExitCode;

use serde_json::json;

use super::output::Format;
use crate::client::Client;
use crate::error::Error;

pub(super) async fn perform(client: &Client, format: Format) -> Result<ExitCode, Error> {
    let workers = client.backends().store.present().await?;
    let records = workers.iter().map(|worker| {
        json!({
            "name": worker.name,
            "host": worker.host,
            "pid": worker.pid,
            "queues": worker.queues,
            "tasks": worker.tasks,
            "concurrency": worker.concurrency,
            "running": worker.running,
            "finished": worker.finished,
            "draining": worker.draining,
            "started": worker.started,
            "at": worker.at,
        })
    });
    let names = [
        "name",
        "host",
        "pid",
        "queues",
        "concurrency",
        "running",
        "finished",
        "draining",
        "started",
    ];
    format.print_list(&names, &records.collect::<Vec<_>>());
    Ok(ExitCode::SUCCESS)
}
