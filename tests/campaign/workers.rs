//! The worker processes, and the faults that hit one of them.

use std::sync::Arc;
use std::time::Duration;

use countersign::TaskId;
use support::DemoWorker;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard, RwLock};
use tokio::time::{Instant, sleep};

use crate::ledger::Ledger;
use crate::nemesis::Hold;

/// How many workers there are.
pub(crate) const WORKERS: usize = 3;
/// The concurrency limit of each.
pub(crate) const SLOTS: usize = 8;
/// Messages of each queue that the broker hands to a worker in advance.
pub(crate) const PREFETCH: usize = 64;

const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// What a worker may add to its drain deadline: for steps, and to close.
const STEP_GRACE: Duration = Duration::from_secs(10);
const CLOSE: Duration = Duration::from_secs(2);
/// What a loaded machine may add.
const SLACK: Duration = Duration::from_secs(5);

/// In the first line that a worker logs, after it has begun to listen for signals.
const FIRST_LOG: &str = "\"timestamp\"";
const START_LIMIT: Duration = Duration::from_secs(60);
const START_PAUSE: Duration = Duration::from_millis(500);
/// A worker that cannot start is started again this often, as a supervisor does it.
const MOST_STARTS: usize = 60;

const UNAVAILABLE: i32 = 69;
const TEMPFAIL: i32 = 75;
const LINES_SHOWN: usize = 12;

/// What a stop costs: the peers take back what a silent worker holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silence {
    /// A stop longer than this may be noticed.
    pub(crate) limit: Duration,
    /// The runs that it excuses then.
    pub(crate) excused: usize,
}

/// The workers by their places. A fault holds the place of the worker that it hits.
pub(crate) struct Workers {
    places: Vec<Mutex<DemoWorker>>,
    command: Box<dyn Fn(usize) -> Command + Send + Sync>,
    silence: Silence,
    ledger: Arc<Ledger>,
    /// Of the workers that have ended.
    logs: std::sync::Mutex<Vec<String>>,
    /// Held while a worker starts.
    starting: RwLock<()>,
}

impl Workers {
    /// Starts them, each by the command of its place; all are ready when this returns.
    pub(crate) async fn start(
        ledger: &Arc<Ledger>,
        silence: Silence,
        command: impl Fn(usize) -> Command + Send + Sync + 'static,
    ) -> Self {
        let mut workers = Self {
            places: Vec::new(),
            command: Box::new(command),
            silence,
            ledger: Arc::clone(ledger),
            logs: std::sync::Mutex::default(),
            starting: RwLock::default(),
        };
        for place in 0..WORKERS {
            let worker = workers.launch(place).await;
            worker.ready().await;
            workers.places.push(Mutex::new(worker));
        }
        workers
    }

    /// `kill -9`. What the worker runs then runs again elsewhere.
    pub(crate) async fn kill(&self, place: usize) {
        let mut worker = self.running(place).await;
        self.ledger.excuse("kills", SLOTS);
        worker.kill9().await;
        self.replace(&mut worker, place).await;
    }

    /// SIGSTOP, and SIGCONT after a while.
    pub(crate) async fn stop(&self, place: usize, hold: Hold) {
        let worker = self.running(place).await;
        let begun = Instant::now();
        worker.signal("STOP");
        hold.pass().await;
        worker.signal("CONT");
        if begun.elapsed() > self.silence.limit {
            self.ledger.excuse("stops", self.silence.excused);
        }
    }

    /// One SIGTERM, or two in quick succession, which count as one.
    pub(crate) async fn drain(&self, place: usize, is_doubled: bool) {
        let mut worker = self.running(place).await;
        worker.sigterm();
        if is_doubled {
            worker.sigterm();
        }
        match self.exit_code(&mut worker, place).await {
            Some(0) => {}
            // A server was away: runs were given back at the deadline.
            Some(TEMPFAIL) => self.ledger.excuse("drains cut short", SLOTS),
            code => self.ledger.violation(format!(
                "worker {place} drained with exit code {code:?}:\n{}",
                last_lines(&worker.stderr())
            )),
        }
        self.replace(&mut worker, place).await;
    }

    /// Drains all, with no fault present: each must leave nothing behind.
    pub(crate) async fn drain_all(&self) {
        for place in 0..WORKERS {
            let mut worker = self.running(place).await;
            worker.sigterm();
            let code = self.exit_code(&mut worker, place).await;
            if code != Some(0) {
                let log = last_lines(&worker.stderr());
                let text = format!("worker {place} did not drain cleanly ({code:?}):\n{log}");
                self.ledger.violation(text);
            }
            self.keep_log(&worker);
        }
    }

    /// Whether a new worker says `text`; it takes the place of none, and is killed then. No other
    /// worker starts between `before` and `after`.
    pub(crate) async fn extra_worker_says(
        &self,
        text: &str,
        before: impl FnOnce(),
        after: impl FnOnce(),
    ) -> bool {
        let _no_other_starts = self.starting.write().await;
        before();
        let mut worker = DemoWorker::start((self.command)(WORKERS));
        let says = worker.says_within(text, START_LIMIT).await;
        after();
        worker.kill9().await;
        says
    }

    /// What the workers have logged about a task.
    pub(crate) async fn log_lines(&self, id: &TaskId) -> String {
        let mut logs = self.logs.lock().unwrap().clone();
        for place in &self.places {
            logs.push(place.lock().await.stderr());
        }
        let lines = logs.iter().flat_map(|log| log.lines());
        let lines: Vec<&str> = lines.filter(|line| line.contains(id.as_str())).collect();
        lines.join("\n")
    }

    /// The worker at this place; another one if it has ended by itself.
    async fn running(&self, place: usize) -> MutexGuard<'_, DemoWorker> {
        let mut worker = self.places[place].lock().await;
        if let Some(status) = worker.exit_status() {
            let log = last_lines(&worker.stderr());
            self.ledger.violation(format!("worker {place} ended by itself ({status}):\n{log}"));
            self.replace(&mut worker, place).await;
        }
        worker
    }

    async fn replace(&self, worker: &mut DemoWorker, place: usize) {
        self.keep_log(worker);
        *worker = self.launch(place).await;
    }

    /// Starts a worker, again if it ends at once: it may not be able to open its database.
    async fn launch(&self, place: usize) -> DemoWorker {
        let mut starts = 0;
        loop {
            let starting = self.starting.read().await;
            let mut worker = DemoWorker::start((self.command)(place));
            if worker.says_within(FIRST_LOG, START_LIMIT).await {
                return worker;
            }
            drop(starting);
            let (code, log) = (worker.wait().await, last_lines(&worker.stderr()));
            starts += 1;
            assert!(starts < MOST_STARTS, "worker {place} cannot start ({code:?}):\n{log}");
            self.ledger.note("starts refused");
            if code != Some(UNAVAILABLE) {
                let text = format!("worker {place} cannot start ({code:?}):\n{log}");
                self.ledger.violation(text);
            }
            sleep(START_PAUSE).await;
        }
    }

    /// Waits for the end of a worker that was signalled, which has a deadline.
    async fn exit_code(&self, worker: &mut DemoWorker, place: usize) -> Option<i32> {
        let begun = Instant::now();
        let code = worker.wait().await;
        let took = begun.elapsed();
        let longest = DRAIN_DEADLINE + STEP_GRACE + CLOSE + SLACK;
        if took > longest {
            let log = last_lines(&worker.stderr());
            let text = format!("worker {place} drained for {took:?}, over {longest:?}:\n{log}");
            self.ledger.violation(text);
        }
        code
    }

    fn keep_log(&self, worker: &DemoWorker) {
        let log = worker.stderr();
        if let Some(at) = log.find("panicked") {
            let (before, panic) = log.split_at(at);
            let panic: String = panic.chars().take(500).collect();
            let line = before.lines().count();
            self.ledger.violation(format!("a worker panicked (line {line} of its log): {panic}"));
        }
        self.logs.lock().unwrap().push(log);
    }
}

/// The command line of a worker of these queues, joined by commas.
pub(crate) fn command(queues: &str, name: &str) -> Command {
    let mut command = Command::new(support::binary("demo"));
    let deadline = format!("{}s", DRAIN_DEADLINE.as_secs());
    command.args(["-Q", queues, "-n", name, "--drain-deadline", &deadline]);
    command.args(["-c", &SLOTS.to_string(), "--prefetch", &PREFETCH.to_string()]);
    command.env("RUST_LOG", "info,lapin=off,redis=error");
    command.env("DEMO_MARKS_URL", support::servers().store_url);
    command
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
}
