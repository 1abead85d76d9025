//! The write-ahead log, to which every commit is written first. SQLite checkpoints it into the file
//! regularly, but never past the snapshot of an open reader.

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;
use tracing::debug;

use super::shared::Shared;

/// The size in bytes from which the log is reported. SQLite restarts it at about 16 MiB, and truncates
/// it to 64 MiB when it has grown.
const LIMIT: u64 = 128 * 1024 * 1024;
/// How long a process that ends waits for others before it gives up the checkpoint.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_millis(200);

/// The log of one database.
#[derive(Debug)]
pub(super) struct Wal {
    path: PathBuf,
    /// The size from which the next warning is logged.
    limit: u64,
}

impl Wal {
    pub(super) fn of(connection: &Connection) -> Self {
        let path = format!("{}-wal", connection.path().unwrap_or_default()).into();
        Self { path, limit: LIMIT }
    }

    /// Checkpoints the log into the file and truncates it. A process that ends does this, so that the
    /// file is complete while others still have it open.
    pub(super) fn checkpoint(&self, connection: &Connection) {
        let checkpoint = || {
            connection.busy_timeout(CHECKPOINT_TIMEOUT)?;
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
        };
        match checkpoint() {
            Ok(0) => {}
            Ok(_) => debug!("cannot truncate {}: it is in use", self.path.display()),
            Err(error) => debug!("cannot truncate {}: {error}", self.path.display()),
        }
    }

    /// Warns of a log that has grown: past the limit, and each time that it has doubled.
    pub(super) fn watch(&mut self, shared: &Shared) {
        let size = std::fs::metadata(&self.path).map_or(0, |file| file.len());
        if size < LIMIT {
            self.limit = LIMIT;
        }
        if size < self.limit {
            return;
        }
        self.limit = size.saturating_mul(2);
        let readers = readers(&self.path);
        let who = if readers.is_empty() {
            "find it with `fuser -v` on this file".to_owned()
        } else {
            format!("perhaps {}", readers.join(", "))
        };
        let (path, size) = (self.path.display(), size / (1024 * 1024));
        let cause = format!(
            "{path} has grown to {size} MiB: a program keeps reading an old state of the database, \
             so that the log cannot be emptied. End its transaction: {who}"
        );
        shared.warnings.warn(&shared.shown, &cause);
    }
}

/// Returns the other processes that read now, as Linux lists their locks: process id and name.
fn readers(log: &std::path::Path) -> Vec<String> {
    let index = log.to_string_lossy().replace("-wal", "-shm");
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let Some(inode) = inode(&index) else { return Vec::new() };
    let mut found: Vec<_> = holders(&locks, inode, std::process::id()).collect();
    found.sort_unstable();
    found.dedup();
    let named = found.into_iter().map(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        format!("process {pid} ({})", name.trim())
    });
    named.collect()
}

/// Returns the processes, other than ours, that hold one of SQLite's reader locks: in a list of locks
/// in Linux's format, bytes 123 to 127 of the file with this inode.
fn holders(locks: &str, inode: u64, ours: u32) -> impl Iterator<Item = u32> {
    locks.lines().filter_map(move |line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, _, _, "READ", pid, file, from, ..] = fields[..] else { return None };
        let (pid, from): (u32, u64) = (pid.parse().ok()?, from.parse().ok()?);
        let is_file = file.rsplit_once(':')?.1.parse() == Ok(inode);
        (is_file && (123..=127).contains(&from) && pid != ours).then_some(pid)
    })
}

#[cfg(unix)]
fn inode(path: &str) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    Some(std::fs::metadata(path).ok()?.ino())
}

#[cfg(not(unix))]
fn inode(_: &str) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_are_found_by_their_locks() {
        let locks = "1: POSIX  ADVISORY  READ  4242 08:01:77 124 124\n\
                     2: POSIX  ADVISORY  READ  4242 08:01:77 128 128\n\
                     3: POSIX  ADVISORY  WRITE 4243 08:01:77 120 120\n\
                     4: POSIX  ADVISORY  READ  4244 08:01:78 124 124\n\
                     5: POSIX  ADVISORY  READ  1 08:01:77 124 124\n";
        assert_eq!(holders(locks, 77, 1).collect::<Vec<_>>(), [4242]);
    }
}
