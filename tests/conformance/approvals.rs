//! Questions: asked, listed, extended, warned of, and the bells that tell of them.

use std::sync::Arc;
use std::time::Duration;

use countersign::approval::{Action, Answer, ApprovalId, AuditEntry, Question, Risk, Standing};
use countersign::backend::{Asked, Capability, Found, Store};
use serde_json::json;
use tokio::sync::broadcast;
use tokio::time::timeout;

use crate::ground::{Ground, HOUR, eventually, race};
use crate::promise::{Promise, promise};
use crate::verdicts::{approve, decision};

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(a_question_is_read_as_it_was_asked),
        promise(questions_are_read_in_the_order_asked_for),
        promise(a_question_of_a_newer_version_hides_none_of_the_others),
        promise(a_question_of_the_version_before_is_decided_by_its_own_digest),
        promise(a_question_that_is_asked_stays_as_it_is),
        promise(open_questions_are_listed_by_their_deadlines),
        promise(after_its_deadline_a_question_is_expired_whoever_looks),
        promise(a_question_may_be_given_more_time),
        promise(only_approvers_and_operators_give_more_time),
        promise(what_is_over_is_given_no_more_time),
        promise(people_are_warned_once_for_each_part_of_its_time),
        promise(one_of_many_clerks_warns),
        promise(a_bell_rings_when_something_is_asked),
        promise(a_bell_rings_when_something_is_decided),
        promise(closing_ends_questions_and_decisions),
        promise(what_one_asks_another_decides).needs(Capability::SeveralProcesses),
        promise(bells_of_one_ring_at_another).needs(Capability::SeveralProcesses),
    ]
}

/// A question that is not asked yet.
pub(crate) fn question(title: &str) -> Question {
    Question {
        action: Action { name: "bank.pay".into(), version: 1, args: json!({"to": title}) },
        expires_in: 3_600_000,
        ..Question::new(title)
    }
}

pub(crate) async fn ask(store: &Arc<dyn Store>, question: Question) -> Question {
    store.ask(question.clone()).await.unwrap();
    question
}

/// How the store has it.
pub(crate) async fn read(store: &Arc<dyn Store>, question: &Question) -> Asked {
    let mut found = store.asked(std::slice::from_ref(&question.id)).await.unwrap();
    found.remove(0).readable().unwrap().expect("it was asked")
}

async fn deadline(store: &Arc<dyn Store>, question: &Question) -> i64 {
    match read(store, question).await.standing {
        Standing::Open(deadline) => deadline,
        other => panic!("{other:?}"),
    }
}

async fn a_question_is_read_as_it_was_asked(ground: Ground) {
    let Ground { store, .. } = &ground;
    let whole = Question {
        task_name: Some("billing.refund".into()),
        name: "pay".into(),
        summary: "# Grüße\n日本 \u{0} {cs} 'x'".into(),
        editable: true,
        schema: Some(json!({"type": "object"})),
        effects: vec!["one".into(), "two".into()],
        risk: Risk::Irreversible,
        requester: Some("rita".into()),
        self_approval: true,
        approvers: vec!["ana".into(), "bob the 2nd".into()],
        quorum: 2,
        ..question("Pay?")
    };
    for question in [whole, Question::new("Bare?")] {
        let before = store.clock().await.unwrap();
        ask(store, question.clone()).await;
        let after = store.clock().await.unwrap();
        let asked = read(store, &question).await;
        assert_eq!(asked.question, question);
        assert!((before..=after).contains(&asked.asked_at) && asked.read_at >= asked.asked_at);
        let deadline = asked.asked_at + i64::try_from(question.expires_in).unwrap();
        assert_eq!((asked.standing, asked.at), (Standing::Open(deadline), deadline));
        assert_eq!((asked.decision, asked.votes, asked.warned), (None, 0, None));
    }
}

async fn questions_are_read_in_the_order_asked_for(ground: Ground) {
    let Ground { store, .. } = &ground;
    let [a, b] = [ask(store, question("a")).await, ask(store, question("b")).await];
    let nobodys = ApprovalId::random();
    let ids = [b.id.clone(), nobodys, a.id.clone(), b.id.clone()];
    let found = store.asked(&ids).await.unwrap();
    let title = |found: Found| found.readable().unwrap().map(|asked| asked.question.title);
    let titles: Vec<_> = found.into_iter().map(title).collect();
    assert_eq!(titles, [Some("b"), None, Some("a"), Some("b")].map(|it| it.map(str::to_owned)));
    assert!(store.asked(&[]).await.unwrap().is_empty());
}

async fn a_question_of_a_newer_version_hides_none_of_the_others(ground: Ground) {
    let Ground { store, .. } = &ground;
    let newer = ask(store, Question { v: Question::VERSION + 1, ..question("newer") }).await;
    let ours = ask(store, question("ours")).await;
    let [first, second] = &store.asked(&[newer.id, ours.id]).await.unwrap()[..] else {
        panic!("one of them is hidden")
    };
    assert!(matches!(first, Found::Unreadable(Standing::Open(_), _)), "{first:?}");
    assert!(matches!(second, Found::Asked(asked) if asked.question.title == "ours"), "{second:?}");
    assert_eq!(store.pending(0, 10).await.unwrap().len(), 2);
}

async fn a_question_of_the_version_before_is_decided_by_its_own_digest(ground: Ground) {
    let Ground { store, .. } = &ground;
    let old = ask(store, Question { v: 1, ..question("old") }).await;
    let asked = read(store, &old).await;
    assert_eq!(asked.question.digest(), old.action.digest());
    let (answer, _) = store.decide(&asked.approve("ana")).await.unwrap();
    assert_eq!(answer, Answer::Applied);
    // Since then, the digest of the action is not enough.
    let new = ask(store, question("new")).await;
    let of_action = Question { v: 1, ..new.clone() };
    assert_eq!(store.decide(&approve(&of_action, "ana")).await.unwrap().0, Answer::DigestMismatch);
    assert_eq!(store.decide(&approve(&new, "ana")).await.unwrap().0, Answer::Applied);
}

async fn a_question_that_is_asked_stays_as_it_is(ground: Ground) {
    let Ground { store, .. } = &ground;
    let first = ask(store, question("first")).await;
    let asked = read(store, &first).await;
    ask(store, Question { id: first.id.clone(), ..question("second") }).await;
    let again = read(store, &first).await;
    assert_eq!(Asked { read_at: asked.read_at, ..again }, asked);
    store.decide(&approve(&first, "ana")).await.unwrap();
    ask(store, first.clone()).await;
    assert!(matches!(read(store, &first).await.standing, Standing::Decided(_)));
}

async fn open_questions_are_listed_by_their_deadlines(ground: Ground) {
    let Ground { store, .. } = &ground;
    assert_eq!(store.pending(0, 10).await.unwrap(), []);
    let mut wanted = Vec::new();
    for hours in [5, 2, 9, 1, 7] {
        let expires_in = hours * 3_600_000;
        let question = ask(store, Question { expires_in, ..question("Pay?") }).await;
        let deadline = deadline(store, &question).await;
        wanted.push((question.id, deadline));
    }
    wanted.sort_by_key(|(_, deadline)| *deadline);
    assert_eq!(store.pending(0, 10).await.unwrap(), wanted);
    assert_eq!(store.pending(0, 2).await.unwrap(), wanted[..2]);
    assert_eq!(store.pending(2, 2).await.unwrap(), wanted[2..4]);
    assert_eq!(store.pending(4, 10).await.unwrap(), wanted[4..]);
    assert_eq!(store.pending(5, 10).await.unwrap(), []);
    assert_eq!(store.pending(0, 0).await.unwrap(), []);
    // With the deadline that it was asked with.
    let last = &wanted[4];
    assert_eq!(store.extend(&last.0, "ana", false, 24 * HOUR).await.unwrap(), Answer::Applied);
    assert!(store.pending(0, 10).await.unwrap().contains(last));
}

async fn expired(store: &Arc<dyn Store>) -> Question {
    let question = ask(store, Question { expires_in: 1, ..question("Now?") }).await;
    let is_expired = async || matches!(read(store, &question).await.standing, Standing::Expired(_));
    eventually("it has expired", is_expired).await;
    question
}

async fn after_its_deadline_a_question_is_expired_whoever_looks(ground: Ground) {
    let Ground { store, .. } = &ground;
    let question = expired(store).await;
    let asked = read(store, &question).await;
    let deadline = asked.asked_at + 1;
    assert_eq!((asked.standing, asked.at), (Standing::Expired(deadline), deadline));
    assert!(asked.read_at > deadline);
    let (answer, resume) = store.decide(&approve(&question, "ana")).await.unwrap();
    assert_eq!((answer, resume), (Answer::Expired { at: deadline }, None));
}

async fn a_question_may_be_given_more_time(ground: Ground) {
    let Ground { store, .. } = &ground;
    let question = ask(store, question("Pay?")).await;
    let before = store.clock().await.unwrap();
    let extended = store.extend(&question.id, "ana", false, 2 * HOUR).await.unwrap();
    let after = store.clock().await.unwrap();
    assert_eq!(extended, Answer::Applied);
    let later = deadline(store, &question).await;
    assert!((before..=after).contains(&(later - 2 * 3_600_000)), "counted from now");
    let earlier = store.extend(&question.id, "ana", false, HOUR).await.unwrap();
    assert_eq!(earlier, Answer::Earlier { deadline: later });
    assert_eq!(deadline(store, &question).await, later);
    let fields = store.audit_entries(1).await.unwrap().remove(0).fields;
    for (name, value) in [("what", "extend"), ("approval", question.id.as_str()), ("by", "ana")] {
        assert!(fields.contains(&(name.to_owned(), value.to_owned())), "{fields:?}");
    }
}

/// With `on_timeout = approve`, a deadline that anybody moves would be an approval that anybody gives.
async fn only_approvers_and_operators_give_more_time(ground: Ground) {
    let Ground { store, .. } = &ground;
    let named = vec!["ana".to_owned(), "bob the 2nd".to_owned()];
    for (approvers, by, is_operator, answer) in [
        (&named, "ana", false, Answer::Applied),
        (&named, "bob the 2nd", false, Answer::Applied),
        (&named, "bob", false, Answer::NotAllowed),
        (&named, "", false, Answer::NotAllowed),
        (&named, "rita", false, Answer::NotAllowed),
        (&named, "eve", true, Answer::Applied),
        (&vec![], "eve", false, Answer::Applied),
        (&vec![], "rita", false, Answer::NotAllowed),
    ] {
        let (approvers, requester) = (approvers.clone(), Some("rita".to_owned()));
        let question = ask(store, Question { approvers, requester, ..question("Pay?") }).await;
        let before = deadline(store, &question).await;
        let told = store.extend(&question.id, by, is_operator, 24 * HOUR).await.unwrap();
        assert_eq!(told, answer, "{by}, {is_operator}");
        assert_eq!(deadline(store, &question).await > before, answer == Answer::Applied);
    }
    let extended = |entry: &AuditEntry| entry.fields.contains(&("what".into(), "extend".into()));
    let entries = store.audit_entries(100).await.unwrap();
    assert_eq!(entries.iter().filter(|entry| extended(entry)).count(), 4);
}

async fn what_is_over_is_given_no_more_time(ground: Ground) {
    let Ground { store, .. } = &ground;
    let extend =
        async |question: &Question| store.extend(&question.id, "ana", false, HOUR).await.unwrap();
    assert_eq!(extend(&question("Nobody asks")).await, Answer::Unknown);
    assert!(matches!(extend(&expired(store).await).await, Answer::Expired { .. }));
    let decided = ask(store, question("Pay?")).await;
    store.decide(&approve(&decided, "bob")).await.unwrap();
    let answer = extend(&decided).await;
    assert!(matches!(&answer, Answer::AlreadyDecided { by, .. } if by == "bob"), "{answer:?}");
    let withdrawn = ask(store, question("Pay?")).await;
    store
        .decide(&decision(&withdrawn, "bob", countersign::approval::Choice::Withdraw))
        .await
        .unwrap();
    assert_eq!(extend(&withdrawn).await, Answer::Withdrawn);
}

async fn people_are_warned_once_for_each_part_of_its_time(ground: Ground) {
    let Ground { store, .. } = &ground;
    let question = ask(store, Question { expires_in: 30_000, ..question("Pay?") }).await;
    let warn = async |percent| store.warn(&question.id, percent).await.unwrap();
    assert!(!warn(50).await, "it is too early");
    assert_eq!(read(store, &question).await.warned, None);
    eventually("it is time", async || warn(1).await).await;
    assert!(!warn(1).await, "once");
    assert!(!warn(90).await, "it is too early");
    assert_eq!(read(store, &question).await.warned, Some(1));
    let fields = store.audit_entries(1).await.unwrap().remove(0).fields;
    for (name, value) in [("what", "warn"), ("approval", question.id.as_str()), ("percent", "1")] {
        assert!(fields.contains(&(name.to_owned(), value.to_owned())), "{fields:?}");
    }
    eventually("the next part has passed", async || warn(2).await).await;
    store.decide(&approve(&question, "ana")).await.unwrap();
    assert!(!warn(3).await, "it is not open");
    assert!(!store.warn(&ApprovalId::random(), 1).await.unwrap());
}

async fn one_of_many_clerks_warns(ground: Ground) {
    let question = ask(&ground.store, Question { expires_in: 20_000, ..question("Pay?") }).await;
    let warned = async || {
        let warned = race(20, |_| {
            let (store, id) = (ground.store.clone(), question.id.clone());
            async move { store.warn(&id, 1).await.unwrap() }
        });
        let count = warned.await.into_iter().filter(|is_warned| *is_warned).count();
        assert!(count <= 1, "{count} warn");
        count == 1
    };
    eventually("it is time", warned).await;
    assert!(!warned().await);
}

type Rings = broadcast::Receiver<Option<ApprovalId>>;

/// Waits until something that is done again and again is heard. Of a ring that was missed, `None`
/// says so; here it has to be heard by its own name once.
async fn heard(rings: &mut Rings, act: impl AsyncFn() -> ApprovalId) {
    use broadcast::error::RecvError;
    loop {
        let wanted = act().await;
        let hear = async {
            loop {
                match rings.recv().await {
                    Ok(Some(id)) if id == wanted => return,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => panic!("the bell is gone"),
                }
            }
        };
        if timeout(Duration::from_secs(1), hear).await.is_ok() {
            return;
        }
    }
}

async fn asking(store: &Arc<dyn Store>) -> ApprovalId {
    ask(store, question("Pay?")).await.id
}

async fn deciding(store: &Arc<dyn Store>) -> ApprovalId {
    let question = ask(store, question("Pay?")).await;
    store.decide(&approve(&question, "ana")).await.unwrap();
    question.id
}

async fn a_bell_rings_when_something_is_asked(ground: Ground) {
    let Ground { store, .. } = &ground;
    let mut listeners = [store.questions(), store.questions()];
    for rings in &mut listeners {
        heard(rings, async || asking(store).await).await;
    }
}

async fn a_bell_rings_when_something_is_decided(ground: Ground) {
    let Ground { store, .. } = &ground;
    let mut listeners = [store.decisions(), store.decisions()];
    for rings in &mut listeners {
        heard(rings, async || deciding(store).await).await;
    }
}

async fn closing_ends_questions_and_decisions(ground: Ground) {
    let Ground { store, .. } = &ground;
    let question = ask(store, question("Pay?")).await;
    store.close().await;
    assert!(store.ask(question.clone()).await.is_err());
    assert!(store.asked(std::slice::from_ref(&question.id)).await.is_err());
    assert!(store.decide(&approve(&question, "ana")).await.is_err());
    assert!(store.pending(0, 1).await.is_err());
    assert!(store.overdue_resumes().await.is_err());
}

async fn what_one_asks_another_decides(ground: Ground) {
    let other = ground.open().await.store;
    let question = ask(&ground.store, question("Pay?")).await;
    let theirs = read(&other, &question).await;
    assert_eq!(theirs.question, question);
    assert_eq!(other.pending(0, 10).await.unwrap(), ground.store.pending(0, 10).await.unwrap());
    let decision = theirs.approve("ana");
    assert_eq!(other.decide(&decision).await.unwrap().0, Answer::Applied);
    assert_eq!(read(&ground.store, &question).await.decision, Some(decision.clone()));
    assert_eq!(ground.store.decide(&decision).await.unwrap().0, Answer::Replayed);
}

async fn bells_of_one_ring_at_another(ground: Ground) {
    let other = ground.open().await.store;
    heard(&mut other.questions(), async || asking(&ground.store).await).await;
    heard(&mut other.decisions(), async || deciding(&ground.store).await).await;
}
