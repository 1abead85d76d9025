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

/// The number of workers.
pub(crate) const WORKERS: usize = 3;
/// The concurrency limit of each worker.
pub(crate) const SLOTS: usize = 8;
/// The number of messages of each queue that a worker prefetches.
pub(crate) const PREFETCH: usize = 64;

const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// The time that a worker may take after its drain deadline: for steps, and to close.
const STEP_GRACE: Duration = Duration::from_secs(10);
const CLOSE: Duration = Duration::from_secs(2);
/// Additional time for a loaded machine.
const SLACK: Duration = Duration::from_secs(5);

/// Part of the first line that a worker logs. By then it listens for signals.
const FIRST_LOG: &str = "\"timestamp\"";
const START_LIMIT: Duration = Duration::from_secs(60);
const START_PAUSE: Duration = Duration::from_millis(500);
/// The number of times that a worker that cannot start is started, as a supervisor would.
const MOST_STARTS: usize = 60;

const UNAVAILABLE: i32 = 69;
const TEMPFAIL: i32 = 75;
const LINES_SHOWN: usize = 12;

/// The cost of a stop: the peers take back the messages that a silent worker holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silence {
    /// The peers may notice a stop that is longer than this.
    pub(crate) limit: Duration,
    /// The number of runs that such a stop excuses.
    pub(crate) excused: usize,
}

/// The workers by place. A fault locks the place of the worker that it hits.
pub(crate) struct Workers {
    places: Vec<Mutex<DemoWorker>>,
    command: Box<dyn Fn(usize) -> Command + Send + Sync>,
    silence: Silence,
    ledger: Arc<Ledger>,
    /// The logs of the workers that have ended.
    logs: std::sync::Mutex<Vec<String>>,
    /// Locked for reading while a worker starts.
    starting: RwLock<()>,
}

impl Workers {
    /// Starts the workers, each with the command of its place. When this returns, all are ready.
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

    /// Kills a worker (`kill -9`). Its running tasks run again on other workers.
    pub(crate) async fn kill(&self, place: usize) {
        let mut worker = self.running(place).await;
        self.ledger.excuse("kills", SLOTS);
        worker.kill9().await;
        self.replace(&mut worker, place).await;
    }

    /// Sends SIGSTOP, and SIGCONT after a while.
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

    /// Sends one SIGTERM, or two in quick succession, which count as one.
    pub(crate) async fn drain(&self, place: usize, is_doubled: bool) {
        let mut worker = self.running(place).await;
        worker.sigterm();
        if is_doubled {
            worker.sigterm();
        }
        match self.exit_code(&mut worker, place).await {
            Some(0) => {}
            // A server was unreachable: runs were returned to their queue at the deadline.
            Some(TEMPFAIL) => self.ledger.excuse("drains cut short", SLOTS),
            code => self.ledger.violation(format!(
                "worker {place} drained with exit code {code:?}:\n{}",
                last_lines(&worker.stderr())
            )),
        }
        self.replace(&mut worker, place).await;
    }

    /// Drains all workers while no fault is active: each must drain cleanly, with exit code 0.
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

    /// Starts an additional worker, and returns whether it prints `text`; then kills it. No other worker
    /// starts between `before` and `after`.
    pub(crate) async fn extra_worker_logs(
        &self,
        text: &str,
        before: impl FnOnce(),
        after: impl FnOnce(),
    ) -> bool {
        let _no_other_starts = self.starting.write().await;
        before();
        let mut worker = DemoWorker::start((self.command)(WORKERS));
        let is_logged = worker.logs_within(text, START_LIMIT).await;
        after();
        worker.kill9().await;
        is_logged
    }

    /// Returns the log lines of the workers about a task.
    pub(crate) async fn log_lines(&self, id: &TaskId) -> String {
        let mut logs = self.logs.lock().unwrap().clone();
        for place in &self.places {
            logs.push(place.lock().await.stderr());
        }
        let lines = logs.iter().flat_map(|log| log.lines());
        let lines: Vec<&str> = lines.filter(|line| line.contains(id.as_str())).collect();
        lines.join("\n")
    }

    /// Returns the worker at this place. Replaces it if it has ended by itself, which is a violation.
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

    /// Starts a worker. Starts it again if it ends at once, as it does when it cannot open its database.
    async fn launch(&self, place: usize) -> DemoWorker {
        let mut starts = 0;
        loop {
            let starting = self.starting.read().await;
            let mut worker = DemoWorker::start((self.command)(place));
            if worker.logs_within(FIRST_LOG, START_LIMIT).await {
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

    /// Waits for the end of a worker that received a signal. Exceeding its deadline is a violation.
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

/// Returns the command line of a worker. `queues` are separated by commas.
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
