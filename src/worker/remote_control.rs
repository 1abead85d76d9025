//! The supported part of Celery's remote control: `ping`, `revoke` and `terminate`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::state::WorkerState;
use crate::backend::Revocation;
use crate::protocol::control::{Command, ControlReply, Request};
use crate::task::{Revoke, TaskId};

/// How long the store may take to make a revocation durable, before the reply reports that it is not.
const STORE_DEADLINE: Duration = Duration::from_secs(5);

/// The number of requests that are performed together.
const MAX_BATCH: usize = 500;

/// Replies to the commands that are broadcast to workers, until the broker is closed. No command can end
/// it, and it does not use the channels of tasks.
pub(super) fn listen(state: &Arc<WorkerState>) {
    let mut control = state.backends.broker.control(&state.name);
    let state = Arc::clone(state);
    tokio::spawn(async move {
        while let Some(message) = control.next().await {
            let mut requests = vec![message];
            while requests.len() < MAX_BATCH
                && let Some(message) = control.ready()
            {
                requests.push(message);
            }
            let requests = requests.iter().filter_map(|message| decode(&message.body));
            let requests = requests.filter(|request| request.is_for(&state.name));
            for reply in perform(&state, requests.collect()).await {
                control.reply(reply);
            }
        }
    });
}

fn decode(body: &[u8]) -> Option<Request> {
    let refused =
        |reason: &String| warn!(bytes = body.len(), "a control message was refused: {reason}");
    Request::read(body).inspect_err(refused).ok()
}

/// Performs the requests, the revocations of all of them in one step of the store; returns the replies.
async fn perform(state: &WorkerState, requests: Vec<Request>) -> Vec<Option<ControlReply>> {
    let mut revocations: Vec<(Request, Vec<TaskId>, Revoke)> = Vec::new();
    let mut replies = Vec::new();
    for request in requests {
        let value = match request.command() {
            Command::Ping => json!({ "ok": "pong" }),
            Command::Revoke { ids, revoke } => {
                revocations.push((request, ids, revoke));
                continue;
            }
            Command::Unknown(method) => json!({ "error": format!("KeyError('{method}')") }),
            Command::Malformed(reason) => {
                warn!("a control request was refused: {reason}");
                json!({ "error": reason })
            }
        };
        replies.push(request.answer(&state.name, value));
    }
    for wanted in [Revoke::IfQueued, Revoke::Terminate] {
        let of_kind = revocations.iter().filter(|(_, _, revoke)| *revoke == wanted);
        let ids: Vec<_> = of_kind.clone().flat_map(|(_, ids, _)| ids.iter().cloned()).collect();
        if ids.is_empty() {
            continue;
        }
        let refused = revoke_all(state, &ids, wanted).await;
        replies.extend(of_kind.map(|(request, ids, _)| {
            request.answer(&state.name, reply_value(ids, refused.as_deref()))
        }));
    }
    replies
}

/// Revokes the tasks in this worker and in the store. Every worker that receives a revocation makes it
/// durable, because a worker that starts later did not receive it. Returns the reason if it is not
/// durable.
async fn revoke_all(state: &WorkerState, ids: &[TaskId], revoke: Revoke) -> Option<String> {
    info!(tasks = ids.len(), ?revoke, "revoked by remote control");
    debug!(?ids, "revoked by remote control");
    let marks = ids.iter().map(|id| Revocation { id: id.clone(), revoke });
    state.revoked.add(marks.collect());
    let stored = timeout(STORE_DEADLINE, state.backends.store.revoke(ids, revoke)).await;
    let reason = match stored {
        Ok(Ok(())) => return None,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the store did not answer within {} s", STORE_DEADLINE.as_secs()),
    };
    warn!(
        tasks = ids.len(),
        "revocations are known to this worker only, and lost when it ends: {reason}"
    );
    Some(reason)
}

fn reply_value(ids: &[TaskId], refused: Option<&str>) -> Value {
    if let Some(reason) = refused {
        let count = ids.len();
        return json!({ "error": format!("{count} revoked on this worker only, and not durably: {reason}") });
    }
    let ids: Vec<_> = ids.iter().map(|id| format!("'{id}'")).collect();
    json!({ "ok": format!("tasks {{{}}} flagged as revoked", ids.join(", ")) })
}
