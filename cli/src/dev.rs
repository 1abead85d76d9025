//! `countersign dev`: everything in one process, with a task that waits for a decision.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use countersign::backend::ApprovalRecord;
use countersign::cli::log_writer::LogWriter;
use countersign::cli::plain::plain;
use countersign::cli::signals::drain_signals;
use countersign::cli::{exit, streams};
use countersign::client::Client;
use countersign::config::Config;
use countersign::error::Error;
use countersign::handle::Handle;
use countersign::protocol::Arguments;
use countersign::unstable::{
    closed_error, config_error, database_url, hostname, storage_error, timeout_error,
};
use countersign::worker::{DrainReport, RunReport, Worker};
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::output::Format;
use crate::paste::{quoted, this_command, user};
use crate::table::short_id;

/// The maximum time to write the report of a drain.
const NOTE_LIMIT: Duration = Duration::from_secs(1);
const QUEUE: &str = "demo";
const START: Duration = Duration::from_secs(10);
/// How long a blocking task may delay the exit of the process after its drain.
const EXIT_GRACE: Duration = Duration::from_millis(500);
/// A worker of the user that has not ended this long after the drain of this process is killed.
const CHILD_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  countersign dev
  countersign dev --db ./tasks.db --worker 'target/debug/my-worker -Q mail'
  countersign dev --db :memory:       # lost at exit, and not accessible to other processes

In another terminal, without any configuration:
  countersign run demo.add 2 3 --wait
  countersign approvals list

Exit codes: 0 drained; 75 drained, with tasks returned at the deadline; 74 the
database cannot be opened; 78 it belongs to another program, or the configuration is wrong.")]
pub(crate) struct Dev {
    /// The database file [default: the one that `countersign` uses without a configuration]
    #[arg(long, value_name = "FILE")]
    db: Option<PathBuf>,
    /// Also start this worker on the same database: a shell command
    #[arg(long, value_name = "CMD")]
    worker: Vec<String>,
    /// The concurrency limit: run at most this many tasks at once
    #[arg(short, long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
}

/// Returns the default database file of `countersign`, in the user's state folder.
pub(crate) fn default_file() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|it| it.is_absolute());
    let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?;
    Some(state.join("countersign/dev.db"))
}

/// Creates a folder that only its user can access. Leaves an existing folder unchanged.
fn make_private(folder: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

/// Returns the URL of that file, if `countersign dev` has created it.
pub(crate) fn default_database() -> Option<String> {
    let file = default_file().filter(|file| file.is_file())?;
    streams::note(format_args!("countersign: no broker is configured; using {}", file.display()));
    Some(database_url(&file))
}

impl Dev {
    pub(crate) fn perform(
        self,
        flags: &[(&'static str, String)],
        format: Format,
    ) -> Result<ExitCode, Error> {
        let begun = Instant::now();
        if !flags.is_empty() {
            let fault = "dev has a database of its own and reads no settings: leave out -C, --broker and \
                         --store, or name a database file with --db FILE";
            return Err(config_error(fault));
        }
        let place = self.place()?;
        let config = Config::embedded(&place.url)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            let (what, cause) = ("the runtime".to_owned(), error.to_string());
            storage_error(what, cause)
        })?;
        let ended = runtime.block_on(self.run(config, &place, begun, format));
        runtime.shutdown_timeout(EXIT_GRACE);
        let drained = ended?;
        match format {
            Format::Table => streams::note_within(summary(&drained), NOTE_LIMIT),
            _ => streams::line(json!({ "drained": drained })),
        }
        Ok(ExitCode::from(if drained.is_clean() { 0 } else { exit::TEMPFAIL }))
    }

    fn place(&self) -> Result<Place, Error> {
        let no_home = || {
            let fault = "HOME is not set, so there is no default database: name one with --db FILE";
            config_error(fault)
        };
        let (file, is_default) = match &self.db {
            Some(file) if file.as_os_str() == ":memory:" => return Ok(Place::memory()),
            Some(file) => (file.clone(), false),
            None => (default_file().ok_or_else(no_home)?, true),
        };
        if is_default && let Some(folder) = file.parent() {
            make_private(folder).map_err(|error| {
                let what = format!("the folder {}", folder.display());
                storage_error(what, error.to_string())
            })?;
        }
        let file = std::path::absolute(&file).unwrap_or(file);
        let note = "kept after exit; delete it to start over";
        let data = format!("{} ({note})", file.display());
        Ok(Place { url: database_url(&file), data, flags: Some(flag(&file)) })
    }

    async fn run(
        self,
        config: Config,
        place: &Place,
        begun: Instant,
        format: Format,
    ) -> Result<DrainReport, Error> {
        let (shutdown, force_shutdown) = drain_signals();
        let client = Client::connect(&config).await?;
        // The second is the default queue.
        let worker = Worker::new(&client).queue(QUEUE).queue(&config.queue);
        let worker = worker.name(format!("dev@{}", hostname())).force_shutdown(force_shutdown);
        let worker = countersign_demo::register(worker.concurrency(usize::from(self.concurrency)));
        let lines = LogWriter::start(std::io::stderr());
        let worker = match format {
            Format::Table => worker.observe(show(lines.clone())),
            _ => worker,
        };
        let health = worker.health();
        let (stop, stopped) = oneshot::channel::<()>();
        let working = tokio::spawn(worker.run(async {
            let _ = stopped.await;
        }));
        health.ready(START).await?;
        let mut children = self.start_workers(&place.url)?;
        let approval = open_request(&client).await?;
        if let Format::Table = format {
            streams::note(place.banner(begun.elapsed(), &approval, &self.worker));
        } else {
            format.print(&json!({
                "ready": true, "database": place.url, "queue": QUEUE,
                "approval": approval.request.id, "task": approval.request.task,
            }));
        }
        print_end(&client, &approval);
        shutdown.await;
        streams::note_within("\ndraining; a second Ctrl-C forces the shutdown", Duration::ZERO);
        children.iter().for_each(terminate);
        let _ = stop.send(());
        let drained = working.await.map_err(|_| closed_error())?;
        for child in &mut children {
            let _ = timeout(CHILD_GRACE, child.wait()).await;
        }
        lines.flush();
        drained
    }

    fn start_workers(&self, url: &str) -> Result<Vec<Child>, Error> {
        let start = |command: &String| {
            let started = Command::new("sh")
                .args(["-c", &format!("exec {command}")])
                .env("COUNTERSIGN_BROKER_URL", url)
                .env("COUNTERSIGN_STORE_URL", url)
                .stdin(Stdio::null())
                // In its own process group: Ctrl-C reaches it once, through this process.
                .process_group(0)
                .kill_on_drop(true)
                .spawn();
            started.map_err(|error| {
                let what = format!("the worker `{command}`");
                storage_error(what, error.to_string())
            })
        };
        self.worker.iter().map(start).collect()
    }
}

/// Writes one line on how each run ended. A terminal that is not read does not block tasks.
fn show(lines: LogWriter) -> impl Fn(RunReport) + Send + Sync + 'static {
    move |RunReport { name, id, outcome, took }| {
        let (name, id) = (plain(&name), plain(short_id(id.as_str())));
        let line = format!("{name}  {id}  {outcome}  {:.3} s\n", took.as_secs_f64());
        // The writer counts lines that it drops.
        let _ = lines.clone().write_all(line.as_bytes());
    }
}

fn summary(drained: &DrainReport) -> String {
    let DrainReport { finished, returned, cancelled, elapsed, .. } = drained;
    format!(
        "drained in {:.1} s: {finished} tasks finished, {returned} returned, {cancelled} cancelled",
        elapsed.as_secs_f64()
    )
}

/// Sends SIGTERM to a worker of the user, so that it drains.
fn terminate(child: &Child) {
    let Some(pid) = child.id() else { return };
    let status = std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status();
    if let Err(error) = status {
        streams::note(format_args!("countersign: cannot send SIGTERM to worker {pid}: {error}"));
    }
}

fn flag(file: &Path) -> String {
    format!(" --broker {}", quoted(&database_url(file)))
}

/// Returns an open approval request: an earlier one, or that of a new refund task.
async fn open_request(client: &Client) -> Result<ApprovalRecord, Error> {
    if let Some(approval) = client.pending_approvals(1).await?.requests.pop() {
        return Ok(approval);
    }
    let mut new_requests = client.backends().store.new_requests();
    let arguments = Arguments::of(&("order-1", 25_000)).unwrap_or_default();
    let _ = client.enqueue_named("demo.refund", arguments).queue(QUEUE).await?;
    let open = async {
        loop {
            if let Some(approval) = client.pending_approvals(1).await?.requests.pop() {
                return Ok(approval);
            }
            let _ = new_requests.recv().await;
        }
    };
    timeout(START, open).await.unwrap_or_else(|_| {
        let what = "the demo's approval request".to_owned();
        Err(timeout_error(what, START))
    })
}

/// Prints how the requesting task ended.
fn print_end(client: &Client, approval: &ApprovalRecord) {
    let Some(task) = approval.request.task.clone() else { return };
    let handle: Handle<serde_json::Value> = client.handle(task.as_str());
    tokio::spawn(async move {
        match handle.result().await {
            Ok(value) => {
                streams::note(format_args!("the task ended: {}", plain(&value.to_string())));
            }
            Err(error) if error.failure().is_some() => streams::note(plain(&error.to_string())),
            Err(_) => {}
        }
    });
}

/// Where the data is.
struct Place {
    url: String,
    data: String,
    /// The flags that other commands need; `None` if no other process can access the data.
    flags: Option<String>,
}

impl Place {
    fn memory() -> Self {
        let data = "in memory: lost at exit".to_owned();
        Self { url: "sqlite::memory:".to_owned(), data, flags: None }
    }

    fn banner(&self, took: Duration, approval: &ApprovalRecord, workers: &[String]) -> String {
        let program = this_command();
        let request = &approval.request;
        let mut banner = format!(
            "countersign dev: ready in {:.2} s\n\n  data     {}\n  url      {}\n  \
             worker   the demo tasks, queue {QUEUE}\n",
            took.as_secs_f64(),
            self.data,
            self.url,
        );
        for worker in workers {
            banner.push_str(&format!("           {worker}\n"));
        }
        banner.push_str(&format!("\nA task waits for your decision: {}\n", plain(&request.title)));
        match &self.flags {
            Some(flags) => banner.push_str(&format!(
                "  {program}{flags} approvals approve {} --by {}\n\nEnqueue a task, from another terminal:\n  \
                 {program}{flags} run demo.add 2 3 --wait\n\n",
                request.id,
                quoted(&user()),
            )),
            None => banner.push_str("  but other processes cannot access a database in memory\n\n"),
        }
        banner.push_str("Ctrl-C drains the worker and exits.");
        banner
    }
}
