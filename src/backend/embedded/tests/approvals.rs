//! Parks, questions and decisions, one story each.

use std::path::PathBuf;

use rusqlite::params;
use tokio::time::advance;

use super::*;
use crate::approval::{Answer, Choice, Decision, Standing};
use crate::backend::{Parked, RunOwner, Store, Taken};
use crate::protocol::{Ticket, TicketKind};

const DAY: Duration = Duration::from_secs(24 * 3600);
const RESUME: Ticket = Ticket { kind: TicketKind::Resume, number: 1 };

/// Does something to the database that no call does.
async fn tamper(store: &EmbeddedStore, sql: &'static str) {
    store.db.write(move |txn| txn.execute(sql, params![])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_decision_resumes_its_task_with_what_it_was_parked_with() {
    let store = in_memory();
    let (id, mut rung, mut asked) = (TaskId::from("t"), store.decisions(), store.questions());
    let first = question(&id, "first", 1, 1);
    let parking = parking(&id, 1, vec![first.clone()]);
    assert!(matches!(
        store.park(parking.clone()).await.unwrap(),
        Parked::Waiting(_, left) if left == HOUR + Duration::from_millis(1)
    ));
    assert_eq!(asked.try_recv().unwrap(), Some(first.id.clone()));
    assert!(asked.try_recv().is_err(), "it was asked once");
    let early = store.take_parked(&id, RESUME, None, "b", HOUR).await.unwrap();
    assert!(matches!(early, Taken::Over(_)), "nothing is decided: {early:?}");
    let decision = Decision::on(&first, "ana", Choice::Approve);
    let (answer, resume) = store.decide(&decision).await.unwrap();
    assert_eq!(answer, Answer::Applied);
    assert_eq!(rung.try_recv().unwrap(), Some(first.id.clone()));
    let resume = resume.unwrap();
    assert_eq!((resume.task.as_str(), resume.number, resume.queue.as_str()), ("t", 1, "q"));
    assert_eq!(store.pending(0, 10).await.unwrap().len(), 1, "until it is taken");
    let Taken::Claimed { number, message, rulings } =
        store.take_parked(&id, RESUME, None, "b", HOUR).await.unwrap()
    else {
        panic!("it is claimed");
    };
    let message = message.unwrap();
    assert_eq!((number, &message.id), (1, &id));
    assert_eq!(
        (&message.headers, &message.body),
        (&parking.message.headers, &parking.message.body)
    );
    assert_eq!(rulings.len(), 1);
    assert_eq!(rulings[0].decision.as_ref(), Some(&decision));
    assert_eq!(store.pending(0, 10).await.unwrap(), []);
    assert_eq!(store.end_parked(&id, None).await.unwrap(), []);
    let late = store.take_parked(&id, RESUME, None, "c", HOUR).await.unwrap();
    assert!(matches!(late, Taken::Over(_)), "{late:?}");
}

/// Whoever decided has sent his resume message before the park that finds the decision.
#[tokio::test(start_paused = true)]
async fn a_run_that_finds_its_decision_leaves_word_in_case_it_dies() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    let first = question(&id, "first", 1, 1);
    let parked = store.park(parking(&id, 1, vec![first.clone()])).await.unwrap();
    assert!(matches!(parked, Parked::Waiting(..)));
    let decision = Decision::on(&first, "ana", Choice::Approve);
    let resume = store.decide(&decision).await.unwrap().1.unwrap();
    store.resume_sent(&resume).await.unwrap();
    let parked = store.park(parking(&id, 2, vec![first])).await.unwrap();
    assert!(matches!(parked, Parked::Ready(rulings) if rulings.len() == 1));
    advance(Duration::from_secs(60)).await;
    assert_eq!(store.overdue_resumes().await.unwrap(), [], "its lease has just ended");
    advance(Duration::from_secs(1)).await;
    let overdue = store.overdue_resumes().await.unwrap();
    let seen: Vec<_> = overdue.iter().map(|it| (&it.task, it.number, it.queue.as_str())).collect();
    assert_eq!(seen, [(&id, 2, "q")]);
    assert_eq!(store.overdue_resumes().await.unwrap(), [], "somebody sends it");
    advance(Duration::from_secs(1)).await;
    assert_eq!(store.overdue_resumes().await.unwrap(), overdue, "he may have died");
    store.resume_sent(&overdue[0]).await.unwrap();
    advance(HOUR).await;
    assert_eq!(store.overdue_resumes().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn after_its_deadline_a_question_is_expired_whether_or_not_anybody_noticed() {
    let store = in_memory();
    let question = Question { expires_in: 1000, ..Question::new("Now?") };
    Approvals::ask(&store, question.clone()).await.unwrap();
    let ids = [question.id.clone()];
    let standing = async || read(&store, &ids).await.remove(0).unwrap().standing;
    advance(Duration::from_millis(1000)).await;
    assert!(matches!(standing().await, Standing::Open(_)));
    advance(Duration::from_millis(1)).await;
    assert!(matches!(standing().await, Standing::Expired(_)));
    let decision = Decision::on(&question, "ana", Choice::Approve);
    assert!(matches!(store.decide(&decision).await.unwrap().0, Answer::Expired { .. }));
    let extended = store.extend(&question.id, "ana", false, HOUR).await.unwrap();
    assert!(matches!(extended, Answer::Expired { .. }));
    Approvals::ask(&store, question.clone()).await.unwrap();
    assert!(matches!(standing().await, Standing::Expired(_)), "it stays as it is");
}

/// Votes, more time and a decision are kept for as long as the request can be decided, and a month more.
#[tokio::test(start_paused = true)]
async fn what_was_said_lives_as_long_as_its_request() {
    let store = in_memory();
    let month = DAY * 30;
    let question = Question { quorum: 2, expires_in: 90 * 24 * 3_600_000, ..Question::new("Pay?") };
    Approvals::ask(&store, question.clone()).await.unwrap();
    let ids = [question.id.clone()];
    let asked = async || read(&store, &ids).await.remove(0).unwrap();
    let approve = async |by| {
        let decision = Decision::on(&question, by, Choice::Approve);
        store.decide(&decision).await.unwrap().0
    };
    assert_eq!(approve("ana").await, Answer::Counted { votes: 1, quorum: 2 });
    advance(month * 2).await;
    assert_eq!(asked().await.votes, 1);
    assert_eq!(store.extend(&question.id, "ana", false, month * 4).await.unwrap(), Answer::Applied);
    advance(month * 3).await;
    assert_eq!(asked().await.votes, 1);
    assert!(matches!(asked().await.standing, Standing::Open(_)));
    assert_eq!(approve("ana").await, Answer::Counted { votes: 1, quorum: 2 });
    assert_eq!(approve("bob").await, Answer::Applied);
}

#[tokio::test(start_paused = true)]
async fn people_are_warned_once_for_each_part_of_a_questions_time() {
    let store = in_memory();
    let mut bell = store.questions();
    let question = Question { expires_in: 3_600_000, ..Question::new("Now?") };
    Approvals::ask(&store, question.clone()).await.unwrap();
    let id = question.id;
    assert_eq!(bell.try_recv().unwrap(), Some(id.clone()));
    let ids = [id.clone()];
    let warned = async || read(&store, &ids).await.remove(0).unwrap().warned;
    advance(HOUR / 2 - Duration::from_millis(1)).await;
    assert!(!store.warn(&id, 50).await.unwrap(), "too early");
    assert_eq!(warned().await, None);
    advance(Duration::from_millis(1)).await;
    assert!(store.warn(&id, 50).await.unwrap());
    assert!(!store.warn(&id, 50).await.unwrap());
    assert!(!store.warn(&id, 90).await.unwrap());
    advance(HOUR / 2).await;
    assert!(store.warn(&id, 90).await.unwrap());
    assert!(!store.warn(&id, 50).await.unwrap());
    assert_eq!(warned().await, Some(90));
    assert_eq!(store.extend(&id, "ana", false, HOUR).await.unwrap(), Answer::Applied);
    assert_eq!(warned().await, None, "the new deadline is another one");
    assert!(store.warn(&id, 50).await.unwrap());
    assert_eq!(store.pending(0, 10).await.unwrap(), [(id, store.clock().await.unwrap())]);
    assert_eq!(store.pending(1, 10).await.unwrap(), []);
    assert!(!store.warn(&ApprovalId::random(), 50).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn what_a_task_asked_can_be_looked_at_for_a_week_and_counts_for_no_later_run() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    let [first, second] = ["first", "second"].map(|name| question(&id, name, 1, 1));
    let questions = vec![first.clone(), second.clone()];
    store.park(parking(&id, 1, questions.clone())).await.unwrap();
    let decision = Decision::on(&first, "ana", Choice::Reject);
    assert_eq!(store.decide(&decision).await.unwrap().0, Answer::Applied);
    assert_eq!(store.end_parked(&id, None).await.unwrap(), std::slice::from_ref(&second.id));
    let ids = [first.id.clone(), second.id.clone()];
    let standings = async || {
        let asked = read(&store, &ids).await;
        asked.into_iter().flatten().map(|asked| asked.standing).collect::<Vec<_>>()
    };
    let ended = [Standing::Decided(Choice::Reject), Standing::Decided(Choice::Withdraw)];
    let taken = async |kind| {
        let ticket = Ticket { kind, number: 1 };
        store.take_parked(&id, ticket, None, "b", HOUR).await.unwrap()
    };
    advance(DAY * 7 - Duration::from_millis(1)).await;
    assert_eq!(standings().await, ended);
    advance(Duration::from_millis(1)).await;
    assert_eq!(standings().await, []);
    advance(DAY - Duration::from_millis(1)).await;
    assert!(matches!(taken(TicketKind::Wake).await, Taken::Over(_)));
    advance(Duration::from_millis(1)).await;
    assert!(matches!(taken(TicketKind::Wake).await, Taken::StateLost), "the note is gone");
    let parked = store.park(parking(&id, 1, questions)).await.unwrap();
    assert!(matches!(parked, Parked::Waiting(..)), "asked anew: {parked:?}");
    assert!(standings().await.iter().all(|it| matches!(it, Standing::Open(_))));
    advance(HOUR + Duration::from_millis(1)).await;
    let Taken::Claimed { rulings, .. } = taken(TicketKind::Wake).await else { panic!("it waits") };
    assert!(rulings.iter().all(|it| it.decision.is_none()), "not decided: {rulings:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_run_again_was_never_parked() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    store.park(parking(&id, 1, vec![question(&id, "first", 1, 1)])).await.unwrap();
    store.end_parked(&id, None).await.unwrap();
    let ended = id.clone();
    store
        .db
        .write(move |txn| crate::backend::embedded::parks::delete_ended(txn, &ended))
        .await
        .unwrap();
    let original = Ticket { kind: TicketKind::Original, number: 2 };
    let taken = store.take_parked(&id, original, None, "b", HOUR).await.unwrap();
    assert!(matches!(taken, Taken::Claimed { number: 2, message: None, .. }), "{taken:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_newer_countersign_has_parked_or_asked_is_left_to_it() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    let first = question(&id, "first", 1, 1);
    store.park(parking(&id, 1, vec![first.clone()])).await.unwrap();
    tamper(&store, "UPDATE parks SET v = 2").await;
    for kind in [TicketKind::Original, TicketKind::Resume, TicketKind::Wake] {
        let ticket = Ticket { kind, number: 1 };
        let taken = store.take_parked(&id, ticket, None, "b", HOUR).await.unwrap();
        assert!(matches!(taken, Taken::Newer), "{taken:?}");
    }
    let parked = store.park(parking(&id, 2, Vec::new())).await.unwrap();
    assert!(matches!(parked, Parked::Behind(_)), "{parked:?}");
    tamper(&store, "UPDATE questions SET document = '{\"v\": 3, \"of\": \"another kind\"}'").await;
    let found = store.asked(std::slice::from_ref(&first.id)).await.unwrap().remove(0);
    let refused = found.readable().unwrap_err();
    assert!(refused.is_refusal() && refused.to_string().contains("format 3"), "{refused}");
    let decision = Decision::on(&first, "ana", Choice::Approve);
    assert_eq!(store.decide(&decision).await.unwrap().0, Answer::Applied);
}

#[tokio::test(start_paused = true)]
async fn what_a_parked_task_has_left_is_kept_by_its_wake() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    let run = RunOwner { digest: TaskDigest::from("one".to_owned()), is_fresh: true };
    store.record(&id, &run, "step", "1".into()).await.unwrap();
    let sleeping = Parking { alarm: Some(DAY * 60), ..parking(&id, 1, Vec::new()) };
    store.park(sleeping).await.unwrap();
    let until = async || {
        let read = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        store.db.read(move |txn| txn.first("SELECT expires FROM left_by", [], read)).await.unwrap()
    };
    let before = until().await.unwrap();
    advance(HOUR * 2).await;
    let wake = Ticket { kind: TicketKind::Wake, number: 1 };
    let taken = store.take_parked(&id, wake, None, "b", HOUR).await.unwrap();
    assert!(matches!(taken, Taken::Postpone(pause) if pause == HOUR), "{taken:?}");
    assert_eq!(until().await.unwrap(), before + 7_200_000);
}

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn on_a_file_whoever_reads_sees_what_another_has_decided() {
    let name = format!("countersign-approvals-{}", uuid::Uuid::new_v4());
    let folder = Folder(std::env::temp_dir().join(name));
    std::fs::create_dir(&folder.0).unwrap();
    let file = folder.0.join("queue.db");
    let [worker, decider] = [(), ()].map(|()| EmbeddedStore::start(Db::open(&file).unwrap(), HOUR));
    let mut rung = worker.decisions();
    let id = TaskId::from("t");
    let first = question(&id, "first", 1, 1);
    worker.park(parking(&id, 1, vec![first.clone()])).await.unwrap();
    let listed = decider.pending(0, 10).await.unwrap();
    assert_eq!(listed.iter().map(|(id, _)| id).collect::<Vec<_>>(), [&first.id]);
    let asked = read(&decider, std::slice::from_ref(&first.id)).await.remove(0).unwrap();
    assert_eq!(asked.question, first);
    let (answer, resume) = decider.decide(&asked.approve("ana")).await.unwrap();
    assert_eq!((answer, resume.is_some()), (Answer::Applied, true));
    let heard = async { while rung.recv().await.unwrap() != Some(first.id.clone()) {} };
    tokio::time::timeout(Duration::from_secs(20), heard).await.unwrap();
    let taken = worker.take_parked(&id, RESUME, None, "b", HOUR).await.unwrap();
    assert!(matches!(taken, Taken::Claimed { rulings, .. } if rulings.len() == 1));
    worker.close().await;
    decider.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_said_to_another_question_under_the_same_id_is_forgotten() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    let [first, changed] = [1, 2].map(|version| question(&id, "first", version, 1));
    store.park(parking(&id, 1, vec![first.clone()])).await.unwrap();
    advance(HOUR / 2).await;
    assert!(store.warn(&first.id, 50).await.unwrap());
    store.park(parking(&id, 2, vec![changed.clone()])).await.unwrap();
    let ids = [first.id.clone()];
    let warned = async || read(&store, &ids).await.remove(0).unwrap().warned;
    assert_eq!(warned().await, None);
    let late = Decision::on(&first, "ana", Choice::Approve);
    assert_eq!(store.decide(&late).await.unwrap(), (Answer::DigestMismatch, None));
    advance(HOUR / 2).await;
    assert!(store.warn(&first.id, 10).await.unwrap(), "it is asked anew, and has a new deadline");
    assert_eq!(warned().await, Some(10));
    store.park(parking(&id, 3, vec![first.clone()])).await.unwrap();
    assert_eq!(store.extend(&first.id, "ana", false, HOUR * 4).await.unwrap(), Answer::Applied);
    assert_eq!(warned().await, None);
    advance(HOUR).await;
    assert!(store.warn(&first.id, 10).await.unwrap());
    store.park(parking(&id, 4, vec![changed.clone()])).await.unwrap();
    let decision = Decision::on(&changed, "ana", Choice::Approve);
    assert_eq!(store.decide(&decision).await.unwrap().0, Answer::Applied);
    assert_eq!(warned().await, None, "of this one nobody was warned");
}
