//! Which request a decision counts for, and for how long.

use countersign::approval::{Answer, Question, Standing};
use countersign::backend::{Parked, Parking, Taken};

use crate::approvals::read;
use crate::ground::{Ground, HOUR};
use crate::parks::{Asker, RESUME, is_claimed, reopen};
use crate::promise::{Promise, promise};
use crate::verdicts::approve;

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(a_decision_counts_for_one_run_of_a_task_to_its_end),
        promise(a_vote_on_an_earlier_request_counts_for_no_later_one),
    ]
}

/// The same message is sent again: once the first run has ended, once the note of its end is gone, too.
async fn a_decision_counts_for_one_run_of_a_task_to_its_end(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = Asker::new();
    let question = asker.question("pay");
    let begun = store.begin_park(asker.id(), &asker.digest(), true, "a", HOUR).await.unwrap();
    assert!(is_claimed(&begun, 0), "{begun:?}");
    assert!(matches!(asker.park(&ground, 1, &["pay"]).await, Parked::Waiting(..)));
    let mut number = 1;
    for is_noted in [true, false, true] {
        let seen = read(store, &question).await;
        let decision = seen.approve("ana");
        assert_eq!(store.decide(&decision).await.unwrap().0, Answer::Applied);
        assert!(is_claimed(&asker.take(&ground, RESUME, number, "a").await, number));
        // A rerun is told the same decision.
        let parked = asker.park(&ground, number + 1, &["pay"]).await;
        assert!(matches!(&parked, Parked::Ready(rulings) if rulings.len() == 1), "{parked:?}");
        if is_noted {
            store.end_parked(asker.id(), Some(&asker.digest())).await.unwrap();
        } else {
            reopen(&ground, &asker).await;
        }
        let begun = store.begin_park(asker.id(), &asker.digest(), true, "a", HOUR).await.unwrap();
        let Taken::Claimed { number: last, rulings, .. } = begun else { panic!("{begun:?}") };
        assert_eq!(rulings, [], "nothing is decided for the new run");
        number = last + 1;
        let parked = asker.park(&ground, number, &["pay"]).await;
        assert!(matches!(parked, Parked::Waiting(..)), "{parked:?}");
        let asked = read(store, &question).await;
        assert!(matches!(asked.standing, Standing::Open(_)), "{:?}", asked.standing);
        assert_eq!((asked.decision, asked.votes), (None, 0));
        assert_ne!(asked.nonce, seen.nonce, "it is another request");
        // The old decision, sent again, is about the request before.
        let (answer, resume) = store.decide(&decision).await.unwrap();
        assert_eq!((answer, resume), (Answer::DigestMismatch, None));
    }
}

/// A task fails with one of two votes, and is sent again.
async fn a_vote_on_an_earlier_request_counts_for_no_later_one(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = Asker::new();
    let question = Question { quorum: 2, ..asker.question("pay") };
    let park = async || {
        let questions = vec![question.clone()];
        let parked = store.park(Parking { questions, ..asker.parking(1, &[]) }).await.unwrap();
        assert!(matches!(parked, Parked::Waiting(..)), "{parked:?}");
    };
    park().await;
    let vote = read(store, &question).await.approve("ana");
    let counted = Answer::Counted { votes: 1, quorum: 2 };
    assert_eq!(store.decide(&vote).await.unwrap().0, counted);
    reopen(&ground, &asker).await;
    park().await;
    assert_eq!(read(store, &question).await.votes, 0);
    assert_eq!(store.decide(&vote).await.unwrap().0, Answer::DigestMismatch, "of the one before");
    assert_eq!(store.decide(&approve(&question, "bob")).await.unwrap().0, counted);
    assert_eq!(store.decide(&approve(&question, "ana")).await.unwrap().0, Answer::Applied);
}
