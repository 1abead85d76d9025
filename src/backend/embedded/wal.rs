//! The log beside the file, to which every commit is written first. SQLite moves it into the file
//! now and then, but never past what an open reader still sees.

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;
use tracing::debug;

use super::db::Shared;

/// Larger than this, the log is warned of, in bytes. SQLite begins it anew at about 4 MiB, and cuts
/// it to 64 MiB when it has grown.
const LIMIT: u64 = 128 * 1024 * 1024;
/// How long a process that ends waits for others, to move the log into the file.
const FOLD_PATIENCE: Duration = Duration::from_millis(200);

/// The log of one database.
#[derive(Debug)]
pub(super) struct Wal {
    path: PathBuf,
    /// The size from which it is warned of again.
    limit: u64,
}

impl Wal {
    pub(super) fn of(connection: &Connection) -> Self {
        let path = format!("{}-wal", connection.path().unwrap_or_default()).into();
        Self { path, limit: LIMIT }
    }

    /// Moves the log into the file and empties it. A process that ends does this, so that what is in
    /// the file is complete where others still have it open.
    pub(super) fn fold(&self, connection: &Connection) {
        let fold = || {
            connection.busy_timeout(FOLD_PATIENCE)?;
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
        };
        match fold() {
            Ok(0) => {}
            Ok(_) => debug!("{} is in use, and stays as it is", self.path.display()),
            Err(error) => debug!("{} stays as it is: {error}", self.path.display()),
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

/// Other processes that read right now, as Linux lists their locks: number and name.
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

/// The processes, other than ours, that hold one of SQLite's locks for readers: in a list of locks
/// as Linux writes it, bytes 123 to 127 of the file with this inode.
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
    fn who_reads_is_known_by_the_locks() {
        let locks = "1: POSIX  ADVISORY  READ  4242 08:01:77 124 124\n\
                     2: POSIX  ADVISORY  READ  4242 08:01:77 128 128\n\
                     3: POSIX  ADVISORY  WRITE 4243 08:01:77 120 120\n\
                     4: POSIX  ADVISORY  READ  4244 08:01:78 124 124\n\
                     5: POSIX  ADVISORY  READ  1 08:01:77 124 124\n";
        assert_eq!(holders(locks, 77, 1).collect::<Vec<_>>(), [4242]);
    }
}
