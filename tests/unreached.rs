//! Tasks that never run because a task before them was revoked, has expired, or is refused: their waiters
//! receive a failure.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test panics when it fails")]

use countersign::backend::{PublishRequest, Queue};
use countersign::protocol::{Envelope, State};
use countersign::{Arguments, Client, Config, Context, Revoke, Task, TaskId, TaskResult};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use support::{Running, TIMEOUT, servers};
use tokio::sync::mpsc;
use tokio::time::timeout;

#[derive(Serialize, Deserialize)]
struct Any(Arguments);

impl Task for Any {
    const NAME: &'static str = "test.any";
    type Output = ();
}

/// Sends a task with this `embed` in its body.
async fn send(running: &Running, embed: &Value, change: impl FnOnce(&mut Envelope)) -> TaskId {
    let mut task = Envelope::new("test.any", Arguments::default());
    task.id = TaskId::random();
    task.embed = serde_json::value::to_raw_value(embed).unwrap();
    change(&mut task);
    let id = task.id.clone();
    let request = PublishRequest {
        message: task.encode(),
        queue: Queue::new(running.queue.as_str()),
        delay: None,
        timeout: TIMEOUT,
    };
    running.client.backends().broker.publish(request).await.map(drop).unwrap();
    id
}

fn signature(id: &TaskId) -> Value {
    json!({ "task": "test.any", "immutable": true, "options": { "task_id": id } })
}

/// Waits until the task has ended; returns its state and the reason.
async fn ended(client: &Client, id: &TaskId) -> (State, String) {
    let wait = async {
        loop {
            if let Some(document) = client.status(id).await.unwrap()
                && document.state.is_terminal()
            {
                let why = document.failure().message();
                return (document.state, why);
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, wait).await.unwrap_or_else(|_| panic!("task {id} does not end"))
}

#[tokio::test(flavor = "multi_thread")]
async fn later_tasks_of_a_chain_fail_when_one_before_was_revoked_or_has_expired() {
    let any = |_: Context, _: Any| async { Ok(()) };
    let [revoked, third, last, late] = [(); 4].map(|()| TaskId::random());
    // Revoked before the worker starts: a running worker receives the revocation with a delay.
    let config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    let revoking = Client::connect(&config).await.unwrap();
    revoking.revoke(std::slice::from_ref(&revoked), Revoke::IfQueued).await.unwrap();
    revoking.close().await;
    let running = Running::start(|worker| worker.handle(any)).await;
    let client = &running.client;
    let chain = json!({ "chain": [signature(&last), signature(&third), signature(&revoked)] });
    send(&running, &chain, |_| {}).await;
    assert_eq!(ended(client, &revoked).await.0, State::Revoked);
    for id in [&third, &last] {
        let (state, why) = ended(client, id).await;
        assert_eq!(state, State::Failure);
        assert!(why.contains(&format!("task {revoked}")) && why.contains("revoked"), "{why}");
    }
    let chain = json!({ "chain": [signature(&late)] });
    let expired = send(&running, &chain, |task| {
        task.expires = Some("2020-01-01T00:00:00Z".parse().unwrap());
    })
    .await;
    assert_eq!(ended(client, &expired).await.0, State::Revoked);
    let (state, why) = ended(client, &late).await;
    assert_eq!(state, State::Failure);
    assert!(why.contains(&format!("task {expired}")) && why.contains("expired"), "{why}");
    running.drain().await;
}

#[derive(Serialize, Deserialize)]
struct Errback(String);

impl Task for Errback {
    const NAME: &'static str = "test.errback";
    type Output = ();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_chord_calls_its_bodys_errback_once() {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let any = |_: Context, _: Any| async { Ok(()) };
    let errback = move |_: Context, Errback(id): Errback| {
        let sender = sender.clone();
        async move {
            sender.send(id).unwrap();
            TaskResult::Ok(())
        }
    };
    let build = |worker: countersign::Worker| worker.handle(any).handle(errback);
    let running = Running::start(build).await;
    let chord = |body: &TaskId| {
        let mut body = signature(body);
        body["options"]["link_error"] = json!([{ "task": "test.errback", "options": {} }]);
        body
    };
    let [first, second, third] = [(); 3].map(|()| TaskId::random());
    for _ in 0..3 {
        let header = send(&running, &json!({ "chord": chord(&first) }), |_| {}).await;
        assert_eq!(ended(&running.client, &header).await.0, State::Failure);
    }
    let follows =
        json!({ "task": "celery.chord", "kwargs": { "header": [], "body": chord(&second) } });
    send(&running, &json!({ "chain": [follows] }), |_| {}).await;
    send(&running, &json!({ "chord": chord(&third) }), |_| {}).await;
    let mut called = Vec::new();
    while !called.contains(&third.to_string()) || !called.contains(&second.to_string()) {
        called.push(timeout(TIMEOUT, receiver.recv()).await.unwrap().unwrap());
    }
    assert_eq!(ended(&running.client, &first).await.0, State::Failure);
    called.sort();
    let mut wanted = [first, second, third].map(|id| id.to_string());
    wanted.sort();
    assert_eq!(called, wanted);
    running.drain().await;
}
