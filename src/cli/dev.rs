//! `countersign dev`: everything in one process, and something that already waits for a decision.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::output::{Format, plain};
use super::signals::drain_signals;
use super::{exit, streams};
use crate::address::sqlite::url_of;
use crate::backend::Asked;
use crate::client::{Client, hostname};
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::handle::Handle;
use crate::protocol::Arguments;
use crate::worker::{Drained, Worker};

#[path = "../../workers/demo/src/tasks/mod.rs"]
mod tasks;

/// How long the report of a drain may take to be written.
const NOTE_LIMIT: Duration = Duration::from_secs(1);
const QUEUE: &str = "demo";
const START: Duration = Duration::from_secs(10);
/// A blocking task may keep the process that long after its drain.
const EXIT_GRACE: Duration = Duration::from_millis(500);
/// A worker of the user's that does not end by itself is killed that long after our own drain.
const CHILD_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  countersign dev
  countersign dev --db ./tasks.db --worker 'target/debug/my-worker -Q mail'
  countersign dev --db :memory:       # nothing is kept, and no other process can reach it

In another terminal, with no configuration at all:
  countersign run demo.add 2 3 --wait
  countersign approvals list

Exit codes: 0 drained; 75 drained, with tasks given back at the deadline; 74 the
database cannot be opened; 78 it is another program's, or wrong configuration.")]
pub(super) struct Dev {
    /// The database [default: the one that `countersign` finds by itself]
    #[arg(long, value_name = "FILE")]
    db: Option<PathBuf>,
    /// Start this worker, too, on the same database: a command for the shell
    #[arg(long, value_name = "CMD")]
    worker: Vec<String>,
    /// Run this many tasks at once
    #[arg(short, long, default_value_t = 16)]
    concurrency: usize,
}

/// The file that `countersign` uses when nobody has said anything: in the user's state folder.
pub(super) fn default_file() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|it| it.is_absolute());
    let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?;
    Some(state.join("countersign/dev.db"))
}

/// Makes a folder that only its user can look into. One that is there is left as it is.
fn make_private(folder: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

/// The URL of that file, if `countersign dev` has made it.
pub(super) fn default_database() -> Option<String> {
    let file = default_file().filter(|file| file.is_file())?;
    streams::note(format_args!("countersign: no broker is configured; using {}", file.display()));
    Some(url_of(&file))
}

impl Dev {
    pub(super) fn perform(self, format: Format) -> Result<ExitCode, Error> {
        let begun = Instant::now();
        let place = self.place()?;
        let config = Config::embedded(&place.url)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            let (what, cause) = ("the runtime".to_owned(), error.to_string());
            Error::new(Kind::Storage { what, cause })
        })?;
        let ended = runtime.block_on(self.run(config, &place, begun, format));
        runtime.shutdown_timeout(EXIT_GRACE);
        let drained = ended?;
        match format {
            Format::Table => streams::note_within(told(&drained), NOTE_LIMIT),
            _ => streams::line(json!({ "drained": drained })),
        }
        Ok(ExitCode::from(if drained.is_clean() { 0 } else { exit::TEMPFAIL }))
    }

    fn place(&self) -> Result<Place, Error> {
        let no_home = || {
            let fault = "there is no HOME to keep a database in: name one with --db FILE";
            Error::new(Kind::Config(vec![fault.to_owned()]))
        };
        let (file, is_default) = match &self.db {
            Some(file) if file.as_os_str() == ":memory:" => return Ok(Place::memory()),
            Some(file) => (file.clone(), false),
            None => (default_file().ok_or_else(no_home)?, true),
        };
        if is_default && let Some(folder) = file.parent() {
            make_private(folder).map_err(|error| {
                let what = format!("the folder {}", folder.display());
                Error::new(Kind::Storage { what, cause: error.to_string() })
            })?;
        }
        let file = std::path::absolute(&file).unwrap_or(file);
        let flags = if is_default { String::new() } else { flag(&file) };
        let kept = "kept when this ends; to begin anew, delete it";
        let data = format!("{} ({kept})", file.display());
        Ok(Place { url: url_of(&file), data, flags: Some(flags) })
    }

    async fn run(
        self,
        config: Config,
        place: &Place,
        begun: Instant,
        format: Format,
    ) -> Result<Drained, Error> {
        let (shutdown, hurry) = drain_signals();
        let client = Client::connect(&config).await?;
        // The second is where tasks go that name no queue.
        let worker = Worker::new(&client).queue(QUEUE).queue(&config.queue);
        let worker = worker.name(format!("dev@{}", hostname())).hurry(hurry);
        let worker = tasks::register(worker.concurrency(self.concurrency));
        let vitals = worker.vitals();
        let (stop, stopped) = oneshot::channel::<()>();
        let working = tokio::spawn(worker.run(async {
            let _ = stopped.await;
        }));
        vitals.ready(START).await?;
        let mut children = self.start_workers(&place.url)?;
        let asked = waiting(&client).await?;
        if let Format::Table = format {
            streams::note(place.banner(begun.elapsed(), &asked, &self.worker));
        } else {
            format.print(&[json!({
                "ready": true, "database": place.url, "queue": QUEUE,
                "approval": asked.question.id, "task": asked.question.task,
            })]);
        }
        tell_end(&client, &asked);
        shutdown.await;
        streams::note_within("\ndraining; Ctrl-C once more forces the end", Duration::ZERO);
        children.iter().for_each(end);
        let _ = stop.send(());
        let drained = working.await.map_err(|_| Kind::Closed)?;
        for child in &mut children {
            let _ = timeout(CHILD_GRACE, child.wait()).await;
        }
        drained
    }

    fn start_workers(&self, url: &str) -> Result<Vec<Child>, Error> {
        let start = |command: &String| {
            let started = Command::new("sh")
                .args(["-c", &format!("exec {command}")])
                .env("COUNTERSIGN_BROKER_URL", url)
                .env("COUNTERSIGN_STORE_URL", url)
                .stdin(Stdio::null())
                // Its own group: Ctrl-C reaches it once, by us.
                .process_group(0)
                .kill_on_drop(true)
                .spawn();
            started.map_err(|error| {
                let what = format!("the worker `{command}`");
                Error::new(Kind::Storage { what, cause: error.to_string() })
            })
        };
        self.worker.iter().map(start).collect()
    }
}

fn told(drained: &Drained) -> String {
    let Drained { finished, returned, cancelled, elapsed, .. } = drained;
    format!(
        "drained in {elapsed:.1} s: {finished} tasks finished, {returned} given back, {cancelled} cancelled"
    )
}

/// Asks a worker of the user's to drain.
fn end(child: &Child) {
    let Some(pid) = child.id() else { return };
    let asked = std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status();
    if let Err(error) = asked {
        streams::note(format_args!("countersign: cannot end worker {pid}: {error}"));
    }
}

fn flag(file: &Path) -> String {
    format!(" --broker {}", url_of(file))
}

/// What waits for a person: of an earlier time, or a refund that is made to.
async fn waiting(client: &Client) -> Result<Asked, Error> {
    if let Some(asked) = client.pending_approvals(1).await?.asked.pop() {
        return Ok(asked);
    }
    let mut rings = client.backends().store.questions();
    let arguments = Arguments::of(&("order-1", 25_000)).unwrap_or_default();
    let _ = client.enqueue_named("demo.refund", arguments).queue(QUEUE).await?;
    let asked = async {
        loop {
            if let Some(asked) = client.pending_approvals(1).await?.asked.pop() {
                return Ok(asked);
            }
            let _ = rings.recv().await;
        }
    };
    timeout(START, asked).await.unwrap_or_else(|_| {
        let what = "the demo's question".to_owned();
        Err(Kind::Timeout { what, after: START }.into())
    })
}

/// Says what became of the task that asks.
fn tell_end(client: &Client, asked: &Asked) {
    let Some(task) = asked.question.task.clone() else { return };
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

/// Where everything is.
struct Place {
    url: String,
    data: String,
    /// What other commands need to be told; `None` when no other process can reach it.
    flags: Option<String>,
}

impl Place {
    fn memory() -> Self {
        let data = "in memory: lost when this ends".to_owned();
        Self { url: "sqlite::memory:".to_owned(), data, flags: None }
    }

    fn banner(&self, took: Duration, asked: &Asked, workers: &[String]) -> String {
        let program = std::env::args().next().unwrap_or_else(|| "countersign".to_owned());
        let question = &asked.question;
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
        banner.push_str(&format!("\nThis waits for your decision: {}\n", plain(&question.title)));
        match &self.flags {
            Some(flags) => banner.push_str(&format!(
                "  {program}{flags} approvals approve {}\n\nEnqueue a task, from another terminal:\n  \
                 {program}{flags} run demo.add 2 3 --wait\n\n",
                question.id
            )),
            None => banner.push_str("  but no other process can reach a database in memory\n\n"),
        }
        banner.push_str("Ctrl-C drains and ends it.");
        banner
    }
}
