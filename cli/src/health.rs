//! `countersign health`: checks whether both servers answer, and whether queues are consumed.

use std::process::ExitCode;

use clap::Args;
use countersign::cli::exit;
use countersign::client::Client;
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::timeout;

use crate::output::Format;
use crate::queues;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  countersign health
  countersign health -Q billing -Q mail && deploy

Exit codes: 0 all checks passed; 69 a check failed, and the output shows which. To check whether one
worker is ready, run its own binary on its machine: `demo health`.")]
pub(crate) struct Health {
    /// Require a consumer for this queue; may be repeated [default: every known queue with waiting tasks must
    /// have a consumer]
    #[arg(short = 'Q', long = "queue")]
    queues: Vec<String>,
}

impl Health {
    pub(crate) async fn perform(self, client: &Client, format: Format) -> ExitCode {
        let limit = client.config().connect_timeout;
        let silent = format!("no reply within {} s", limit.as_secs_f64());
        let backends = client.backends();
        let (broker, store) = tokio::join!(
            timeout(limit, backends.broker.connected()),
            timeout(limit, backends.store.connected()),
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
                Ok(Some(_)) => Some("no worker consumes it".to_owned()),
                Ok(None) => Some("it does not exist".to_owned()),
                Err(error) => Some(error.to_string()),
            };
            (format!("queue {queue}"), fault)
        });
        checks.extend(join_all(consumed).await);
        let is_up = checks.iter().all(|(_, fault)| fault.is_none());
        if is_up && !self.queues.is_empty() {
            // The user has chosen the queues: print a note about other unconsumed queues.
            queues::warn_unconsumed(client).await;
        } else if is_up {
            let waiting = queues::unconsumed(client).await.into_iter();
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
        format.print_findings(&["check", "healthy", "fault"], &records);
        if healthy { ExitCode::SUCCESS } else { ExitCode::from(exit::UNAVAILABLE) }
    }
}
