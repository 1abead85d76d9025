//! Celery's remote control, as far as it is spoken here: `ping`, `revoke` and `terminate`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::Crew;
use crate::backend::Revocation;
use crate::protocol::control::{Answer, Command, Request};
use crate::task::{Revoke, TaskId};

/// How long the store may take to make a revocation durable before the caller is told that it is
/// not.
const STORE_DEADLINE: Duration = Duration::from_secs(5);

/// Requests that are performed together.
const AT_ONCE: usize = 500;

/// Answers what is broadcast to workers, until the broker is closed. Nothing that comes there can
/// end it, or touches the channels of tasks.
pub(super) fn listen(crew: &Arc<Crew>) {
    let mut control = crew.backends.broker.control(&crew.name);
    let crew = Arc::clone(crew);
    tokio::spawn(async move {
        while let Some(message) = control.next().await {
            let mut requests = vec![message];
            while requests.len() < AT_ONCE
                && let Some(message) = control.ready()
            {
                requests.push(message);
            }
            let requests = requests.iter().filter_map(|message| read(&message.body));
            let requests = requests.filter(|request| request.is_for(&crew.name));
            for answer in perform(&crew, requests.collect()).await {
                control.answers(answer);
            }
        }
    });
}

fn read(body: &[u8]) -> Option<Request> {
    let refused = |why: &String| warn!(bytes = body.len(), "a control message was refused: {why}");
    Request::read(body).inspect_err(refused).ok()
}

/// Does what is asked, the revocations of all requests in one step of the store; returns the answers.
async fn perform(crew: &Crew, requests: Vec<Request>) -> Vec<Option<Answer>> {
    let mut revocations: Vec<(Request, Vec<TaskId>, Revoke)> = Vec::new();
    let mut answers = Vec::new();
    for request in requests {
        let value = match request.command() {
            Command::Ping => json!({ "ok": "pong" }),
            Command::Revoke { ids, revoke } => {
                revocations.push((request, ids, revoke));
                continue;
            }
            Command::Unknown(method) => json!({ "error": format!("KeyError('{method}')") }),
            Command::Malformed(why) => json!({ "error": why }),
        };
        answers.push(request.answer(&crew.name, value));
    }
    for wanted in [Revoke::IfQueued, Revoke::EvenRunning] {
        let of_kind = revocations.iter().filter(|(_, _, revoke)| *revoke == wanted);
        let ids: Vec<_> = of_kind.clone().flat_map(|(_, ids, _)| ids.iter().cloned()).collect();
        if ids.is_empty() {
            continue;
        }
        let refused = revoke_all(crew, &ids, wanted).await;
        answers.extend(of_kind.map(|(request, ids, _)| {
            request.answer(&crew.name, answer_to(ids, refused.as_deref()))
        }));
    }
    answers
}

/// Each worker that hears a revocation makes it durable: one that starts later heard nothing. Returns
/// why it is not.
async fn revoke_all(crew: &Crew, ids: &[TaskId], revoke: Revoke) -> Option<String> {
    info!(tasks = ids.len(), ?revoke, "revoked by remote control");
    debug!(?ids, "revoked by remote control");
    let marks = ids.iter().map(|id| Revocation { id: id.clone(), revoke });
    crew.revoked.note(marks.collect());
    let stored = timeout(STORE_DEADLINE, crew.backends.store.revoke(ids, revoke)).await;
    let why = match stored {
        Ok(Ok(())) => return None,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the store did not answer within {} s", STORE_DEADLINE.as_secs()),
    };
    warn!(tasks = ids.len(), "revocations are known here only, and will be forgotten: {why}");
    Some(why)
}

fn answer_to(ids: &[TaskId], refused: Option<&str>) -> Value {
    if let Some(why) = refused {
        let count = ids.len();
        return json!({ "error": format!("{count} revoked on this worker only, and not durably: {why}") });
    }
    let ids: Vec<_> = ids.iter().map(|id| format!("'{id}'")).collect();
    json!({ "ok": format!("tasks {{{}}} flagged as revoked", ids.join(", ")) })
}
