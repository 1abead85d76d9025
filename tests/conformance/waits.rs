//! A waiter receives a result no matter when the result is stored.

use std::sync::Arc;
use std::time::Duration;

use countersign::backend::{Capability, Origin, Store, StoreResult};
use countersign::protocol::{Document, SUSPENDED};
use countersign::{Error, TaskId};
use support::TIMEOUT;
use tokio::sync::oneshot;

use crate::case::{Case, case};
use crate::fixture::{Fixture, document, finish, race};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(a_wait_before_the_result_completes),
        case(a_wait_after_the_result_completes),
        case(a_wait_concurrent_with_the_result_completes),
        case(every_terminal_state_ends_a_wait_and_no_other),
        case(many_wait_for_one_task),
        case(one_waits_for_many_tasks),
        case(a_wait_ends_with_its_timeout_and_the_others_go_on),
        case(a_wait_that_is_dropped_leaves_the_others_alone),
        case(a_wait_may_be_awaited_on_any_executor),
        case(closing_ends_every_wait),
        case(another_process_gets_the_result).needs(Capability::SeveralProcesses),
        case(a_result_reaches_the_sender_of_the_task).needs(Capability::SeveralProcesses),
    ]
}

const ORIGINS: [Origin; 2] = [Origin::Own, Origin::Foreign];

type Wait = oneshot::Receiver<Result<Box<Document>, Error>>;

fn watch(store: &Arc<dyn Store>, id: &TaskId, origin: Origin) -> Wait {
    store.watch_result(id.clone(), origin, Some(TIMEOUT))
}

async fn completed(wait: Wait) -> Document {
    *wait.await.unwrap().unwrap()
}

/// Stores the result of a task whose caller listens on the reply channel `to`.
async fn reply(store: &Arc<dyn Store>, to: &str, document: &Document) {
    let finish =
        StoreResult { document: document.clone(), reply_to: Some(to.to_owned()), received: None };
    let _ = store.store_result(finish).await.unwrap();
}

async fn a_wait_before_the_result_completes(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    for origin in ORIGINS {
        let id = TaskId::random();
        let wait = watch(store, &id, origin);
        let stored = document(&id, "SUCCESS", "done");
        reply(store, store.reply_channel(), &stored).await;
        assert_eq!(completed(wait).await, stored, "{origin:?}");
    }
}

async fn a_wait_after_the_result_completes(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    for origin in ORIGINS {
        let id = TaskId::random();
        let stored = document(&id, "SUCCESS", "done");
        reply(store, store.reply_channel(), &stored).await;
        for _ in 0..2 {
            assert_eq!(completed(watch(store, &id, origin)).await, stored, "{origin:?}");
        }
    }
}

async fn a_wait_concurrent_with_the_result_completes(fixture: Fixture) {
    race(200, |n| {
        let (store, id) = (fixture.store.clone(), TaskId::random());
        async move {
            let stored = document(&id, "SUCCESS", "done");
            let channel = store.reply_channel().to_owned();
            let ending = reply(&store, &channel, &stored);
            let waiting = async {
                for _ in 0..n % 7 {
                    tokio::task::yield_now().await;
                }
                completed(watch(&store, &id, ORIGINS[n % 2])).await
            };
            let ((), found) = tokio::join!(ending, waiting);
            assert_eq!(found, stored);
        }
    })
    .await;
}

async fn every_terminal_state_ends_a_wait_and_no_other(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    for end in ["SUCCESS", "FAILURE", "REVOKED"] {
        let id = TaskId::random();
        let waits = ORIGINS.map(|origin| watch(store, &id, origin));
        for state in ["STARTED", "RETRY", SUSPENDED, end] {
            reply(store, store.reply_channel(), &document(&id, state, "")).await;
        }
        for wait in waits {
            assert_eq!(completed(wait).await, document(&id, end, ""));
        }
    }
}

async fn many_wait_for_one_task(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    let waits: Vec<_> = (0..500).map(|n| watch(store, &id, ORIGINS[n % 2])).collect();
    let stored = document(&id, "SUCCESS", "done");
    reply(store, store.reply_channel(), &stored).await;
    for wait in waits {
        assert_eq!(completed(wait).await, stored);
    }
}

async fn one_waits_for_many_tasks(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let ids: Vec<_> = (0..500).map(|_| TaskId::random()).collect();
    let wait = |(n, id)| watch(store, id, ORIGINS[n % 2]);
    let waits: Vec<_> = ids.iter().enumerate().map(wait).collect();
    race(ids.len(), |n| {
        let (store, id) = (store.clone(), ids[n].clone());
        async move { finish(&store, &id, "SUCCESS", &n.to_string()).await }
    })
    .await;
    for (n, (wait, id)) in waits.into_iter().zip(&ids).enumerate() {
        assert_eq!(completed(wait).await, document(id, "SUCCESS", &n.to_string()));
    }
}

async fn a_wait_ends_with_its_timeout_and_the_others_go_on(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    for origin in ORIGINS {
        let id = TaskId::random();
        let long = watch(store, &id, origin);
        let short = store.watch_result(id.clone(), origin, Some(Duration::from_millis(30)));
        let none = store.watch_result(TaskId::random(), origin, Some(Duration::ZERO));
        for wait in [short, none] {
            let error = wait.await.unwrap().unwrap_err();
            assert!(error.is_timeout(), "{error}");
        }
        let stored = fixture.finish(&id, "SUCCESS", "done").await;
        assert_eq!(completed(long).await, stored);
    }
}

async fn a_wait_that_is_dropped_leaves_the_others_alone(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    for origin in ORIGINS {
        let id = TaskId::random();
        let [first, second, third] = [origin; 3].map(|origin| watch(store, &id, origin));
        drop((first, third));
        let stored = fixture.finish(&id, "SUCCESS", "done").await;
        assert_eq!(completed(second).await, stored);
    }
}

async fn a_wait_may_be_awaited_on_any_executor(fixture: Fixture) {
    let id = TaskId::random();
    let wait = watch(&fixture.store, &id, Origin::Foreign);
    let elsewhere = std::thread::spawn(move || futures_executor::block_on(completed(wait)));
    let stored = fixture.finish(&id, "SUCCESS", "done").await;
    let found = tokio::task::spawn_blocking(move || elsewhere.join().unwrap()).await.unwrap();
    assert_eq!(found, stored);
}

async fn closing_ends_every_wait(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let endless = |origin| store.watch_result(TaskId::random(), origin, None);
    let waits = ORIGINS.map(endless);
    store.close().await;
    for wait in waits.into_iter().chain(ORIGINS.map(endless)) {
        let error = wait.await.unwrap().unwrap_err();
        assert!(!error.is_timeout(), "{error}");
    }
}

async fn another_process_gets_the_result(fixture: Fixture) {
    let other = fixture.open().await;
    let id = TaskId::random();
    let waits =
        [watch(&other.store, &id, Origin::Foreign), watch(&fixture.store, &id, Origin::Foreign)];
    let stored = fixture.finish(&id, "SUCCESS", "done").await;
    for wait in waits {
        assert_eq!(completed(wait).await, stored);
    }
    assert_eq!(completed(watch(&other.store, &id, Origin::Foreign)).await, stored);
}

async fn a_result_reaches_the_sender_of_the_task(fixture: Fixture) {
    let worker = fixture.open().await;
    let channel = fixture.store.reply_channel();
    let ids: Vec<_> = (0..50).map(|_| TaskId::random()).collect();
    let waits: Vec<_> = ids.iter().map(|id| watch(&fixture.store, id, Origin::Own)).collect();
    for (id, wait) in ids.iter().zip(waits) {
        let stored = document(id, "SUCCESS", "done");
        reply(&worker.store, channel, &stored).await;
        assert_eq!(completed(wait).await, stored);
    }
}
