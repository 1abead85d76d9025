//! A measured child process: its start, its one line of numbers, its resource usage, its end.

use std::env;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::role::{Numbers, Result, Role, Side};

/// The time limit for a child to print its numbers, and to end.
const TIMEOUT: Duration = Duration::from_secs(600);
/// The retention of results in a database, short so that there are expired results to delete.
const RESULTS_KEPT: &str = "60s";

pub(crate) struct Process {
    child: Child,
    pid: u32,
    lines: Lines<BufReader<ChildStdout>>,
}

/// The resources that a process and its descendants have used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_s: f64,
    pub(crate) rss_mib: f64,
    pub(crate) peak_mib: f64,
}

impl Process {
    pub(crate) fn start(side: Side, role: &Role) -> Result<Self> {
        Self::spawn(command(side, role)?)
    }

    /// Starts a child of Countersign that uses this database instead of the servers.
    pub(crate) fn start_on(url: &str, role: &Role) -> Result<Self> {
        let mut command = command(Side::Ours, role)?;
        command.env("COUNTERSIGN_BROKER_URL", url).env("COUNTERSIGN_STORE_URL", url);
        command.env("COUNTERSIGN_STORE_RESULT_EXPIRES", RESULTS_KEPT);
        Self::spawn(command)
    }

    /// Starts a child of Countersign with these environment variables.
    pub(crate) fn start_with(env: &[(&str, &str)], role: &Role) -> Result<Self> {
        let mut command = command(Side::Ours, role)?;
        command.envs(env.iter().copied());
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let pid = child.id().ok_or("it ended at once")?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        Ok(Self { child, pid, lines: BufReader::new(stdout).lines() })
    }

    /// Reads the line of numbers that the child prints when it is done.
    pub(crate) async fn numbers(&mut self) -> Result<Numbers> {
        match timeout(TIMEOUT, self.lines.next_line()).await?? {
            Some(line) => Ok(serde_json::from_str(&line)?),
            None => {
                Err(format!("it ended without its numbers: {}", self.child.wait().await?).into())
            }
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        let mut used = Usage::default();
        let mut waiting = vec![self.pid];
        while let Some(pid) = waiting.pop() {
            used.cpu_s += cpu_seconds(pid);
            used.rss_mib += memory_mib(pid, "VmRSS:");
            used.peak_mib += memory_mib(pid, "VmHWM:");
            waiting.extend(children(pid));
        }
        used
    }

    /// Sends SIGTERM to the child, and waits for its end.
    pub(crate) async fn end(mut self) -> Result<()> {
        Command::new("kill").arg(self.pid.to_string()).status().await?;
        timeout(TIMEOUT, self.child.wait()).await??;
        Ok(())
    }
}

fn command(side: Side, role: &Role) -> Result<Command> {
    let bench = env::current_exe()?;
    let mut command = match (side, role) {
        (Side::Ours, Role::Worker { queue, concurrency }) => {
            let mut worker = Command::new(bench.with_file_name("bench-worker"));
            // Without an inline wait, each decision resumes a suspended task.
            worker.env("COUNTERSIGN_APPROVALS_HOLD", "0s");
            worker.args(["-Q", queue, "-c", &concurrency.to_string()]);
            worker.stderr(worker_log()?);
            return Ok(worker);
        }
        (Side::Bare | Side::Improved | Side::Ours, _) => {
            let bare = matches!(side, Side::Bare).then(|| bench.with_file_name("bench-bare"));
            let mut child = Command::new(bare.unwrap_or(bench));
            child.arg("child");
            child
        }
        (Side::Celery | Side::Dramatiq, _) => {
            let mut child = Command::new(env::var("BENCH_PYTHON")?);
            child.arg("tests/bench/peers.py").stderr(worker_log()?);
            child
        }
    };
    command.arg(serde_json::to_string(&side)?.trim_matches('"')).arg(serde_json::to_string(role)?);
    Ok(command)
}

/// Opens the log file of the workers, in the folder of the servers' logs.
fn worker_log() -> Result<fs::File> {
    let path = env::temp_dir().join(format!("countersign-bench-{}.log", std::process::id()));
    let folder = env::var("COUNTERSIGN_TEST_FOLDER").map(|folder| format!("{folder}/bench.log"));
    let path = folder.map_or(path, Into::into);
    Ok(fs::OpenOptions::new().create(true).append(true).open(path)?)
}

/// The CPU time of the servers on this machine: of every process of that name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerTimes([f64; 2]);

impl ServerTimes {
    pub(crate) fn now() -> Self {
        let mut times = [0.0, 0.0];
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let server =
                ["beam.smp", "redis-server"].iter().position(|server| name.trim() == *server);
            let pid = process.file_name().to_str().and_then(|pid| pid.parse().ok());
            if let (Some(server), Some(pid)) = (server, pid) {
                times[server] += cpu_seconds(pid);
            }
        }
        Self(times)
    }

    /// Returns the seconds per 1,000 of `count` since then, of RabbitMQ and of Redis.
    pub(crate) fn per_1000(self, count: usize) -> Numbers {
        let now = Self::now();
        let names = ["rabbitmq_cpu_s_per_1000", "redis_cpu_s_per_1000"];
        let used = now.0.iter().zip(self.0).map(|(now, then)| (now - then) * 1000.0 / count as f64);
        names.into_iter().map(str::to_owned).zip(used).collect()
    }
}

/// Returns the CPU time of the living threads, with nanosecond precision. `stat` includes ended threads, but
/// counts in hundredths of a second.
fn cpu_seconds(pid: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let times = threads.filter_map(|thread| {
        let times = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        times.split(' ').next()?.parse::<f64>().ok()
    });
    times.sum::<f64>() / 1e9
}

fn memory_mib(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}
