//! Decisions: which one counts, and what everybody else is told.

use std::sync::Arc;

use countersign::TaskId;
use countersign::approval::{Answer, Choice, Decision, Digest, Question, Standing};
use countersign::backend::{Capability, Store};
use serde_json::json;

use crate::approvals::{ask, question, read};
use crate::ground::{Ground, race};
use crate::promise::{Promise, promise};

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(a_decision_counts_with_its_audit_entry),
        promise(one_of_many_deciders_counts_and_the_others_are_told_who),
        promise(deciders_of_two_processes_agree).needs(Capability::SeveralProcesses),
        promise(the_same_decision_counts_once),
        promise(a_question_that_nobody_asks_is_unknown),
        promise(what_has_changed_since_is_not_decided),
        promise(only_who_is_named_may_decide),
        promise(who_asks_does_not_approve),
        promise(only_what_is_editable_is_edited),
        promise(a_quorum_counts_people),
        promise(a_policy_is_no_person_of_a_quorum_unless_it_says_so),
        promise(one_rejection_is_enough),
        promise(a_withdrawn_question_is_not_decided),
    ]
}

/// What a person says to a question as it is here.
pub(crate) fn decision(question: &Question, by: &str, choice: Choice) -> Decision {
    Decision {
        id: TaskId::random().to_string(),
        approval: question.id.clone(),
        digest: question.digest(),
        nonce: None,
        by: by.into(),
        choice,
        reason: (choice == Choice::Reject).then(|| "too much".into()),
        in_quorum: false,
        edited: None,
        edited_digest: None,
    }
}

pub(crate) fn approve(question: &Question, by: &str) -> Decision {
    decision(question, by, Choice::Approve)
}

async fn decide(store: &Arc<dyn Store>, decision: &Decision) -> Answer {
    let (answer, resume) = store.decide(decision).await.unwrap();
    assert_eq!(resume, None, "no task waits for it");
    answer
}

async fn a_decision_counts_with_its_audit_entry(ground: Ground) {
    let Ground { store, .. } = &ground;
    for choice in [Choice::Approve, Choice::Reject, Choice::Withdraw] {
        let question = ask(store, question("Pay?")).await;
        let decision = Decision {
            reason: Some("grüße 日本\n\u{0}".into()),
            ..decision(&question, "an 'odd' name", choice)
        };
        let before = store.clock().await.unwrap();
        assert_eq!(decide(store, &decision).await, Answer::Applied);
        let after = store.clock().await.unwrap();
        let asked = read(store, &question).await;
        assert_eq!(asked.standing, Standing::Decided(choice));
        assert_eq!(asked.decision.as_ref(), Some(&decision));
        assert!((before..=after).contains(&asked.at));
        let fields = store.audit_entries(1).await.unwrap().remove(0).fields;
        let wanted = [
            ("what", choice.as_str()),
            ("approval", question.id.as_str()),
            ("by", "an 'odd' name"),
            ("digest", question.digest().as_str()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert!(wanted.iter().all(|field| fields.contains(field)), "{fields:?}");
    }
}

/// Fifty people decide at the same time: returns whose decision counted.
async fn race_for(stores: Vec<Arc<dyn Store>>, question: &Question) -> String {
    let answers = race(50, |n| {
        let (store, question) = (stores[n % stores.len()].clone(), question.clone());
        async move {
            let choice = [Choice::Approve, Choice::Reject][n % 2];
            let decision = decision(&question, &format!("person {n}"), choice);
            (decide(&store, &decision).await, decision)
        }
    });
    let (won, lost): (Vec<_>, Vec<_>) =
        answers.await.into_iter().partition(|(answer, _)| *answer == Answer::Applied);
    let [(_, winner)] = &won[..] else { panic!("{} decisions count", won.len()) };
    let asked = read(&stores[0], question).await;
    assert_eq!(asked.decision.as_ref(), Some(winner));
    let told =
        Answer::AlreadyDecided { by: winner.by.clone(), at: asked.at, choice: winner.choice };
    assert!(lost.iter().all(|(answer, _)| *answer == told), "{lost:?}");
    winner.by.clone()
}

async fn one_of_many_deciders_counts_and_the_others_are_told_who(ground: Ground) {
    let question = ask(&ground.store, question("Pay?")).await;
    race_for(vec![ground.store.clone()], &question).await;
    assert_eq!(ground.store.audit_entries(100).await.unwrap().len(), 1, "one was taken");
}

async fn deciders_of_two_processes_agree(ground: Ground) {
    let other = ground.open().await.store;
    for _ in 0..5 {
        let question = ask(&ground.store, question("Pay?")).await;
        race_for(vec![ground.store.clone(), other.clone()], &question).await;
    }
}

async fn the_same_decision_counts_once(ground: Ground) {
    let Ground { store, .. } = &ground;
    let question = ask(store, Question { quorum: 2, ..question("Pay?") }).await;
    let [first, second] = [approve(&question, "ana"), approve(&question, "bob")];
    assert_eq!(decide(store, &first).await, Answer::Counted { votes: 1, quorum: 2 });
    assert_eq!(decide(store, &first).await, Answer::Replayed);
    assert_eq!(decide(store, &second).await, Answer::Applied);
    for decision in [&first, &second, &first] {
        assert_eq!(decide(store, decision).await, Answer::Replayed);
    }
    assert_eq!(store.audit_entries(100).await.unwrap().len(), 2);
}

async fn a_question_that_nobody_asks_is_unknown(ground: Ground) {
    let Ground { store, .. } = &ground;
    assert_eq!(decide(store, &approve(&question("Pay?"), "ana")).await, Answer::Unknown);
    assert_eq!(store.audit_entries(100).await.unwrap(), []);
}

async fn what_has_changed_since_is_not_decided(ground: Ground) {
    let Ground { store, .. } = &ground;
    let question = ask(store, question("Pay?")).await;
    for digest in [Digest::from("0".repeat(64)), Digest::from(String::new())] {
        let decision = Decision { digest, ..approve(&question, "ana") };
        assert_eq!(decide(store, &decision).await, Answer::DigestMismatch);
    }
    assert_eq!(decide(store, &approve(&question, "ana")).await, Answer::Applied);
    assert_eq!(store.audit_entries(100).await.unwrap().len(), 1);
}

async fn only_who_is_named_may_decide(ground: Ground) {
    let Ground { store, .. } = &ground;
    let approvers = vec!["ana".to_owned(), "bob the 2nd".to_owned()];
    for choice in [Choice::Approve, Choice::Reject, Choice::Withdraw] {
        for (by, answer) in [
            ("eve", Answer::NotAllowed),
            ("an", Answer::NotAllowed),
            ("bob", Answer::NotAllowed),
            ("Ana", Answer::NotAllowed),
            ("", Answer::NotAllowed),
            ("ana", Answer::Applied),
            ("bob the 2nd", Answer::Applied),
        ] {
            let question = Question { approvers: approvers.clone(), ..question("Pay?") };
            let question = ask(store, question).await;
            let told = decide(store, &decision(&question, by, choice)).await;
            assert_eq!(told, answer, "{choice:?} by {by:?}");
        }
    }
}

async fn who_asks_does_not_approve(ground: Ground) {
    let Ground { store, .. } = &ground;
    let requester = Some("rita".to_owned());
    for (self_approval, named, choice, answer) in [
        (false, true, Choice::Approve, Answer::NotAllowed),
        (false, true, Choice::Reject, Answer::Applied),
        (false, true, Choice::Withdraw, Answer::Applied),
        (true, true, Choice::Approve, Answer::Applied),
        (true, false, Choice::Approve, Answer::NotAllowed),
        // Who asks may take the question back, whoever decides it.
        (false, false, Choice::Withdraw, Answer::Applied),
        (false, false, Choice::Reject, Answer::NotAllowed),
    ] {
        let approvers = if named { Vec::new() } else { vec!["ana".to_owned()] };
        let requester = requester.clone();
        let asked = Question { requester, self_approval, approvers, ..question("Pay?") };
        let asked = ask(store, asked).await;
        let told = decide(store, &decision(&asked, "rita", choice)).await;
        assert_eq!(told, answer, "{choice:?}, {self_approval}, {named}");
    }
}

async fn only_what_is_editable_is_edited(ground: Ground) {
    let Ground { store, .. } = &ground;
    let edited = Some(json!({"to": "another", "cents": [1, 2.5, null]}));
    for (editable, quorum, answer) in [
        (true, 1, Answer::Applied),
        (false, 1, Answer::NotAllowed),
        // People who approve must approve the same.
        (true, 2, Answer::NotAllowed),
    ] {
        let question = ask(store, Question { editable, quorum, ..question("Pay?") }).await;
        let decision = Decision { edited: edited.clone(), ..approve(&question, "ana") };
        assert_eq!(decide(store, &decision).await, answer, "{editable}, {quorum}");
        let found = read(store, &question).await.decision.and_then(|decision| decision.edited);
        assert_eq!(found, edited.clone().filter(|_| answer == Answer::Applied));
    }
}

async fn a_quorum_counts_people(ground: Ground) {
    let Ground { store, .. } = &ground;
    let question = ask(store, Question { quorum: 3, ..question("Pay?") }).await;
    for (by, votes) in [("ana", 1), ("ana", 1), ("bob", 2), ("ana", 2)] {
        let told = decide(store, &approve(&question, by)).await;
        assert_eq!(told, Answer::Counted { votes, quorum: 3 }, "{by}");
        let asked = read(store, &question).await;
        assert_eq!((asked.votes, asked.decision), (votes, None));
        assert!(matches!(asked.standing, Standing::Open(_)));
    }
    let last = approve(&question, "eve");
    assert_eq!(decide(store, &last).await, Answer::Applied);
    let asked = read(store, &question).await;
    assert_eq!((asked.votes, asked.decision), (3, Some(last)));
    let late = decide(store, &approve(&question, "dan")).await;
    assert!(matches!(&late, Answer::AlreadyDecided { by, .. } if by == "eve"), "{late:?}");
}

async fn a_policy_is_no_person_of_a_quorum_unless_it_says_so(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asked = ask(store, Question { quorum: 2, ..question("Pay?") }).await;
    let policy = |name: &str, in_quorum| Decision {
        in_quorum,
        ..approve(&asked, &format!("policy:{name}"))
    };
    assert_eq!(decide(store, &policy("small", false)).await, Answer::NotAllowed);
    let counted = |votes| Answer::Counted { votes, quorum: 2 };
    assert_eq!(decide(store, &policy("small", true)).await, counted(1));
    assert_eq!(decide(store, &policy("renamed", true)).await, counted(1));
    assert_eq!(decide(store, &policy("small", true)).await, counted(1));
    assert_eq!(read(store, &asked).await.votes, 1);
    assert_eq!(decide(store, &approve(&asked, "ana")).await, Answer::Applied);
    // One rejection is enough, and one approval where one is asked for.
    for (quorum, choice) in [(2, Choice::Reject), (1, Choice::Approve)] {
        let asked = ask(store, Question { quorum, ..question("Pay?") }).await;
        let told = decide(store, &decision(&asked, "policy:small", choice)).await;
        assert_eq!(told, Answer::Applied, "{choice:?} of {quorum}");
    }
}

async fn one_rejection_is_enough(ground: Ground) {
    let Ground { store, .. } = &ground;
    let question = ask(store, Question { quorum: 2, ..question("Pay?") }).await;
    decide(store, &approve(&question, "ana")).await;
    assert_eq!(decide(store, &decision(&question, "bob", Choice::Reject)).await, Answer::Applied);
    let told = decide(store, &approve(&question, "eve")).await;
    let (by, choice) = ("bob".to_owned(), Choice::Reject);
    let at = read(store, &question).await.at;
    assert_eq!(told, Answer::AlreadyDecided { by, at, choice });
}

async fn a_withdrawn_question_is_not_decided(ground: Ground) {
    let Ground { store, .. } = &ground;
    let question = ask(store, question("Pay?")).await;
    let withdrawal = decision(&question, "rita", Choice::Withdraw);
    assert_eq!(decide(store, &withdrawal).await, Answer::Applied);
    assert_eq!(decide(store, &withdrawal).await, Answer::Replayed);
    for choice in [Choice::Approve, Choice::Reject, Choice::Withdraw] {
        assert_eq!(decide(store, &decision(&question, "ana", choice)).await, Answer::Withdrawn);
    }
}
