//! The `countersign` command: its verbs, and what its exit codes mean.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use serde_json::json;

use super::output::Format;
use super::{
    approvals, config, database, dev, doctor, exit, failures, health, logs, queues, rules, run,
    streams, tasks, workers,
};
use crate::client::Client;
use crate::config::{CONFIG_FLAG, Config};
use crate::error::Error;

/// Enqueues tasks, shows what became of them, and looks after queues and workers.
#[derive(Debug, Parser)]
#[command(name = "countersign", version, after_help = EXAMPLES)]
struct Command {
    /// How to print: `table` for people, `json` or `jsonl` for programs
    #[arg(short, long, global = true, value_enum)]
    output: Option<Format>,
    /// The settings file [env: COUNTERSIGN_CONFIG] [default: countersign.toml, if it is there]
    #[arg(short = 'C', long, global = true, value_name = "FILE")]
    config: Option<String>,
    /// RabbitMQ, or sqlite:FILE [env: COUNTERSIGN_BROKER_URL]
    #[arg(long, global = true, value_name = "URL")]
    broker: Option<String>,
    /// Redis [env: COUNTERSIGN_STORE_URL]
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
3 what the awaited task asked was not approved;
69 a server did not answer, or is not healthy; 74 a database cannot be opened, or standard output
cannot be written; 75 a time-out passed;
78 wrong configuration.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start everything in one process, with no servers: a database, a worker with demo tasks, and
    /// something that waits for your decision
    Dev(dev::Dev),
    /// Put a task on its way, by its name; or many
    Run(run::Run),
    /// Ask what became of a task
    #[command(subcommand)]
    Tasks(tasks::Tasks),
    /// Show queues: what waits in them, who consumes them
    Queues(queues::Queues),
    /// Show, send again or throw away the messages that no worker could run
    #[command(subcommand)]
    Failures(failures::Failures),
    /// Show what people are asked, and decide it
    #[command(subcommand)]
    Approvals(approvals::Approvals),
    /// Show which rule of a settings file decides a request
    #[command(subcommand)]
    Policies(rules::Policies),
    /// Show the workers that are there
    Workers,
    /// Say whether both servers answer, and whether queues are consumed
    Health(health::Health),
    /// Find what is wrong with this installation, and say how to mend it
    Doctor,
    /// Copy, check or compact the database of the embedded backend
    #[command(subcommand)]
    Db(database::Database),
    /// Show or check the settings
    #[command(subcommand)]
    Config(config::Settings),
    /// Write a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Show the version
    Version,
}

/// The whole `main` of the `countersign` command.
pub fn main() -> ExitCode {
    let Command { output, config, broker, store, verb } = Command::parse();
    let flags = [(CONFIG_FLAG, config), ("broker.url", broker), ("store.url", store)];
    let flags: Vec<_> =
        flags.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let format = output.unwrap_or_else(Format::by_terminal);
    let _logs = match verb {
        Verb::Approvals(approvals::Approvals::Clerk) => logs::start(),
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
        Verb::Dev(dev) => return dev.perform(format),
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
            format.print(&[json!({ "countersign": env!("CARGO_PKG_VERSION"), "celery": "2" })]);
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
        // These two say themselves which server does not answer.
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
