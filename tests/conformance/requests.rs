//! Which request a decision counts for, and for how long.

use std::sync::Mutex;

use countersign::approval::{Answer, Choice, Question, Ruling, Standing};
use countersign::backend::{Parked, Parking, Taken};

use crate::approvals::{ask, question, read};
use crate::ground::{Ground, HOUR, eventually, race};
use crate::parks::{Asker, RESUME, is_claimed, parked, reopen};
use crate::promise::{Promise, promise};
use crate::verdicts::approve;

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(a_decision_counts_for_one_run_of_a_task_to_its_end),
        promise(a_vote_on_an_earlier_request_counts_for_no_later_one),
        promise(a_task_whose_request_is_overdue_is_resumed_by_one_sweep),
        promise(a_withdrawn_request_resumes_its_task),
        promise(a_services_request_leaves_the_index_when_it_has_expired),
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

/// Its wake message may be gone. What is overdue is told to one of those who sweep.
async fn a_task_whose_request_is_overdue_is_resumed_by_one_sweep(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = Asker::new();
    let mut parking = asker.parking(1, &["pay", "later"]);
    parking.questions[0].expires_in = 200;
    assert!(matches!(store.park(parking).await.unwrap(), Parked::Waiting(..)));
    let swept = Mutex::new(Vec::new());
    let is_swept = async || {
        let sweeps = race(10, |_| {
            let store = store.clone();
            async move { store.overdue_resumes().await.unwrap() }
        });
        let found: Vec<_> = sweeps.await.into_iter().flatten().collect();
        swept.lock().unwrap().extend(found);
        !swept.lock().unwrap().is_empty()
    };
    eventually("it is overdue", is_swept).await;
    let swept = swept.into_inner().unwrap();
    let [resume] = &swept[..] else { panic!("{swept:?}") };
    assert_eq!((&resume.task, resume.number, &*resume.queue), (asker.id(), 1, "q"));
    let open: Vec<_> = store.pending(0, 10).await.unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(open, [asker.question("later").id]);
    let taken = asker.take(&ground, RESUME, 1, "b").await;
    let Taken::Claimed { rulings, .. } = taken else { panic!("{taken:?}") };
    assert!(matches!(rulings[..], [Ruling { standing: Standing::Expired(_), .. }]), "{rulings:?}");
    // Nobody is known to have sent it: another sweep does, after a while.
    let again = async || store.overdue_resumes().await.unwrap() == [resume.clone()];
    eventually("it is swept again", again).await;
    store.resume_sent(resume).await.unwrap();
}

async fn a_withdrawn_request_resumes_its_task(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = parked(&ground).await;
    let withdrawal = read(store, &asker.question("pay")).await.withdraw("ana");
    let (answer, resume) = store.decide(&withdrawal).await.unwrap();
    assert_eq!(answer, Answer::Applied);
    let resume = resume.expect("its task goes on");
    assert_eq!((&resume.task, resume.number), (asker.id(), 1));
    let taken = asker.take(&ground, RESUME, 1, "b").await;
    let Taken::Claimed { rulings, .. } = taken else { panic!("{taken:?}") };
    assert_eq!(rulings[0].standing, Standing::Decided(Choice::Withdraw));
}

/// Whether or not others are asked after it. It can be looked at for a while.
async fn a_services_request_leaves_the_index_when_it_has_expired(ground: Ground) {
    let Ground { store, .. } = &ground;
    let short = |title| Question { expires_in: 50, ..question(title) };
    let expired = ask(store, short("E?")).await;
    let open = ask(store, question("O?")).await;
    let listed = async || {
        let listed = store.pending(0, 10).await.unwrap().into_iter().map(|(id, _)| id);
        listed.collect::<Vec<_>>()
    };
    let is_swept = async || {
        assert_eq!(store.overdue_resumes().await.unwrap(), [], "no task waits for it");
        listed().await == [open.id.clone()]
    };
    eventually("a sweep takes it from the list", is_swept).await;
    assert!(matches!(read(store, &expired).await.standing, Standing::Expired(_)));
    ask(store, short("E?")).await;
    let is_tidied = async || {
        ask(store, question("Another?")).await;
        let titles = async |id| {
            let asked = store.asked(&[id]).await.unwrap().remove(0).readable().unwrap().unwrap();
            asked.question.title
        };
        let mut left = Vec::new();
        for id in listed().await {
            left.push(titles(id).await);
        }
        !left.contains(&"E?".to_owned())
    };
    eventually("the next one that asks takes it from the list", is_tidied).await;
}
