//! `countersign workers`: lists the live workers.

use std::process::ExitCode;

use countersign::client::Client;
use countersign::error::Error;
use serde_json::json;

use crate::output::Format;

pub(crate) async fn perform(client: &Client, format: Format) -> Result<ExitCode, Error> {
    let workers = client.backends().store.list_workers().await?;
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
