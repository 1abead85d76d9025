//! The scripts of approvals do what the pure functions do, and a worker's user cannot decide.

use serde_json::json;

use super::*;
use crate::approval::{
    Action, Answer, ApprovalId, Choice, Decision, Question, Seal, SealKey, Standing,
};
use crate::backend::{Approvals, Audit, Parked, Parking, Sealing, Taken};
use crate::lifecycle::park::{self, Due, Park, Take};
use crate::lifecycle::vote::{self, Ballot, Terms, Vote};
use crate::protocol::{Envelope, Ticket, TicketKind};
use crate::task::TaskId;

const HOUR: Duration = Duration::from_secs(3600);
const HOLDERS: [&str; 2] = ["a", "b"];
const PEOPLE: [&str; 3] = ["ana", "bob", "rita"];

/// Numbers that look random, and are the same in every run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

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

/// What the pure functions know of one task and its two questions. Its clock stands still.
struct Model {
    park: Option<Park>,
    asked: Vec<usize>,
    terms: [Option<Terms>; 2],
    ballots: [Ballot; 2],
}

impl Model {
    fn due(&self, waits: &[usize]) -> Due {
        let is_open = |n: &usize| {
            let terms = self.terms[*n].as_ref();
            terms.is_some_and(|it| {
                matches!(vote::standing(it, &self.ballots[*n], 0), Standing::Open(_))
            })
        };
        if waits.iter().all(is_open) && !waits.is_empty() { Due::In(1) } else { Due::Now }
    }

    fn ask(&mut self, n: usize, question: &Question) {
        let is_over = self.terms[n].as_ref().is_some_and(|it| it.withdrawn)
            && self.ballots[n].decided.is_none();
        if self.terms[n].is_none() || is_over {
            self.terms[n] = Some(Terms {
                digest: question.digest(),
                deadline: 3_600_000,
                quorum: question.quorum,
                requester: question.requester.clone(),
                self_approval: false,
                approvers: Vec::new(),
                editable: true,
                withdrawn: false,
            });
        }
        if !self.asked.contains(&n) {
            self.asked.push(n);
        }
    }

    fn end(&mut self) {
        if self.park.is_none() {
            return;
        }
        for n in std::mem::take(&mut self.asked) {
            let is_open = self.due(&[n]) != Due::Now;
            if let Some(terms) = self.terms[n].as_mut().filter(|_| is_open) {
                terms.withdrawn = true;
            }
        }
        park::end(&mut self.park);
    }
}

fn agree(expected: &Take, found: &Taken) -> bool {
    match (expected, found) {
        (Take::Unclaimed, Taken::Unclaimed)
        | (Take::Ack, Taken::Over(_))
        | (Take::Postpone(_), Taken::Postpone(_))
        | (Take::StateLost, Taken::StateLost) => true,
        (Take::Claimed(wanted), Taken::Claimed { number, .. }) => wanted == number,
        _ => false,
    }
}

/// One task under both, step by step.
struct Pair<'s> {
    store: &'s RedisStore,
    id: TaskId,
    questions: [Question; 2],
    model: Model,
}

impl Pair<'_> {
    async fn begin(&mut self, holder: &str) {
        let expected = park::begin(&mut self.model.park, holder, 0, 3_600_000);
        let found = self.store.begin_park(&self.id, holder, HOUR).await.unwrap();
        assert!(agree(&expected, &found), "begun by {holder}: {expected:?}, but {found:?}");
    }

    async fn take(&mut self, ticket: Ticket, holder: &str) {
        let waits = self.model.park.as_ref().map_or_else(Vec::new, |park| {
            (0..2).filter(|n| park.waits.contains(&self.questions[*n].id)).collect()
        });
        let due = self.model.due(&waits);
        let expected = park::take(&mut self.model.park, ticket, due, holder, 0, 3_600_000);
        let found = self.store.take_parked(&self.id, ticket, holder, HOUR).await.unwrap();
        let agree = agree(&expected, &found);
        assert!(agree, "{ticket:?} by {holder}: {expected:?}, but {found:?}");
    }

    async fn park(&mut self, number: u64, waits: &[usize], holder: &str) {
        let before = (self.model.terms.clone(), self.model.asked.clone());
        for n in waits {
            let question = self.questions[*n].clone();
            self.model.ask(*n, &question);
        }
        let due = self.model.due(waits);
        let ids = waits.iter().map(|n| self.questions[*n].id.clone()).collect();
        let expected = park::park(&mut self.model.park, number, ids, due, holder, 0, 3_600_000);
        if expected == park::Parked::Behind {
            (self.model.terms, self.model.asked) = before;
        }
        let parking = Parking {
            id: self.id.clone(),
            number,
            holder: holder.into(),
            lease: HOUR,
            message: Envelope::new("t", crate::protocol::Arguments::default()).encode(),
            queue: "q".into(),
            questions: waits.iter().map(|n| self.questions[*n].clone()).collect(),
            alarm: None,
            abandoned: Vec::new(),
        };
        let found = self.store.park(parking).await.unwrap();
        let agree = matches!(
            (expected, &found),
            (park::Parked::Waiting, Parked::Waiting(..))
                | (park::Parked::Ready, Parked::Ready(_))
                | (park::Parked::Behind, Parked::Behind(_))
        );
        assert!(agree, "park {number} for {waits:?} by {holder}: {expected:?}, but {found:?}");
    }

    async fn decide(&mut self, n: usize, decision: &Decision) {
        let vote = Vote {
            decision: &decision.id,
            choice: decision.choice,
            by: &decision.by,
            digest: &decision.digest,
            edited: decision.edited.is_some(),
        };
        let expected =
            vote::decide(self.model.terms[n].as_ref(), &mut self.model.ballots[n], &vote, 0);
        let (found, resume) = self.store.decide(decision).await.unwrap();
        let agree = match (&expected, &found) {
            (
                Answer::AlreadyDecided { by, choice, .. },
                Answer::AlreadyDecided { by: found_by, choice: found_choice, .. },
            ) => by == found_by && choice == found_choice,
            (expected, found) => expected == found,
        };
        assert!(agree, "{decision:?}: {expected:?}, but {found:?}");
        let waits = |park: &&Park| park.waits.contains(&self.questions[n].id);
        let is_waited =
            found == Answer::Applied && self.model.park.as_ref().filter(waits).is_some();
        assert_eq!(resume.is_some(), is_waited);
    }
}

#[tokio::test]
async fn the_scripts_answer_as_the_pure_functions_do() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
    for n in 0..150 {
        let id = TaskId::from(format!("task-{n}"));
        let quorum = 1 + u32::try_from(draw.below(2)).unwrap();
        let questions = [question(&id, "first", quorum), question(&id, "second", 1)];
        let ballots = [Ballot::default(), Ballot::default()];
        let model = Model { park: None, asked: Vec::new(), terms: [None, None], ballots };
        let mut pair = Pair { store: &store, id, questions, model };
        for _ in 0..25 {
            let (holder, which) = (draw.of(&HOLDERS), draw.below(2));
            match draw.below(13) {
                0..=3 => {
                    let kind =
                        draw.of(&[TicketKind::Original, TicketKind::Resume, TicketKind::Wake]);
                    let number = draw.of(&[0, 1, 2, 3, 4, 1 << 40]);
                    pair.take(Ticket { kind, number }, holder).await;
                }
                4..=6 => {
                    let waits = draw.of(&[[0].as_slice(), &[1], &[0, 1], &[]]);
                    pair.park(1 + draw.below(4) as u64, waits, holder).await;
                }
                12 => pair.begin(holder).await,
                7 => {
                    park::release(&mut pair.model.park, holder);
                    store.release_claim(&pair.id, holder).await.unwrap();
                }
                8 if draw.below(4) == 0 => {
                    pair.model.end();
                    store.end_parked(&pair.id).await.unwrap();
                }
                _ => {
                    let choice = draw.of(&[
                        Choice::Approve,
                        Choice::Approve,
                        Choice::Reject,
                        Choice::Withdraw,
                    ]);
                    let mut decision =
                        Decision::on(&pair.questions[which], draw.of(&PEOPLE), choice);
                    decision.id = format!("decision-{}", draw.below(4));
                    decision.edited = (draw.below(4) == 0).then(|| json!({"to": "x"}));
                    if draw.below(6) == 0 {
                        decision.digest = "0".repeat(64).into();
                    }
                    pair.decide(which, &decision).await;
                }
            }
        }
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
    let taken = worker.take_parked(&id, ticket, "b", HOUR).await.unwrap();
    assert!(matches!(taken, Taken::Claimed { number: 1, rulings, .. } if rulings.len() == 1));
    assert_eq!(worker.end_parked(&id).await.unwrap(), []);

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
        store.extend(&question.id, "ana", HOUR).await.unwrap(),
        Answer::Expired { .. }
    ));
}

/// A task's questions go with it; those of services when others are asked.
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
    assert_eq!(store.extend(&extended.id, "ana", HOUR).await.unwrap(), Answer::Applied);
    let task = TaskId::from("t");
    let parking = Parking {
        id: task.clone(),
        number: 1,
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
    let mut left = [extended.id.clone(), waited.clone(), latest.id];
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
    assert_eq!(store.extend(&id, "ana", HOUR).await.unwrap(), Answer::Applied);
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
