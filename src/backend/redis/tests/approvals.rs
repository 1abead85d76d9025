//! Permissions of a worker's user, and errors that only Redis can cause. `tests/conformance` checks
//! that the scripts agree with the pure functions.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::approval::{
    Action, ApprovalId, ApprovalRequest, ApprovalStatus, AuditKind, DecideResult, Decision,
    DecisionKind, Seal, SealKey,
};
use crate::backend::{
    Approvals, Audit, AuditAction, ClaimResult, SealLease, SuspendRequest, SuspendResult,
};
use crate::protocol::{Envelope, SuspendHeader, SuspendKind, TaskDigest};
use crate::task::TaskId;

const HOUR: Duration = Duration::from_secs(3600);

fn request_of(task: &TaskId, name: &str, quorum: u32) -> ApprovalRequest {
    ApprovalRequest {
        id: ApprovalId::of(task, name, 0),
        task: Some(task.clone()),
        action: Action { name: "pay".into(), version: 1, args: json!({"to": name}) },
        editable: true,
        requester: Some("rita".into()),
        quorum,
        expires_in: Duration::from_hours(1),
        ..ApprovalRequest::new(name)
    }
}

/// Stores with the permissions of each role, as in `DESIGN.md`.
async fn with_roles(server: &Server) -> [Arc<RedisStore>; 2] {
    const COMMON: &str = "reset on >pw resetchannels &cs:* &celery-task-meta-* +@connection +eval \
        +evalsha +script|load +get +mget +set +hget +hgetall +hmget +hset +hdel +del +expire \
        +persist +exists +time +publish +subscribe +unsubscribe +ping +info +xadd +xrange +xrevrange +zadd \
        +zrange +zrangebyscore +zrem ~celery-task-meta-* ~cs:outbox:{cs} ~cs:notes:{cs}";
    let worker = "~cs:park:{cs}:* ~cs:ask:{cs}:* ~cs:pending:{cs} %R~cs:dec:{cs}:*";
    let decider = "%R~cs:park:{cs}:* %R~cs:ask:{cs}:* %R~cs:pending:{cs} ~cs:dec:{cs}:* \
        ~cs:seal:{cs} ~cs:sealer:{cs} ~cs:audit:{cs} ~cs:refused:{cs}";
    for (name, keys) in [("worker", worker), ("decider", decider)] {
        let rules = format!("{COMMON} {keys}");
        let command: Vec<&str> =
            ["ACL", "SETUSER", name].into_iter().chain(rules.split_whitespace()).collect();
        server.command::<()>(&command).await;
    }
    let by = |name: &str| RedisSettings {
        reread: NEVER,
        ..RedisSettings::new(format!("redis://{name}:pw@127.0.0.1:{}", server.port))
    };
    [store_with(by("worker")).await, store_with(by("decider")).await]
}

#[tokio::test]
async fn a_workers_user_cannot_decide_and_a_deciders_user_cannot_suspend() {
    let Some(server) = Server::start().await else { return };
    let [worker, decider] = with_roles(&server).await;
    let id = TaskId::from("t");
    let request = request_of(&id, "first", 1);
    let suspend_request = SuspendRequest {
        id: id.clone(),
        number: 1,
        digest: TaskDigest::from("one".to_owned()),
        holder: "a".into(),
        lease: HOUR,
        message: Envelope::new("t", crate::protocol::Arguments::default()).encode(),
        queue: "q".into(),
        requests: vec![request.clone()],
        alarm: None,
        abandoned: Vec::new(),
    };
    assert!(decider.suspend(suspend_request.clone()).await.is_err());
    assert!(matches!(worker.suspend(suspend_request).await.unwrap(), SuspendResult::Waiting(..)));
    let decision = Decision::on(&request, "ana", DecisionKind::Approve);
    let refused = worker.decide(&decision).await.unwrap_err().to_string();
    assert!(refused.contains("NOPERM") || refused.contains("ACL"), "{refused}");
    assert!(worker.record_warning(&request.id, 0).await.is_err());
    let status = worker
        .approvals(std::slice::from_ref(&request.id))
        .await
        .unwrap()
        .remove(0)
        .readable()
        .unwrap()
        .unwrap()
        .status;
    assert!(matches!(status, ApprovalStatus::Open(_)), "{status:?}");
    let (result, resume) = decider.decide(&decision).await.unwrap();
    assert_eq!(result, DecideResult::Applied);
    let resume = resume.unwrap();
    assert_eq!((resume.task.as_str(), resume.number, resume.queue.as_str()), ("t", 1, "q"));
    decider.resume_sent(&resume).await.unwrap();
    let header = SuspendHeader { kind: SuspendKind::Resume, number: 1 };
    let outcome = worker.claim_suspended(&id, header, None, "b", HOUR).await.unwrap();
    assert!(
        matches!(outcome, ClaimResult::Claimed { number: 1, outcomes, .. } if outcomes.len() == 1)
    );
    assert_eq!(worker.end_suspended(&id, None).await.unwrap(), []);

    let key = SealKey::new(&[7; 32]).unwrap();
    let entries = decider.audit_after(None, 10).await.unwrap();
    let seal = Seal::over(&key, None, &entries);
    assert!(worker.seal("a", HOUR, seal.clone()).await.is_err());
    let sealed = decider.seal("a", HOUR, seal.clone()).await.unwrap();
    assert_eq!((entries.len(), sealed), (1, SealLease::Acquired(seal)));
    assert_eq!(decider.seal("b", HOUR, None).await.unwrap(), SealLease::HeldByAnother);
}

/// A compromised worker cannot evict the decisions or the refused attempts.
#[tokio::test]
async fn a_workers_user_can_add_notes_but_no_decision() {
    let Some(server) = Server::start().await else { return };
    let [worker, decider] = with_roles(&server).await;
    let request = ApprovalRequest::new("Deploy?");
    Approvals::request_approval(&*worker, request.clone()).await.unwrap();
    let decision = |by: &str| Decision::on(&request, by, DecisionKind::Approve);
    assert_eq!(decider.decide(&decision("ana")).await.unwrap().0, DecideResult::Applied);
    let late = decider.decide(&decision("bob")).await.unwrap().0;
    assert!(matches!(late, DecideResult::AlreadyDecided { .. }), "{late:?}");
    let (id, queue) = (TaskId::from("t"), "q".to_owned());
    let action = AuditAction { what: "purge", id, queue, by: "a worker".into() };
    drop(worker.record_action(action).await.unwrap());
    for stream in ["cs:audit:{cs}", "cs:refused:{cs}"] {
        let client = redis::Client::open(format!("redis://worker:pw@127.0.0.1:{}", server.port));
        let mut redis = client.unwrap().get_multiplexed_async_connection().await.unwrap();
        let mut add = redis::cmd("XADD");
        add.arg(stream).arg("MAXLEN").arg(1).arg("*").arg("what").arg("approve");
        let refused = add.query_async::<String>(&mut redis).await.unwrap_err().to_string();
        assert!(refused.contains("NoPerm"), "{refused}");
    }
    let of_kind = async |kind| {
        let entries = decider.audit_entries(10).await.unwrap();
        entries.into_iter().filter(|it| it.kind == kind).map(|it| it.fields[0].1.clone()).collect()
    };
    let found: [Vec<String>; 3] = [
        of_kind(AuditKind::Decision).await,
        of_kind(AuditKind::Note).await,
        of_kind(AuditKind::Refused).await,
    ];
    assert_eq!(found, [["approve"], ["purge"], ["refused"]]);
    // Changes of a worker to the notes hide no decision.
    server.command::<()>(&["SET", "cs:notes:{cs}", "x"]).await;
    let entries = decider.audit_entries(10).await.unwrap();
    assert_eq!((entries.len(), entries[0].fields[0].1.as_str()), (3, "unreadable"), "{entries:?}");
}

/// The decider has sent its resume message before the suspension finds the decision.
#[tokio::test]
async fn a_run_that_finds_its_decision_writes_an_outbox_entry() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::from("t");
    let request = request_of(&id, "first", 1);
    let suspend_request = |number| SuspendRequest {
        id: id.clone(),
        number,
        digest: TaskDigest::from("one".to_owned()),
        holder: "a".into(),
        lease: Duration::from_millis(1),
        message: Envelope::new("t", crate::protocol::Arguments::default()).encode(),
        queue: "q".into(),
        requests: vec![request.clone()],
        alarm: None,
        abandoned: Vec::new(),
    };
    assert!(matches!(store.suspend(suspend_request(1)).await.unwrap(), SuspendResult::Waiting(..)));
    let decision = Decision::on(&request, "ana", DecisionKind::Approve);
    let resume = store.decide(&decision).await.unwrap().1.unwrap();
    store.resume_sent(&resume).await.unwrap();
    assert!(matches!(store.suspend(suspend_request(2)).await.unwrap(), SuspendResult::Ready(..)));
    eventually("the outbox lists it", async || {
        let overdue = store.overdue_resumes().await.unwrap();
        overdue.iter().any(|it| it.task == id && it.number == 2 && it.queue == "q")
    })
    .await;
}

#[tokio::test]
async fn a_request_expires_at_its_deadline_without_a_write() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let request =
        ApprovalRequest { expires_in: Duration::from_millis(1), ..ApprovalRequest::new("Now?") };
    Approvals::request_approval(&*store, request.clone()).await.unwrap();
    let ids = [request.id.clone()];
    eventually("it has expired", async || {
        let request = store.approvals(&ids).await.unwrap().remove(0).readable().unwrap().unwrap();
        matches!(request.status, ApprovalStatus::Expired(_))
    })
    .await;
    let decision = Decision::on(&request, "ana", DecisionKind::Approve);
    assert!(matches!(store.decide(&decision).await.unwrap().0, DecideResult::Expired { .. }));
    assert!(matches!(
        store.extend_approval(&request.id, "ana", false, HOUR).await.unwrap(),
        DecideResult::Expired { .. }
    ));
}

/// Requests of services expire a week later, those of a task with the task.
#[tokio::test]
async fn finished_requests_of_a_service_leave_the_index() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let store_request = async |title: &str| {
        let request = ApprovalRequest::new(title);
        Approvals::request_approval(&*store, request.clone()).await.unwrap();
        request
    };
    let [expired, decided, extended] =
        [store_request("E?").await, store_request("D?").await, store_request("X?").await];
    let decision = Decision::on(&decided, "ana", DecisionKind::Approve);
    assert_eq!(store.decide(&decision).await.unwrap().0, DecideResult::Applied);
    assert_eq!(
        store.extend_approval(&extended.id, "ana", false, HOUR * 48).await.unwrap(),
        DecideResult::Applied
    );
    let task = TaskId::from("t");
    let suspend_request = SuspendRequest {
        id: task.clone(),
        number: 1,
        digest: TaskDigest::from("one".to_owned()),
        holder: "a".into(),
        lease: HOUR,
        message: Envelope::new("t", crate::protocol::Arguments::default()).encode(),
        queue: "q".into(),
        requests: vec![request_of(&task, "first", 1)],
        alarm: None,
        abandoned: Vec::new(),
    };
    assert!(matches!(
        store.suspend(suspend_request.clone()).await.unwrap(),
        SuspendResult::Waiting(..)
    ));
    let waited = suspend_request.requests[0].id.clone();
    // Simulates that all deadlines have passed, except that of the extended request.
    for id in [&expired.id, &decided.id, &extended.id, &waited] {
        server.command::<()>(&["ZADD", "cs:pending:{cs}", "1", id.as_str()]).await;
        server.command::<()>(&["HSET", &format!("cs:ask:{{cs}}:{id}"), "deadline", "1"]).await;
    }
    let key = |id: &ApprovalId| format!("cs:ask:{{cs}}:{id}");
    let latest = store_request("Last?").await;
    let listed = store.pending_approvals(0, 10).await.unwrap();
    let mut listed: Vec<_> = listed.into_iter().map(|(id, _)| id).collect();
    let mut left = [extended.id.clone(), latest.id];
    listed.sort();
    left.sort();
    assert_eq!(listed, left);
    let week = 7 * 24 * 60 * 60;
    let ttl: i64 = server.command(&["TTL", &key(&decided.id)]).await;
    assert!((week - 60..=week).contains(&ttl), "{ttl}");
    assert_eq!(server.command::<i64>(&["EXISTS", &key(&expired.id)]).await, 0, "expired long ago");
    for id in [&extended.id, &waited] {
        assert_eq!(server.command::<i64>(&["TTL", &key(id)]).await, -1);
    }
}

/// Extended requests and requests of suspended tasks do not block the cleanup of others.
#[tokio::test]
async fn long_requests_do_not_stop_the_cleanup() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let store_request = async |expires_in| {
        let request = ApprovalRequest { expires_in, ..ApprovalRequest::new("Long?") };
        Approvals::request_approval(&*store, request.clone()).await.unwrap();
        request.id
    };
    let mut long = Vec::new();
    for _ in 0..40 {
        let id = store_request(HOUR).await;
        assert_eq!(
            store.extend_approval(&id, "ana", false, HOUR * 2).await.unwrap(),
            DecideResult::Applied
        );
        // Simulates that its first deadline has passed.
        server.command::<()>(&["ZADD", "cs:pending:{cs}", "1", id.as_str()]).await;
        server.command::<()>(&["HSET", &format!("cs:ask:{{cs}}:{id}"), "deadline", "1"]).await;
        long.push(id);
    }
    let expired = store_request(Duration::from_millis(1)).await;
    eventually("the expired one is not listed", async || {
        store_request(HOUR).await;
        let listed = store.pending_approvals(0, 1000).await.unwrap();
        listed.iter().all(|(id, _)| *id != expired)
    })
    .await;
    let listed = store.pending_approvals(0, 1000).await.unwrap();
    let deadlines: Vec<_> = listed.iter().filter(|(id, _)| long.contains(id)).collect();
    assert_eq!(deadlines.len(), 40);
    assert!(deadlines.iter().all(|(_, deadline)| *deadline > 1), "listed by the new deadline");
}

/// Votes, extensions and a decision are kept until the deadline of the request, and a month longer.
#[tokio::test]
async fn votes_and_extensions_live_as_long_as_their_request() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let day: i64 = 24 * 60 * 60;
    let request = ApprovalRequest {
        quorum: 2,
        expires_in: Duration::from_hours(2160),
        ..ApprovalRequest::new("Pay?")
    };
    Approvals::request_approval(&*store, request.clone()).await.unwrap();
    let key = format!("cs:dec:{{cs}}:{}", request.id);
    let expect_days = async |days: i64| {
        let left: i64 = server.command(&["TTL", &key]).await;
        assert!((days * day - 600..=days * day + 1).contains(&left), "{left} of {days} days");
    };
    let approve = async |by| {
        let decision = Decision::on(&request, by, DecisionKind::Approve);
        store.decide(&decision).await.unwrap().0
    };
    assert_eq!(approve("ana").await, DecideResult::Counted { votes: 1, quorum: 2 });
    expect_days(120).await;
    let extended = store.extend_approval(&request.id, "ana", false, HOUR * 24 * 100).await.unwrap();
    assert_eq!(extended, DecideResult::Applied);
    expect_days(130).await;
    assert_eq!(approve("bob").await, DecideResult::Applied);
    expect_days(130).await;
}

#[tokio::test]
async fn approvers_are_warned_once_for_each_part_of_a_requests_time() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let mut new_requests = store.new_requests();
    subscribers(&server, "cs:asked", 1).await;
    let request =
        ApprovalRequest { expires_in: Duration::from_hours(1), ..ApprovalRequest::new("Now?") };
    Approvals::request_approval(&*store, request.clone()).await.unwrap();
    let id = request.id;
    let received = async {
        loop {
            if let Some(id) = new_requests.recv().await.unwrap() {
                return id;
            }
        }
    };
    assert_eq!(timeout(SOON, received).await.unwrap(), id);
    let ids = [id.clone()];
    let warned =
        async || store.approvals(&ids).await.unwrap().remove(0).readable().unwrap().unwrap().warned;
    assert!(!store.record_warning(&id, 50).await.unwrap(), "too early");
    assert_eq!(warned().await, None);
    // Simulates a request from long ago.
    let key = format!("cs:ask:{{cs}}:{id}");
    server.command::<()>(&["HSET", &key, "at", "0"]).await;
    assert!(store.record_warning(&id, 50).await.unwrap());
    assert!(!store.record_warning(&id, 50).await.unwrap());
    assert!(store.record_warning(&id, 90).await.unwrap());
    assert!(!store.record_warning(&id, 50).await.unwrap());
    assert_eq!(warned().await, Some(90));
    assert_eq!(
        store.extend_approval(&id, "ana", false, HOUR).await.unwrap(),
        DecideResult::Applied
    );
    assert_eq!(warned().await, None, "the new deadline is another one");
    assert!(store.record_warning(&id, 50).await.unwrap());
    let entries = store.audit_entries(10).await.unwrap();
    let of =
        |kind| entries.iter().filter(move |it| it.kind == kind).map(|it| it.fields[0].1.as_str());
    assert_eq!(of(AuditKind::Note).collect::<Vec<_>>(), ["warn"; 3]);
    assert_eq!(of(AuditKind::Decision).collect::<Vec<_>>(), ["extend"]);
    let listed = store.pending_approvals(0, 10).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0].0, listed[0].1 > 3_600_000), (&id, true));
    assert_eq!(store.pending_approvals(1, 10).await.unwrap(), []);
    assert!(!store.record_warning(&ApprovalId::random(), 50).await.unwrap());
}
