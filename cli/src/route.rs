//! Chooses the queue of a task if `countersign run` gets no queue.

use std::collections::BTreeSet;

use countersign::backend::WorkerInfo;
use countersign::cli::plain::plain;
use countersign::cli::streams;
use countersign::client::Client;
use countersign::error::Error;

/// The default of the setting `client.queue`.
const UNCONFIGURED: &str = "celery";

/// Returns the queue for a task of this type: the default queue if the user has set it or something
/// consumes it, else a queue of a live worker that has a handler for the type. The inner error names the
/// queues that are consumed.
pub(crate) async fn queue_of(client: &Client, task: &str) -> Result<Result<String, String>, Error> {
    let workers = client.backends().store.list_workers().await?;
    let default = &client.config().queue;
    if default != UNCONFIGURED {
        return Ok(Ok(default.clone()));
    }
    if let Some(queue) = choose(&workers, task, default) {
        return Ok(Ok(queue));
    }
    // Celery workers and older versions do not announce their task types.
    let state = client.backends().broker.inspect(default).await?;
    if state.is_some_and(|state| state.consumers > 0) {
        return Ok(Ok(default.clone()));
    }
    Ok(Err(fault(&workers, task)))
}

/// Prints on standard error that tasks sent to this queue wait, if it has no consumer now.
pub(crate) async fn warn_if_unconsumed(client: &Client, queue: &str) {
    let workers = client.backends().store.list_workers().await.unwrap_or_default();
    let is_consumed =
        workers.iter().any(|it| !it.draining && it.queues.iter().any(|name| name == queue));
    if is_consumed {
        return;
    }
    // Celery workers do not announce themselves. Without permission to inspect the queue, print nothing.
    match client.backends().broker.inspect(queue).await {
        Ok(Some(state)) if state.consumers > 0 => {}
        Ok(_) => streams::note(format_args!(
            "countersign: no worker consumes {}: tasks sent to it wait until one does",
            plain(queue)
        )),
        Err(_) => {}
    }
}

/// Returns a queue of a worker that has a handler for the task. Prefers the default queue, then queues whose
/// workers all have a handler, then the first by name.
fn choose(workers: &[WorkerInfo], task: &str, default: &str) -> Option<String> {
    let live = || workers.iter().filter(|worker| !worker.draining);
    let runs = |worker: &WorkerInfo| worker.tasks.iter().any(|name| name == task);
    let queues: BTreeSet<_> =
        live().filter(|worker| runs(worker)).flat_map(|worker| &worker.queues).collect();
    let is_unsure =
        |queue: &String| live().any(|worker| worker.queues.contains(queue) && !runs(worker));
    let best = queues.into_iter().min_by_key(|queue| (is_unsure(queue), *queue != default));
    best.cloned()
}

fn fault(workers: &[WorkerInfo], task: &str) -> String {
    let queues: BTreeSet<_> = workers.iter().flat_map(|worker| &worker.queues).collect();
    let task = plain(task);
    if queues.is_empty() {
        return format!(
            "no live worker consumes a queue; start a worker, or name the queue for {task} with -Q"
        );
    }
    let queues: Vec<_> = queues.into_iter().map(|queue| plain(queue)).collect();
    format!(
        "no live worker has a handler for {task}; name its queue with -Q. Consumed queues: {}",
        queues.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn worker(queues: &[&str], tasks: &[&str]) -> WorkerInfo {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        WorkerInfo {
            name: "w".to_owned(),
            host: "h".to_owned(),
            pid: 1,
            queues: owned(queues),
            tasks: owned(tasks),
            concurrency: 1,
            running: 0,
            long_running: Vec::new(),
            finished: 0,
            draining: false,
            started: Timestamp::UNIX_EPOCH,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_queue_whose_workers_all_run_the_task_is_preferred() {
        let workers = [worker(&["a", "b", "celery"], &["t"]), worker(&["a"], &["u"])];
        assert_eq!(choose(&workers, "t", "celery").as_deref(), Some("celery"));
        assert_eq!(choose(&workers, "t", "none").as_deref(), Some("b"));
        assert_eq!(choose(&workers, "u", "none").as_deref(), Some("a"));
        assert_eq!(choose(&workers, "v", "none"), None);
        let draining = WorkerInfo { draining: true, ..worker(&["c"], &["v"]) };
        assert_eq!(choose(&[draining], "v", "none"), None);
    }

    #[test]
    fn a_record_of_an_older_version_is_read() {
        let mut old = serde_json::to_value(worker(&["a"], &["t"])).unwrap();
        old.as_object_mut().unwrap().remove("tasks");
        let read: WorkerInfo = serde_json::from_value(old).unwrap();
        assert_eq!(read, worker(&["a"], &[]));
    }
}
