//! `countersign failures`: manages the messages that no worker could run.

use std::io::IsTerminal;
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use countersign::cli::{exit, streams};
use countersign::client::{Client, DeadLetter, DeadLetters, Replay};
use countersign::error::Error;
use countersign::task::TaskId;
use serde_json::{Value, json};

use crate::output::Format;
use crate::{ids, progress, queues, route};

const EXAMPLES: &str = "Examples:
  countersign failures list -Q billing
  countersign failures show 6f1f3c1e-6d9e-4f0f-9e3b-2f0a4c7d8e9f -Q billing -o json
  countersign failures replay --all -Q billing
  countersign failures purge 6f1f3c1e-6d9e-4f0f-9e3b-2f0a4c7d8e9f -Q billing
  countersign failures purge --all -Q billing        # prompts; with --yes it does not";

#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum Failures {
    /// List the oldest dead letters: their tasks, and the reasons
    List {
        /// The queue [default: every known queue]
        #[arg(short = 'Q', long)]
        queue: Option<String>,
        /// List at most this many of each queue
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show a dead letter and its original message
    Show {
        /// The task's id, or the beginning of it
        id: String,
        /// The queue that the task was in
        #[arg(short = 'Q', long)]
        queue: String,
    },
    /// Send dead letters again under their ids. Skips tasks that have succeeded since then
    Replay(Chosen),
    /// Delete dead letters. Their tasks stay failed. `--all` prompts for a confirmation
    Purge(Purge),
}

#[derive(Debug, Args)]
pub(crate) struct Chosen {
    /// The tasks' ids, or the beginnings of them
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// Select all dead letters of the queue
    #[arg(long)]
    all: bool,
    /// The queue that the tasks were in
    #[arg(short = 'Q', long)]
    queue: String,
}

#[derive(Debug, Args)]
pub(crate) struct Purge {
    #[command(flatten)]
    chosen: Chosen,
    /// Delete all without a confirmation
    #[arg(long)]
    yes: bool,
}

impl Failures {
    pub(crate) async fn perform(self, client: &Client, format: Format) -> Result<ExitCode, Error> {
        match self {
            Self::List { queue, limit } => list(client, queue, limit, format).await,
            Self::Show { id, queue } => show(&client.dead_letters(&queue), id, format).await,
            Self::Replay(chosen) if chosen.all => {
                route::warn_if_unconsumed(client, &chosen.queue).await;
                replay_all(&client.dead_letters(&chosen.queue), format).await
            }
            Self::Replay(Chosen { ids, queue, .. }) => {
                route::warn_if_unconsumed(client, &queue).await;
                replay(&client.dead_letters(&queue), ids, format).await
            }
            Self::Purge(Purge { chosen, yes }) => {
                let letters = client.dead_letters(&chosen.queue);
                if chosen.all && !yes {
                    let count = letters.count().await?;
                    let what = format!("{count} dead letters of {} are deleted", chosen.queue);
                    if let Some(code) = refusal(&what) {
                        return Ok(code);
                    }
                }
                purge(&letters, chosen, format).await
            }
        }
    }
}

async fn list(
    client: &Client,
    queue: Option<String>,
    limit: usize,
    format: Format,
) -> Result<ExitCode, Error> {
    let queues = match queue {
        Some(queue) => [queue].into(),
        None => queues::known(client).await,
    };
    let (mut records, mut failed, mut is_answered) = (Vec::new(), Vec::new(), false);
    for queue in queues {
        match client.dead_letters(&queue).browse(limit).await {
            Ok(letters) => {
                is_answered = true;
                records.extend(letters.iter().map(record));
            }
            Err(error) => failed.push((queue, error)),
        }
    }
    queues::note_failed(failed, !is_answered)?;
    let names = ["id", "task", "queue", "attempt", "died_at", "reason"];
    format.print_list(&names, &records);
    queues::warn_unconsumed(client).await;
    Ok(ExitCode::SUCCESS)
}

fn record(letter: &DeadLetter) -> Value {
    json!({
        "id": letter.id,
        "task": letter.task,
        "queue": letter.queue,
        "attempt": letter.attempt,
        "attempts": letter.attempts,
        "attempts_left_out": letter.attempts_left_out,
        "died_at": letter.died_at,
        "reason": letter.reason,
    })
}

async fn show(letters: &DeadLetters, id: String, format: Format) -> Result<ExitCode, Error> {
    let Some(letter) = letters.find(&ids::dead_letter(letters, &id).await?).await? else {
        return Ok(absent(letters, &id));
    };
    let mut shown = record(&letter);
    let message = &letter.message;
    shown["headers"] = Value::Object(message.headers.clone().into());
    shown["content_type"] = message.properties.content_type.clone().into();
    match std::str::from_utf8(&message.body) {
        Ok(text) => shown["body"] = text.into(),
        Err(_) => shown["body_base64"] = STANDARD.encode(&message.body).into(),
    }
    if format == Format::Table {
        // Print them as lines of their own: a single cell would be unreadable.
        if let Some(fields) = shown.as_object_mut() {
            fields.retain(|name, _| !name.starts_with("attempts"));
        }
        format.print_ordered(&["id", "task", "queue", "reason", "died_at"], &shown);
        format.print_findings(&["number", "at", "error", "message", "worker"], &attempts(&letter));
    } else {
        format.print(&shown);
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns a record for each failed attempt, and one for the number of omitted attempts.
fn attempts(letter: &DeadLetter) -> Vec<Value> {
    let mut lines: Vec<_> = letter.attempts.iter().map(|attempt| json!(attempt)).collect();
    if letter.attempts_left_out > 0 {
        let message = format!("{} more attempts failed", letter.attempts_left_out);
        lines.insert(lines.len() / 2, json!({ "message": message }));
    }
    lines
}

async fn replay_all(letters: &DeadLetters, format: Format) -> Result<ExitCode, Error> {
    let bar = progress::bar(letters.count().await?, "replaying");
    let mut records = Vec::new();
    let ended = letters.replay_all(|id, replay| {
        bar.inc(1);
        records.push(replay_record(id, replay));
    });
    let ended = ended.await;
    bar.finish_and_clear();
    // Print the completed replays, also after an error.
    format.print_list(&["id", "replayed", "state"], &records);
    ended.map(|()| ExitCode::SUCCESS)
}

async fn replay(
    letters: &DeadLetters,
    ids: Vec<String>,
    format: Format,
) -> Result<ExitCode, Error> {
    let (mut records, mut code) = (Vec::new(), ExitCode::SUCCESS);
    for id in ids {
        let id = ids::dead_letter(letters, &id).await?;
        match letters.replay(&id).await? {
            Some(replay) => {
                if replay != Replay::Sent {
                    code = ExitCode::from(exit::FAILURE);
                }
                records.push(replay_record(&id, &replay));
            }
            None => code = absent(letters, id.as_str()),
        }
    }
    format.print_list(&["id", "replayed", "state"], &records);
    Ok(code)
}

fn replay_record(id: &TaskId, replay: &Replay) -> Value {
    match replay {
        Replay::Sent => json!({ "id": id, "replayed": true, "state": null }),
        Replay::Refused(state) => json!({ "id": id, "replayed": false, "state": state.as_str() }),
        _ => json!({ "id": id, "replayed": false, "state": null }),
    }
}

/// Prompts on the terminal for confirmation of `what`. Returns the exit code if it must not be done: the user
/// declined, or standard input is not a terminal.
fn refusal(what: &str) -> Option<ExitCode> {
    if !std::io::stdin().is_terminal() {
        streams::note(format_args!("countersign: {what}; to do it, add --yes"));
        return Some(ExitCode::from(exit::USAGE));
    }
    streams::prompt(format_args!("{what}. Continue? [y/N] "));
    if streams::is_confirmed() {
        return None;
    }
    streams::note("countersign: nothing was deleted");
    Some(ExitCode::from(exit::FAILURE))
}

async fn purge(letters: &DeadLetters, chosen: Chosen, format: Format) -> Result<ExitCode, Error> {
    if chosen.all {
        let purged = letters.purge_all().await?;
        format.print(&json!({ "queue": letters.queue(), "purged": purged }));
        return Ok(ExitCode::SUCCESS);
    }
    let (mut code, mut purged) = (ExitCode::SUCCESS, 0);
    for id in &chosen.ids {
        if letters.purge(&ids::dead_letter(letters, id).await?).await? {
            purged += 1;
        } else {
            code = absent(letters, id);
        }
    }
    format.print(&json!({ "queue": letters.queue(), "purged": purged }));
    Ok(code)
}

fn absent(letters: &DeadLetters, id: &str) -> ExitCode {
    streams::note(format_args!("countersign: task {id} is not in {}", letters.queue()));
    ExitCode::from(exit::FAILURE)
}

#[cfg(test)]
mod tests {
    use countersign::error::Failure;
    use countersign::protocol::{Attempt, Message, MessageHeaders};

    use super::*;

    #[test]
    fn attempts_that_are_left_out_are_counted_between_the_others() {
        let failed = |number| {
            let failure = Failure::new("builtins", "ValueError", "no");
            Attempt::failed(number, &failure, jiff::Timestamp::UNIX_EPOCH, None)
        };
        let message = Message {
            id: "x".into(),
            headers: MessageHeaders::default(),
            body: Default::default(),
            properties: Default::default(),
        };
        let letter = DeadLetter {
            id: "x".into(),
            task: None,
            reason: None,
            queue: None,
            died_at: None,
            attempt: None,
            attempts: vec![failed(1), failed(9)],
            attempts_left_out: 7,
            size: 0,
            message,
        };
        let lines = attempts(&letter);
        assert_eq!((&lines[0]["number"], &lines[2]["number"]), (&json!(1), &json!(9)));
        assert_eq!(lines[1]["message"], "7 more attempts failed");
    }
}
