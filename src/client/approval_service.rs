//! The approval service: applies policies to approval requests, warns of deadlines, and seals the audit.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::Client;
use super::sealer::Sealer;
use crate::approval::{ApprovalId, ApprovalStatus, AutoPolicy, DecideResult, Decision, Digest};
use crate::backend::{ApprovalRecord, Lookup};
use crate::error::Error;
use crate::lifecycle::warning;

/// All open requests are scanned this often, independently of notifications.
const SWEEP: Duration = Duration::from_secs(5);
/// The longest duration of one timer.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
const LISTED_AT_ONCE: usize = 5000;
const READ_AT_ONCE: usize = 100;

impl Client {
    /// Runs until `stop` completes: decides the requests that a configured policy decides, warns of
    /// deadlines, and, if this process has the key (`approvals.seal_key_file`), seals the audit at least once
    /// a second. Several processes may run it at the same time: each decision and each warning is made once.
    /// Retries while the store is unreachable.
    pub async fn run_approval_service(&self, stop: impl Future<Output = ()>) {
        let (policies, seals) = (self.config().policies.len(), self.config().seal_key.is_some());
        info!(policies, seals, "approval service started");
        let service =
            ApprovalService { client: self, requests: HashMap::new(), timers: BTreeSet::new() };
        let sealing = async {
            if let Some(key) = &self.config().seal_key {
                Sealer::new(self.backends().store.clone(), key.clone()).run().await;
            }
        };
        tokio::select! {
            () = stop => {}
            ((), ()) = async { tokio::join!(service.run(), sealing) } => {}
        }
    }
}

/// Cached state of the open requests. It can be rebuilt from the store at any time.
struct ApprovalService<'c> {
    client: &'c Client,
    requests: HashMap<ApprovalId, TrackedRequest>,
    /// When each request must be examined again.
    timers: BTreeSet<(Instant, ApprovalId)>,
}

/// A request that has been examined.
struct TrackedRequest {
    /// The deadline at creation, in milliseconds. If it differs, this is a new request under the same id.
    deadline: i64,
    /// The version of the request that the policies were applied to.
    evaluated: Option<RequestVersion>,
    next_check: Option<Instant>,
}

/// The digest and the nonce of a request.
type RequestVersion = (Digest, Option<String>);

impl TrackedRequest {
    /// A request whose evaluation failed: the approvers decide it, and it is not evaluated again.
    fn left_to_approvers(record: &ApprovalRecord) -> Self {
        let evaluated = Some((record.request.digest(), record.nonce.clone()));
        Self { deadline: first_deadline(record), evaluated, next_check: None }
    }
}

/// The deadline of a request at its creation, in milliseconds.
fn first_deadline(record: &ApprovalRecord) -> i64 {
    let time = i64::try_from(record.request.expires_in.as_millis()).unwrap_or(i64::MAX);
    record.requested_at.as_millisecond().saturating_add(time)
}

impl ApprovalService<'_> {
    async fn run(mut self) {
        // Subscribe before the first sweep, so that no notification is missed.
        let mut notifications = self.client.backends().store.new_requests();
        let mut notified = None;
        let mut next_sweep = Instant::now();
        loop {
            let examined = match notified.take() {
                Some(ids) => self.examine(ids).await,
                None if next_sweep <= Instant::now() => {
                    next_sweep = Instant::now() + SWEEP;
                    self.sweep().await
                }
                None => self.examine(self.due()).await,
            };
            if let Err(error) = examined {
                warn!("cannot examine the open approval requests: {error}; trying again");
            }
            let first = self.timers.first().map_or(next_sweep, |(at, _)| *at);
            tokio::select! {
                ids = next_notified(&mut notifications) => match ids {
                    Some(ids) => notified = Some(ids),
                    None => next_sweep = Instant::now(),
                },
                () = sleep_until(first.min(next_sweep)) => {}
            }
        }
    }

    /// Examines all requests that were made, or made again, since the last sweep.
    async fn sweep(&mut self) -> Result<(), Error> {
        let (mut listed, mut from) = (HashSet::new(), 0);
        loop {
            let store = &self.client.backends().store;
            let page = store.pending_approvals(from, LISTED_AT_ONCE).await?;
            from += page.len();
            let is_last = page.len() < LISTED_AT_ONCE;
            let is_new = |(id, deadline): &&(ApprovalId, i64)| {
                self.requests.get(id).is_none_or(|tracked| tracked.deadline != *deadline)
            };
            let new: Vec<_> = page.iter().filter(is_new).cloned().collect();
            self.examine(new.iter().map(|(id, _)| id.clone()).collect()).await?;
            for (id, deadline) in new {
                let tracked = TrackedRequest { deadline, evaluated: None, next_check: None };
                self.requests.entry(id).or_insert(tracked).deadline = deadline;
            }
            listed.extend(page.into_iter().map(|(id, _)| id));
            if is_last {
                break;
            }
        }
        self.requests.retain(|id, _| listed.contains(id));
        Ok(())
    }

    fn due(&self) -> Vec<ApprovalId> {
        let now = Instant::now();
        self.timers.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| id.clone()).collect()
    }

    /// Examines these requests. After an error, a sweep finds the remaining ones.
    async fn examine(&mut self, ids: Vec<ApprovalId>) -> Result<(), Error> {
        for ids in ids.chunks(READ_AT_ONCE) {
            let previous: Vec<_> = ids.iter().map(|id| self.forget(id)).collect();
            let found = self.read(ids).await?;
            for (record, previous) in found.into_iter().zip(previous) {
                let Some(record) = record else { continue };
                let evaluated = previous.and_then(|tracked| tracked.evaluated);
                let tracked = match self.examine_one(&record, evaluated).await {
                    Err(error) if error.is_connection() => return Err(error),
                    Err(error) => {
                        warn!(approval = %record.request.id, "left to its approvers: {error}");
                        TrackedRequest::left_to_approvers(&record)
                    }
                    Ok(tracked) => tracked,
                };
                let id = record.request.id;
                self.timers.extend(tracked.next_check.map(|at| (at, id.clone())));
                self.requests.insert(id, tracked);
            }
        }
        Ok(())
    }

    /// Reads these requests. Skips a request that only a newer version can read.
    async fn read(&self, ids: &[ApprovalId]) -> Result<Vec<Option<ApprovalRecord>>, Error> {
        let found = self.client.backends().store.approvals(ids).await?;
        let readable = |(id, found): (&ApprovalId, Lookup)| {
            let log = |error: &Error| warn!(approval = %id, "left to its approvers: {error}");
            found.readable().inspect_err(log).ok().flatten()
        };
        Ok(ids.iter().zip(found).map(readable).collect())
    }

    fn forget(&mut self, id: &ApprovalId) -> Option<TrackedRequest> {
        let tracked = self.requests.remove(id)?;
        if let Some(at) = tracked.next_check {
            self.timers.remove(&(at, id.clone()));
        }
        Some(tracked)
    }

    async fn examine_one(
        &self,
        record: &ApprovalRecord,
        evaluated: Option<RequestVersion>,
    ) -> Result<TrackedRequest, Error> {
        let ApprovalRecord { request, status, requested_at, read_at, warned, .. } = record;
        let first = first_deadline(record);
        let ApprovalStatus::Open(deadline) = *status else {
            return Ok(TrackedRequest { deadline: first, evaluated, next_check: None });
        };
        let [requested_at, deadline, read_at] =
            [*requested_at, deadline, *read_at].map(|time| time.as_millisecond());
        let version = (request.digest(), record.nonce.clone());
        let is_decided =
            evaluated.as_ref() != Some(&version) && self.apply_policies(record).await?;
        if let Some(percent) = warning::latest(requested_at, deadline, read_at)
            && !is_decided
            && warned.is_none_or(|warned| warned < percent)
            && self.client.backends().store.record_warning(&request.id, percent).await?
        {
            warn!(approval = %request.id, title = ?request.title, percent,
                "an approval request is undecided after this percentage of its time");
        }
        let next_check = warning::next(requested_at, deadline, read_at).map(|at| {
            let left = at.saturating_sub(read_at).unsigned_abs();
            Instant::now() + Duration::from_millis(left).min(LONGEST)
        });
        Ok(TrackedRequest { deadline: first, evaluated: Some(version), next_check })
    }

    /// Applies the policies. Returns whether a policy has decided the request.
    async fn apply_policies(
        &self,
        ApprovalRecord { request, nonce, .. }: &ApprovalRecord,
    ) -> Result<bool, Error> {
        let policies = &self.client.config().policies;
        let Some(decision) = AutoPolicy::decide(policies, request) else { return Ok(false) };
        let decision = Decision { nonce: nonce.clone(), ..decision };
        let (id, by, choice) = (&request.id, &decision.by, decision.choice.as_str());
        let result = self.client.decide(&decision).await?;
        match &result {
            DecideResult::Applied => info!(approval = %id, by, "decided: {choice}"),
            DecideResult::NotAllowed => {
                info!(approval = %id, by, "left to its approvers: the policy may not decide this request");
            }
            result => info!(approval = %id, by, "{choice}: {result}"),
        }
        Ok(matches!(result, DecideResult::Applied | DecideResult::Replayed))
    }
}

/// Waits for notifications of new requests and drains them; `None` if notifications may have been missed.
async fn next_notified(
    notifications: &mut Receiver<Option<ApprovalId>>,
) -> Option<Vec<ApprovalId>> {
    let mut ids = match notifications.recv().await {
        Ok(id) => vec![id?],
        Err(RecvError::Lagged(_)) => return None,
        Err(RecvError::Closed) => std::future::pending().await,
    };
    while ids.len() < READ_AT_ONCE
        && let Ok(id) = notifications.try_recv()
    {
        ids.push(id?);
    }
    Some(ids)
}
