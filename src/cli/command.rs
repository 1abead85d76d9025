//! The `countersign` command: its verbs, and what its exit codes mean.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use super::output::Format;
use super::{config, exit, logs, run, tasks};
use crate::client::Client;
use crate::config::Config;
use crate::error::Error;

/// Enqueues tasks, and shows what became of them.
#[derive(Debug, Parser)]
#[command(name = "countersign", version, after_help = EXAMPLES)]
struct Command {
    /// How to print: `table` for people, `json` or `jsonl` for programs
    #[arg(short, long, global = true, value_enum)]
    output: Option<Format>,
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "Examples:
  countersign run demo.add 2 3 -Q demo --wait
  countersign run billing.refund -k order='\"o-1\"' -k cents=500 -Q billing
  countersign tasks get 6f1f3c1e-6d9e-4f0f-9e3b-2f0a4c7d8e9f -o json
  countersign tasks revoke 6f1f3c1e-6d9e-4f0f-9e3b-2f0a4c7d8e9f --terminate
  countersign config check

Exit codes: 0 done; 1 the awaited task failed; 2 wrong command line; 69 a server did not answer;
75 a time-out passed; 78 wrong configuration.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Put a task on its way, by its name
    Run(run::Run),
    /// Ask what became of a task
    #[command(subcommand)]
    Tasks(tasks::Tasks),
    /// Show or check the settings
    #[command(subcommand)]
    Config(config::Settings),
    /// Write a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The whole `main` of the `countersign` command.
pub fn main() -> ExitCode {
    let Command { output, verb } = Command::parse();
    let format = output.unwrap_or_else(Format::by_terminal);
    logs::start_quiet();
    let ended = match verb {
        Verb::Run(verb) => with_client(async |client| verb.perform(client, format).await),
        Verb::Tasks(verb) => with_client(async |client| verb.perform(client, format).await),
        Verb::Config(verb) => verb.perform(format),
        Verb::Completion { shell } => {
            let mut command = Command::command();
            clap_complete::generate(shell, &mut command, "countersign", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    ended.unwrap_or_else(|error| {
        eprintln!("countersign: {error}");
        ExitCode::from(code(&error))
    })
}

/// Connects, performs, and closes again.
fn with_client(
    perform: impl AsyncFnOnce(&Client) -> Result<ExitCode, Error>,
) -> Result<ExitCode, Error> {
    let config = Config::load()?;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("countersign: cannot start: {error}");
            return Ok(ExitCode::from(exit::TEMPFAIL));
        }
    };
    runtime.block_on(async {
        let client = Client::connect(&config).await?;
        let ended = perform(&client).await;
        client.close().await;
        ended
    })
}

fn code(error: &Error) -> u8 {
    match error {
        error if error.is_connection() => exit::UNAVAILABLE,
        error if error.is_timeout() || error.is_backpressure() => exit::TEMPFAIL,
        error if error.is_config() => exit::CONFIG,
        _ => exit::FAILURE,
    }
}
