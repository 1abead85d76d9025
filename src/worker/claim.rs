//! The right to run a suspended task, and the number of its last suspension.

use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::state::{STORE_RETRY_DELAY, WorkerState};
use super::suspension::store_suspension;
use crate::approval::{ApprovalId, ApprovalOutcome};
use crate::backend::{Queue, Recorded, StoreResult, SuspendRequest};
use crate::protocol::{Document, Envelope, Message, SuspendHeader, SuspendKind};
use crate::task::TaskId;

/// One delivery's claim. For a task that was never suspended it is empty, and costs nothing.
#[derive(Debug, Default)]
pub(super) struct Claim {
    /// The suspend header of the message.
    header: Option<SuspendHeader>,
    /// The number of the task's last known suspension; 0 before the first.
    pub(super) number: u64,
    /// The value of `number` while the message of this delivery carries the task.
    message_number: u64,
    /// A name that no other delivery has; generated on first use.
    holder: Option<String>,
    lease: Option<Lease>,
    /// Whether the first record of the task is about to be written for this run.
    is_recording: bool,
    /// The outcomes that were decided before this run began.
    pub(super) outcomes: Vec<ApprovalOutcome>,
    /// The stored result of the task, read when the claim was granted for the message.
    pub(super) result: StoredResult,
}

/// The stored result of a task.
#[derive(Debug, Default)]
pub(super) enum StoredResult {
    #[default]
    Unread,
    Read(Option<Box<Document>>),
}

/// A lease that is renewed until it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    lost: CancellationToken,
    renewal: JoinHandle<()>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

impl Lease {
    /// Starts to renew a lease that the store has granted.
    pub(super) fn renewed(state: &WorkerState, id: &TaskId, holder: String) -> Self {
        let lost = CancellationToken::new();
        let (store, lease) = (state.backends.store.clone(), state.config.lease);
        let (id, is_lost) = (id.clone(), lost.clone());
        let renewal = tokio::spawn(async move {
            loop {
                sleep(lease / 3).await;
                match store.renew_claim(&id, &holder, lease).await {
                    Ok(true) => {}
                    Ok(false) => return is_lost.cancel(),
                    Err(error) => {
                        warn!(task.id = %id, "cannot renew the lease of the claim: {error}")
                    }
                }
            }
        });
        Self { lost, renewal }
    }
}

impl Claim {
    pub(super) fn new(header: Option<SuspendHeader>) -> Self {
        let number = header.map_or(0, |header| header.number);
        Self { header, number, message_number: number, ..Self::default() }
    }

    /// Returns whether the message has a suspend header: its task was suspended before.
    pub(super) fn has_header(&self) -> bool {
        self.header.is_some()
    }

    /// Returns whether the task was suspended before, or was about to be.
    pub(super) fn is_resumed(&self) -> bool {
        self.number > 0
    }

    /// Returns whether the store may have a record of the task.
    pub(super) fn has_record(&self) -> bool {
        self.is_resumed() || self.is_recording || self.lease.is_some()
    }

    pub(super) fn holder(&mut self) -> String {
        self.holder.get_or_insert_with(|| uuid::Uuid::new_v4().simple().to_string()).clone()
    }

    /// Sets the claim that the store granted under this number, and starts to renew it.
    pub(super) fn set_granted(&mut self, state: &WorkerState, id: &TaskId, number: u64) {
        self.number = number;
        self.lease = Some(Lease::renewed(state, id, self.holder()));
    }

    /// Sets the claim of a run whose task was not suspended before.
    pub(super) fn set_first(&mut self, number: u64, lease: Lease) {
        (self.number, self.message_number) = (number, number);
        self.lease = Some(lease);
    }

    /// Notes that the first record of the task is about to be written for this run.
    pub(super) fn set_recording(&mut self) {
        self.is_recording = true;
    }

    /// Drops the lease without releasing it: this delivery no longer runs the task.
    pub(super) fn drop_lease(&mut self) {
        self.lease = None;
    }

    /// Returns whether the claim was granted for the message of this delivery. A claim granted during an
    /// inline wait belongs to a suspension, whose own messages continue the task.
    pub(super) fn is_of_message(&self) -> bool {
        self.message_number == self.number
    }

    /// Completes when another worker has the claim.
    pub(super) async fn lost(&self) {
        match &self.lease {
            Some(lease) => lease.lost.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Releases the claim, so that the next delivery does not have to wait for the lease to expire.
    pub(super) async fn release(&mut self, state: &WorkerState, id: &TaskId) {
        if self.lease.take().is_some() {
            let holder = self.holder();
            if let Err(error) = state.backends.store.release_claim(id, &holder).await {
                warn!(task.id = %id, "cannot release the claim: {error}");
            }
        }
    }

    /// Returns the queue that this delivery's message came from.
    pub(super) fn source_queue(&self, queue: &Queue) -> Queue {
        match self.header {
            Some(SuspendHeader { kind: SuspendKind::Resume | SuspendKind::Wake, .. }) => {
                queue.resume()
            }
            _ => queue.clone(),
        }
    }

    /// Returns a copy of the task's message with the suspend header of this delivery.
    pub(super) fn with_header(&self, message: Message) -> Message {
        match self.header {
            Some(header) => header.on(message),
            None => message,
        }
    }

    /// Returns the suspend header of the next attempt: its number makes the messages of this attempt's
    /// suspensions stale.
    pub(super) fn next_header(&self) -> Option<SuspendHeader> {
        let number = self.number + 1;
        self.has_record().then_some(SuspendHeader { kind: SuspendKind::Original, number })
    }

    /// Stores that the next attempt has been sent, with a number ahead of every message that this one has
    /// sent.
    pub(super) async fn store_next_attempt(
        &mut self,
        state: &WorkerState,
        queue: &Queue,
        next: &Envelope,
    ) {
        let Some(header) = self.next_header() else { return };
        self.drop_lease();
        let holder = self.holder();
        let request = || SuspendRequest {
            id: next.id.clone(),
            number: header.number,
            digest: next.digest(),
            holder: holder.clone(),
            lease: state.config.lease,
            message: next.encode(),
            queue: queue.name.clone(),
            requests: Vec::new(),
            alarm: None,
            abandoned: Vec::new(),
        };
        let _ = store_suspension(state, &next.id, request).await;
    }

    /// Stores the result of the task and records its end, in one step. Returns `None` if that is not possible;
    /// the result may then be stored.
    pub(super) async fn finish(
        &self,
        state: &WorkerState,
        envelope: &Envelope,
        result: StoreResult,
    ) -> Option<Recorded> {
        let id = &envelope.id;
        match state.backends.store.finish_suspended(result, &envelope.digest()).await {
            Ok((recorded, withdrawn)) => {
                note_withdrawn(id, &withdrawn);
                Some(recorded)
            }
            Err(error) => {
                warn!(task.id = %id, "cannot store the result together with the task's end: {error}");
                None
            }
        }
    }

    /// Records the end of the task, so that late messages of it find it ended, and withdraws its open
    /// approval requests.
    pub(super) async fn record_end(&self, state: &WorkerState, envelope: &Envelope) {
        if !self.has_record() {
            return;
        }
        let (id, digest) = (&envelope.id, envelope.digest());
        loop {
            match state.backends.store.end_suspended(id, Some(&digest)).await {
                Ok(withdrawn) => return note_withdrawn(id, &withdrawn),
                Err(error) => {
                    warn!(task.id = %id, "cannot record the task's end: {error}; trying again")
                }
            }
            sleep(STORE_RETRY_DELAY).await;
        }
    }
}

fn note_withdrawn(id: &TaskId, withdrawn: &[ApprovalId]) {
    if !withdrawn.is_empty() {
        info!(task.id = %id, ?withdrawn, "ended with open approval requests");
    }
}

/// Returns the reason why a message cannot run while another task is suspended under its id.
pub(super) fn occupied_reason(id: &TaskId, suspended: Option<&Message>) -> String {
    let name = suspended.and_then(|message| message.headers.get("task")).and_then(Value::as_str);
    let other =
        name.map_or_else(|| "another task".to_owned(), |name| format!("another task, {name},"));
    format!(
        "{other} is suspended under the id {id}, with other arguments: wait until that one has ended \
         and replay this message, or send it under an id of its own"
    )
}
