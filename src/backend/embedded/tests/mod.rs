//! The embedded backend against itself: in memory the clock is the runtime's, and stands still
//! until a test moves it.

mod approvals;
mod audit;
mod file;
mod rules;
mod sessions;

use std::path::PathBuf;
use std::time::Duration;

use super::db::Db;
use super::store::EmbeddedStore;
use crate::approval::{Action, ApprovalId, Question};
use crate::backend::{Approvals, Asked, Parking};
use crate::protocol::{Arguments, Envelope, TaskDigest};
use crate::task::TaskId;

const HOUR: Duration = Duration::from_secs(3600);

fn in_memory() -> EmbeddedStore {
    EmbeddedStore::start(Db::in_memory().unwrap(), 24 * HOUR)
}

/// A folder of a test, removed when it is dropped.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("countersign-test-{}", TaskId::random()));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    pub(super) fn file(&self) -> PathBuf {
        self.0.join("tasks.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A question of a task, about its action in this version, open for an hour.
fn question(task: &TaskId, name: &str, version: u32, quorum: u32) -> Question {
    Question {
        id: ApprovalId::of(task, name, 0),
        task: Some(task.clone()),
        action: Action { name: "pay".into(), version, args: serde_json::json!({"to": name}) },
        editable: true,
        requester: Some("rita".into()),
        quorum,
        expires_in: 3_600_000,
        ..Question::new(name)
    }
}

/// These questions; `None` for one that nobody asks.
async fn read(store: &EmbeddedStore, ids: &[ApprovalId]) -> Vec<Option<Asked>> {
    let found = store.asked(ids).await.unwrap();
    found.into_iter().map(|found| found.readable().unwrap()).collect()
}

/// The park of a task that waits for these, held by `a` for a minute.
fn parking(task: &TaskId, number: u64, questions: Vec<Question>) -> Parking {
    Parking {
        id: task.clone(),
        number,
        digest: TaskDigest::from("one".to_owned()),
        holder: "a".into(),
        lease: Duration::from_secs(60),
        message: Envelope::new("t", Arguments::default()).encode(),
        queue: "q".into(),
        questions,
        alarm: None,
        abandoned: Vec::new(),
    }
}
