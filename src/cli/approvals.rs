//! `countersign approvals`: what people are asked, and what they say to it.

use std::collections::HashSet;
use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::audit::Audit;
use super::output::{Format, plain};
use super::request::{prompt, record};
use super::signals::shutdown_signal;
use super::worker::duration;
use super::{exit, streams};
use crate::approval::{Answer, ApprovalId, Choice, Decision, Standing};
use crate::backend::Asked;
use crate::client::{Client, Pending};
use crate::error::Error;

const EXAMPLES: &str = "Examples:
  countersign approvals list
  countersign approvals approve ap_2f1c6a... --by ana
  countersign approvals approve ap_2f1c6a... --by ci --yes --digest 9b74c98...
  countersign approvals reject ap_2f1c6a... --by ana -m 'not without a receipt'
  countersign approvals clerk
  countersign approvals audit --export-seal audit.seal
  countersign approvals audit --verify --seal audit.seal

Exit codes: 0 the decision was taken, the audit is unchanged; 1 not so, and the answer says why.";
const WATCH_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Approvals {
    /// List open questions, those with the nearest deadlines first
    List {
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show a question, and what was said to it
    Get {
        /// The approval's id
        id: String,
    },
    /// Say yes. Shows what is asked, and asks for a confirmation
    Approve(Approve),
    /// Say no
    Reject {
        #[command(flatten)]
        person: Person,
        /// Why: the task is told
        #[arg(short, long)]
        message: String,
    },
    /// Give a request this long from now: its approvers may, and the names in approvals.operators.
    /// A deadline is never brought forward
    Extend {
        #[command(flatten)]
        person: Person,
        /// For example 2h
        #[arg(value_parser = duration)]
        time: Duration,
    },
    /// Take a question back: its task is told that it was withdrawn
    Withdraw {
        #[command(flatten)]
        person: Person,
    },
    /// Show what was decided lately, and by whom, newest first; or verify that it is unchanged
    Audit(Audit),
    /// Print questions as they are asked, and again when half and most of their time has passed,
    /// until it is stopped
    Watch,
    /// Decide what the policies of the configuration decide, warn of deadlines, seal the audit,
    /// until it is stopped. Run one or more, as a service
    Clerk,
}

#[derive(Debug, Args)]
pub(super) struct Person {
    /// The approval's id
    id: String,
    /// Who decides
    #[arg(long, env = "USER")]
    by: String,
}

#[derive(Debug, Args)]
pub(super) struct Approve {
    #[command(flatten)]
    person: Person,
    /// A remark for the audit
    #[arg(short, long)]
    message: Option<String>,
    /// Approve these arguments instead of those that were asked for
    #[arg(long, value_name = "JSON")]
    args: Option<String>,
    /// Do not ask for a confirmation; needs the digest of what was looked at
    #[arg(long, requires = "digest")]
    yes: bool,
    /// The digest that `get` shows: if what is asked has changed since, nothing is approved
    #[arg(long, value_name = "DIGEST")]
    digest: Option<String>,
}

impl Approvals {
    pub(super) async fn perform(self, client: &Client, format: Format) -> Result<ExitCode, Error> {
        match self {
            Self::List { limit } => {
                let records: Vec<_> = pending(client, limit).await?.collect();
                let names = ["id", "title", "risk", "deadline", "requester", "task"];
                format.print_list(&names, &records);
                Ok(ExitCode::SUCCESS)
            }
            Self::Get { id } => {
                format.print(&[record(&read(client, &id).await?)]);
                Ok(ExitCode::SUCCESS)
            }
            Self::Approve(approve) => approve.perform(client, format).await,
            Self::Reject { person, message } => {
                let asked = read(client, &person.id).await?;
                decide(client, &asked.reject(&person.by, message), format).await
            }
            Self::Withdraw { person } => {
                let asked = read(client, &person.id).await?;
                decide(client, &asked.withdraw(&person.by), format).await
            }
            Self::Extend { person: Person { id, by }, time } => {
                let asked = read(client, &id).await?;
                let answer = client.extend_approval(&asked.question.id, &by, time).await?;
                Ok(told(&asked.question.id, &answer, format))
            }
            Self::Audit(audit) => audit.perform(client, format).await,
            Self::Watch => watch(client, format).await,
            Self::Clerk => {
                client.clerk(shutdown_signal()).await;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl Approve {
    async fn perform(self, client: &Client, format: Format) -> Result<ExitCode, Error> {
        let Self { person: Person { id, by }, message, args, yes, digest } = self;
        let asked = read(client, &id).await?;
        let mut decision = match args.as_deref().map(serde_json::from_str::<Value>) {
            None => asked.approve(&by),
            Some(Ok(args)) => asked.approve_with(&by, args),
            Some(Err(error)) => return Ok(usage(&format!("--args is no JSON: {error}"))),
        };
        decision.reason = message;
        if let Some(digest) = digest {
            decision.digest = digest.into();
        }
        if !yes {
            if let Some(answer) = over(&asked) {
                return Ok(told(&asked.question.id, &answer, format));
            }
            if !std::io::stdin().is_terminal() {
                return Ok(usage("nobody can confirm it here: say --yes and --digest"));
            }
            streams::prompt(prompt(&asked, &decision));
            if !is_confirmed() {
                streams::note("countersign: nothing was approved");
                return Ok(ExitCode::from(exit::FAILURE));
            }
        }
        decide(client, &decision, format).await
    }
}

/// What a decision would be answered, if the request is not open any more.
fn over(asked: &Asked) -> Option<Answer> {
    match (asked.standing, &asked.decision) {
        (Standing::Open(_), _) => None,
        (Standing::Expired(at), _) => Some(Answer::Expired { at }),
        (Standing::Decided(Choice::Withdraw), _) | (Standing::Decided(_), None) => {
            Some(Answer::Withdrawn)
        }
        (Standing::Decided(choice), Some(Decision { by, .. })) => {
            Some(Answer::AlreadyDecided { by: by.clone(), at: asked.at, choice })
        }
    }
}

async fn read(client: &Client, id: &str) -> Result<Asked, Error> {
    match ApprovalId::parse(id) {
        Some(id) => client.approval(&id).await,
        None => {
            let told = format!("{}: an approval's id is ap_ and 40 digits", plain(id));
            Err(Error::from(crate::error::Kind::Decision(told)))
        }
    }
}

async fn decide(client: &Client, decision: &Decision, format: Format) -> Result<ExitCode, Error> {
    let answer = client.decide(decision).await?;
    Ok(told(&decision.approval, &answer, format))
}

fn told(id: &ApprovalId, answer: &Answer, format: Format) -> ExitCode {
    format.print(&[json!({ "id": id, "taken": answer.is_taken(), "answer": answer.to_string() })]);
    ExitCode::from(if answer.is_taken() { 0 } else { exit::FAILURE })
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

/// The open questions; of one that cannot be read, why.
async fn pending(client: &Client, limit: usize) -> Result<impl Iterator<Item = Value>, Error> {
    let Pending { asked, unreadable } = client.pending_approvals(limit).await?;
    let unreadable = unreadable
        .into_iter()
        .map(|(id, why)| json!({ "id": id, "state": "unreadable", "title": why }));
    Ok(asked.into_iter().map(|asked| record(&asked)).chain(unreadable))
}

async fn watch(client: &Client, format: Format) -> Result<ExitCode, Error> {
    let mut known = HashSet::new();
    loop {
        let records: Vec<_> = pending(client, 1000).await?.collect();
        let told = |record: &Value| (record["id"].to_string(), record["warned"].to_string());
        for record in records.iter().filter(|record| !known.contains(&told(record))) {
            format.print_line(record);
        }
        known = records.iter().map(told).collect();
        tokio::time::sleep(WATCH_PAUSE).await;
    }
}
