//! Tests of the embedded backend alone: in memory the clock is the runtime's, and stands still until a
//! test advances it.

mod approvals;
mod audit;
mod draw;
mod file;
mod outcome_summary;
mod rules;
mod sessions;
mod wakes;

use std::path::PathBuf;
use std::time::Duration;

use super::db::Db;
use super::store::EmbeddedStore;
use crate::approval::{Action, ApprovalId, ApprovalRequest};
use crate::backend::{
    ApprovalRecord, Approvals, Connection as _, Journals as _, Outbox as _, Results as _,
    StoreInfo as _, SuspendRequest, Suspensions as _,
};
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

/// An approval request of a task, about its action in this version, open for an hour.
fn request_of(task: &TaskId, name: &str, version: u32, quorum: u32) -> ApprovalRequest {
    ApprovalRequest {
        id: ApprovalId::of(task, name, 0),
        task: Some(task.clone()),
        action: Action { name: "pay".into(), version, args: serde_json::json!({"to": name}) },
        editable: true,
        requester: Some("rita".into()),
        quorum,
        expires_in: Duration::from_hours(1),
        ..ApprovalRequest::new(name)
    }
}

/// Reads these requests; `None` for one that does not exist.
async fn read(store: &EmbeddedStore, ids: &[ApprovalId]) -> Vec<Option<ApprovalRecord>> {
    let found = store.approvals(ids).await.unwrap();
    found.into_iter().map(|found| found.readable().unwrap()).collect()
}

/// The suspension of a task that waits for these requests, held by `a` for a minute.
fn suspend_request(task: &TaskId, number: u64, requests: Vec<ApprovalRequest>) -> SuspendRequest {
    SuspendRequest {
        id: task.clone(),
        number,
        digest: TaskDigest::from("one".to_owned()),
        holder: "a".into(),
        lease: Duration::from_secs(60),
        message: Envelope::new("t", Arguments::default()).encode(),
        queue: "q".into(),
        requests,
        alarm: None,
        abandoned: Vec::new(),
    }
}
