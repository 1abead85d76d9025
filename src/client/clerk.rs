//! The service beside the people who decide: it does for them what needs no person.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::Client;
use super::sealer::Sealer;
use crate::approval::{Answer, ApprovalId, AutoPolicy, Decision, Digest, Standing};
use crate::backend::{Asked, Found};
use crate::error::Error;
use crate::lifecycle::warning;

/// All open questions are looked through this often, whatever was or was not heard.
const SWEEP: Duration = Duration::from_secs(5);
/// A timer is not set for longer.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
const LISTED_AT_ONCE: usize = 5000;
const READ_AT_ONCE: usize = 100;

impl Client {
    /// Until `stop` completes: decides what a policy of the configuration decides, warns of
    /// deadlines, and, if this process has the key (`approvals.seal_key_file`), seals the audit at
    /// least once a second. Any number of processes may do so beside each other: each decision and
    /// each warning is made once. While the store is away, it is tried again.
    pub async fn clerk(&self, stop: impl Future<Output = ()>) {
        let (policies, seals) = (self.config().policies.len(), self.config().seal_key.is_some());
        info!(policies, seals, "looks after approvals");
        let clerk = Clerk { client: self, cases: HashMap::new(), agenda: BTreeSet::new() };
        let sealing = async {
            if let Some(key) = &self.config().seal_key {
                Sealer::new(self.backends().store.clone(), key.clone()).run().await;
            }
        };
        tokio::select! {
            () = stop => {}
            ((), ()) = async { tokio::join!(clerk.run(), sealing) } => {}
        }
    }
}

/// What is known of the open questions. Nothing is lost with it.
struct Clerk<'c> {
    client: &'c Client,
    cases: HashMap<ApprovalId, Case>,
    /// When which question is to be looked at again.
    agenda: BTreeSet<(Instant, ApprovalId)>,
}

/// A question that has been looked at.
struct Case {
    /// The deadline that it was asked with: another one, and it was asked anew.
    deadline: i64,
    /// What the policies have seen.
    judged: Option<Seen>,
    again: Option<Instant>,
}

/// The digest and the nonce of a request.
type Seen = (Digest, Option<String>);
impl Case {
    /// Something of it cannot be decided or stored: it is not tried again until it is asked anew.
    fn left_to_people(asked: &Asked) -> Self {
        let judged = Some((asked.question.digest(), asked.nonce.clone()));
        Self { deadline: first_deadline(asked), judged, again: None }
    }
}

/// The deadline that a question was asked with.
fn first_deadline(asked: &Asked) -> i64 {
    let time = i64::try_from(asked.question.expires_in).unwrap_or(i64::MAX);
    asked.asked_at.saturating_add(time)
}

impl Clerk<'_> {
    async fn run(mut self) {
        // Subscribed before the first sweep.
        let mut bell = self.client.backends().store.questions();
        let mut rung = None;
        let mut next_sweep = Instant::now();
        loop {
            let worked = match rung.take() {
                Some(ids) => self.attend(ids).await,
                None if next_sweep <= Instant::now() => {
                    next_sweep = Instant::now() + SWEEP;
                    self.sweep().await
                }
                None => self.attend(self.due()).await,
            };
            if let Err(error) = worked {
                warn!("cannot look after the open questions: {error}; trying again");
            }
            let first = self.agenda.first().map_or(next_sweep, |(at, _)| *at);
            tokio::select! {
                ids = rings(&mut bell) => match ids {
                    Some(ids) => rung = Some(ids),
                    None => next_sweep = Instant::now(),
                },
                () = sleep_until(first.min(next_sweep)) => {}
            }
        }
    }

    /// Looks at all questions that are new, or were asked anew, since the last time.
    async fn sweep(&mut self) -> Result<(), Error> {
        let (mut listed, mut from) = (HashSet::new(), 0);
        loop {
            let store = &self.client.backends().store;
            let page = store.pending(from, LISTED_AT_ONCE).await?;
            from += page.len();
            let is_last = page.len() < LISTED_AT_ONCE;
            let is_new = |(id, deadline): &&(ApprovalId, i64)| {
                self.cases.get(id).is_none_or(|case| case.deadline != *deadline)
            };
            let new: Vec<_> = page.iter().filter(is_new).cloned().collect();
            self.attend(new.iter().map(|(id, _)| id.clone()).collect()).await?;
            for (id, deadline) in new {
                let case = Case { deadline, judged: None, again: None };
                self.cases.entry(id).or_insert(case).deadline = deadline;
            }
            listed.extend(page.into_iter().map(|(id, _)| id));
            if is_last {
                break;
            }
        }
        self.cases.retain(|id, _| listed.contains(id));
        Ok(())
    }

    fn due(&self) -> Vec<ApprovalId> {
        let now = Instant::now();
        self.agenda.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| id.clone()).collect()
    }

    /// Looks at these. What is not looked at for a fault is found by a sweep.
    async fn attend(&mut self, ids: Vec<ApprovalId>) -> Result<(), Error> {
        for ids in ids.chunks(READ_AT_ONCE) {
            let known: Vec<_> = ids.iter().map(|id| self.forget(id)).collect();
            let found = self.read(ids).await?;
            for (asked, known) in found.into_iter().zip(known) {
                let Some(asked) = asked else { continue };
                let judged = known.and_then(|case| case.judged);
                let case = match self.look_at(&asked, judged).await {
                    Err(error) if error.is_connection() => return Err(error),
                    Err(error) => {
                        warn!(approval = %asked.question.id, "left to people: {error}");
                        Case::left_to_people(&asked)
                    }
                    Ok(case) => case,
                };
                let id = asked.question.id;
                self.agenda.extend(case.again.map(|at| (at, id.clone())));
                self.cases.insert(id, case);
            }
        }
        Ok(())
    }

    /// These questions. One that only a newer Countersign can read hides none of the others.
    async fn read(&self, ids: &[ApprovalId]) -> Result<Vec<Option<Asked>>, Error> {
        let found = self.client.backends().store.asked(ids).await?;
        let readable = |(id, found): (&ApprovalId, Found)| {
            let told = |error: &Error| warn!(approval = %id, "left to people: {error}");
            found.readable().inspect_err(told).ok().flatten()
        };
        Ok(ids.iter().zip(found).map(readable).collect())
    }

    fn forget(&mut self, id: &ApprovalId) -> Option<Case> {
        let case = self.cases.remove(id)?;
        if let Some(at) = case.again {
            self.agenda.remove(&(at, id.clone()));
        }
        Some(case)
    }

    async fn look_at(&self, asked: &Asked, judged: Option<Seen>) -> Result<Case, Error> {
        let Asked { question, standing, asked_at, read_at, warned, .. } = asked;
        let first = first_deadline(asked);
        let Standing::Open(deadline) = *standing else {
            return Ok(Case { deadline: first, judged, again: None });
        };
        let seen = (question.digest(), asked.nonce.clone());
        let is_decided = judged.as_ref() != Some(&seen) && self.judge(asked).await?;
        if let Some(percent) = warning::latest(*asked_at, deadline, *read_at)
            && !is_decided
            && warned.is_none_or(|warned| warned < percent)
            && self.client.backends().store.warn(&question.id, percent).await?
        {
            warn!(approval = %question.id, title = ?question.title, percent,
                "nobody has decided it, and so much of its time has passed");
        }
        let again = warning::next(*asked_at, deadline, *read_at).map(|at| {
            let left = at.saturating_sub(*read_at).unsigned_abs();
            Instant::now() + Duration::from_millis(left).min(LONGEST)
        });
        Ok(Case { deadline: first, judged: Some(seen), again })
    }

    /// Says what the policies say. True: it is decided by that.
    async fn judge(&self, Asked { question, nonce, .. }: &Asked) -> Result<bool, Error> {
        let policies = &self.client.config().policies;
        let Some(decision) = AutoPolicy::decide(policies, question) else { return Ok(false) };
        let decision = Decision { nonce: nonce.clone(), ..decision };
        let (id, by, choice) = (&question.id, &decision.by, decision.choice.as_str());
        let answer = self.client.decide(&decision).await?;
        match &answer {
            Answer::Applied => info!(approval = %id, by, "decided: {choice}"),
            Answer::NotAllowed => {
                info!(approval = %id, by, "left to people: it may not decide this one");
            }
            answer => info!(approval = %id, by, "{choice}: {answer}"),
        }
        Ok(matches!(answer, Answer::Applied | Answer::Replayed))
    }
}

/// What was asked meanwhile, as soon as something was; `None`: rings may have been missed.
async fn rings(bell: &mut Receiver<Option<ApprovalId>>) -> Option<Vec<ApprovalId>> {
    let mut ids = match bell.recv().await {
        Ok(id) => vec![id?],
        Err(RecvError::Lagged(_)) => return None,
        Err(RecvError::Closed) => std::future::pending().await,
    };
    while ids.len() < READ_AT_ONCE
        && let Ok(id) = bell.try_recv()
    {
        ids.push(id?);
    }
    Some(ids)
}
