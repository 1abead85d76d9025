//! Parked tasks: who may run them, by the rules of `lifecycle/park.rs`.

use std::time::Duration;

use countersign::TaskId;
use countersign::approval::{Answer, ApprovalId, Choice, Decision, Question, Standing};
use countersign::backend::{Capability, Deed, Parked, Parking, Taken};
use countersign::lifecycle::park::RECHECK;
use countersign::protocol::{Message, TaskDigest, Ticket, TicketKind};

use crate::approvals::{question, read};
use crate::ground::{Ground, HOUR, eventually, message, race};
use crate::promise::{Promise, promise};
use crate::rules;
use crate::verdicts::approve;

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(a_question_of_the_version_before_keeps_its_votes),
        promise(rules::the_store_answers_as_the_pure_functions_do),
        promise(a_task_that_was_never_parked_runs_without_a_claim),
        promise(who_begins_a_park_holds_it),
        promise(a_parked_task_waits_for_its_decision),
        promise(a_decided_task_is_resumed_as_it_was_parked),
        promise(a_run_that_finds_its_decision_goes_on),
        promise(one_of_many_claims_a_task),
        promise(a_claim_that_is_renewed_holds),
        promise(a_claim_that_is_not_renewed_ends),
        promise(a_claim_that_is_given_back_is_free),
        promise(a_sleep_ends_with_its_alarm),
        promise(a_deadline_ends_a_park),
        promise(of_several_questions_one_decision_is_enough),
        promise(a_newer_park_leaves_older_messages_behind),
        promise(a_forged_number_is_passed_over),
        promise(what_is_asked_no_more_is_withdrawn),
        promise(an_ended_task_is_over_and_asks_nothing),
        promise(a_reopened_task_was_never_parked),
        promise(a_reopened_task_asks_anew_with_all_of_its_time),
        promise(messages_of_another_task_change_nothing),
        promise(a_new_task_replaces_a_record_that_has_ended),
        promise(a_reopened_id_keeps_a_suspended_task),
        promise(what_one_parks_another_resumes).needs(Capability::SeveralProcesses),
    ]
}

fn ticket(kind: TicketKind, number: u64) -> Ticket {
    Ticket { kind, number }
}

const ORIGINAL: TicketKind = TicketKind::Original;
pub(crate) const RESUME: TicketKind = TicketKind::Resume;
pub(crate) const WAKE: TicketKind = TicketKind::Wake;

/// A task that asks, and the questions that it has.
pub(crate) struct Asker {
    pub(crate) message: Message,
}

impl Asker {
    pub(crate) fn new() -> Self {
        Self { message: message(vec![0, 159, 146, 150]) }
    }

    pub(crate) fn id(&self) -> &TaskId {
        &self.message.id
    }

    pub(crate) fn digest(&self) -> TaskDigest {
        TaskDigest::from("one".to_owned())
    }

    pub(crate) fn question(&self, name: &str) -> Question {
        let (id, task) = (ApprovalId::of(self.id(), name, 0), Some(self.id().clone()));
        Question { id, task, name: name.into(), ..question(name) }
    }

    /// A park of this number that waits for these.
    pub(crate) fn parking(&self, number: u64, questions: &[&str]) -> Parking {
        Parking {
            id: self.id().clone(),
            number,
            digest: self.digest(),
            holder: "a".into(),
            lease: HOUR,
            message: self.message.clone(),
            queue: "q".into(),
            questions: questions.iter().map(|name| self.question(name)).collect(),
            alarm: None,
            abandoned: Vec::new(),
        }
    }

    pub(crate) async fn park(&self, ground: &Ground, number: u64, questions: &[&str]) -> Parked {
        ground.store.park(self.parking(number, questions)).await.unwrap()
    }

    pub(crate) async fn take(
        &self,
        ground: &Ground,
        kind: TicketKind,
        number: u64,
        holder: &str,
    ) -> Taken {
        let ticket = ticket(kind, number);
        ground.store.take_parked(self.id(), ticket, None, holder, HOUR).await.unwrap()
    }
}

/// Parked once, and waiting for `pay`.
pub(crate) async fn parked(ground: &Ground) -> Asker {
    let asker = Asker::new();
    let parked = asker.park(ground, 1, &["pay"]).await;
    assert!(matches!(parked, Parked::Waiting(..)), "{parked:?}");
    asker
}

/// A task that was suspended by the version before is suspended again by this one.
async fn a_question_of_the_version_before_keeps_its_votes(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = Asker::new();
    let of_version = |v| {
        let mut parking = asker.parking(1, &["pay"]);
        for question in &mut parking.questions {
            (question.v, question.quorum) = (v, 2);
        }
        parking
    };
    let old = of_version(1);
    assert!(matches!(store.park(old.clone()).await.unwrap(), Parked::Waiting(..)));
    let by = |person| crate::verdicts::approve(&old.questions[0], person);
    let (counted, _) = store.decide(&by("ana")).await.unwrap();
    assert_eq!(counted, Answer::Counted { votes: 1, quorum: 2 });
    let again = store.park(of_version(Question::VERSION)).await.unwrap();
    assert!(matches!(again, Parked::Waiting(..)), "{again:?}");
    assert_eq!(store.decide(&by("bob")).await.unwrap().0, Answer::Applied);
    let Parked::Ready(rulings) = store.park(of_version(Question::VERSION)).await.unwrap() else {
        panic!("it is decided")
    };
    assert_eq!(rulings[0].digest, old.questions[0].digest());
}

pub(crate) fn is_claimed(taken: &Taken, wanted: u64) -> bool {
    matches!(taken, Taken::Claimed { number, .. } if *number == wanted)
}

async fn a_task_that_was_never_parked_runs_without_a_claim(ground: Ground) {
    let asker = Asker::new();
    for _ in 0..2 {
        assert!(matches!(asker.take(&ground, ORIGINAL, 0, "a").await, Taken::Unclaimed));
        assert!(matches!(asker.take(&ground, RESUME, 1, "a").await, Taken::Over(_)));
        assert!(matches!(asker.take(&ground, WAKE, 1, "a").await, Taken::StateLost));
    }
    // A retry whose park the store has lost.
    let taken = asker.take(&ground, ORIGINAL, 3, "a").await;
    assert!(matches!(taken, Taken::Claimed { number: 3, message: None, .. }), "{taken:?}");
    assert_eq!(ground.store.end_parked(Asker::new().id(), None).await.unwrap(), []);
}

/// Its wake message may come before the park itself.
async fn who_begins_a_park_holds_it(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = Asker::new();
    for _ in 0..2 {
        assert!(is_claimed(
            &store.begin_park(asker.id(), &asker.digest(), false, "a", HOUR).await.unwrap(),
            0
        ));
    }
    assert!(matches!(asker.take(&ground, WAKE, 1, "b").await, Taken::Postpone(_)));
    let another = store.begin_park(asker.id(), &asker.digest(), false, "b", HOUR).await.unwrap();
    assert!(matches!(another, Taken::Postpone(_)), "{another:?}");
    assert!(matches!(asker.park(&ground, 1, &["pay"]).await, Parked::Waiting(..)));
    let late = store.begin_park(asker.id(), &asker.digest(), false, "a", HOUR).await.unwrap();
    assert!(matches!(late, Taken::Over(_)), "{late:?}");
}

async fn a_parked_task_waits_for_its_decision(ground: Ground) {
    let asker = Asker::new();
    let parked = asker.park(&ground, 1, &["pay"]).await;
    let Parked::Waiting(_, due) = parked else { panic!("{parked:?}") };
    assert!(due > HOUR / 2 && due <= HOUR + Duration::from_secs(1), "{due:?}");
    let asked = read(&ground.store, &asker.question("pay")).await;
    assert!(matches!(asked.standing, Standing::Open(_)) && asked.question == asker.question("pay"));
    assert_eq!(ground.store.pending(0, 10).await.unwrap().len(), 1);
    assert!(matches!(asker.take(&ground, ORIGINAL, 0, "a").await, Taken::Over(_)));
    assert!(matches!(asker.take(&ground, RESUME, 1, "a").await, Taken::Over(_)));
    let taken = asker.take(&ground, WAKE, 1, "a").await;
    let Taken::Postpone(time) = taken else { panic!("{taken:?}") };
    let longest = Duration::from_millis(RECHECK.unsigned_abs());
    assert!(!time.is_zero() && time <= longest, "{time:?}");
}

async fn a_decided_task_is_resumed_as_it_was_parked(ground: Ground) {
    let asker = parked(&ground).await;
    let decision =
        Decision { reason: Some("grüße".into()), ..approve(&asker.question("pay"), "ana") };
    let (_, resume) = ground.store.decide(&decision).await.unwrap();
    let resume = resume.expect("a task waits for it");
    assert_eq!((&resume.task, resume.number, &*resume.queue), (asker.id(), 1, "q"));
    for kind in [RESUME, WAKE] {
        let taken = asker.take(&ground, kind, 1, "b").await;
        let Taken::Claimed { number, message, rulings } = taken else { panic!("{taken:?}") };
        assert_eq!((number, message.as_deref()), (1, Some(&asker.message)));
        let [ruling] = &rulings[..] else { panic!("{rulings:?}") };
        assert_eq!(ruling.approval, decision.approval);
        assert_eq!(ruling.digest, decision.digest);
        assert_eq!(ruling.standing, Standing::Decided(Choice::Approve));
        assert_eq!(ruling.decision.as_ref(), Some(&decision));
    }
    assert_eq!(ground.store.pending(0, 10).await.unwrap(), [], "it is asked no more");
}

async fn a_run_that_finds_its_decision_goes_on(ground: Ground) {
    let asker = parked(&ground).await;
    ground.store.decide(&approve(&asker.question("pay"), "ana")).await.unwrap();
    assert!(is_claimed(&asker.take(&ground, RESUME, 1, "a").await, 1));
    let parked = asker.park(&ground, 2, &["pay"]).await;
    let Parked::Ready(rulings) = parked else { panic!("{parked:?}") };
    assert_eq!(rulings.len(), 1);
    // It holds the claim of the new number.
    assert!(matches!(asker.take(&ground, WAKE, 2, "b").await, Taken::Postpone(_)));
    assert!(ground.store.renew_claim(asker.id(), "a", HOUR).await.unwrap());
}

async fn one_of_many_claims_a_task(ground: Ground) {
    let asker = parked(&ground).await;
    ground.store.decide(&approve(&asker.question("pay"), "ana")).await.unwrap();
    let taken = race(50, |n| {
        let (store, id) = (ground.store.clone(), asker.id().clone());
        let ticket = ticket([RESUME, WAKE][n % 2], 1);
        async move { store.take_parked(&id, ticket, None, &n.to_string(), HOUR).await.unwrap() }
    });
    let (claimed, others): (Vec<_>, Vec<_>) =
        taken.await.into_iter().partition(|taken| is_claimed(taken, 1));
    assert_eq!(claimed.len(), 1);
    assert!(others.iter().all(|taken| matches!(taken, Taken::Postpone(_))), "{others:?}");
}

async fn a_claim_that_is_renewed_holds(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = parked(&ground).await;
    store.decide(&approve(&asker.question("pay"), "ana")).await.unwrap();
    let short = Duration::from_millis(300);
    let taken = store.take_parked(asker.id(), ticket(RESUME, 1), None, "a", short).await.unwrap();
    assert!(is_claimed(&taken, 1));
    assert!(store.renew_claim(asker.id(), "a", HOUR).await.unwrap());
    assert!(!store.renew_claim(asker.id(), "b", HOUR).await.unwrap());
    assert!(!store.renew_claim(Asker::new().id(), "a", HOUR).await.unwrap());
    let taken = asker.take(&ground, WAKE, 1, "b").await;
    let Taken::Postpone(time) = taken else { panic!("{taken:?}") };
    assert!(time > short, "{time:?}");
    // Who holds it may take it again: his answer was lost.
    assert!(is_claimed(&asker.take(&ground, RESUME, 1, "a").await, 1));
}

async fn a_claim_that_is_not_renewed_ends(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = parked(&ground).await;
    store.decide(&approve(&asker.question("pay"), "ana")).await.unwrap();
    let short = Duration::from_millis(200);
    let taken = store.take_parked(asker.id(), ticket(RESUME, 1), None, "a", short).await.unwrap();
    assert!(is_claimed(&taken, 1));
    let is_bs = async || is_claimed(&asker.take(&ground, WAKE, 1, "b").await, 1);
    eventually("another claims it", is_bs).await;
    assert!(!store.renew_claim(asker.id(), "a", HOUR).await.unwrap());
    assert!(matches!(asker.park(&ground, 2, &["more"]).await, Parked::Behind(_)));
}

async fn a_claim_that_is_given_back_is_free(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = parked(&ground).await;
    store.decide(&approve(&asker.question("pay"), "ana")).await.unwrap();
    assert!(is_claimed(&asker.take(&ground, RESUME, 1, "a").await, 1));
    store.release_claim(asker.id(), "b").await.unwrap();
    assert!(matches!(asker.take(&ground, RESUME, 1, "b").await, Taken::Postpone(_)));
    store.release_claim(asker.id(), "a").await.unwrap();
    assert!(!store.renew_claim(asker.id(), "a", HOUR).await.unwrap());
    assert!(is_claimed(&asker.take(&ground, RESUME, 1, "b").await, 1));
}

async fn a_sleep_ends_with_its_alarm(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = Asker::new();
    let sleeps = |number, time| Parking { alarm: Some(time), ..asker.parking(number, &[]) };
    let parked = store.park(sleeps(1, HOUR)).await.unwrap();
    let Parked::Waiting(_, due) = parked else { panic!("{parked:?}") };
    assert!(due > HOUR / 2, "{due:?}");
    assert!(matches!(asker.take(&ground, WAKE, 1, "b").await, Taken::Postpone(_)));
    let parked = store.park(sleeps(2, Duration::from_millis(200))).await.unwrap();
    assert!(matches!(parked, Parked::Waiting(..)));
    let is_awake = async || is_claimed(&asker.take(&ground, WAKE, 2, "b").await, 2);
    eventually("it wakes", is_awake).await;
}

async fn a_deadline_ends_a_park(ground: Ground) {
    let asker = Asker::new();
    let mut parking = asker.parking(1, &["pay"]);
    parking.questions[0].expires_in = 200;
    let parked = ground.store.park(parking).await.unwrap();
    assert!(matches!(parked, Parked::Waiting(..)), "{parked:?}");
    let rulings = async || match asker.take(&ground, WAKE, 1, "b").await {
        Taken::Claimed { rulings, .. } => Some(rulings),
        _ => None,
    };
    eventually("it wakes", async || rulings().await.is_some()).await;
    let rulings = rulings().await.unwrap();
    assert!(matches!(rulings[0].standing, Standing::Expired(_)), "{rulings:?}");
    assert_eq!(rulings[0].decision, None);
}

async fn of_several_questions_one_decision_is_enough(ground: Ground) {
    let asker = Asker::new();
    assert!(matches!(asker.park(&ground, 1, &["a", "b"]).await, Parked::Waiting(..)));
    let (_, resume) = ground.store.decide(&approve(&asker.question("b"), "ana")).await.unwrap();
    assert!(resume.is_some());
    let taken = asker.take(&ground, RESUME, 1, "c").await;
    let Taken::Claimed { rulings, .. } = taken else { panic!("{taken:?}") };
    assert_eq!(rulings.len(), 1);
    assert_eq!(rulings[0].approval, asker.question("b").id);
    ground.store.release_claim(asker.id(), "c").await.unwrap();
    // It goes on to wait for the other one; what it knows it is told again.
    assert!(matches!(asker.park(&ground, 2, &["a"]).await, Parked::Waiting(..)));
    ground.store.decide(&approve(&asker.question("a"), "ana")).await.unwrap();
    let taken = asker.take(&ground, RESUME, 2, "c").await;
    let Taken::Claimed { rulings, .. } = taken else { panic!("{taken:?}") };
    assert_eq!(rulings.len(), 2);
}

async fn a_newer_park_leaves_older_messages_behind(ground: Ground) {
    let asker = parked(&ground).await;
    // A retry: it waits for nothing, and its message is on its way.
    assert!(matches!(asker.park(&ground, 5, &[]).await, Parked::Waiting(..)));
    for (kind, number) in [(ORIGINAL, 0), (WAKE, 1), (RESUME, 1), (WAKE, 4)] {
        assert!(matches!(asker.take(&ground, kind, number, "b").await, Taken::Over(_)));
    }
    assert!(matches!(asker.park(&ground, 4, &["pay"]).await, Parked::Behind(_)));
    assert!(is_claimed(&asker.take(&ground, ORIGINAL, 5, "b").await, 5));
    // A message that overtakes its own record.
    ground.store.release_claim(asker.id(), "b").await.unwrap();
    assert!(is_claimed(&asker.take(&ground, WAKE, 6, "b").await, 6));
}

async fn a_forged_number_is_passed_over(ground: Ground) {
    let asker = parked(&ground).await;
    for (kind, number) in [(RESUME, 2), (ORIGINAL, 1 << 40), (WAKE, 1 << 40)] {
        assert!(matches!(asker.take(&ground, kind, number, "b").await, Taken::Over(_)));
    }
    assert!(matches!(asker.take(&ground, WAKE, 1, "b").await, Taken::Postpone(_)));
}

async fn what_is_asked_no_more_is_withdrawn(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = Asker::new();
    asker.park(&ground, 1, &["a", "b"]).await;
    let abandoned = vec![asker.question("a").id];
    store.park(Parking { abandoned, ..asker.parking(2, &["b"]) }).await.unwrap();
    let standing = async |name| read(store, &asker.question(name)).await.standing;
    assert_eq!(standing("a").await, Standing::Decided(Choice::Withdraw));
    assert!(matches!(standing("b").await, Standing::Open(_)));
    let (answer, resume) = store.decide(&approve(&asker.question("a"), "ana")).await.unwrap();
    assert_eq!((answer, resume), (Answer::Withdrawn, None));
    // A later run asks it anew.
    asker.park(&ground, 3, &["a", "b"]).await;
    assert!(matches!(standing("a").await, Standing::Open(_)));
}

async fn an_ended_task_is_over_and_asks_nothing(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = Asker::new();
    asker.park(&ground, 1, &["a", "b", "c"]).await;
    store.decide(&approve(&asker.question("b"), "ana")).await.unwrap();
    let mut withdrawn = store.end_parked(asker.id(), None).await.unwrap();
    withdrawn.sort();
    let mut wanted = ["a", "c"].map(|name| asker.question(name).id);
    wanted.sort();
    assert_eq!(withdrawn, wanted);
    assert_eq!(store.end_parked(asker.id(), None).await.unwrap(), []);
    assert_eq!(store.pending(0, 10).await.unwrap(), []);
    let standing = async |name| read(store, &asker.question(name)).await.standing;
    assert_eq!(standing("a").await, Standing::Decided(Choice::Withdraw));
    assert_eq!(standing("b").await, Standing::Decided(Choice::Approve));
    for (kind, number) in [(ORIGINAL, 0), (RESUME, 1), (WAKE, 1), (WAKE, 2)] {
        assert!(matches!(asker.take(&ground, kind, number, "b").await, Taken::Over(_)));
    }
    assert!(matches!(asker.park(&ground, 2, &["d"]).await, Parked::Behind(_)));
    assert!(!store.renew_claim(asker.id(), "a", HOUR).await.unwrap());
}

/// Somebody sends its dead letter again.
async fn a_reopened_task_was_never_parked(ground: Ground) {
    let asker = parked(&ground).await;
    reopen(&ground, &asker).await;
    assert!(matches!(asker.take(&ground, ORIGINAL, 0, "b").await, Taken::Unclaimed));
}

/// It fails, and is replayed.
pub(crate) async fn reopen(ground: &Ground, asker: &Asker) {
    ground.finish(asker.id(), "FAILURE", "").await;
    ground.store.end_parked(asker.id(), None).await.unwrap();
    let (id, queue, by) = (asker.id().clone(), "q.dead".into(), "ana".into());
    ground.store.reopen(Deed { what: "replay", id, queue, by }, 1).await.unwrap();
}

/// What was added to the time of the question before is over.
async fn a_reopened_task_asks_anew_with_all_of_its_time(ground: Ground) {
    let asker = parked(&ground).await;
    let question = asker.question("pay");
    let standing = async || read(&ground.store, &question).await.standing;
    let extended = ground.store.extend(&question.id, "ana", false, 3 * HOUR).await.unwrap();
    assert_eq!(extended, Answer::Applied);
    let Standing::Open(before) = standing().await else { panic!("{:?}", standing().await) };
    reopen(&ground, &asker).await;
    let parked = asker.park(&ground, 1, &["pay"]).await;
    assert!(matches!(parked, Parked::Waiting(..)), "{parked:?}");
    let Standing::Open(deadline) = standing().await else { panic!("{:?}", standing().await) };
    assert!(deadline < before - 3_600_000, "{before} {deadline}");
}

fn other() -> TaskDigest {
    TaskDigest::from("two".to_owned())
}

async fn messages_of_another_task_change_nothing(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = parked(&ground).await;
    let take = async |kind, number| {
        let ticket = ticket(kind, number);
        store.take_parked(asker.id(), ticket, Some(&other()), "b", HOUR).await.unwrap()
    };
    for (kind, number) in [(WAKE, 1), (WAKE, 2), (ORIGINAL, 1), (ORIGINAL, 2)] {
        assert!(matches!(take(kind, number).await, Taken::Over(_)));
    }
    let taken = take(ORIGINAL, 0).await;
    let Taken::Occupied(Some(message)) = taken else { panic!("{taken:?}") };
    assert_eq!(*message, asker.message);
    let begun = store.begin_park(asker.id(), &other(), true, "b", HOUR).await.unwrap();
    assert!(matches!(begun, Taken::Occupied(Some(_))), "{begun:?}");
    assert_eq!(store.end_parked(asker.id(), Some(&other())).await.unwrap(), []);
    let asked = read(store, &asker.question("pay")).await;
    assert!(matches!(asked.standing, Standing::Open(_)));
    assert!(matches!(asker.take(&ground, WAKE, 1, "a").await, Taken::Postpone(_)));
}

async fn a_new_task_replaces_a_record_that_has_ended(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = parked(&ground).await;
    let own = asker.digest();
    store.end_parked(asker.id(), Some(&own)).await.unwrap();
    let first = ticket(ORIGINAL, 0);
    let taken = store.take_parked(asker.id(), first, Some(&own), "b", HOUR).await.unwrap();
    assert!(matches!(taken, Taken::Ended(_)), "{taken:?}");
    let taken = store.take_parked(asker.id(), first, Some(&other()), "b", HOUR).await.unwrap();
    assert!(matches!(taken, Taken::Unclaimed), "{taken:?}");
    let copy = store.begin_park(asker.id(), &own, false, "b", HOUR).await.unwrap();
    assert!(matches!(copy, Taken::Over(_)), "{copy:?}");
    for (last, digest) in [(1, own), (3, other())] {
        let begun = store.begin_park(asker.id(), &digest, true, "b", HOUR).await.unwrap();
        let Taken::Claimed { number, message: None, rulings } = begun else { panic!("{begun:?}") };
        assert_eq!((number, rulings.len()), (last + 1, 0));
        let taken = store.take_parked(asker.id(), first, Some(&digest), "b", HOUR).await.unwrap();
        assert!(is_claimed(&taken, 0), "its message still finds the record");
        let parking = Parking { digest: digest.clone(), ..asker.parking(last + 2, &["pay"]) };
        let parked = store.park(Parking { holder: "b".into(), ..parking }).await.unwrap();
        assert!(matches!(parked, Parked::Waiting(..)), "{parked:?}");
        let asked = read(store, &asker.question("pay")).await;
        assert!(matches!(asked.standing, Standing::Open(_)), "asked anew");
        assert_eq!(store.end_parked(asker.id(), Some(&digest)).await.unwrap().len(), 1);
    }
}

/// A dead letter of another task with the same id is replayed.
async fn a_reopened_id_keeps_a_suspended_task(ground: Ground) {
    let asker = parked(&ground).await;
    let (id, queue, by) = (asker.id().clone(), "q.dead".into(), "ana".into());
    ground.store.reopen(Deed { what: "replay", id, queue, by }, 1).await.unwrap();
    assert!(matches!(asker.take(&ground, WAKE, 1, "b").await, Taken::Postpone(_)));
}

async fn what_one_parks_another_resumes(ground: Ground) {
    let other = ground.open().await.store;
    let asker = parked(&ground).await;
    let decision = approve(&read(&other, &asker.question("pay")).await.question, "ana");
    assert!(other.decide(&decision).await.unwrap().1.is_some());
    let taken = other.take_parked(asker.id(), ticket(RESUME, 1), None, "b", HOUR).await.unwrap();
    let Taken::Claimed { message, rulings, .. } = taken else { panic!("{taken:?}") };
    assert_eq!((message.as_deref(), rulings.len()), (Some(&asker.message), 1));
    assert!(matches!(asker.take(&ground, WAKE, 1, "a").await, Taken::Postpone(_)));
    other.end_parked(asker.id(), None).await.unwrap();
    assert!(matches!(asker.take(&ground, WAKE, 1, "a").await, Taken::Over(_)));
}
