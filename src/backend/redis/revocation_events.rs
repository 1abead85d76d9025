//! The channel that announces new marks on revoked tasks.

use serde::Deserialize;

use crate::backend::Revocation;
use crate::task::{Revoke, TaskId};

/// The channel that announces new marks.
pub(super) const CHANNEL: &str = "cs:revoked";

/// An event about marks from the subscription.
#[derive(Clone, Debug)]
pub(super) enum RevocationEvent {
    /// New marks.
    Marks(Vec<Revocation>),
    /// Marks may have been missed: read all.
    ReadAll,
}

/// The payload of the channel.
#[derive(Debug, Deserialize)]
struct Published {
    ids: Vec<String>,
    terminate: bool,
}

/// Decodes a payload. Returns `None` for any other payload.
pub(super) fn parse_event(payload: &[u8]) -> Option<RevocationEvent> {
    let Published { ids, terminate } = serde_json::from_slice(payload).ok()?;
    let revoke = if terminate { Revoke::Terminate } else { Revoke::IfQueued };
    let marks = ids.into_iter().map(|id| Revocation { id: TaskId::from(id), revoke });
    Some(RevocationEvent::Marks(marks.collect()))
}
