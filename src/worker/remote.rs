//! Celery's remote control, as far as it is spoken here: `ping`, `revoke` and `terminate`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::Crew;
use crate::backend::Revocation;
use crate::protocol::control::{Command, Request};
use crate::task::{Revoke, TaskId};

/// How long the store may take to make a revocation durable before the caller is told that it is
/// not.
const STORE_DEADLINE: Duration = Duration::from_secs(5);

/// Answers what is broadcast to workers, until the broker is closed. Nothing that comes there can
/// end it, or touches the channels of tasks.
pub(super) fn listen(crew: &Arc<Crew>) {
    let mut control = crew.backends.broker.control(&crew.name);
    let crew = Arc::clone(crew);
    tokio::spawn(async move {
        while let Some(message) = control.next().await {
            match Request::read(&message.body) {
                Ok(request) if request.is_for(&crew.name) => {
                    let value = perform(&crew, request.command()).await;
                    control.answers(request.answer(&crew.name, value));
                }
                Ok(_) => {}
                Err(why) => debug!("a control message was not understood: {why}"),
            }
        }
    });
}

async fn perform(crew: &Crew, command: Command) -> Value {
    match command {
        Command::Ping => json!({ "ok": "pong" }),
        Command::Revoke { ids, revoke } => revoke_all(crew, ids, revoke).await,
        Command::Unknown(method) => json!({ "error": format!("KeyError('{method}')") }),
        Command::Malformed(why) => json!({ "error": why }),
    }
}

/// Each worker that hears a revocation makes it durable: one that starts later heard nothing.
async fn revoke_all(crew: &Crew, ids: Vec<TaskId>, revoke: Revoke) -> Value {
    info!(?ids, ?revoke, "revoked by remote control");
    let marks = ids.iter().map(|id| Revocation { id: id.clone(), revoke });
    crew.revoked.note(marks.collect());
    let stored = timeout(STORE_DEADLINE, crew.backends.store.revoke(&ids, revoke)).await;
    let why = match stored {
        Ok(Ok(())) => {
            let ids: Vec<_> = ids.iter().map(|id| format!("'{id}'")).collect();
            return json!({ "ok": format!("tasks {{{}}} flagged as revoked", ids.join(", ")) });
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the store did not answer within {} s", STORE_DEADLINE.as_secs()),
    };
    warn!("a revocation is known here only, and will be forgotten: {why}");
    json!({ "error": format!("revoked on this worker only, and not durably: {why}") })
}
