//! `countersign approvals`: lists approval requests, and sends decisions.

use std::collections::HashSet;
use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use countersign::approval::{ApprovalId, ApprovalStatus, DecideResult, Decision, DecisionKind};
use countersign::backend::ApprovalRecord;
use countersign::cli::signals::shutdown_signal;
use countersign::cli::{exit, streams};
use countersign::client::{Client, Pending};
use countersign::error::Error;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::audit::Audit;
use crate::duration::duration;
use crate::ids;
use crate::output::{Format, Records};
use crate::request::{prompt, record};

const EXAMPLES: &str = "Examples:
  countersign approvals list
  countersign approvals approve ap_2f1c6a... --by ana
  countersign approvals approve ap_2f1c6a... --by ci --yes --digest 9b74c98...
  countersign approvals reject ap_2f1c6a... --by ana -m 'not without a receipt'
  countersign approvals serve
  countersign approvals audit --export-seal audit.seal
  countersign approvals audit --verify --seal audit.seal

Exit codes: 0 the decision was accepted, or the audit is unchanged; 1 otherwise, with the reason in the
output.";
/// The fields that are shown first.
const FIRST: [&str; 7] = ["id", "state", "title", "summary", "action", "risk", "deadline"];
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum Approvals {
    /// List open requests, those with the nearest deadlines first
    List {
        /// List at most this many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show a request, its status, votes and decision
    Get {
        /// The approval's id, or the beginning of it
        id: String,
    },
    /// Approve a request. Shows the request, and prompts for a confirmation
    Approve(Approve),
    /// Reject a request
    Reject {
        #[command(flatten)]
        person: Person,
        /// The reason, which the task receives
        #[arg(short, long)]
        message: String,
    },
    /// Set the deadline of a request to this long from now. Allowed for its approvers and the names in
    /// approvals.operators. A deadline is never moved earlier
    Extend {
        #[command(flatten)]
        person: Person,
        /// The time from now, for example 2h
        #[arg(value_parser = duration)]
        time: Duration,
    },
    /// Withdraw a request; its task gets the outcome "withdrawn"
    Withdraw {
        #[command(flatten)]
        person: Person,
    },
    /// Show recent decisions and who made them, newest first; or verify that they are unchanged
    Audit(Audit),
    /// Print new requests as they arrive, and again when 50 % and 90 % of their time have passed, until
    /// stopped
    Watch,
    /// Apply the policies of the configuration, warn of deadlines, and seal the audit, until stopped. Run one
    /// or more, as a service
    #[command(alias = "clerk")]
    Serve,
}

#[derive(Debug, Args)]
pub(crate) struct Person {
    /// The approval's id, or the beginning of it
    id: String,
    /// The name of the person who decides
    #[arg(long, env = "USER")]
    by: String,
}

#[derive(Debug, Args)]
pub(crate) struct Approve {
    #[command(flatten)]
    person: Person,
    /// A comment for the audit
    #[arg(short, long)]
    message: Option<String>,
    /// Approve these arguments in place of the requested ones
    #[arg(long, value_name = "JSON")]
    args: Option<String>,
    /// Do not prompt for a confirmation; needs the digest of the request
    #[arg(long, requires = "digest")]
    yes: bool,
    /// The digest that `get` shows: if the request has changed since then, nothing is approved
    #[arg(long, value_name = "DIGEST")]
    digest: Option<String>,
}

impl Approvals {
    pub(crate) async fn perform(self, client: &Client, format: Format) -> Result<ExitCode, Error> {
        match self {
            Self::List { limit } => {
                let records: Vec<_> = pending(client, limit).await?.collect();
                let names = ["id", "title", "risk", "deadline", "requester", "task"];
                format.print_list(&names, &records);
                streams::note_if_full(records.len(), limit);
                Ok(ExitCode::SUCCESS)
            }
            Self::Get { id } => {
                format.print_ordered(&FIRST, &record(&read(client, &id).await?));
                Ok(ExitCode::SUCCESS)
            }
            Self::Approve(approve) => approve.perform(client, format).await,
            Self::Reject { person, message } => {
                let approval = read(client, &person.id).await?;
                decide(client, &approval.reject(&person.by, message), format).await
            }
            Self::Withdraw { person } => {
                let approval = read(client, &person.id).await?;
                decide(client, &approval.withdraw(&person.by), format).await
            }
            Self::Extend { person: Person { id, by }, time } => {
                let id = read(client, &id).await?.request.id;
                let result = client.extend_approval(&id, &by, time).await?;
                Ok(print_result(&id, &result, format))
            }
            Self::Audit(audit) => audit.perform(client, format).await,
            Self::Watch => watch(client, format).await,
            Self::Serve => {
                client.run_approval_service(shutdown_signal()).await;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl Approve {
    async fn perform(self, client: &Client, format: Format) -> Result<ExitCode, Error> {
        let Self { person: Person { id, by }, message, args, yes, digest } = self;
        let approval = read(client, &id).await?;
        let mut decision = match args.as_deref().map(serde_json::from_str::<Value>) {
            None => approval.approve(&by),
            Some(Ok(args)) => approval.approve_with(&by, args),
            Some(Err(error)) => return Ok(usage(&format!("--args is not JSON: {error}"))),
        };
        decision.reason = message;
        if let Some(digest) = digest {
            decision.digest = digest.into();
        }
        if !yes {
            if let Some(result) = closed_result(&approval) {
                return Ok(print_result(&approval.request.id, &result, format));
            }
            if !std::io::stdin().is_terminal() {
                return Ok(usage(
                    "standard input is not a terminal, so the decision cannot be confirmed: pass --yes and \
                     --digest",
                ));
            }
            streams::prompt(prompt(&approval, &decision));
            if !is_confirmed() {
                streams::note("countersign: nothing was approved");
                return Ok(ExitCode::from(exit::FAILURE));
            }
        }
        decide(client, &decision, format).await
    }
}

/// Returns the result that a decision would get if the request is no longer open.
fn closed_result(approval: &ApprovalRecord) -> Option<DecideResult> {
    match (approval.status, &approval.decision) {
        (ApprovalStatus::Open(_), _) => None,
        (ApprovalStatus::Expired(at), _) => Some(DecideResult::Expired { at }),
        (ApprovalStatus::Decided(DecisionKind::Withdraw), _)
        | (ApprovalStatus::Decided(_), None) => Some(DecideResult::Withdrawn),
        (ApprovalStatus::Decided(choice), Some(Decision { by, .. })) => {
            Some(DecideResult::AlreadyDecided { by: by.clone(), at: approval.at, choice })
        }
        // Send the decision for a status that this command does not know: the store's result is
        // authoritative.
        _ => None,
    }
}

async fn read(client: &Client, id: &str) -> Result<ApprovalRecord, Error> {
    client.approval(&ids::approval(client, id).await?).await
}

async fn decide(client: &Client, decision: &Decision, format: Format) -> Result<ExitCode, Error> {
    let result = client.decide(decision).await?;
    Ok(print_result(&decision.approval, &result, format))
}

fn print_result(id: &ApprovalId, result: &DecideResult, format: Format) -> ExitCode {
    let record = json!({ "id": id, "taken": result.is_accepted(), "answer": result.to_string() });
    format.print_ordered(&["id", "taken", "answer"], &record);
    ExitCode::from(if result.is_accepted() { 0 } else { exit::FAILURE })
}

fn is_confirmed() -> bool {
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.is_ok() && matches!(line.trim(), "y" | "Y" | "yes")
}

fn usage(fault: &str) -> ExitCode {
    streams::note(format_args!("countersign: {fault}"));
    ExitCode::from(exit::USAGE)
}

/// Returns the open requests; for an unreadable request, the reason.
async fn pending(client: &Client, limit: usize) -> Result<impl Iterator<Item = Value>, Error> {
    let Pending { requests, unreadable } = client.pending_approvals(limit).await?;
    let unreadable = unreadable
        .into_iter()
        .map(|(id, why)| json!({ "id": id, "state": "unreadable", "title": why }));
    Ok(requests.into_iter().map(|approval| record(&approval)).chain(unreadable))
}

async fn watch(client: &Client, format: Format) -> Result<ExitCode, Error> {
    let mut known = HashSet::new();
    let mut printed = Records::new(format);
    let mut stop = std::pin::pin!(shutdown_signal());
    while !streams::is_broken() {
        let records: Vec<_> = pending(client, 1000).await?.collect();
        let state = |record: &Value| (record["id"].to_string(), record["warned"].to_string());
        for record in records.iter().filter(|record| !known.contains(&state(record))) {
            printed.print(&if format == Format::Table { brief(record) } else { record.clone() });
        }
        known = records.iter().map(state).collect();
        if timeout(WATCH_INTERVAL, &mut stop).await.is_ok() {
            break;
        }
    }
    printed.end();
    Ok(ExitCode::SUCCESS)
}

/// Returns the fields of a request that fit on a line.
fn brief(record: &Value) -> Value {
    let warned = record["warned"].as_str().map(|warned| format!("({warned})"));
    json!([record["deadline"], record["id"], record["risk"], record["title"], warned])
}
