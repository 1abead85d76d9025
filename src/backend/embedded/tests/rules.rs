//! Whatever happens in whatever order: the store answers as the pure functions do on records that
//! were never written down.

use std::array::from_fn;

use serde_json::json;
use tokio::time::advance;

use super::*;
use crate::approval::{Answer, Choice, Decision, Ruling, Standing};
use crate::backend::{Forget, Parked, Store, Taken};
use crate::lifecycle::park::{self, Due, Park, Take};
use crate::lifecycle::vote::{self, Ballot, Extension, Terms, Vote};
use crate::lifecycle::warning;
use crate::protocol::{TaskDigest, Ticket, TicketKind};

const ROUNDS: usize = 200;
const STEPS: usize = 60;
const LEASE: i64 = 3_600_000;
const DAY: i64 = 24 * 3_600_000;
const HOLDERS: [&str; 2] = ["a", "b"];
/// Tasks that have the same id.
const TASKS: [&str; 2] = ["one", "two"];
/// In which the time passes. The last one is longer than anything is kept.
const JUMPS: [Duration; 5] = [
    Duration::from_millis(1),
    Duration::from_secs(15 * 60),
    Duration::from_secs(20 * 60),
    Duration::from_secs(30 * 60 * 60),
    Duration::from_secs(40 * 24 * 60 * 60),
];
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

/// One question, and what was said to it.
#[derive(Clone, Default)]
struct Known {
    terms: Option<Terms>,
    ballot: Ballot,
    warned: Option<u8>,
    /// Until then what was said is kept.
    kept: i64,
    listed: Option<i64>,
    /// When the question is forgotten, and nothing of what was said to it.
    gone: Option<i64>,
}

impl Known {
    fn standing(&self, now: i64) -> Option<Standing> {
        self.terms.as_ref().map(|terms| vote::standing(terms, &self.ballot, now))
    }

    fn is_open(&self, now: i64) -> bool {
        matches!(self.standing(now), Some(Standing::Open(_)))
    }

    /// Something is written down: for as long as the request can be decided, and a month more.
    fn keep(&mut self, now: i64) {
        let deadline = self.terms.as_ref().map(|terms| vote::deadline(terms, &self.ballot));
        self.kept = deadline.unwrap_or(now).max(now) + 30 * DAY;
    }

    fn since(&self, now: i64) -> i64 {
        self.terms.as_ref().map_or(0, |terms| vote::since(terms, &self.ballot, now))
    }
}

/// One task and its two questions.
#[derive(Default)]
struct Model {
    park: Option<Park>,
    alarm: Option<i64>,
    has_message: bool,
    asked: Vec<usize>,
    known: [Known; 2],
    /// The number of requests that were made. Each has its own nonce.
    requests: u32,
    /// When the note of the task's end is forgotten.
    gone: Option<i64>,
}

impl Model {
    fn due(&self, waits: &[usize], now: i64) -> Due {
        Due::of(waits.iter().map(|n| self.known[*n].standing(now)), self.alarm, now)
    }

    fn ask(&mut self, n: usize, question: &Question, now: i64) {
        let awaits = self.asked.contains(&n);
        if !awaits {
            self.asked.push(n);
        }
        let known = &mut self.known[n];
        let (digest, ballot) = (question.digest(), &known.ballot);
        let stays = |terms| vote::stays(terms, ballot, &digest, awaits, now);
        if known.terms.as_ref().is_some_and(stays) {
            return;
        }
        let deadline = now + 3_600_000;
        self.requests += 1;
        known.terms = Some(Terms {
            digest,
            nonce: Some(self.requests.to_string()),
            asked_at: now,
            deadline,
            quorum: question.quorum,
            requester: question.requester.clone(),
            self_approval: false,
            approvers: question.approvers.clone(),
            editable: true,
            withdrawn: false,
        });
        (known.listed, known.gone) = (Some(deadline), None);
    }

    fn withdraw(&mut self, n: usize, now: i64) -> bool {
        let is_open = self.known[n].is_open(now);
        if is_open {
            self.known[n].terms.as_mut().unwrap().withdrawn = true;
            self.known[n].listed = None;
        }
        is_open
    }

    fn end(&mut self, digest: Option<&TaskDigest>, now: i64) -> Vec<usize> {
        if !park::end(&mut self.park, digest) {
            return Vec::new();
        }
        let asked = std::mem::take(&mut self.asked);
        let withdrawn = asked.iter().copied().filter(|n| self.withdraw(*n, now)).collect();
        for n in asked {
            (self.known[n].listed, self.known[n].gone) = (None, Some(now + 7 * DAY));
        }
        (self.has_message, self.gone) = (false, Some(now + park::ENDED_KEPT));
        withdrawn
    }

    fn forget(&mut self, now: i64) {
        if self.gone.is_some_and(|gone| gone <= now) {
            (self.park, self.alarm, self.gone) = (None, None, None);
        }
        for known in &mut self.known {
            if known.kept <= now {
                (known.ballot, known.warned) = (Ballot::default(), None);
            }
            known.terms.take_if(|_| known.gone.is_some_and(|gone| gone <= now));
        }
    }
}

/// One task under both, step by step.
struct Pair {
    store: EmbeddedStore,
    id: TaskId,
    /// Each in two versions.
    questions: [[Question; 2]; 2],
    model: Model,
}

impl Pair {
    fn new(round: usize, draw: &mut Draw) -> Self {
        let id = TaskId::from(format!("task-{round}"));
        let quorum = 1 + u32::try_from(draw.below(2)).unwrap();
        let approvers = if draw.below(3) == 0 { vec!["ana".into(), "bob".into()] } else { vec![] };
        let questions = from_fn(|n| {
            from_fn(|version| {
                let version = u32::try_from(version).unwrap();
                let quorum = if n == 0 { quorum } else { 1 };
                let name = ["first", "second"][n];
                let approvers = approvers.clone();
                Question { approvers, ..question(&id, name, version, quorum) }
            })
        });
        Self { store: in_memory(), id, questions, model: Model::default() }
    }

    fn now(&self) -> i64 {
        self.store.db.shared().clock.now()
    }

    fn ids(&self) -> [ApprovalId; 2] {
        from_fn(|n| self.questions[n][0].id.clone())
    }

    fn rulings(&self, ids: &[usize], now: i64) -> Vec<Told> {
        let ruling = |n: &usize| {
            let known = &self.model.known[*n];
            let standing = known.standing(now).filter(|_| !known.is_open(now))?;
            let decided = vote::decided(known.terms.as_ref()?, &known.ballot);
            let decision = decided.map(|it| it.decision.clone());
            Some((self.ids()[*n].clone(), standing, known.since(now), decision))
        };
        ids.iter().filter_map(ruling).collect()
    }

    /// Whoever has this message wants to run the task; without one, a run that is about to park, which
    /// may start anew.
    async fn take(
        &mut self,
        ticket: Result<Ticket, bool>,
        digest: Option<&TaskDigest>,
        holder: &str,
    ) {
        let (now, ids) = (self.now(), self.ids());
        let before = self.model.park.clone();
        let waits = before.as_ref().map_or_else(Vec::new, |park| {
            (0..2).filter(|n| park.waits.contains(&ids[*n])).collect()
        });
        let due = self.model.due(&waits, now);
        let record = &mut self.model.park;
        let expected = match ticket {
            Ok(ticket) => park::take(record, ticket, digest, due, holder, now, LEASE),
            Err(anew) => park::begin(record, digest.unwrap(), anew, holder, now, LEASE),
        };
        let number = |park: Option<&Park>| park.map(|park| park.number);
        if number(before.as_ref()) != number(self.model.park.as_ref()) {
            self.model.alarm = None;
        }
        let is_ended = |park: Option<&Park>| park.is_some_and(|park| park.ended);
        if is_ended(before.as_ref()) && !is_ended(self.model.park.as_ref()) {
            (self.model.alarm, self.model.gone) = (None, None);
        }
        let found = match ticket {
            Ok(ticket) => self.store.take_parked(&self.id, ticket, digest, holder, HOUR),
            Err(anew) => self.store.begin_park(&self.id, digest.unwrap(), anew, holder, HOUR),
        };
        let found = found.await.unwrap();
        let agree = match (&expected, &found) {
            (Take::Unclaimed, Taken::Unclaimed)
            | (Take::Ack, Taken::Over(_))
            | (Take::StateLost, Taken::StateLost)
            | (Take::Ended, Taken::Ended(_)) => true,
            (Take::Occupied, Taken::Occupied(message)) => {
                message.is_some() == self.model.has_message
            }
            (Take::Postpone(wanted), Taken::Postpone(pause)) => {
                pause.as_millis() == u128::from(wanted.unsigned_abs())
            }
            (Take::Claimed(wanted), Taken::Claimed { number, message, rulings }) => {
                let asked = self.model.asked.clone();
                assert_eq!(said(rulings), self.rulings(&asked, now));
                assert_eq!(message.is_some(), self.model.has_message);
                for n in asked {
                    let known = &mut self.model.known[n];
                    if known.terms.is_some() && !known.is_open(now) {
                        known.listed = None;
                    }
                }
                wanted == number
            }
            _ => false,
        };
        assert!(agree, "{ticket:?} by {holder}: {expected:?}, but {found:?}");
    }

    async fn park(&mut self, parking: Parking, waits: &[(usize, usize)]) {
        let now = self.now();
        let (known, asked) = (self.model.known.clone(), self.model.asked.clone());
        let alarm = self.model.alarm;
        for (n, version) in waits {
            let question = self.questions[*n][*version].clone();
            self.model.ask(*n, &question, now);
        }
        let ids = self.ids();
        for n in (0..2).filter(|n| parking.abandoned.contains(&ids[*n])) {
            self.model.withdraw(n, now);
        }
        self.model.alarm =
            parking.alarm.map(|sleep| now + i64::try_from(sleep.as_millis()).unwrap());
        let waits: Vec<_> = waits.iter().map(|(n, _)| *n).collect();
        let due = self.model.due(&waits, now);
        let awaited = waits.iter().map(|n| ids[*n].clone()).collect();
        let (number, holder) = (parking.number, parking.holder.clone());
        let next = Park::waiting(number, parking.digest.clone(), awaited);
        let expected = park::park(&mut self.model.park, next, due, &holder, now, LEASE);
        if expected == park::Parked::Behind {
            (self.model.known, self.model.asked, self.model.alarm) = (known, asked, alarm);
        } else {
            self.model.has_message = true;
        }
        let found = self.store.park(parking).await.unwrap();
        let agree = match (expected, &found) {
            (park::Parked::Waiting, Parked::Waiting(_, left)) => {
                let wanted = if let Due::In(left) = due { left.unsigned_abs() } else { 0 };
                left.as_millis() == u128::from(wanted)
            }
            (park::Parked::Ready, Parked::Ready(rulings)) => {
                said(rulings) == self.rulings(&waits, now)
            }
            (park::Parked::Behind, Parked::Behind(_)) => true,
            _ => false,
        };
        assert!(agree, "park {number} for {waits:?} by {holder}: {expected:?}, but {found:?}");
    }

    async fn decide(&mut self, n: usize, decision: &Decision) {
        let now = self.now();
        let vote = Vote {
            decision: &decision.id,
            choice: decision.choice,
            by: &decision.by,
            digest: &decision.digest,
            nonce: None,
            in_quorum: decision.in_quorum,
            edited: decision.edited.is_some(),
        };
        let known = &mut self.model.known[n];
        let about = (known.ballot.digest.clone(), known.ballot.nonce.clone());
        let expected = vote::decide(known.terms.as_ref(), &mut known.ballot, &vote, now);
        if (&known.ballot.digest, &known.ballot.nonce) != (&about.0, &about.1) {
            known.warned = None;
        }
        if matches!(expected, Answer::Applied | Answer::Counted { .. }) {
            known.keep(now);
        }
        let (found, resume) = self.store.decide(decision).await.unwrap();
        assert_eq!(expected, found, "{decision:?}");
        let id = &decision.approval;
        let waits = |park: &&Park| park.waits.contains(id);
        let park = self.model.park.as_ref().filter(waits).filter(|_| found == Answer::Applied);
        let resume = resume.map(|resume| (resume.task, resume.number, resume.queue));
        assert_eq!(resume, park.map(|park| (self.id.clone(), park.number, "q".to_owned())));
    }

    async fn extend(&mut self, n: usize, (by, is_operator): (&str, bool), time: Duration) {
        let now = self.now();
        let until = now + i64::try_from(time.as_millis()).unwrap();
        let known = &mut self.model.known[n];
        let mut ballot = known.ballot.clone();
        let extension = Extension { by, is_operator, until };
        let expected = vote::extend(known.terms.as_ref(), &mut ballot, extension, now);
        if expected == Answer::Applied {
            (known.ballot, known.warned) = (ballot, None);
            known.keep(now);
        }
        let found = self.store.extend(&self.ids()[n], by, is_operator, time).await.unwrap();
        assert_eq!(found, expected, "{by}");
    }

    async fn warn(&mut self, n: usize, percent: u8) {
        let now = self.now();
        let known = &mut self.model.known[n];
        let mut expected = false;
        if let (Some(Standing::Open(deadline)), Some(terms)) = (known.standing(now), &known.terms) {
            let warned = known.warned.filter(|_| known.ballot.of(terms).is_some());
            expected = warning::is_new(terms.asked_at, deadline, warned, percent, now);
            if expected && known.ballot.of(terms).is_none() {
                known.ballot = Ballot::empty(terms);
            }
        }
        if expected {
            known.warned = Some(percent);
            known.keep(now);
        }
        assert_eq!(self.store.warn(&self.ids()[n], percent).await.unwrap(), expected);
    }

    /// What everybody sees is the same.
    async fn compare(&self) {
        let (now, ids) = (self.now(), self.ids());
        let asked = read(&self.store, &ids).await;
        for (asked, known) in asked.iter().zip(&self.model.known) {
            let seen = |asked: &Asked| {
                let digest = asked.question.digest();
                let times = (asked.asked_at, asked.at, asked.read_at);
                (digest, asked.standing, times, asked.votes, asked.warned)
            };
            let expected = known.terms.as_ref().map(|terms| {
                let ballot = known.ballot.of(terms);
                let votes = ballot.map_or(0, |ballot| u32::try_from(ballot.votes.len()).unwrap());
                let standing = vote::standing(terms, &known.ballot, now);
                let times = (terms.asked_at, known.since(now), now);
                let warned = known.warned.filter(|_| ballot.is_some());
                (terms.digest.clone(), standing, times, votes, warned)
            });
            assert_eq!(asked.as_ref().map(seen), expected);
            let decided = known.terms.as_ref().and_then(|it| vote::decided(it, &known.ballot));
            let decision = asked.as_ref().and_then(|asked| asked.decision.as_ref());
            assert_eq!(decision.map(|it| &it.id), decided.map(|it| &it.decision));
        }
        let listed = self.model.known.iter().zip(ids);
        let mut listed: Vec<_> = listed.filter_map(|(it, id)| Some((it.listed?, id))).collect();
        listed.sort();
        let listed: Vec<_> = listed.into_iter().map(|(at, id)| (id, at)).collect();
        assert_eq!(self.store.pending(0, 10).await.unwrap(), listed);
    }

    async fn step(&mut self, draw: &mut Draw) {
        let (holder, n) = (draw.of(&HOLDERS), draw.below(2));
        // Mostly the same task.
        let task = TaskDigest::from(TASKS[draw.below(5) / 4].to_owned());
        match draw.below(18) {
            0..=3 => {
                let kind = draw.of(&[TicketKind::Original, TicketKind::Resume, TicketKind::Wake]);
                let number = draw.of(&[0, 1, 2, 3, 4, 1 << 40]);
                let known = Some(&task).filter(|_| kind != TicketKind::Resume && draw.below(4) > 0);
                self.take(Ok(Ticket { kind, number }), known, holder).await;
            }
            4..=6 => {
                let version = draw.below(5) / 4;
                let waits = draw.of(&[[0].as_slice(), &[1], &[0, 1], &[]]);
                let waits: Vec<_> = waits.iter().map(|n| (*n, version)).collect();
                let questions =
                    waits.iter().map(|(n, version)| self.questions[*n][*version].clone());
                let parking = Parking {
                    digest: task,
                    holder: holder.into(),
                    lease: HOUR,
                    alarm: (draw.below(3) == 0).then_some(HOUR / 2),
                    abandoned: (0..draw.below(2)).map(|_| self.ids()[n].clone()).collect(),
                    ..parking(&self.id, 1 + draw.below(4) as u64, questions.collect())
                };
                self.park(parking, &waits).await;
            }
            7 => {
                park::release(&mut self.model.park, holder);
                self.store.release_claim(&self.id, holder).await.unwrap();
            }
            8 => {
                let now = self.now();
                let expected = park::renew(&mut self.model.park, holder, now, LEASE);
                let found = self.store.renew_claim(&self.id, holder, HOUR).await.unwrap();
                assert_eq!(found, expected);
            }
            9 if draw.below(4) == 0 => {
                let (now, ids) = (self.now(), self.ids());
                let known = Some(&task).filter(|_| draw.below(4) > 0);
                let expected = self.model.end(known, now).into_iter().map(|n| ids[n].clone());
                let found = self.store.end_parked(&self.id, known).await.unwrap();
                assert_eq!(found, expected.collect::<Vec<_>>());
            }
            9 | 10 => advance(draw.of(&JUMPS)).await,
            11 => {
                let by = (draw.of(&PEOPLE), draw.below(4) == 0);
                self.extend(n, by, draw.of(&[HOUR / 60, HOUR * 3])).await;
            }
            12 | 17 => self.take(Err(draw.below(2) == 0), Some(&task), holder).await,
            14 if draw.below(4) == 0 => {
                let is_ended = park::forget(&mut self.model.park);
                let found = self.store.forget(&self.id).await.unwrap();
                assert_eq!(found == Forget::Forgotten, is_ended);
            }
            13 => self.warn(n, draw.of(&[0, 10, 50])).await,
            _ => {
                let choice =
                    draw.of(&[Choice::Approve, Choice::Approve, Choice::Reject, Choice::Withdraw]);
                let question = &self.questions[n][draw.below(5) / 4];
                let mut decision = Decision::on(question, draw.of(&PEOPLE), choice);
                decision.id = format!("decision-{}", draw.below(4));
                decision.in_quorum = draw.below(2) == 0;
                decision.edited = (draw.below(4) == 0).then(|| json!({"to": "x"}));
                self.decide(n, &decision).await;
            }
        }
        self.model.forget(self.now());
        self.compare().await;
    }
}

/// Which question, how it stands, since when, and by which decision.
type Told = (ApprovalId, Standing, i64, Option<String>);

fn said(rulings: &[Ruling]) -> Vec<Told> {
    let told = |ruling: &Ruling| {
        let decision = ruling.decision.as_ref().map(|decision| decision.id.clone());
        (ruling.approval.clone(), ruling.standing, ruling.at, decision)
    };
    rulings.iter().map(told).collect()
}

#[tokio::test(start_paused = true)]
async fn the_store_answers_as_the_pure_functions_do() {
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
    for round in 0..ROUNDS {
        let mut pair = Pair::new(round, &mut draw);
        for _ in 0..STEPS {
            pair.step(&mut draw).await;
        }
    }
}
