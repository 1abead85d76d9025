//! A worker's user cannot decide, and what only Redis can get wrong. That the scripts do what the
//! pure functions do is a promise of `tests/conformance`.

use serde_json::json;

use super::*;
use crate::approval::{
    Action, Answer, ApprovalId, Choice, Decision, Question, Seal, SealKey, Standing,
};
use crate::backend::{Approvals, Audit, Parked, Parking, Sealing, Taken};
use crate::protocol::{Envelope, TaskDigest, Ticket, TicketKind};
use crate::task::TaskId;

const HOUR: Duration = Duration::from_secs(3600);

fn question(task: &TaskId, name: &str, quorum: u32) -> Question {
    Question {
        id: ApprovalId::of(task, name, 0),
        task: Some(task.clone()),
        action: Action { name: "pay".into(), version: 1, args: json!({"to": name}) },
        editable: true,
        requester: Some("rita".into()),
        quorum,
        expires_in: 3_600_000,
        ..Question::new(name)
    }
}

/// What each role may do, as `DESIGN.md` has it.
async fn with_roles(server: &Server) -> [Arc<RedisStore>; 2] {
    const COMMON: &str = "reset on >pw resetchannels &cs:* &celery-task-meta-* +@connection +eval \
        +evalsha +script|load +get +mget +set +hget +hgetall +hmget +hset +hdel +del +expire \
        +persist +exists +time +publish +subscribe +unsubscribe +ping +info +xadd +xrange +xrevrange +zadd \
        +zrange +zrangebyscore +zrem ~celery-task-meta-* ~cs:outbox:{cs} ~cs:audit:{cs}";
    let worker = "~cs:park:{cs}:* ~cs:ask:{cs}:* ~cs:pending:{cs} %R~cs:dec:{cs}:*";
    let decider = "%R~cs:park:{cs}:* %R~cs:ask:{cs}:* %R~cs:pending:{cs} ~cs:dec:{cs}:* \
        ~cs:seal:{cs} ~cs:sealer:{cs}";
    for (name, keys) in [("worker", worker), ("decider", decider)] {
        let rules = format!("{COMMON} {keys}");
        let command: Vec<&str> =
            ["ACL", "SETUSER", name].into_iter().chain(rules.split_whitespace()).collect();
        server.ask::<()>(&command).await;
    }
    let by = |name: &str| RedisSettings {
        reread: NEVER,
        ..RedisSettings::new(format!("redis://{name}:pw@127.0.0.1:{}", server.port))
    };
    [store_with(by("worker")).await, store_with(by("decider")).await]
}

#[tokio::test]
async fn a_workers_user_cannot_decide_and_a_decider_cannot_park() {
    let Some(server) = Server::start().await else { return };
    let [worker, decider] = with_roles(&server).await;
    let id = TaskId::from("t");
    let asked = question(&id, "first", 1);
    let parking = Parking {
        id: id.clone(),
        number: 1,
        digest: TaskDigest::from("one".to_owned()),
        holder: "a".into(),
        lease: HOUR,
        message: Envelope::new("t", crate::protocol::Arguments::default()).encode(),
        queue: "q".into(),
        questions: vec![asked.clone()],
        alarm: None,
        abandoned: Vec::new(),
    };
    assert!(decider.park(parking.clone()).await.is_err());
    assert!(matches!(worker.park(parking).await.unwrap(), Parked::Waiting(..)));
    let decision = Decision::on(&asked, "ana", Choice::Approve);
    let refused = worker.decide(&decision).await.unwrap_err().to_string();
    assert!(refused.contains("NOPERM") || refused.contains("ACL"), "{refused}");
    assert!(worker.warn(&asked.id, 0).await.is_err());
    let standing = worker
        .asked(std::slice::from_ref(&asked.id))
        .await
        .unwrap()
        .remove(0)
        .readable()
        .unwrap()
        .unwrap()
        .standing;
    assert!(matches!(standing, Standing::Open(_)), "{standing:?}");
    let (answer, resume) = decider.decide(&decision).await.unwrap();
    assert_eq!(answer, Answer::Applied);
    let resume = resume.unwrap();
    assert_eq!((resume.task.as_str(), resume.number, resume.queue.as_str()), ("t", 1, "q"));
    decider.resume_sent(&resume).await.unwrap();
    let ticket = Ticket { kind: TicketKind::Resume, number: 1 };
    let taken = worker.take_parked(&id, ticket, None, "b", HOUR).await.unwrap();
    assert!(matches!(taken, Taken::Claimed { number: 1, rulings, .. } if rulings.len() == 1));
    assert_eq!(worker.end_parked(&id, None).await.unwrap(), []);

    let key = SealKey::new(&[7; 32]).unwrap();
    let entries = decider.audit_after(None, 10).await.unwrap();
    let seal = Seal::over(&key, None, &entries);
    assert!(worker.seal("a", HOUR, seal.clone()).await.is_err());
    let sealed = decider.seal("a", HOUR, seal.clone()).await.unwrap();
    assert_eq!((entries.len(), sealed), (1, Sealing::Yours(seal)));
    assert_eq!(decider.seal("b", HOUR, None).await.unwrap(), Sealing::Held);
}

/// Whoever decided has sent his resume message before the park that finds the decision.
#[tokio::test]
async fn a_run_that_finds_its_decision_leaves_word_in_case_it_dies() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::from("t");
    let asked = question(&id, "first", 1);
    let parking = |number| Parking {
        id: id.clone(),
        number,
        digest: TaskDigest::from("one".to_owned()),
        holder: "a".into(),
        lease: Duration::from_millis(1),
        message: Envelope::new("t", crate::protocol::Arguments::default()).encode(),
        queue: "q".into(),
        questions: vec![asked.clone()],
        alarm: None,
        abandoned: Vec::new(),
    };
    assert!(matches!(store.park(parking(1)).await.unwrap(), Parked::Waiting(..)));
    let decision = Decision::on(&asked, "ana", Choice::Approve);
    let resume = store.decide(&decision).await.unwrap().1.unwrap();
    store.resume_sent(&resume).await.unwrap();
    assert!(matches!(store.park(parking(2)).await.unwrap(), Parked::Ready(..)));
    eventually("a sweeper is told", async || {
        let overdue = store.overdue_resumes().await.unwrap();
        overdue.iter().any(|it| it.task == id && it.number == 2 && it.queue == "q")
    })
    .await;
}

#[tokio::test]
async fn after_its_deadline_a_question_is_expired_whether_or_not_anybody_noticed() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let question = Question { expires_in: 1, ..Question::new("Now?") };
    Approvals::ask(&*store, question.clone()).await.unwrap();
    let ids = [question.id.clone()];
    eventually("it has expired", async || {
        let asked = store.asked(&ids).await.unwrap().remove(0).readable().unwrap().unwrap();
        matches!(asked.standing, Standing::Expired(_))
    })
    .await;
    let decision = Decision::on(&question, "ana", Choice::Approve);
    assert!(matches!(store.decide(&decision).await.unwrap().0, Answer::Expired { .. }));
    assert!(matches!(
        store.extend(&question.id, "ana", false, HOUR).await.unwrap(),
        Answer::Expired { .. }
    ));
}

/// Those of services go a week after that, those of a task with it.
#[tokio::test]
async fn a_services_questions_leave_the_index_when_they_are_over() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let ask = async |title: &str| {
        let question = Question::new(title);
        Approvals::ask(&*store, question.clone()).await.unwrap();
        question
    };
    let [expired, decided, extended] = [ask("E?").await, ask("D?").await, ask("X?").await];
    let decision = Decision::on(&decided, "ana", Choice::Approve);
    assert_eq!(store.decide(&decision).await.unwrap().0, Answer::Applied);
    assert_eq!(store.extend(&extended.id, "ana", false, HOUR * 48).await.unwrap(), Answer::Applied);
    let task = TaskId::from("t");
    let parking = Parking {
        id: task.clone(),
        number: 1,
        digest: TaskDigest::from("one".to_owned()),
        holder: "a".into(),
        lease: HOUR,
        message: Envelope::new("t", crate::protocol::Arguments::default()).encode(),
        queue: "q".into(),
        questions: vec![question(&task, "first", 1)],
        alarm: None,
        abandoned: Vec::new(),
    };
    assert!(matches!(store.park(parking.clone()).await.unwrap(), Parked::Waiting(..)));
    let waited = parking.questions[0].id.clone();
    // As if all their deadlines had passed, but for the one that was given more time.
    for id in [&expired.id, &decided.id, &extended.id, &waited] {
        server.ask::<()>(&["ZADD", "cs:pending:{cs}", "1", id.as_str()]).await;
        server.ask::<()>(&["HSET", &format!("cs:ask:{{cs}}:{id}"), "deadline", "1"]).await;
    }
    let key = |id: &ApprovalId| format!("cs:ask:{{cs}}:{id}");
    let latest = ask("Last?").await;
    let listed = store.pending(0, 10).await.unwrap();
    let mut listed: Vec<_> = listed.into_iter().map(|(id, _)| id).collect();
    let mut left = [extended.id.clone(), latest.id];
    listed.sort();
    left.sort();
    assert_eq!(listed, left);
    let week = 7 * 24 * 60 * 60;
    let kept: i64 = server.ask(&["TTL", &key(&decided.id)]).await;
    assert!((week - 60..=week).contains(&kept), "{kept}");
    assert_eq!(server.ask::<i64>(&["EXISTS", &key(&expired.id)]).await, 0, "long over");
    for id in [&extended.id, &waited] {
        assert_eq!(server.ask::<i64>(&["TTL", &key(id)]).await, -1);
    }
}

/// Requests that were given more time, or whose tasks are suspended, are no reason to leave others listed.
#[tokio::test]
async fn long_requests_do_not_stop_the_tidying() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let ask = async |expires_in| {
        let question = Question { expires_in, ..Question::new("Long?") };
        Approvals::ask(&*store, question.clone()).await.unwrap();
        question.id
    };
    let mut long = Vec::new();
    for _ in 0..40 {
        let id = ask(3_600_000).await;
        assert_eq!(store.extend(&id, "ana", false, HOUR * 2).await.unwrap(), Answer::Applied);
        // As if its first deadline had passed.
        server.ask::<()>(&["ZADD", "cs:pending:{cs}", "1", id.as_str()]).await;
        server.ask::<()>(&["HSET", &format!("cs:ask:{{cs}}:{id}"), "deadline", "1"]).await;
        long.push(id);
    }
    let expired = ask(1).await;
    eventually("the expired one is not listed", async || {
        ask(3_600_000).await;
        let listed = store.pending(0, 1000).await.unwrap();
        listed.iter().all(|(id, _)| *id != expired)
    })
    .await;
    let listed = store.pending(0, 1000).await.unwrap();
    let deadlines: Vec<_> = listed.iter().filter(|(id, _)| long.contains(id)).collect();
    assert_eq!(deadlines.len(), 40);
    assert!(deadlines.iter().all(|(_, deadline)| *deadline > 1), "listed by the new deadline");
}

/// Votes, more time and a decision are kept for as long as the request can be decided, and a month more.
#[tokio::test]
async fn what_was_said_lives_as_long_as_its_request() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let day: i64 = 24 * 60 * 60;
    let question = Question { quorum: 2, expires_in: 90 * 24 * 3_600_000, ..Question::new("Pay?") };
    Approvals::ask(&*store, question.clone()).await.unwrap();
    let key = format!("cs:dec:{{cs}}:{}", question.id);
    let kept = async |days: i64| {
        let left: i64 = server.ask(&["TTL", &key]).await;
        assert!((days * day - 600..=days * day + 1).contains(&left), "{left} of {days} days");
    };
    let approve = async |by| {
        let decision = Decision::on(&question, by, Choice::Approve);
        store.decide(&decision).await.unwrap().0
    };
    assert_eq!(approve("ana").await, Answer::Counted { votes: 1, quorum: 2 });
    kept(120).await;
    let extended = store.extend(&question.id, "ana", false, HOUR * 24 * 100).await.unwrap();
    assert_eq!(extended, Answer::Applied);
    kept(130).await;
    assert_eq!(approve("bob").await, Answer::Applied);
    kept(130).await;
}

#[tokio::test]
async fn people_are_warned_once_for_each_part_of_a_questions_time() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let mut bell = store.questions();
    subscribers(&server, "cs:asked", 1).await;
    let question = Question { expires_in: 3_600_000, ..Question::new("Now?") };
    Approvals::ask(&*store, question.clone()).await.unwrap();
    let id = question.id;
    let rung = async {
        loop {
            if let Some(id) = bell.recv().await.unwrap() {
                return id;
            }
        }
    };
    assert_eq!(timeout(SOON, rung).await.unwrap(), id);
    let ids = [id.clone()];
    let warned =
        async || store.asked(&ids).await.unwrap().remove(0).readable().unwrap().unwrap().warned;
    assert!(!store.warn(&id, 50).await.unwrap(), "too early");
    assert_eq!(warned().await, None);
    // As if it had been asked long ago.
    let key = format!("cs:ask:{{cs}}:{id}");
    server.ask::<()>(&["HSET", &key, "at", "0"]).await;
    assert!(store.warn(&id, 50).await.unwrap());
    assert!(!store.warn(&id, 50).await.unwrap());
    assert!(store.warn(&id, 90).await.unwrap());
    assert!(!store.warn(&id, 50).await.unwrap());
    assert_eq!(warned().await, Some(90));
    assert_eq!(store.extend(&id, "ana", false, HOUR).await.unwrap(), Answer::Applied);
    assert_eq!(warned().await, None, "the new deadline is another one");
    assert!(store.warn(&id, 50).await.unwrap());
    let entries = store.audit_entries(10).await.unwrap();
    let what = |n: usize| entries[n].fields[0].1.clone();
    assert_eq!([what(0), what(1), what(2), what(3)], ["warn", "extend", "warn", "warn"]);
    let listed = store.pending(0, 10).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0].0, listed[0].1 > 3_600_000), (&id, true));
    assert_eq!(store.pending(1, 10).await.unwrap(), []);
    assert!(!store.warn(&ApprovalId::random(), 50).await.unwrap());
}
