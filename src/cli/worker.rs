//! The command line of every worker binary.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use super::signals::drain_signals;
use super::{exit, logs, streams};
use crate::address::sqlite::{self, Database};
use crate::client::{Client, hostname};
use crate::clock;
use crate::config::{Config, SETTINGS};
use crate::error::Error;
use crate::worker::{DrainReport, Health, Worker};

/// Set for the child process that runs quarantined tasks.
const ISOLATED: &str = "COUNTERSIGN_ISOLATED";
/// How long a blocking handler may delay the exit of the process after its drain.
const EXIT_GRACE: Duration = Duration::from_millis(500);

#[derive(Debug, Parser)]
struct Arguments {
    /// Consume this queue; may be repeated or comma-separated [default: the worker's own name]
    #[arg(short = 'Q', long = "queues")]
    queues: Vec<String>,
    /// The concurrency limit: run at most this many tasks at once [default: 16]
    #[arg(short, long)]
    concurrency: Option<String>,
    /// The prefetch: the number of unsettled messages to hold [default: twice the concurrency]
    #[arg(long)]
    prefetch: Option<String>,
    /// This worker's name [default: NAME@HOST]
    #[arg(short, long)]
    name: Option<String>,
    /// How long a drain waits for running tasks [default: 30s]
    #[arg(long)]
    drain_deadline: Option<String>,
    /// How long a task without a handler in this worker may wait for a worker that has one (rolling deploys)
    /// [default: 0s]
    #[arg(long)]
    unknown_grace: Option<String>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

impl Arguments {
    /// Returns the flags given on the command line, as names of settings and their values.
    fn flags(self) -> Vec<(&'static str, String)> {
        let queues = Some(self.queues.join(",")).filter(|queues| !queues.is_empty());
        let flags = [
            ("worker.queues", queues),
            ("worker.concurrency", self.concurrency),
            ("worker.prefetch", self.prefetch),
            ("worker.name", self.name),
            ("worker.unknown_grace", self.unknown_grace),
            ("drain.deadline", self.drain_deadline),
        ];
        flags.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check whether the worker of this name, on this machine, is ready (exit code 0) or not (69)
    Health,
}

/// The `main` function of a worker binary: reads the command line and the settings, starts the logs, adds the
/// handlers with `build`, runs until SIGTERM or SIGINT, drains (a second signal forces the shutdown), and
/// prints the report as one line of JSON on standard output.
///
/// Exit codes: 0 drained; 75 drained, with tasks returned at the deadline; 78 invalid configuration; 2
/// invalid command line; `health` exits with 0 or 69.
pub fn run_worker<S>(name: &'static str, build: impl FnOnce(Worker) -> Worker<S>) -> ExitCode {
    let command = Arguments::command().name(name).after_help(after_help(name));
    let matches = command.try_get_matches();
    let arguments = matches.and_then(|matches| Arguments::from_arg_matches(&matches));
    let mut arguments = match arguments {
        Ok(arguments) => arguments,
        Err(error) => return streams::usage(&error),
    };
    let verb = arguments.verb.take();
    let config = match Config::load_with(&arguments.flags()) {
        Ok(config) => config,
        Err(error) => return fail(exit::CONFIG, &error.to_string()),
    };
    let node = config.worker.name.clone().unwrap_or_else(|| format!("{name}@{}", hostname()));
    if let Some(Verb::Health) = verb {
        return health(&node, config.worker.health_dir.as_deref());
    }
    let _logs = logs::start();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(exit::TEMPFAIL, &format!("cannot start: {error}")),
    };
    let ended = runtime.block_on(work(name, node, config, build));
    runtime.shutdown_timeout(EXIT_GRACE);
    streams::finish(match ended {
        Ok(drained) => {
            streams::line(serde_json::json!({ "drained": drained }));
            ExitCode::from(if drained.is_clean() { 0 } else { exit::TEMPFAIL })
        }
        Err(error) if error.is_config() => fail(exit::CONFIG, &error.to_string()),
        Err(error) => fail(exit::UNAVAILABLE, &error.to_string()),
    })
}

async fn work<S>(
    name: &str,
    node: String,
    config: Config,
    build: impl FnOnce(Worker) -> Worker<S>,
) -> Result<DrainReport, Error> {
    let (shutdown, force_shutdown) = drain_signals();
    let is_isolated = std::env::var_os(ISOLATED).is_some();
    let shutdown = async move {
        match is_isolated {
            true => tokio::select! { () = shutdown => {} () = end_of_input() => {} },
            false => shutdown.await,
        }
    };
    let client = Client::start(&config)?;
    let is_shared = sqlite::parse(config.broker_url.reveal()) != Ok(Database::Memory);
    let settings = config.worker;
    let mut worker = Worker::new(&client)
        .name(node)
        .force_shutdown(force_shutdown)
        .unknown_grace(settings.unknown_grace)
        .concurrency(settings.concurrency.into())
        .drain_deadline(config.drain_deadline);
    if let Some(prefetch) = settings.prefetch {
        worker = worker.prefetch(prefetch);
    }
    if settings.queues.is_empty() {
        worker = worker.queue(name);
    }
    for queue in settings.queues {
        worker = worker.queue(queue);
    }
    let worker = build(worker);
    let worker = match is_isolated {
        true => worker.isolated(),
        false if is_shared => worker.isolate(this_command),
        false => worker,
    };
    worker.run(shutdown).await
}

/// Returns this command again, for the child that runs quarantined tasks.
fn this_command() -> std::process::Command {
    // On Linux that is this program even if its file has been replaced.
    let running = Path::new("/proc/self/exe");
    let program = std::env::current_exe().unwrap_or_default();
    let mut command =
        std::process::Command::new(if running.exists() { running } else { &*program });
    command.args(std::env::args_os().skip(1)).env(ISOLATED, "1");
    command
}

/// Completes when standard input ends.
async fn end_of_input() {
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    // A thread of its own: a blocking thread of the runtime would delay its shutdown.
    let reading = std::thread::Builder::new().name("input".to_owned()).spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        drop(ended);
    });
    if reading.is_err() {
        std::future::pending::<()>().await;
    }
    let _ = end.await;
}

fn health(node: &str, folder: Option<&Path>) -> ExitCode {
    let health = match Health::read(node, folder) {
        Ok(health) => health,
        Err(why) => return fail(exit::UNAVAILABLE, &why),
    };
    match health.fault(clock::now()) {
        None => {
            streams::line(serde_json::json!({ "worker": node, "ready": true, "health": health }));
            ExitCode::SUCCESS
        }
        Some(why) => fail(exit::UNAVAILABLE, &format!("worker {node} is not ready: {why}")),
    }
}

fn fail(code: u8, why: &str) -> ExitCode {
    streams::note(why);
    ExitCode::from(code)
}

fn after_help(name: &str) -> String {
    let mut help = format!(
        "Examples:\n  {name} -Q {name} -c 32\n  {name} -Q mail,reports --drain-deadline 60s\n  \
         {name} health\n\nSettings (environment, or countersign.toml; NAME_FILE reads a secret from a file):\n"
    );
    for setting in SETTINGS {
        let default = if setting.default.is_empty() { "none" } else { setting.default };
        help.push_str(&format!("  {}\n      {} [{default}]\n", setting.env, setting.help));
    }
    help
}
