//! Suspensions, approval requests and decisions, one scenario each.

use std::time::Duration;

use std::path::PathBuf;

use rusqlite::params;
use tokio::time::advance;

use super::*;
use crate::approval::{ApprovalStatus, DecideResult, Decision, DecisionKind};
use crate::backend::{ClaimResult, RunOwner, SuspendResult};
use crate::protocol::{SuspendHeader, SuspendKind};

const DAY: Duration = Duration::from_secs(24 * 3600);
const RESUME: SuspendHeader = SuspendHeader { kind: SuspendKind::Resume, number: 1 };

/// Changes the database in a way that no call does.
async fn tamper(store: &EmbeddedStore, sql: &'static str) {
    store.db.write(move |txn| txn.execute(sql, params![])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_decision_resumes_its_task_with_the_stored_message() {
    let store = in_memory();
    let (id, mut new_requests) = (TaskId::from("t"), store.new_requests());
    let first = request_of(&id, "first", 1, 1);
    let mut decided = store.watch_decisions(vec![first.id.clone()]);
    let request = suspend_request(&id, 1, vec![first.clone()]);
    assert!(matches!(
        store.suspend(request.clone()).await.unwrap(),
        SuspendResult::Waiting(_, left) if left == HOUR + Duration::from_millis(1)
    ));
    assert_eq!(new_requests.try_recv().unwrap(), Some(first.id.clone()));
    assert!(new_requests.try_recv().is_err(), "it was requested once");
    let early = store.claim_suspended(&id, RESUME, None, "b", HOUR).await.unwrap();
    assert!(matches!(early, ClaimResult::Over(_)), "nothing is decided: {early:?}");
    let decision = Decision::on(&first, "ana", DecisionKind::Approve);
    let (result, resume) = store.decide(&decision).await.unwrap();
    assert_eq!(result, DecideResult::Applied);
    decided.changed().await;
    let resume = resume.unwrap();
    assert_eq!((resume.task.as_str(), resume.number, resume.queue.as_str()), ("t", 1, "q"));
    assert_eq!(store.pending_approvals(0, 10).await.unwrap().len(), 1, "until the task is claimed");
    let ClaimResult::Claimed { number, message, outcomes, .. } =
        store.claim_suspended(&id, RESUME, None, "b", HOUR).await.unwrap()
    else {
        panic!("it is claimed");
    };
    let message = message.unwrap();
    assert_eq!((number, &message.id), (1, &id));
    assert_eq!(
        (&message.headers, &message.body),
        (&request.message.headers, &request.message.body)
    );
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].decision.as_ref(), Some(&decision));
    assert_eq!(store.pending_approvals(0, 10).await.unwrap(), []);
    assert_eq!(store.end_suspended(&id, None).await.unwrap(), []);
    let late = store.claim_suspended(&id, RESUME, None, "c", HOUR).await.unwrap();
    assert!(matches!(late, ClaimResult::Over(_)), "{late:?}");
}

/// A decider sends the resume message before the run suspends and finds the decision.
#[tokio::test(start_paused = true)]
async fn a_run_that_finds_its_decision_writes_an_outbox_entry() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    let first = request_of(&id, "first", 1, 1);
    let outcome = store.suspend(suspend_request(&id, 1, vec![first.clone()])).await.unwrap();
    assert!(matches!(outcome, SuspendResult::Waiting(..)));
    let decision = Decision::on(&first, "ana", DecisionKind::Approve);
    let resume = store.decide(&decision).await.unwrap().1.unwrap();
    store.resume_sent(&resume).await.unwrap();
    let outcome = store.suspend(suspend_request(&id, 2, vec![first])).await.unwrap();
    assert!(matches!(outcome, SuspendResult::Ready(outcomes) if outcomes.len() == 1));
    advance(Duration::from_secs(60)).await;
    assert_eq!(store.overdue_resumes().await.unwrap(), [], "its lease has just ended");
    advance(Duration::from_secs(1)).await;
    let overdue = store.overdue_resumes().await.unwrap();
    let summaries: Vec<_> =
        overdue.iter().map(|it| (&it.task, it.number, it.queue.as_str())).collect();
    assert_eq!(summaries, [(&id, 2, "q")]);
    assert_eq!(store.overdue_resumes().await.unwrap(), [], "another process sends it");
    advance(Duration::from_secs(1)).await;
    assert_eq!(store.overdue_resumes().await.unwrap(), overdue, "the sender may have died");
    store.resume_sent(&overdue[0]).await.unwrap();
    advance(HOUR).await;
    assert_eq!(store.overdue_resumes().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_request_expires_at_its_deadline_without_a_write() {
    let store = in_memory();
    let approval =
        ApprovalRequest { expires_in: Duration::from_secs(1), ..ApprovalRequest::new("Now?") };
    Approvals::request_approval(&store, approval.clone()).await.unwrap();
    let ids = [approval.id.clone()];
    let status = async || read(&store, &ids).await.remove(0).unwrap().status;
    advance(Duration::from_millis(1000)).await;
    assert!(matches!(status().await, ApprovalStatus::Open(_)));
    advance(Duration::from_millis(1)).await;
    assert!(matches!(status().await, ApprovalStatus::Expired(_)));
    let decision = Decision::on(&approval, "ana", DecisionKind::Approve);
    assert!(matches!(store.decide(&decision).await.unwrap().0, DecideResult::Expired { .. }));
    let extended = store.extend_approval(&approval.id, "ana", false, HOUR).await.unwrap();
    assert!(matches!(extended, DecideResult::Expired { .. }));
    Approvals::request_approval(&store, approval.clone()).await.unwrap();
    assert!(matches!(status().await, ApprovalStatus::Expired(_)), "it is unchanged");
}

/// Votes, extensions and a decision are kept for as long as the request can be decided, and a month more.
#[tokio::test(start_paused = true)]
async fn votes_and_extensions_live_as_long_as_their_request() {
    let store = in_memory();
    let month = DAY * 30;
    let approval = ApprovalRequest {
        quorum: 2,
        expires_in: Duration::from_hours(2160),
        ..ApprovalRequest::new("Pay?")
    };
    Approvals::request_approval(&store, approval.clone()).await.unwrap();
    let ids = [approval.id.clone()];
    let record = async || read(&store, &ids).await.remove(0).unwrap();
    let approve = async |by| {
        let decision = Decision::on(&approval, by, DecisionKind::Approve);
        store.decide(&decision).await.unwrap().0
    };
    assert_eq!(approve("ana").await, DecideResult::Counted { votes: 1, quorum: 2 });
    advance(month * 2).await;
    assert_eq!(record().await.votes, 1);
    assert_eq!(
        store.extend_approval(&approval.id, "ana", false, month * 4).await.unwrap(),
        DecideResult::Applied
    );
    advance(month * 3).await;
    assert_eq!(record().await.votes, 1);
    assert!(matches!(record().await.status, ApprovalStatus::Open(_)));
    assert_eq!(approve("ana").await, DecideResult::Counted { votes: 1, quorum: 2 });
    assert_eq!(approve("bob").await, DecideResult::Applied);
}

#[tokio::test(start_paused = true)]
async fn approvers_are_warned_once_for_each_part_of_a_requests_time() {
    let store = in_memory();
    let mut new_requests = store.new_requests();
    let approval =
        ApprovalRequest { expires_in: Duration::from_hours(1), ..ApprovalRequest::new("Now?") };
    Approvals::request_approval(&store, approval.clone()).await.unwrap();
    let id = approval.id;
    assert_eq!(new_requests.try_recv().unwrap(), Some(id.clone()));
    let ids = [id.clone()];
    let warned = async || read(&store, &ids).await.remove(0).unwrap().warned;
    advance(HOUR / 2 - Duration::from_millis(1)).await;
    assert!(!store.record_warning(&id, 50).await.unwrap(), "too early");
    assert_eq!(warned().await, None);
    advance(Duration::from_millis(1)).await;
    assert!(store.record_warning(&id, 50).await.unwrap());
    assert!(!store.record_warning(&id, 50).await.unwrap());
    assert!(!store.record_warning(&id, 90).await.unwrap());
    advance(HOUR / 2).await;
    assert!(store.record_warning(&id, 90).await.unwrap());
    assert!(!store.record_warning(&id, 50).await.unwrap());
    assert_eq!(warned().await, Some(90));
    assert_eq!(
        store.extend_approval(&id, "ana", false, HOUR).await.unwrap(),
        DecideResult::Applied
    );
    assert_eq!(warned().await, None, "the new deadline is another one");
    assert!(store.record_warning(&id, 50).await.unwrap());
    assert_eq!(store.pending_approvals(0, 10).await.unwrap(), [(id, store.clock().await.unwrap())]);
    assert_eq!(store.pending_approvals(1, 10).await.unwrap(), []);
    assert!(!store.record_warning(&ApprovalId::random(), 50).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn requests_of_an_ended_task_are_readable_for_a_week_and_count_for_no_later_run() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    let [first, second] = ["first", "second"].map(|name| request_of(&id, name, 1, 1));
    let requests = vec![first.clone(), second.clone()];
    store.suspend(suspend_request(&id, 1, requests.clone())).await.unwrap();
    let decision = Decision::on(&first, "ana", DecisionKind::Reject);
    assert_eq!(store.decide(&decision).await.unwrap().0, DecideResult::Applied);
    assert_eq!(store.end_suspended(&id, None).await.unwrap(), std::slice::from_ref(&second.id));
    let ids = [first.id.clone(), second.id.clone()];
    let statuses = async || {
        let records = read(&store, &ids).await;
        records.into_iter().flatten().map(|record| record.status).collect::<Vec<_>>()
    };
    let ended = [
        ApprovalStatus::Decided(DecisionKind::Reject),
        ApprovalStatus::Decided(DecisionKind::Withdraw),
    ];
    let outcome = async |kind| {
        let header = SuspendHeader { kind, number: 1 };
        store.claim_suspended(&id, header, None, "b", HOUR).await.unwrap()
    };
    advance(DAY * 7 - Duration::from_millis(1)).await;
    assert_eq!(statuses().await, ended);
    advance(Duration::from_millis(1)).await;
    assert_eq!(statuses().await, []);
    advance(DAY - Duration::from_millis(1)).await;
    assert!(matches!(outcome(SuspendKind::Wake).await, ClaimResult::Over(_)));
    advance(Duration::from_millis(1)).await;
    assert!(
        matches!(outcome(SuspendKind::Wake).await, ClaimResult::StateLost),
        "the record has expired"
    );
    let suspended = store.suspend(suspend_request(&id, 1, requests)).await.unwrap();
    assert!(matches!(suspended, SuspendResult::Waiting(..)), "requested anew: {suspended:?}");
    assert!(statuses().await.iter().all(|it| matches!(it, ApprovalStatus::Open(_))));
    advance(HOUR + Duration::from_millis(1)).await;
    let ClaimResult::Claimed { outcomes, .. } = outcome(SuspendKind::Wake).await else {
        panic!("it waits")
    };
    assert!(outcomes.iter().all(|it| it.decision.is_none()), "not decided: {outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_run_again_has_no_suspension() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    store.suspend(suspend_request(&id, 1, vec![request_of(&id, "first", 1, 1)])).await.unwrap();
    store.end_suspended(&id, None).await.unwrap();
    let ended = id.clone();
    store
        .db
        .write(move |txn| crate::backend::embedded::suspension_records::delete_ended(txn, &ended))
        .await
        .unwrap();
    let original = SuspendHeader { kind: SuspendKind::Original, number: 2 };
    let outcome = store.claim_suspended(&id, original, None, "b", HOUR).await.unwrap();
    assert!(
        matches!(outcome, ClaimResult::Claimed { number: 2, message: None, .. }),
        "{outcome:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn records_of_a_newer_version_are_left_alone() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    let first = request_of(&id, "first", 1, 1);
    store.suspend(suspend_request(&id, 1, vec![first.clone()])).await.unwrap();
    tamper(&store, "UPDATE parks SET v = 3").await;
    for kind in [SuspendKind::Original, SuspendKind::Resume, SuspendKind::Wake] {
        let header = SuspendHeader { kind, number: 1 };
        let outcome = store.claim_suspended(&id, header, None, "b", HOUR).await.unwrap();
        assert!(matches!(outcome, ClaimResult::Newer), "{outcome:?}");
    }
    let outcome = store.suspend(suspend_request(&id, 2, Vec::new())).await.unwrap();
    assert!(matches!(outcome, SuspendResult::Behind(_)), "{outcome:?}");
    tamper(&store, "UPDATE questions SET document = '{\"v\": 3, \"of\": \"another kind\"}'").await;
    let found = store.approvals(std::slice::from_ref(&first.id)).await.unwrap().remove(0);
    let refused = found.readable().unwrap_err();
    assert!(refused.is_refusal() && refused.to_string().contains("format 3"), "{refused}");
    let decision = Decision::on(&first, "ana", DecisionKind::Approve);
    assert_eq!(store.decide(&decision).await.unwrap().0, DecideResult::Applied);
}

#[tokio::test(start_paused = true)]
async fn a_wake_message_extends_the_retention_of_a_suspended_tasks_data() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    let run = RunOwner { digest: TaskDigest::from("one".to_owned()), is_fresh: true };
    store.record_step(&id, &run, "step", "1".into()).await.unwrap();
    let sleeping = SuspendRequest { alarm: Some(DAY * 60), ..suspend_request(&id, 1, Vec::new()) };
    store.suspend(sleeping).await.unwrap();
    let until = async || {
        let read = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        store.db.read(move |txn| txn.first("SELECT expires FROM left_by", [], read)).await.unwrap()
    };
    let before = until().await.unwrap();
    advance(HOUR * 2).await;
    let wake = SuspendHeader { kind: SuspendKind::Wake, number: 1 };
    let outcome = store.claim_suspended(&id, wake, None, "b", HOUR).await.unwrap();
    assert!(matches!(outcome, ClaimResult::Postpone(delay) if delay == HOUR), "{outcome:?}");
    assert_eq!(until().await.unwrap(), before + 7_200_000);
}

/// A folder that is removed when it is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn a_decision_in_one_process_is_seen_in_another() {
    let name = format!("countersign-approvals-{}", uuid::Uuid::new_v4());
    let folder = Folder(std::env::temp_dir().join(name));
    std::fs::create_dir(&folder.0).unwrap();
    let file = folder.0.join("queue.db");
    let [worker, decider] = [(), ()].map(|()| {
        EmbeddedStore::start(
            Db::open(&file, crate::backend::PoolSettings::default()).unwrap(),
            HOUR,
        )
    });
    let id = TaskId::from("t");
    let first = request_of(&id, "first", 1, 1);
    let mut decided = worker.watch_decisions(vec![first.id.clone()]);
    worker.suspend(suspend_request(&id, 1, vec![first.clone()])).await.unwrap();
    let listed = decider.pending_approvals(0, 10).await.unwrap();
    assert_eq!(listed.iter().map(|(id, _)| id).collect::<Vec<_>>(), [&first.id]);
    let record = read(&decider, std::slice::from_ref(&first.id)).await.remove(0).unwrap();
    assert_eq!(record.request, first);
    let (result, resume) = decider.decide(&record.approve("ana")).await.unwrap();
    assert_eq!((result, resume.is_some()), (DecideResult::Applied, true));
    tokio::time::timeout(Duration::from_secs(20), decided.changed()).await.unwrap();
    let outcome = worker.claim_suspended(&id, RESUME, None, "b", HOUR).await.unwrap();
    assert!(matches!(outcome, ClaimResult::Claimed { outcomes, .. } if outcomes.len() == 1));
    worker.close().await;
    decider.close().await;
}

#[tokio::test(start_paused = true)]
async fn votes_on_another_request_under_the_same_id_are_discarded() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    let [first, changed] = [1, 2].map(|version| request_of(&id, "first", version, 1));
    store.suspend(suspend_request(&id, 1, vec![first.clone()])).await.unwrap();
    advance(HOUR / 2).await;
    assert!(store.record_warning(&first.id, 50).await.unwrap());
    store.suspend(suspend_request(&id, 2, vec![changed.clone()])).await.unwrap();
    let ids = [first.id.clone()];
    let warned = async || read(&store, &ids).await.remove(0).unwrap().warned;
    assert_eq!(warned().await, None);
    let late = Decision::on(&first, "ana", DecisionKind::Approve);
    assert_eq!(store.decide(&late).await.unwrap(), (DecideResult::DigestMismatch, None));
    advance(HOUR / 2).await;
    assert!(
        store.record_warning(&first.id, 10).await.unwrap(),
        "it was requested anew, and has a new deadline"
    );
    assert_eq!(warned().await, Some(10));
    store.suspend(suspend_request(&id, 3, vec![first.clone()])).await.unwrap();
    assert_eq!(
        store.extend_approval(&first.id, "ana", false, HOUR * 4).await.unwrap(),
        DecideResult::Applied
    );
    assert_eq!(warned().await, None);
    advance(HOUR).await;
    assert!(store.record_warning(&first.id, 10).await.unwrap());
    store.suspend(suspend_request(&id, 4, vec![changed.clone()])).await.unwrap();
    let decision = Decision::on(&changed, "ana", DecisionKind::Approve);
    assert_eq!(store.decide(&decision).await.unwrap().0, DecideResult::Applied);
    assert_eq!(warned().await, None, "no warning was sent for this request");
}
