//! `countersign health`: whether both servers answer, and whether queues are consumed.

use std::process::ExitCode;

use clap::Args;
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::timeout;

use super::output::Format;
use super::{exit, queues};
use crate::client::Client;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  countersign health
  countersign health -Q billing -Q mail && deploy

Exit codes: 0 all is well; 69 something is not, and the output says what. Whether one worker is ready
says its own binary, on its own machine: `demo health`.")]
pub(super) struct Health {
    /// This queue must have a consumer; repeat it for more
    #[arg(short = 'Q', long = "queue")]
    queues: Vec<String>,
}

impl Health {
    pub(super) async fn perform(self, client: &Client, format: Format) -> ExitCode {
        let patience = client.config().connect_timeout;
        let silent = format!("no answer within {} s", patience.as_secs_f64());
        let backends = client.backends();
        let (broker, store) = tokio::join!(
            timeout(patience, backends.broker.connected()),
            timeout(patience, backends.store.connected()),
        );
        let unreachable = |why: Option<String>| why.unwrap_or_else(|| silent.clone());
        let (broker_error, store_error) =
            (backends.broker.connect_error(), backends.store.connect_error());
        let mut checks = vec![
            ("broker".to_owned(), broker.err().map(|_| unreachable(broker_error))),
            ("store".to_owned(), store.err().map(|_| unreachable(store_error))),
        ];
        let consumed = self.queues.iter().map(|queue| async move {
            let fault = match backends.broker.inspect(queue).await {
                Ok(Some(state)) if state.consumers > 0 => None,
                Ok(Some(_)) => Some("nobody consumes it".to_owned()),
                Ok(None) => Some("it does not exist".to_owned()),
                Err(error) => Some(error.to_string()),
            };
            (format!("queue {queue}"), fault)
        });
        checks.extend(join_all(consumed).await);
        if checks.iter().all(|(_, fault)| fault.is_none()) {
            let waiting = queues::unconsumed(client).await.into_iter();
            let waiting = waiting.filter(|(queue, _)| !self.queues.contains(queue));
            checks.extend(waiting.map(|(queue, ready)| {
                (
                    format!("queue {queue}"),
                    Some(format!("{ready} tasks wait, and no worker consumes it")),
                )
            }));
        }
        let healthy = checks.iter().all(|(_, fault)| fault.is_none());
        let record = |(check, fault): (String, Option<String>)| json!({ "check": check, "healthy": fault.is_none(), "fault": fault });
        let records: Vec<_> = checks.into_iter().map(record).collect();
        format.print_list(&["check", "healthy", "fault"], &records);
        if healthy { ExitCode::SUCCESS } else { ExitCode::from(exit::UNAVAILABLE) }
    }
}
