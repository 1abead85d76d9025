//! The `countersign` command: its subcommands and exit codes.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use countersign::cli::{exit, logs, streams};
use countersign::client::Client;
use countersign::config::{CONFIG_FLAG, Config};
use countersign::error::Error;
use serde_json::json;

use crate::output::Format;
use crate::{
    approvals, config, database, dev, doctor, failures, health, paste, queues, rules, run, tasks,
    workers,
};

/// Enqueues tasks, shows their results, and manages queues, approvals and workers.
#[derive(Debug, Parser)]
#[command(name = "countersign", version, after_help = EXAMPLES)]
struct Command {
    /// The output format: `table` for people, `json` or `jsonl` for programs
    #[arg(short, long, global = true, value_enum)]
    output: Option<Format>,
    /// The settings file [env: COUNTERSIGN_CONFIG] [default: countersign.toml, if it exists]
    #[arg(short = 'C', long, global = true, value_name = "FILE")]
    config: Option<String>,
    /// The RabbitMQ URL, or sqlite:FILE [env: COUNTERSIGN_BROKER_URL]
    #[arg(long, global = true, value_name = "URL")]
    broker: Option<String>,
    /// The Redis URL [env: COUNTERSIGN_STORE_URL]
    #[arg(long, global = true, value_name = "URL")]
    store: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "Examples:
  countersign dev
  countersign run demo.add 2 3 -Q demo --wait
  countersign run billing.refund -k order='\"o-1\"' -k cents=500 -Q billing --key refund-o-1
  countersign run demo.echo --from tasks.jsonl -Q demo
  countersign tasks get 6f1f3c1e-6d9e-4f0f-9e3b-2f0a4c7d8e9f -o json
  countersign tasks follow 6f1f3c1e-6d9e-4f0f-9e3b-2f0a4c7d8e9f -o jsonl
  countersign tasks revoke 6f1f3c1e-6d9e-4f0f-9e3b-2f0a4c7d8e9f --terminate
  countersign failures list -Q billing
  countersign failures replay --all -Q billing
  countersign approvals list
  countersign doctor
  countersign db backup tasks-copy.db

Data goes to standard output, logs and progress to standard error.
Exit codes: 0 done; 1 the awaited task failed, or doctor or `db check` found an error; 2 wrong command line;
3 an approval request of the awaited task was not approved;
69 a server did not answer, or is not healthy; 74 a database cannot be opened, or standard output
cannot be written; 75 a timeout passed;
78 wrong configuration.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start everything in one process, without servers: a database, a worker with demo tasks, and a task
    /// that waits for your decision
    Dev(dev::Dev),
    /// Enqueue one or many tasks by their name
    Run(run::Run),
    /// Show, await, follow, revoke and forget tasks
    #[command(subcommand)]
    Tasks(tasks::Tasks),
    /// Show queues, their waiting tasks and their consumers; purge or delete a queue
    Queues(queues::Queues),
    /// Show, replay or delete the messages that no worker could run
    #[command(subcommand)]
    Failures(failures::Failures),
    /// Show and decide approval requests
    #[command(subcommand)]
    Approvals(approvals::Approvals),
    /// Show which rule of a settings file decides a request
    #[command(subcommand)]
    Policies(rules::Policies),
    /// Show the live workers
    Workers,
    /// Check whether both servers answer, and whether queues are consumed
    Health(health::Health),
    /// Find problems of this installation, and show how to fix each
    Doctor,
    /// Copy, check or compact the database of the embedded backend
    #[command(subcommand)]
    Db(database::Database),
    /// Show or check the settings
    #[command(subcommand)]
    Config(config::Settings),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Show the version
    Version,
}

/// The `main` function of the `countersign` command.
pub(crate) fn main() -> ExitCode {
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => return streams::usage(&error),
    };
    let Command { output, config, broker, store, verb } = command;
    let flags = [(CONFIG_FLAG, config), ("broker.url", broker), ("store.url", store)];
    let flags: Vec<_> =
        flags.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    paste::keep_flags(&flags);
    let format = output.unwrap_or_else(Format::by_terminal);
    let _logs = match verb {
        Verb::Approvals(approvals::Approvals::Serve) => logs::start(),
        _ => logs::start_quiet(),
    };
    let code = perform(verb, &flags, format).unwrap_or_else(|error| {
        streams::note(format_args!("countersign: {error}"));
        ExitCode::from(code(&error))
    });
    streams::finish(code)
}

fn perform(
    verb: Verb,
    flags: &[(&'static str, String)],
    format: Format,
) -> Result<ExitCode, Error> {
    let verb = match verb {
        Verb::Dev(dev) => return dev.perform(flags, format),
        Verb::Config(verb) => return verb.perform(flags, format),
        Verb::Policies(verb) => return verb.perform(format),
        Verb::Completion { shell } => {
            let mut command = Command::command();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "countersign", &mut script);
            streams::out(String::from_utf8_lossy(&script));
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Version => {
            format.print(&json!({ "countersign": env!("CARGO_PKG_VERSION"), "celery": "2" }));
            return Ok(ExitCode::SUCCESS);
        }
        verb => verb,
    };
    let config = Config::load_or(flags, dev::default_database)?;
    let verb = match verb {
        Verb::Db(verb) => return verb.perform(&config, format),
        verb => verb,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            streams::note(format_args!("countersign: cannot start: {error}"));
            return Ok(ExitCode::from(exit::TEMPFAIL));
        }
    };
    runtime.block_on(async {
        // `doctor` and `health` themselves report a server that does not answer.
        let client = match verb {
            Verb::Doctor | Verb::Health(_) => Client::start(&config)?,
            _ => Client::connect(&config).await?,
        };
        let ended = match verb {
            Verb::Run(verb) => verb.perform(&client, format).await,
            Verb::Tasks(verb) => verb.perform(&client, format).await,
            Verb::Queues(verb) => verb.perform(&client, format).await,
            Verb::Failures(verb) => verb.perform(&client, format).await,
            Verb::Approvals(verb) => verb.perform(&client, format).await,
            Verb::Workers => workers::perform(&client, format).await,
            Verb::Health(verb) => Ok(verb.perform(&client, format).await),
            Verb::Doctor => Ok(doctor::perform(&client, format).await),
            Verb::Dev(_)
            | Verb::Db(_)
            | Verb::Config(_)
            | Verb::Policies(_)
            | Verb::Completion { .. }
            | Verb::Version => Ok(ExitCode::SUCCESS),
        };
        client.close().await;
        ended
    })
}

fn code(error: &Error) -> u8 {
    match error {
        error if error.is_connection() => exit::UNAVAILABLE,
        error if error.is_timeout() || error.is_backpressure() => exit::TEMPFAIL,
        error if error.is_config() => exit::CONFIG,
        error if error.is_storage() => exit::IO_ERROR,
        _ => exit::FAILURE,
    }
}
