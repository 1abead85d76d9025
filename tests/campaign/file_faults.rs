//! One SQLite file for several processes, and the faults of the file and of the processes.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign::{Client, Config};
use rusqlite::Connection;
use support::queue_name;

use crate::disk::Disk;
use crate::hostile;
use crate::ledger::Ledger;
use crate::nemesis::{Fault, Hold, Kind};
use crate::workers::{PREFETCH, SLOTS, Silence, WORKERS, Workers, command};

/// A process renews its session of ten seconds at the latest when four seconds are left. While the
/// file cannot be written, no process renews. The first that renews takes back the others' messages.
const SILENCE: Duration = Duration::from_secs(4);
/// All messages that the workers run or hold, since a stopped process may have the file locked.
const HELD: usize = WORKERS * (SLOTS + PREFETCH);
const READ_ONLY: u32 = 0o444;

#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    Kill,
    Stop,
    Drain,
    DrainTwice,
    Reader,
    Lock,
    FullDisk,
    ReadOnly,
    Hostile,
}

/// All processes and files that the faults hit.
pub(crate) struct Fixture {
    disk: Disk,
    file: PathBuf,
    pub(crate) workers: Workers,
    pub(crate) client: Client,
    pub(crate) queues: Vec<String>,
    ledger: Arc<Ledger>,
}

impl Fixture {
    pub(crate) async fn start(ledger: &Arc<Ledger>) -> Self {
        let disk = Disk::new();
        let file = disk.folder.join("tasks.db");
        let url = format!("sqlite:{}", file.display());
        let client = Client::start(Config::embedded(&url).unwrap()).unwrap();
        let queue = queue_name();
        let queues = vec![queue.clone()];
        let silence = Silence { limit: SILENCE, excused: HELD };
        let workers = Workers::start(ledger, silence, move |place| {
            let mut command = command(&queue, &format!("{queue}-{place}"));
            command.env("COUNTERSIGN_BROKER_URL", &url).env("COUNTERSIGN_STORE_URL", &url);
            command
        });
        let workers = workers.await;
        Self { disk, file, workers, client, queues, ledger: Arc::clone(ledger) }
    }

    /// Returns the faults that can be injected on this machine, with their weights and durations.
    pub(crate) fn kinds(&self) -> Vec<Kind<What>> {
        let mut kinds = vec![
            Kind::new(What::Kill, "worker killed", 15, (0, 0)),
            Kind::new(What::Stop, "worker stopped", 12, (1_000, 14_000)),
            Kind::new(What::Stop, "worker stopped for long", 4, (14_000, 70_000)),
            Kind::new(What::Drain, "worker drained", 10, (0, 0)),
            Kind::new(What::DrainTwice, "worker drained by two signals", 5, (0, 0)),
            Kind::new(What::Reader, "file held open by a reader", 8, (1_000, 10_000)),
            Kind::new(What::Lock, "file locked", 12, (1_000, 8_000)),
            Kind::new(What::Hostile, "hostile messages", 5, (0, 0)),
        ];
        if self.disk.is_mounted {
            kinds.push(Kind::new(What::FullDisk, "disk full", 10, (1_000, 8_000)));
        }
        if modes_count(&self.disk.folder) {
            kinds.push(Kind::new(What::ReadOnly, "file read-only", 5, (0, 0)));
        } else {
            eprintln!("SKIPPED: read-only files: this user may write them");
        }
        kinds
    }

    /// Injects a fault. When this returns, it has healed.
    pub(crate) async fn inject(&self, fault: Fault<What>) {
        match fault.what {
            What::Kill => self.workers.kill(fault.place).await,
            What::Stop => self.workers.stop(fault.place, fault.hold).await,
            What::Drain => self.workers.drain(fault.place, false).await,
            What::DrainTwice => self.workers.drain(fault.place, true).await,
            What::Reader => self.hold_file(fault.hold, "BEGIN", "COMMIT").await,
            What::Lock => {
                self.excuse(&fault);
                self.hold_file(fault.hold, "BEGIN IMMEDIATE", "ROLLBACK").await;
            }
            What::FullDisk => {
                self.excuse(&fault);
                if self.disk.fill() {
                    fault.hold.pass().await;
                    self.disk.free();
                } else {
                    self.ledger.note("disks that could not be filled");
                }
            }
            What::ReadOnly => self.start_on_read_only_file().await,
            What::Hostile => hostile::publish_all(&self.client, &self.queues, &self.ledger).await,
        }
    }

    /// Closes the client. Records a violation if SQLite finds the file damaged.
    pub(crate) async fn close(&self) {
        self.client.close().await;
        let connection = Connection::open(&self.file).unwrap();
        let check = "PRAGMA integrity_check";
        let found: String = connection.query_row(check, [], |row| row.get(0)).unwrap();
        if found != "ok" {
            self.ledger.violation(format!("the file is damaged: {found}"));
        }
    }

    fn excuse(&self, fault: &Fault<What>) {
        if fault.hold.duration() > SILENCE {
            self.ledger.excuse(fault.name, HELD);
        }
    }

    /// Keeps a transaction open for a while, as another program could.
    async fn hold_file(&self, hold: Hold, begin: &'static str, end: &'static str) {
        let file = self.file.clone();
        let held = tokio::task::spawn_blocking(move || {
            let connection = Connection::open(file)?;
            connection.execute_batch(begin)?;
            let count = "SELECT count(*) FROM messages";
            let _: i64 = connection.query_row(count, [], |row| row.get(0))?;
            std::thread::sleep(hold.duration());
            connection.execute_batch(end)
        });
        if held.await.unwrap().is_err() {
            // A stopped worker may have the file locked.
            self.ledger.note("files that could not be held");
        }
    }

    /// Starts a worker while the file is read-only. It must report that.
    async fn start_on_read_only_file(&self) {
        let mode = fs::metadata(&self.file).unwrap().permissions();
        let set = |mode| fs::set_permissions(&self.file, mode).unwrap();
        let read_only = || set(Permissions::from_mode(READ_ONLY));
        let heal = || set(mode);
        if !self.workers.extra_worker_logs("read-only", read_only, heal).await {
            let text = "a worker whose file is read-only does not say so".to_owned();
            self.ledger.violation(text);
        }
    }
}

/// Whether file modes bind this user. The superuser can write read-only files.
fn modes_count(folder: &Path) -> bool {
    let file = folder.join("probe");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(READ_ONLY)).unwrap();
    let opened = OpenOptions::new().write(true).open(&file);
    fs::remove_file(&file).unwrap();
    opened.is_err()
}
