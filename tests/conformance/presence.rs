//! Which workers are alive, and the store's clock.

use std::time::Duration;

use countersign::backend::{Capability, RunningTask, WorkerInfo};
use jiff::Timestamp;

use crate::case::{Case, case};
use crate::fixture::{Fixture, HOUR, eventually};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(an_announced_worker_is_listed),
        case(a_later_announcement_replaces_an_earlier_one),
        case(a_retracted_worker_is_not_listed),
        case(an_overdue_worker_is_not_listed),
        case(a_queue_is_remembered_after_its_worker),
        case(a_queue_without_a_worker_is_remembered),
        case(the_clock_does_not_go_back),
        case(the_server_reports_its_version),
        case(workers_of_every_process_are_listed).needs(Capability::SeveralProcesses),
        case(two_processes_share_one_clock).needs(Capability::SeveralProcesses),
    ]
}

fn running(id: &str) -> RunningTask {
    RunningTask {
        id: id.into(),
        name: "billing.charge".into(),
        queue: "billing".into(),
        attempt: 2,
        started: Timestamp::UNIX_EPOCH,
    }
}

fn presence(name: &str, pid: u32) -> WorkerInfo {
    WorkerInfo {
        name: name.into(),
        host: "a host".into(),
        pid,
        queues: vec!["billing".into(), "日本 {q}".into()],
        tasks: vec!["billing.charge".into(), "日本 {t}".into()],
        concurrency: 16,
        running: 3,
        long_running: vec![running("a"), running("日本")],
        finished: 1 << 40,
        draining: false,
        started: Timestamp::UNIX_EPOCH,
        at: Timestamp::UNIX_EPOCH + HOUR,
    }
}

fn sorted(mut present: Vec<WorkerInfo>) -> Vec<WorkerInfo> {
    present.sort_by_key(WorkerInfo::key);
    present
}

async fn an_announced_worker_is_listed(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    assert_eq!(store.list_workers().await.unwrap(), []);
    let all = sorted(vec![presence("a", 1), presence("a", 2), presence("b", 1)]);
    for worker in &all {
        store.register_worker(worker.clone(), HOUR).await.unwrap();
    }
    assert_eq!(sorted(store.list_workers().await.unwrap()), all);
}

/// A database remembers queues when they are used, not when a worker announces itself.
async fn a_queue_is_remembered_after_its_worker(fixture: Fixture) {
    let Fixture { store, broker, .. } = &fixture;
    let worker = WorkerInfo { queues: vec![fixture.queue.name.clone()], ..presence("a", 1) };
    let worker = WorkerInfo { at: Timestamp::now(), ..worker };
    broker.declare(&fixture.queue).await.unwrap();
    store.register_worker(worker.clone(), HOUR).await.unwrap();
    store.unregister_worker(worker).await.unwrap();
    let seen = store.seen_queues().await.unwrap();
    assert!(seen.contains(&fixture.queue.name), "{seen:?}");
}

/// A database remembers a queue with its first message.
async fn a_queue_without_a_worker_is_remembered(fixture: Fixture) {
    fixture.send("a").await;
    fixture.store.remember_queue(&fixture.queue.name);
    let is_seen = async || fixture.store.seen_queues().await.unwrap().contains(&fixture.queue.name);
    eventually("the queue is seen", is_seen).await;
}

async fn a_later_announcement_replaces_an_earlier_one(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    store.register_worker(presence("a", 1), HOUR).await.unwrap();
    let later = WorkerInfo { running: 0, draining: true, ..presence("a", 1) };
    store.register_worker(later.clone(), HOUR).await.unwrap();
    assert_eq!(store.list_workers().await.unwrap(), [later]);
}

async fn a_retracted_worker_is_not_listed(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    store.register_worker(presence("a", 1), HOUR).await.unwrap();
    store.register_worker(presence("a", 2), HOUR).await.unwrap();
    for _ in 0..2 {
        store.unregister_worker(presence("a", 1)).await.unwrap();
        assert_eq!(store.list_workers().await.unwrap(), [presence("a", 2)]);
    }
}

async fn an_overdue_worker_is_not_listed(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    store.register_worker(presence("a", 1), Duration::from_secs(1)).await.unwrap();
    store.register_worker(presence("b", 1), HOUR).await.unwrap();
    let left = async || store.list_workers().await.unwrap() == [presence("b", 1)];
    eventually("the worker is overdue", left).await;
    store.register_worker(presence("a", 1), HOUR).await.unwrap();
    assert_eq!(store.list_workers().await.unwrap().len(), 2);
}

async fn the_clock_does_not_go_back(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let far = Timestamp::now().as_millisecond().abs_diff(store.clock().await.unwrap());
    assert!(far < 3_600_000, "{far} ms from our clock, on one machine");
    let mut last = 0;
    for _ in 0..200 {
        let now = store.clock().await.unwrap();
        assert!(now >= last, "{last}, then {now}");
        last = now;
    }
    eventually("the clock advances", async || store.clock().await.unwrap() > last).await;
}

async fn the_server_reports_its_version(fixture: Fixture) {
    let server = fixture.store.server().await.unwrap();
    let has_number = server.version.contains(|c: char| c.is_ascii_digit());
    assert!(server.version.is_empty() || has_number, "{server:?}");
    assert!(server.clock_ahead.abs() < 3_600_000, "{server:?}");
}

async fn workers_of_every_process_are_listed(fixture: Fixture) {
    let other = fixture.open().await.store;
    fixture.store.register_worker(presence("a", 1), HOUR).await.unwrap();
    other.register_worker(presence("b", 1), HOUR).await.unwrap();
    let all = [presence("a", 1), presence("b", 1)];
    for store in [&fixture.store, &other] {
        assert_eq!(sorted(store.list_workers().await.unwrap()), all);
    }
    other.unregister_worker(presence("a", 1)).await.unwrap();
    assert_eq!(fixture.store.list_workers().await.unwrap(), [presence("b", 1)]);
}

async fn two_processes_share_one_clock(fixture: Fixture) {
    let other = fixture.open().await.store;
    let mut last = 0;
    for n in 0..200 {
        let store = [&fixture.store, &other][n % 2];
        let now = store.clock().await.unwrap();
        // Each process may count its milliseconds by itself.
        assert!(now + 100 >= last, "{last}, then {now}");
        last = now;
    }
}
