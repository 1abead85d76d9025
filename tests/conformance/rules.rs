//! The rules of parks and votes as pure functions, and a store beside them, step by step.

use std::sync::Arc;

use countersign::TaskId;
use countersign::approval::{Answer, Choice, Decision, Question, Standing};
use countersign::backend::{Forget, Parked, Store, Taken};
use countersign::lifecycle::park::{self, Due, Park, Take};
use countersign::lifecycle::vote::{self, Ballot, Terms, Vote};
use countersign::protocol::{TaskDigest, Ticket, TicketKind};
use serde_json::json;

use crate::ground::{Ground, HOUR, race};
use crate::parks::Asker;
use crate::verdicts::decision;

const TASKS: usize = 100;
const STEPS: usize = 25;
const LEASE: i64 = 3_600_000;
const HOLDERS: [&str; 2] = ["a", "b"];
/// Tasks that have the same id.
const NAMES: [&str; 2] = ["one", "two"];
const PEOPLE: [&str; 5] = ["ana", "bob", "rita", "policy:a", "policy:b"];

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

/// What the pure functions know of one task and its two questions. Its clock stands still.
struct Model {
    park: Option<Park>,
    asked: Vec<usize>,
    terms: [Option<Terms>; 2],
    ballots: [Ballot; 2],
    /// The number of requests that were made. Each has its own nonce.
    requests: u32,
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
        let (awaits, ballot, digest) =
            (self.asked.contains(&n), &self.ballots[n], question.digest());
        let stays = |terms| vote::stays(terms, ballot, &digest, awaits, 0);
        if !self.terms[n].as_ref().is_some_and(stays) {
            self.requests += 1;
            self.terms[n] = Some(Terms {
                digest,
                nonce: Some(self.requests.to_string()),
                asked_at: 0,
                deadline: LEASE,
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

    fn end(&mut self, digest: Option<&TaskDigest>) {
        if !park::end(&mut self.park, digest) {
            return;
        }
        for n in std::mem::take(&mut self.asked) {
            let is_open = self.due(&[n]) != Due::Now;
            if let Some(terms) = self.terms[n].as_mut().filter(|_| is_open) {
                terms.withdrawn = true;
            }
        }
    }
}

/// One task under both.
struct Pair {
    store: Arc<dyn Store>,
    asker: Asker,
    questions: [Question; 2],
    model: Model,
}

impl Pair {
    fn new(store: Arc<dyn Store>, quorum: u32) -> Self {
        let asker = Asker::new();
        let question = |name, quorum| Question {
            editable: true,
            requester: Some("rita".into()),
            quorum,
            ..asker.question(name)
        };
        let questions = [question("first", quorum), question("second", 1)];
        let ballots = [Ballot::default(), Ballot::default()];
        let (park, asked, terms) = (None, Vec::new(), [None, None]);
        let model = Model { park, asked, terms, ballots, requests: 0 };
        Self { store, asker, questions, model }
    }

    fn id(&self) -> &TaskId {
        self.asker.id()
    }

    async fn take(&mut self, ticket: Ticket, digest: Option<&TaskDigest>, holder: &str) {
        let waits = self.model.park.as_ref().map_or_else(Vec::new, |park| {
            (0..2).filter(|n| park.waits.contains(&self.questions[*n].id)).collect()
        });
        let due = self.model.due(&waits);
        let expected = park::take(&mut self.model.park, ticket, digest, due, holder, 0, LEASE);
        let found = self.store.take_parked(self.id(), ticket, digest, holder, HOUR).await.unwrap();
        agree(&format!("{ticket:?} of {digest:?} by {holder}"), expected, &found);
    }

    async fn begin(&mut self, digest: &TaskDigest, anew: bool, holder: &str) {
        let expected = park::begin(&mut self.model.park, digest, anew, holder, 0, LEASE);
        let found = self.store.begin_park(self.id(), digest, anew, holder, HOUR).await.unwrap();
        agree(&format!("a park of {digest} begun by {holder}"), expected, &found);
    }

    async fn forget(&mut self) {
        let is_ended = park::forget(&mut self.model.park);
        let found = self.store.forget(self.id()).await.unwrap();
        assert_eq!(found == Forget::Forgotten, is_ended);
    }

    async fn park(&mut self, number: u64, digest: TaskDigest, waits: &[usize], holder: &str) {
        let before = (self.model.terms.clone(), self.model.asked.clone());
        for n in waits {
            let question = self.questions[*n].clone();
            self.model.ask(*n, &question);
        }
        let due = self.model.due(waits);
        let ids = waits.iter().map(|n| self.questions[*n].id.clone()).collect();
        let next = Park::waiting(number, digest.clone(), ids);
        let expected = park::park(&mut self.model.park, next, due, holder, 0, LEASE);
        if expected == park::Parked::Behind {
            (self.model.terms, self.model.asked) = before;
        }
        let mut parking = self.asker.parking(number, &[]);
        parking.holder = holder.into();
        parking.digest = digest;
        parking.questions = waits.iter().map(|n| self.questions[*n].clone()).collect();
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
            nonce: None,
            in_quorum: decision.in_quorum,
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

    async fn release(&mut self, holder: &str) {
        park::release(&mut self.model.park, holder);
        self.store.release_claim(self.id(), holder).await.unwrap();
    }

    async fn renew(&mut self, holder: &str) {
        let expected = park::renew(&mut self.model.park, holder, 0, LEASE);
        assert_eq!(self.store.renew_claim(self.id(), holder, HOUR).await.unwrap(), expected);
    }

    async fn end(&mut self, digest: Option<&TaskDigest>) {
        self.model.end(digest);
        self.store.end_parked(self.id(), digest).await.unwrap();
    }

    async fn step(&mut self, draw: &mut Draw) {
        let (holder, which) = (draw.of(&HOLDERS), draw.below(2));
        // Mostly the same task.
        let task = TaskDigest::from(NAMES[draw.below(5) / 4].to_owned());
        match draw.below(16) {
            0..=3 => {
                let kinds = [TicketKind::Original, TicketKind::Resume, TicketKind::Wake];
                let kind = draw.of(&kinds);
                let number = draw.of(&[0, 1, 2, 3, 4, 1 << 40]);
                let known = Some(&task).filter(|_| kind != TicketKind::Resume && draw.below(4) > 0);
                self.take(Ticket { kind, number }, known, holder).await;
            }
            4..=6 => {
                let waits = draw.of(&[[0].as_slice(), &[1], &[0, 1], &[]]);
                self.park(1 + draw.below(4) as u64, task, waits, holder).await;
            }
            7 => self.release(holder).await,
            8 => self.renew(holder).await,
            9 | 14 => self.begin(&task, draw.below(2) == 0, holder).await,
            10 if draw.below(3) == 0 => self.end(Some(&task).filter(|_| draw.below(4) > 0)).await,
            15 if draw.below(3) == 0 => self.forget().await,
            _ => {
                let choices = [Choice::Approve, Choice::Approve, Choice::Reject, Choice::Withdraw];
                let mut decision =
                    decision(&self.questions[which], draw.of(&PEOPLE), draw.of(&choices));
                decision.id = format!("decision-{}", draw.below(4));
                decision.in_quorum = draw.below(2) == 0;
                decision.edited = (draw.below(4) == 0).then(|| json!({"to": "x"}));
                if draw.below(6) == 0 {
                    decision.digest = "0".repeat(64).into();
                }
                self.decide(which, &decision).await;
            }
        }
    }
}

fn agree(what: &str, expected: Take, found: &Taken) {
    let agree = match (&expected, found) {
        (Take::Unclaimed, Taken::Unclaimed)
        | (Take::Ack, Taken::Over(_))
        | (Take::Postpone(_), Taken::Postpone(_))
        | (Take::StateLost, Taken::StateLost)
        | (Take::Ended, Taken::Ended(_))
        | (Take::Occupied, Taken::Occupied(_)) => true,
        (Take::Claimed(wanted), Taken::Claimed { number, .. }) => wanted == number,
        _ => false,
    };
    assert!(agree, "{what}: {expected:?}, but {found:?}");
}

pub(crate) async fn the_store_answers_as_the_pure_functions_do(ground: Ground) {
    race(TASKS, |n| {
        let mut pair = Pair::new(ground.store.clone(), 1 + u32::from(n % 2 == 1));
        async move {
            let mut draw = Draw(0x9e37_79b9_7f4a_7c15 ^ ((n as u64) << 17));
            for _ in 0..STEPS {
                pair.step(&mut draw).await;
            }
        }
    })
    .await;
}
