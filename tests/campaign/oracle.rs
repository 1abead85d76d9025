//! The checks after the last fault has healed. `main.rs` lists the properties that they verify.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use countersign::protocol::Document;
use countersign::{Client, Error, TaskId};
use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::{sleep, timeout};

use crate::ledger::{Accepted, Expected, Ledger, Outcome};
use crate::workers::Workers;

/// The time limit for the last result after every fault has healed. RabbitMQ may keep a delayed message
/// for three minutes after a restart.
const HEALED: Duration = Duration::from_secs(300);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const READS_AT_ONCE: usize = 256;
const READ_TRIES: usize = 5;
const MOST_DEAD_LETTERS: usize = 100_000;
/// The number of lost tasks whose log lines are printed.
const SHOWN: usize = 10;

/// The objects that the checks read.
#[derive(Clone, Copy)]
pub(crate) struct Scene<'s> {
    pub(crate) client: &'s Client,
    pub(crate) queues: &'s [String],
    pub(crate) workers: &'s Workers,
    pub(crate) ledger: &'s Arc<Ledger>,
}

impl Scene<'_> {
    /// Waits until every waiter has its result and the queues are empty.
    pub(crate) async fn await_results(&self) {
        if !self.ledger.all_resolved(HEALED).await {
            self.name_unresolved().await;
        }
        let empty = async {
            for queue in self.queues {
                while !self.is_empty(queue).await {
                    sleep(POLL_INTERVAL).await;
                }
            }
        };
        if timeout(HEALED, empty).await.is_err() {
            self.ledger.violation("messages are left in a queue".to_owned());
        }
    }

    async fn is_empty(&self, queue: &str) -> bool {
        let state = self.client.backends().broker.inspect(queue).await;
        state.is_ok_and(|state| state.is_none_or(|state| state.ready == 0))
    }

    /// Reports for each waiter without a result whether a result is stored or the task is lost.
    async fn name_unresolved(&self) {
        let open = self.ledger.accepted().into_iter().filter(|(_, task)| task.outcome.is_none());
        for (index, (id, task)) in open.enumerate() {
            let stored = self.client.status(&id).await;
            let stored = stored.map(|document| document.map(|document| document.state));
            let expected = task.expected;
            let mut text =
                format!("{id} ({expected:?}): its waiter got nothing; stored: {stored:?}");
            if index < SHOWN {
                text.push('\n');
                text.push_str(&self.workers.log_lines(&id).await);
            }
            self.ledger.violation(text);
        }
    }

    /// Reads every result again: it must equal the result that the waiter received.
    pub(crate) async fn check_results(&self) {
        let client = self.client;
        let resolved = self.ledger.accepted().into_iter();
        let resolved = resolved.filter_map(|(id, task)| Some((id, task.outcome?)));
        let reads = stream::iter(resolved).map(|(id, first)| async move {
            let found = match read(client, &id).await {
                Ok(Some(document)) => Ok(Outcome::of(document.output())),
                Ok(None) => Err("no result is stored".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            (id, first, found)
        });
        let mut reads = std::pin::pin!(reads.buffer_unordered(READS_AT_ONCE));
        while let Some((id, first, found)) = reads.next().await {
            if found.as_ref() != Ok(&first) {
                let text = format!("{id}: its waiter got {first:?}, and a later read {found:?}");
                self.ledger.violation(text);
            }
        }
    }

    /// Checks the runs by the entries of their list, in the order of the runs. Returns the number of
    /// repeated runs.
    pub(crate) fn check_runs(&self, entries: &[String]) -> usize {
        for (id, task) in self.ledger.accepted() {
            if let Accepted { expected: Expected::Mark, outcome: Some(Outcome::Success(value)) } =
                task
            {
                // The result is the length of the list after the run's own entry.
                let length = value.as_u64().and_then(|length| usize::try_from(length).ok());
                let entry = length.and_then(|length| entries.get(length.checked_sub(1)?));
                if entry.map(String::as_str) != Some(id.as_str()) {
                    let text = format!("{id}: its result {value} is of no run of its own");
                    self.ledger.violation(text);
                }
            }
        }
        let mut runs: HashMap<&str, usize> = HashMap::new();
        for entry in entries {
            *runs.entry(entry).or_default() += 1;
        }
        for id in runs.keys().filter(|id| !self.ledger.is_sent(&TaskId::from(id))) {
            self.ledger.violation(format!("{id} ran, and no producer sent it"));
        }
        let repeated = entries.len() - runs.len();
        let excused = self.ledger.excused();
        if repeated > excused {
            let text = format!("{repeated} runs were repeated, and only {excused} are excused");
            self.ledger.violation(text);
        }
        repeated
    }

    /// Checks that the dead letters are exactly the hostile messages.
    pub(crate) async fn check_dead_letters(&self) {
        let mut dead = HashSet::new();
        for queue in self.queues {
            match self.client.dead_letters(queue).browse(MOST_DEAD_LETTERS).await {
                Ok(letters) => dead.extend(letters.into_iter().map(|letter| letter.id)),
                Err(error) => {
                    let text = format!("the dead letters of {queue} cannot be read: {error}");
                    self.ledger.violation(text);
                }
            }
        }
        let hostile = self.ledger.hostile();
        for id in dead.difference(&hostile) {
            let lines = self.workers.log_lines(id).await;
            self.ledger.violation(format!("{id} is a dead letter, and is not hostile:\n{lines}"));
        }
        let accepted = self.ledger.accepted();
        for id in hostile.iter().filter(|id| accepted.contains_key(*id) && !dead.contains(*id)) {
            self.ledger.violation(format!("{id} is hostile, and is no dead letter"));
        }
    }

    /// Checks that at most one decision was applied to each approval.
    pub(crate) fn check_decisions(&self) {
        for approval in self.ledger.decided_twice() {
            self.ledger.violation(format!("approval {approval}: two decisions were applied"));
        }
    }
}

/// Reads the stored result of a task. Tries again after an error, since a loaded server may time out.
async fn read(client: &Client, id: &TaskId) -> Result<Option<Document>, Error> {
    for _ in 1..READ_TRIES {
        if let Ok(found) = client.status(id).await {
            return Ok(found);
        }
    }
    client.status(id).await
}
