//! Who is there, and what time it is.

use std::time::Duration;

use countersign::backend::{Capability, Presence};
use jiff::Timestamp;

use crate::ground::{Ground, HOUR, eventually};
use crate::promise::{Promise, promise};

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(who_is_announced_is_there),
        promise(a_later_word_takes_the_place_of_an_earlier_one),
        promise(who_is_retracted_is_there_no_more),
        promise(who_is_overdue_is_there_no_more),
        promise(a_queue_is_remembered_after_its_worker),
        promise(the_clock_does_not_go_back),
        promise(the_server_says_something_about_itself),
        promise(everybody_sees_who_is_there).needs(Capability::SeveralProcesses),
        promise(clocks_of_two_processes_are_one).needs(Capability::SeveralProcesses),
    ]
}

fn presence(name: &str, pid: u32) -> Presence {
    Presence {
        name: name.into(),
        host: "a host".into(),
        pid,
        queues: vec!["billing".into(), "日本 {q}".into()],
        tasks: vec!["billing.charge".into(), "日本 {t}".into()],
        concurrency: 16,
        running: 3,
        finished: 1 << 40,
        draining: false,
        started: Timestamp::UNIX_EPOCH,
        at: Timestamp::UNIX_EPOCH + HOUR,
    }
}

fn sorted(mut present: Vec<Presence>) -> Vec<Presence> {
    present.sort_by_key(Presence::key);
    present
}

async fn who_is_announced_is_there(ground: Ground) {
    let Ground { store, .. } = &ground;
    assert_eq!(store.present().await.unwrap(), []);
    let all = sorted(vec![presence("a", 1), presence("a", 2), presence("b", 1)]);
    for worker in &all {
        store.announce(worker.clone(), HOUR).await.unwrap();
    }
    assert_eq!(sorted(store.present().await.unwrap()), all);
}

/// A database remembers queues when they are used, not when a worker announces itself.
async fn a_queue_is_remembered_after_its_worker(ground: Ground) {
    let Ground { store, broker, .. } = &ground;
    let worker = Presence { queues: vec![ground.queue.name.clone()], ..presence("a", 1) };
    let worker = Presence { at: Timestamp::now(), ..worker };
    broker.declare(&ground.queue).await.unwrap();
    store.announce(worker.clone(), HOUR).await.unwrap();
    store.retract(worker).await.unwrap();
    let seen = store.seen_queues().await.unwrap();
    assert!(seen.contains(&ground.queue.name), "{seen:?}");
}

async fn a_later_word_takes_the_place_of_an_earlier_one(ground: Ground) {
    let Ground { store, .. } = &ground;
    store.announce(presence("a", 1), HOUR).await.unwrap();
    let later = Presence { running: 0, draining: true, ..presence("a", 1) };
    store.announce(later.clone(), HOUR).await.unwrap();
    assert_eq!(store.present().await.unwrap(), [later]);
}

async fn who_is_retracted_is_there_no_more(ground: Ground) {
    let Ground { store, .. } = &ground;
    store.announce(presence("a", 1), HOUR).await.unwrap();
    store.announce(presence("a", 2), HOUR).await.unwrap();
    for _ in 0..2 {
        store.retract(presence("a", 1)).await.unwrap();
        assert_eq!(store.present().await.unwrap(), [presence("a", 2)]);
    }
}

async fn who_is_overdue_is_there_no_more(ground: Ground) {
    let Ground { store, .. } = &ground;
    store.announce(presence("a", 1), Duration::from_secs(1)).await.unwrap();
    store.announce(presence("b", 1), HOUR).await.unwrap();
    let left = async || store.present().await.unwrap() == [presence("b", 1)];
    eventually("it is overdue", left).await;
    store.announce(presence("a", 1), HOUR).await.unwrap();
    assert_eq!(store.present().await.unwrap().len(), 2);
}

async fn the_clock_does_not_go_back(ground: Ground) {
    let Ground { store, .. } = &ground;
    let far = Timestamp::now().as_millisecond().abs_diff(store.clock().await.unwrap());
    assert!(far < 3_600_000, "{far} ms from ours, on one machine");
    let mut last = 0;
    for _ in 0..200 {
        let now = store.clock().await.unwrap();
        assert!(now >= last, "{last}, then {now}");
        last = now;
    }
    eventually("it goes on", async || store.clock().await.unwrap() > last).await;
}

async fn the_server_says_something_about_itself(ground: Ground) {
    let server = ground.store.server().await.unwrap();
    let has_number = server.version.contains(|c: char| c.is_ascii_digit());
    assert!(server.version.is_empty() || has_number, "{server:?}");
    assert!(server.clock_ahead.abs() < 3_600_000, "{server:?}");
}

async fn everybody_sees_who_is_there(ground: Ground) {
    let other = ground.open().await.store;
    ground.store.announce(presence("a", 1), HOUR).await.unwrap();
    other.announce(presence("b", 1), HOUR).await.unwrap();
    let all = [presence("a", 1), presence("b", 1)];
    for store in [&ground.store, &other] {
        assert_eq!(sorted(store.present().await.unwrap()), all);
    }
    other.retract(presence("a", 1)).await.unwrap();
    assert_eq!(ground.store.present().await.unwrap(), [presence("b", 1)]);
}

async fn clocks_of_two_processes_are_one(ground: Ground) {
    let other = ground.open().await.store;
    let mut last = 0;
    for n in 0..200 {
        let store = [&ground.store, &other][n % 2];
        let now = store.clock().await.unwrap();
        // Each process may count its milliseconds by itself.
        assert!(now + 100 >= last, "{last}, then {now}");
        last = now;
    }
}
