//! The measurements: one function for each case, the same for every side.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;
use tokio::time::sleep;

use crate::process::{Process, ServerTimes};
use crate::role::{Numbers, Result, Role, Side};
use crate::servers::Servers;

const LOOK: Duration = Duration::from_millis(2);
const STUCK: Duration = Duration::from_secs(120);
const DRAIN_CONCURRENCY: usize = 256;
const SLEEP_CONCURRENCY: usize = 500;
const STREAMS: usize = 64;
const DECIDERS: usize = 50;
/// Suspended tasks whose claims are renewed, and callers that read large results.
const CLAIMS: usize = 200;
const READERS: usize = 32;
const SLEEP: Duration = Duration::from_millis(10);
/// A process is measured after it has been idle for this time.
const SETTLED: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Case {
    /// Tasks that do nothing, run from a full queue: result stored, result published, message acked
    Drain,
    /// Tasks that sleep for 10 ms, run 500 at a time
    Sleep,
    /// Enqueuing tasks: confirmed one by one, and with 64 unconfirmed publishes
    Enqueue,
    /// Time from a call to its result: one caller, and 200 callers
    Roundtrip,
    /// A worker without tasks, and the time until its first task ends
    Idle,
    /// A worker whose connections were closed four times under load
    Reconnect,
    /// A client that waits for 100,000 results
    Waiters,
    /// Streams of 64 tasks, one of them followed
    Stream,
    /// Tasks that wait for a decision: suspension, resumption, and many deciders for one request
    #[value(alias = "park")]
    Suspend,
    /// A backlog of a type with a rate limit of 200/s, and tasks of another type behind it
    Limited,
    /// Renewals of leases while other callers read large results, with and without the pool
    Pools,
    /// One database instead of servers: on disk, and in memory
    Embedded,
    /// One SQLite file: suspended tasks, the deletion of results, and two processes that share it
    Database,
}

/// The size of each measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sizes {
    drain: usize,
    one_by_one: usize,
    window: usize,
    calls: usize,
    many_calls: usize,
    idle_s: u64,
    waiters: usize,
    entries: usize,
    suspended: usize,
    races: usize,
    backlog: usize,
    behind: usize,
    renewals: usize,
    embedded: usize,
    held: usize,
    finished: usize,
    across: usize,
}

impl Sizes {
    pub(crate) const FULL: Self = Self {
        drain: 20_000,
        one_by_one: 2_000,
        window: 20_000,
        calls: 2_000,
        many_calls: 20_000,
        idle_s: 10,
        waiters: 100_000,
        entries: 3_000,
        suspended: 10_000,
        races: 2_000,
        backlog: 5_000,
        behind: 500,
        renewals: 200,
        embedded: 100_000,
        held: 100_000,
        finished: 1_000_000,
        across: 200,
    };
    pub(crate) const QUICK: Self = Self {
        drain: 5_000,
        one_by_one: 300,
        window: 5_000,
        calls: 500,
        many_calls: 5_000,
        idle_s: 3,
        waiters: 10_000,
        entries: 500,
        suspended: 1_000,
        races: 100,
        backlog: 1_000,
        behind: 100,
        renewals: 10,
        embedded: 10_000,
        held: 2_000,
        finished: 20_000,
        across: 20,
    };
}

impl Case {
    /// Whether a side has the features that this case measures.
    pub(crate) fn has(self, side: Side) -> bool {
        match side {
            Side::Ours => true,
            Side::Bare | Side::Improved => !matches!(
                self,
                Self::Stream
                    | Self::Suspend
                    | Self::Limited
                    | Self::Reconnect
                    | Self::Pools
                    | Self::Embedded
                    | Self::Database
            ),
            Side::Celery | Side::Dramatiq => {
                matches!(self, Self::Drain | Self::Enqueue | Self::Roundtrip)
            }
        }
    }

    pub(crate) async fn measure(self, bench: &Bench, side: Side) -> Result<Numbers> {
        let queue = bench.servers.fresh_queue(side).await?;
        let sizes = bench.sizes;
        let numbers = match self {
            Self::Drain => bench.drain(side, &queue, DRAIN_CONCURRENCY, Duration::ZERO).await?,
            Self::Sleep => bench.drain(side, &queue, SLEEP_CONCURRENCY, SLEEP).await?,
            Self::Enqueue => {
                let one = bench.enqueue(side, &queue, sizes.one_by_one, 1).await?;
                let many = bench.enqueue(side, &queue, sizes.window, 64).await?;
                named("one_by_one", one).chain(named("window", many)).collect()
            }
            Self::Roundtrip => {
                let worker = bench.worker(side, &queue, 256)?;
                let one = bench.call(side, &queue, sizes.calls, 1).await?;
                let many = bench.call(side, &queue, sizes.many_calls, 200).await?;
                worker.end().await?;
                named("one", one).chain(named("many", many)).collect()
            }
            Self::Idle => bench.idle(side, &queue).await?,
            Self::Reconnect => bench.reconnect(side, &queue).await?,
            Self::Waiters => bench.wait(side, &queue).await?,
            Self::Suspend => bench.suspend(side, &queue).await?,
            Self::Limited => {
                let worker = bench.worker(side, &queue, 16)?;
                let (backlog, behind) = (sizes.backlog, sizes.behind);
                let role = Role::Limited { queue: queue.clone(), backlog, behind };
                let mut numbers = Process::start(side, &role)?.numbers().await?;
                numbers.insert("cpu_s".to_owned(), worker.usage().cpu_s);
                worker.end().await?;
                numbers
            }
            Self::Pools => bench.pools().await?,
            Self::Embedded => bench.embedded(side).await?,
            Self::Database => bench.database(&queue).await?,
            Self::Stream => {
                let worker = bench.worker(side, &queue, STREAMS)?;
                let entries = sizes.entries;
                let role = Role::Streams { queue: queue.clone(), tasks: STREAMS, entries };
                let numbers = Process::start(side, &role)?.numbers().await?;
                worker.end().await?;
                numbers
            }
        };
        bench.servers.delete(&queue).await?;
        Ok(numbers)
    }
}

/// Creates a folder on a disk. The folder for temporary files may be in memory.
fn scratch() -> Result<std::path::PathBuf> {
    let folder = std::env::current_dir()?.join(format!("target/bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn mebibytes(file: &Path) -> Result<f64> {
    Ok(std::fs::metadata(file)?.len() as f64 / (1024.0 * 1024.0))
}

fn named(part: &str, numbers: Numbers) -> impl Iterator<Item = (String, f64)> {
    numbers.into_iter().map(move |(name, number)| (format!("{part}_{name}"), number))
}

/// The servers, and the size of the measurements on them.
pub(crate) struct Bench {
    pub(crate) servers: Servers,
    pub(crate) sizes: Sizes,
    pub(crate) payload: String,
}

impl Bench {
    fn worker(&self, side: Side, queue: &str, concurrency: usize) -> Result<Process> {
        Process::start(side, &Role::Worker { queue: queue.to_owned(), concurrency })
    }

    /// Measures from the first result to the last, so that the start of the worker does not count.
    async fn drain(
        &self,
        side: Side,
        queue: &str,
        concurrency: usize,
        pause: Duration,
    ) -> Result<Numbers> {
        let count = self.sizes.drain;
        match side {
            // Dramatiq has its own message format.
            Side::Dramatiq => drop(self.enqueue(side, queue, count, 1).await?),
            _ => self.servers.fill(queue, count, &self.payload, pause).await?,
        }
        let servers = ServerTimes::now();
        let worker = self.worker(side, queue, concurrency)?;
        let (first, begun) = (self.stored(1).await?, Instant::now());
        self.stored(count).await?;
        let servers = servers.per_1000(count);
        let rate = (count - first) as f64 / begun.elapsed().as_secs_f64();
        let used = worker.usage();
        // The bare loop does not settle its tasks when it is stopped.
        sleep(LOOK * 100).await;
        worker.end().await?;
        match self.servers.left(queue).await? {
            0 => {}
            left => return Err(format!("{left} tasks were not acked").into()),
        }
        let mut numbers = Numbers::from([
            ("rate".to_owned(), rate),
            ("cpu_s_per_1000".to_owned(), used.cpu_s * 1000.0 / count as f64),
            ("peak_mib".to_owned(), used.peak_mib),
        ]);
        numbers.extend(servers);
        Ok(numbers)
    }

    /// Waits until at least `count` results are stored, and returns their number.
    async fn stored(&self, count: usize) -> Result<usize> {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            let results = self.servers.results().await?;
            if results >= count {
                return Ok(results);
            }
            if results > seen {
                (seen, since) = (results, Instant::now());
            }
            if since.elapsed() > STUCK {
                return Err(format!("no result came after {results} of {count}").into());
            }
            sleep(LOOK).await;
        }
    }

    async fn enqueue(
        &self,
        side: Side,
        queue: &str,
        count: usize,
        in_flight: usize,
    ) -> Result<Numbers> {
        let role = Role::Enqueue { queue: queue.to_owned(), count, in_flight };
        let servers = ServerTimes::now();
        let mut numbers = Process::start(side, &role)?.numbers().await?;
        numbers.extend(servers.per_1000(count));
        Ok(numbers)
    }

    async fn call(&self, side: Side, queue: &str, count: usize, callers: usize) -> Result<Numbers> {
        let role = Role::Calls { queue: queue.to_owned(), count, callers };
        Process::start(side, &role)?.numbers().await
    }

    /// Measures the same without reads, and with and without the pool of connections for reads.
    async fn pools(&self) -> Result<Numbers> {
        let role = Role::Pools { claims: CLAIMS, callers: READERS, rounds: self.sizes.renewals };
        let mut numbers = Numbers::new();
        let at_rest = Role::Pools { claims: CLAIMS, callers: 0, rounds: self.sizes.renewals };
        for (name, size, role) in
            [("rest", "4", &at_rest), ("shared", "0", &role), ("pooled", "4", &role)]
        {
            let env = [("COUNTERSIGN_STORE_POOL_SIZE", size)];
            numbers.extend(named(name, Process::start_with(&env, role)?.numbers().await?));
        }
        if let (Some(pooled), Some(shared)) =
            (numbers.get("pooled_p99_ms"), numbers.get("shared_p99_ms"))
        {
            numbers.insert("share".to_owned(), pooled / shared);
        }
        Ok(numbers)
    }

    async fn embedded(&self, side: Side) -> Result<Numbers> {
        let folder = scratch()?;
        let file = format!("sqlite:{}/bench.db", folder.display());
        let mut numbers = Numbers::new();
        for (name, url) in [("disk", file.as_str()), ("memory", "sqlite::memory:")] {
            let role = Role::Embedded { url: url.to_owned(), count: self.sizes.embedded };
            numbers.extend(named(name, Process::start(side, &role)?.numbers().await?));
        }
        std::fs::remove_dir_all(folder)?;
        Ok(numbers)
    }

    async fn database(&self, queue: &str) -> Result<Numbers> {
        let folder = scratch()?;
        let file = folder.join("held.db");
        let mut numbers = self.held(&file, queue).await?;
        let url = format!("sqlite:{}", folder.join("finished.db").display());
        let finish = Role::Finish { count: self.sizes.finished };
        Process::start_on(&url, &finish)?.numbers().await?;
        numbers.extend(Process::start_on(&url, &Role::Pruned)?.numbers().await?);
        std::fs::remove_dir_all(folder)?;
        Ok(numbers)
    }

    /// Measures two processes on one file, and then many tasks that are suspended in it.
    async fn held(&self, file: &Path, queue: &str) -> Result<Numbers> {
        let url = format!("sqlite:{}", file.display());
        let play = async |role| Process::start_on(&url, &role)?.numbers().await;
        let role = Role::Worker { queue: queue.to_owned(), concurrency: DRAIN_CONCURRENCY };
        let worker = Process::start_on(&url, &role)?;
        let queue = || queue.to_owned();
        let mut numbers = play(Role::Across { queue: queue(), count: self.sizes.across }).await?;
        // A worker keeps the memory that a burst needed, so one burst runs before the measurement.
        let (held, warm_up) = (0..self.sizes.held, self.sizes.held..self.sizes.held * 6 / 5);
        play(Role::Suspend { queue: queue(), numbers: warm_up.clone() }).await?;
        play(Role::Suspended { queue: queue(), numbers: warm_up.clone() }).await?;
        play(Role::Decide { queue: queue(), numbers: warm_up }).await?;
        sleep(SETTLED).await;
        let before = (worker.usage().rss_mib, mebibytes(file)?);
        play(Role::Suspend { queue: queue(), numbers: held.clone() }).await?;
        play(Role::Suspended { queue: queue(), numbers: held }).await?;
        sleep(SETTLED).await;
        let after = (worker.usage().rss_mib, mebibytes(file)?);
        worker.end().await?;
        numbers.insert("held_mib".to_owned(), after.0 - before.0);
        numbers.insert("held_file_mib".to_owned(), after.1 - before.1);
        Ok(numbers)
    }

    async fn idle(&self, side: Side, queue: &str) -> Result<Numbers> {
        self.servers.fill(queue, 1, &self.payload, Duration::ZERO).await?;
        let begun = Instant::now();
        let worker = self.worker(side, queue, 16)?;
        self.stored(1).await?;
        let first_task_s = begun.elapsed().as_secs_f64();
        sleep(SETTLED).await;
        let (before, begun) = (worker.usage(), Instant::now());
        sleep(Duration::from_secs(self.sizes.idle_s)).await;
        let (after, passed) = (worker.usage(), begun.elapsed().as_secs_f64());
        worker.end().await?;
        Ok(Numbers::from([
            ("rss_mib".to_owned(), after.rss_mib),
            ("core_percent".to_owned(), (after.cpu_s - before.cpu_s).max(0.0) / passed * 100.0),
            ("first_task_s".to_owned(), first_task_s),
        ]))
    }

    /// Measures the memory of a worker that runs bursts of tasks, and loses all connections in between.
    async fn reconnect(&self, side: Side, queue: &str) -> Result<Numbers> {
        let (count, worker) = (self.sizes.behind * 4, self.worker(side, queue, DRAIN_CONCURRENCY)?);
        let mut before = 0.0;
        for burst in 1..=5 {
            self.servers.fill(queue, count, &self.payload, Duration::ZERO).await?;
            self.stored(count * burst).await?;
            sleep(SETTLED).await;
            if burst == 1 {
                before = worker.usage().rss_mib;
            }
            if burst < 5 {
                self.servers.close_connections().await?;
            }
        }
        let after = worker.usage().rss_mib;
        worker.end().await?;
        Ok(Numbers::from([("rss_mib".to_owned(), after), ("more_mib".to_owned(), after - before)]))
    }

    async fn wait(&self, side: Side, queue: &str) -> Result<Numbers> {
        let role = Role::Waiters { queue: queue.to_owned(), count: self.sizes.waiters };
        let mut client = Process::start(side, &role)?;
        client.numbers().await?;
        sleep(SETTLED).await;
        let used = client.usage();
        client.end().await?;
        Ok(Numbers::from([
            ("rss_mib".to_owned(), used.rss_mib),
            ("peak_mib".to_owned(), used.peak_mib),
        ]))
    }

    /// Measures resumption, first task by task, then of many tasks: suspends them, restarts their worker,
    /// and decides all of them. Then lets deciders race.
    async fn suspend(&self, side: Side, queue: &str) -> Result<Numbers> {
        let count = self.sizes.suspended;
        let worker = self.worker(side, queue, DRAIN_CONCURRENCY)?;
        // The first suspension declares the queues of delayed delivery.
        let cycle = Role::Cycle { queue: queue.to_owned() };
        let mut numbers = Process::start(side, &cycle)?.numbers().await?;
        // As many at a time as in the measurement: a worker keeps the memory that a burst needed.
        let (queue, warm_up) = (queue.to_owned(), count..count + count / 5);
        let suspending = Role::Suspend { queue: queue.clone(), numbers: warm_up.clone() };
        Process::start(side, &suspending)?.numbers().await?;
        self.all_parked(warm_up.len()).await?;
        let decide = Role::Decide { queue: queue.clone(), numbers: warm_up };
        Process::start(side, &decide)?.numbers().await?;
        sleep(SETTLED).await;
        let before = worker.usage();
        let begun = Instant::now();
        let suspending = Role::Suspend { queue: queue.clone(), numbers: 0..count };
        Process::start(side, &suspending)?.numbers().await?;
        self.all_parked(count).await?;
        let park_s = begun.elapsed().as_secs_f64();
        sleep(SETTLED).await;
        let after = worker.usage();
        worker.end().await?;
        let worker = self.worker(side, &queue, DRAIN_CONCURRENCY)?;
        let decide = Role::Decide { queue, numbers: 0..count };
        let decided = Process::start(side, &decide)?.numbers().await?;
        let resume_s = decided.get("resume_s").copied().unwrap_or(f64::NAN);
        let race = Role::Race { requests: self.sizes.races, deciders: DECIDERS };
        numbers.extend(Process::start(side, &race)?.numbers().await?);
        worker.end().await?;
        numbers.extend(decided);
        numbers.insert("park_s".to_owned(), park_s);
        numbers.insert("cycles".to_owned(), count as f64 / (park_s + resume_s));
        numbers.insert("suspended_mib".to_owned(), after.rss_mib - before.rss_mib);
        Ok(numbers)
    }

    async fn all_parked(&self, count: usize) -> Result<()> {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            let suspended = self.servers.open_requests().await?;
            if suspended == count {
                return Ok(());
            }
            if suspended > seen {
                (seen, since) = (suspended, Instant::now());
            }
            if since.elapsed() > STUCK {
                return Err(format!("no task was suspended after {suspended} of {count}").into());
            }
            sleep(LOOK).await;
        }
    }
}
