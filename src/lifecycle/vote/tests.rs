use proptest::prelude::*;

use super::*;

fn digest(text: &str) -> Digest {
    Digest::from(text.to_owned())
}

fn terms() -> Terms {
    Terms {
        digest: digest("d"),
        nonce: None,
        asked_at: 0,
        deadline: 100,
        quorum: 1,
        requester: Some("rita".into()),
        self_approval: false,
        approvers: Vec::new(),
        editable: true,
        withdrawn: false,
    }
}

fn vote<'a>(by: &'a str, choice: Choice, digest: &'a Digest) -> Vote<'a> {
    Vote { decision: by, choice, by, digest, nonce: None, in_quorum: false, edited: false }
}

/// Somebody who may gives more time.
fn extend(terms: Option<&Terms>, ballot: &mut Ballot, until: i64, now: i64) -> Answer {
    super::extend(terms, ballot, Extension { by: "ana", is_operator: false, until }, now)
}

#[test]
fn approvers_and_operators_give_more_time_and_never_less() {
    let named = Terms { approvers: vec!["ana".into(), "rita".into()], ..terms() };
    let anybody = terms();
    let selfish = Terms { self_approval: true, ..terms() };
    let earlier = Answer::Earlier { deadline: 100 };
    for (terms, by, is_operator, until, answer) in [
        (&named, "ana", false, 300, Answer::Applied),
        (&named, "eve", false, 300, Answer::NotAllowed),
        (&named, "eve", true, 300, Answer::Applied),
        (&named, "rita", false, 300, Answer::NotAllowed),
        (&named, "rita", true, 300, Answer::Applied),
        (&anybody, "eve", false, 300, Answer::Applied),
        (&anybody, "rita", false, 300, Answer::NotAllowed),
        (&selfish, "rita", false, 300, Answer::Applied),
        (&named, "ana", false, 100, Answer::Applied),
        (&named, "ana", false, 99, earlier.clone()),
        (&named, "eve", true, 50, earlier),
        (&named, "eve", false, 50, Answer::NotAllowed),
    ] {
        let (mut ballot, extension) = (Ballot::default(), Extension { by, is_operator, until });
        let told = super::extend(Some(terms), &mut ballot, extension, 50);
        assert_eq!(told, answer, "{by}, {is_operator}, {until}");
        let deadline = if answer == Answer::Applied { until } else { 100 };
        assert_eq!(standing(terms, &ballot, 50), Standing::Open(deadline));
    }
}

#[test]
fn the_first_decision_wins_and_the_loser_is_told_the_winner() {
    let (terms, seen, mut ballot) = (terms(), digest("d"), Ballot::default());
    let ana = vote("ana", Choice::Approve, &seen);
    assert_eq!(decide(Some(&terms), &mut ballot, &ana, 5), Answer::Applied);
    let bob = vote("bob", Choice::Reject, &seen);
    let told = Answer::AlreadyDecided { by: "ana".into(), at: 5, choice: Choice::Approve };
    assert_eq!(decide(Some(&terms), &mut ballot, &bob, 6), told);
    assert_eq!(decide(Some(&terms), &mut ballot, &ana, 500), Answer::Replayed);
    assert_eq!(standing(&terms, &ballot, 500), Standing::Decided(Choice::Approve));
}

#[test]
fn after_the_deadline_everything_is_refused() {
    let (terms, seen, mut ballot) = (terms(), digest("d"), Ballot::default());
    let late = vote("ana", Choice::Approve, &seen);
    assert_eq!(decide(Some(&terms), &mut ballot, &late, 101), Answer::Expired { at: 100 });
    assert_eq!(extend(Some(&terms), &mut ballot, 300, 101), Answer::Expired { at: 100 });
    assert_eq!(extend(Some(&terms), &mut ballot, 300, 100), Answer::Applied);
    assert_eq!(decide(Some(&terms), &mut ballot, &late, 300), Answer::Applied);
}

#[test]
fn more_time_is_for_the_question_that_was_open_then() {
    let (terms, mut ballot) = (terms(), Ballot::default());
    assert_eq!(extend(Some(&terms), &mut ballot, 300, 100), Answer::Applied);
    assert_eq!(standing(&terms, &ballot, 301), Standing::Expired(300));
    let anew = Terms { asked_at: 400, deadline: 500, ..terms };
    assert_eq!(standing(&anew, &ballot, 400), Standing::Open(500));
}

#[test]
fn a_quorum_counts_people_and_one_rejection_is_enough() {
    let (seen, mut ballot) = (digest("d"), Ballot::default());
    let terms = Terms { quorum: 3, ..terms() };
    let counted = |votes| Answer::Counted { votes, quorum: 3 };
    let ana = vote("ana", Choice::Approve, &seen);
    assert_eq!(decide(Some(&terms), &mut ballot, &ana, 1), counted(1));
    let again = Vote { decision: "other", ..ana.clone() };
    assert_eq!(decide(Some(&terms), &mut ballot, &again, 1), counted(1));
    assert_eq!(
        decide(Some(&terms), &mut ballot, &vote("bob", Choice::Approve, &seen), 1),
        counted(2)
    );
    let mut rejected = ballot.clone();
    let no = vote("ana", Choice::Reject, &seen);
    assert_eq!(
        decide(Some(&terms), &mut rejected, &Vote { decision: "no", ..no }, 1),
        Answer::Applied
    );
    assert_eq!(
        decide(Some(&terms), &mut ballot, &vote("eve", Choice::Approve, &seen), 1),
        Answer::Applied
    );
}

#[test]
fn who_asks_does_not_approve_and_who_is_not_named_does_nothing() {
    let (seen, own) = (digest("d"), terms());
    let rita = vote("rita", Choice::Approve, &seen);
    assert_eq!(decide(Some(&own), &mut Ballot::default(), &rita, 1), Answer::NotAllowed);
    let allowed = Terms { self_approval: true, ..own.clone() };
    assert_eq!(decide(Some(&allowed), &mut Ballot::default(), &rita, 1), Answer::Applied);
    let named = Terms { approvers: vec!["ana".into()], ..own.clone() };
    for choice in [Choice::Approve, Choice::Reject, Choice::Withdraw] {
        let eve = vote("eve", choice, &seen);
        assert_eq!(decide(Some(&named), &mut Ballot::default(), &eve, 1), Answer::NotAllowed);
    }
    let back = vote("rita", Choice::Withdraw, &seen);
    let mut ballot = Ballot::default();
    assert_eq!(decide(Some(&named), &mut ballot, &back, 1), Answer::Applied);
    assert_eq!(
        decide(Some(&named), &mut ballot, &vote("ana", Choice::Approve, &seen), 1),
        Answer::Withdrawn
    );
}

#[test]
fn a_changed_question_is_asked_anew() {
    let (terms, seen, mut ballot) = (terms(), digest("d"), Ballot::default());
    let ana = vote("ana", Choice::Approve, &seen);
    assert_eq!(decide(Some(&terms), &mut ballot, &ana, 1), Answer::Applied);
    let changed = Terms { digest: digest("e"), ..terms };
    assert_eq!(standing(&changed, &ballot, 1), Standing::Open(100));
    let bob = vote("bob", Choice::Approve, &seen);
    assert_eq!(decide(Some(&changed), &mut ballot, &bob, 1), Answer::DigestMismatch);
}

#[test]
fn a_question_stands_so_since_its_decision_or_its_deadline() {
    let (terms, seen, mut ballot) = (terms(), digest("d"), Ballot::default());
    assert_eq!(since(&terms, &ballot, 7), 100);
    assert_eq!(since(&terms, &ballot, 700), 100);
    assert_eq!(extend(Some(&terms), &mut ballot, 300, 7), Answer::Applied);
    assert_eq!(since(&terms, &ballot, 7), 300);
    let withdrawn = Terms { withdrawn: true, ..terms.clone() };
    assert_eq!(since(&withdrawn, &ballot, 7), 7);
    let ana = vote("ana", Choice::Approve, &seen);
    assert_eq!(decide(Some(&terms), &mut ballot, &ana, 200), Answer::Applied);
    assert_eq!(since(&terms, &ballot, 700), 200);
    let changed = Terms { digest: digest("e"), ..terms };
    assert_eq!((since(&changed, &ballot, 700), decided(&changed, &ballot)), (100, None));
}

#[test]
fn a_question_that_is_asked_again_stays_as_it_is_while_it_is_asked() {
    let (terms, seen, ballot) = (terms(), digest("d"), Ballot::default());
    let of = |choice| {
        let mut ballot = Ballot::default();
        assert_eq!(
            decide(Some(&terms), &mut ballot, &vote("ana", choice, &seen), 1),
            Answer::Applied
        );
        ballot
    };
    for choice in [Choice::Approve, Choice::Reject, Choice::Withdraw] {
        assert!(stays(&terms, &of(choice), &seen, true, 900), "{choice:?}");
        assert!(!stays(&terms, &of(choice), &seen, false, 5), "of a run that has ended");
        assert!(!stays(&terms, &of(choice), &digest("e"), true, 1), "another one");
    }
    let withdrawn = Terms { withdrawn: true, ..terms.clone() };
    for awaits in [false, true] {
        assert_eq!(stays(&terms, &ballot, &seen, awaits, 100), awaits);
        assert!(!stays(&withdrawn, &ballot, &seen, awaits, 1));
        assert_eq!(stays(&terms, &ballot, &seen, awaits, 101), awaits, "it has expired");
    }
}

#[test]
fn what_was_said_to_one_request_counts_for_no_other() {
    let (seen, mut ballot) = (digest("d"), Ballot::default());
    let first = Terms { nonce: Some("first".into()), quorum: 2, ..terms() };
    let second = Terms { nonce: Some("second".into()), ..first.clone() };
    let ana = Vote { nonce: Some("first"), ..vote("ana", Choice::Approve, &seen) };
    let counted = Answer::Counted { votes: 1, quorum: 2 };
    assert_eq!(decide(Some(&first), &mut ballot, &ana, 1), counted);
    assert_eq!(extend(Some(&first), &mut ballot, 900, 1), Answer::Applied);
    assert_eq!(standing(&first, &ballot, 500), Standing::Open(900));
    assert_eq!(standing(&second, &ballot, 500), Standing::Expired(100));
    assert_eq!(decide(Some(&second), &mut ballot.clone(), &ana, 1), Answer::DigestMismatch);
    // It does not say which request it is about.
    let late = Vote { nonce: None, ..ana };
    assert_eq!(decide(Some(&second), &mut ballot, &late, 1), counted, "the first vote");
    let bob = Vote { nonce: Some("second"), ..vote("bob", Choice::Approve, &seen) };
    assert_eq!(decide(Some(&second), &mut ballot, &bob, 2), Answer::Applied);
    assert_eq!(decided(&first, &ballot), None);
}

#[test]
fn what_version_0_1_wrote_counts_for_a_request_that_was_made_before() {
    let seen = digest("d");
    let mut voted = Ballot::default();
    let two = Terms { quorum: 2, ..terms() };
    let ana = vote("ana", Choice::Approve, &seen);
    assert_eq!(decide(Some(&two), &mut voted, &ana, 50), Answer::Counted { votes: 1, quorum: 2 });
    assert!(voted.of(&two).is_some(), "a request without a nonce");
    let new =
        |asked_at| Terms { nonce: Some("new".into()), asked_at, deadline: 100, ..two.clone() };
    assert!(voted.of(&new(10)).is_none(), "nothing says when the vote was given");
    let mut decided = voted;
    assert_eq!(
        decide(Some(&two), &mut decided, &vote("bob", Choice::Approve, &seen), 60),
        Answer::Applied
    );
    assert!(decided.of(&new(60)).is_some());
    assert!(decided.of(&new(61)).is_none(), "decided before it was asked");
    let of_new = Ballot { nonce: Some("new".into()), ..decided };
    assert!(of_new.of(&two).is_none());
}

proptest! {
    /// Of any sequence of decisions exactly one is told that it was applied, and what it said stays.
    #[test]
    fn one_decision_counts(
        quorum in 1_u32..4,
        votes in prop::collection::vec((0_u8..4, 0_u8..3, 0_u8..2, 0_i64..150), 1..40),
    ) {
        let terms = Terms { quorum, ..terms() };
        let mut ballot = Ballot::default();
        let mut winner = None;
        for (n, (who, choice, seen, now)) in votes.into_iter().enumerate() {
            let by = ["ana", "bob", "eve", "rita"][usize::from(who)];
            let choice = [Choice::Approve, Choice::Reject, Choice::Withdraw][usize::from(choice)];
            let seen = digest(["d", "e"][usize::from(seen)]);
            let id = n.to_string();
            let vote = Vote { decision: &id, ..vote(by, choice, &seen) };
            let answer = decide(Some(&terms), &mut ballot, &vote, now);
            if answer == Answer::Applied {
                prop_assert!(winner.is_none() && now <= terms.deadline && seen == terms.digest);
                winner = Some((by, choice));
            }
            if let Some((by, choice)) = winner {
                let decided = ballot.decided.as_ref().map(|it| (it.by.as_str(), it.choice));
                prop_assert_eq!(decided, Some((by, choice)));
            }
        }
    }
}
