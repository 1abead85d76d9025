//! Opening the file: checks that it is ours and may be used.

use std::fs;
use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::fault::{BUSY_TIMEOUT, TxResult};
use super::txn::Txn;
use crate::error::{Error, Kind};

/// `CSGN`: identifies our databases, for `file` and for us.
const APPLICATION: i64 = 0x4353_474e;
/// The version of the tables in `schema.sql`.
const VERSION: i64 = 1;
const SCHEMA: &str = include_str!("schema.sql");
/// Columns that files of this version may lack. Older processes can use the file at the same time:
/// their statements name their columns, and the rows that they replace have `NULL` in these.
const ADDED: [(&str, &str, &str); 9] = [
    ("parks", "digest", "TEXT"),
    ("parks", "packed", "BLOB"),
    ("parks", "wake_queue", "INTEGER"),
    ("parks", "wake_at", "INTEGER"),
    ("parks", "wake_number", "INTEGER"),
    ("parks", "wake_sent", "INTEGER"),
    ("left_by", "digest", "TEXT"),
    ("questions", "nonce", "TEXT"),
    ("ballots", "nonce", "TEXT"),
];
/// Tables that files of this version may lack. Older processes write to none of them.
const ADDED_TABLES: [&str; 2] = ["notes", "refusals"];
/// An index on added columns.
const ADDED_INDEX: &str = "CREATE INDEX IF NOT EXISTS parks_by_wake \
     ON parks (wake_queue, wake_at) WHERE wake_queue IS NOT NULL";
const STATEMENTS: usize = 128;
/// The pages in the log from which a commit checkpoints it. Each checkpoint writes a page once, however often
/// it is in the log: tasks that are enqueued, leased and acked change the same pages again and again.
const CHECKPOINT_PAGES: u32 = 4_000;

/// A database in memory, with its tables.
pub(super) fn in_memory(shown: &str) -> Result<Connection, Error> {
    let open = || {
        let connection = Connection::open_in_memory()?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA temp_store = MEMORY;")?;
        connection.execute_batch(SCHEMA)?;
        connection.pragma_update(None, "user_version", VERSION)?;
        Ok(connection)
    };
    open().map_err(|error: rusqlite::Error| {
        let (what, cause) = (shown.to_owned(), error.to_string());
        Kind::Storage { what, cause }.into()
    })
}

/// Opens a file for writing, and creates its tables if it is new.
pub(super) fn open(path: &Path) -> Result<Connection, Error> {
    refuse_network(path)?;
    let what = || format!("the database {}", path.display());
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty())
        && !folder.is_dir()
    {
        let cause = format!("directory {} does not exist: create it first", folder.display());
        return Err(Kind::Storage { what: what(), cause }.into());
    }
    make_private(path);
    let opened = Connection::open(path).map_err(|error| failed(path, &error))?;
    let version = prepare(&opened, path)?;
    if version == 0 {
        create(&opened).map_err(|error| failed(path, &error))?;
    }
    add_missing(&opened).map_err(|error| failed(path, &error))?;
    Ok(opened)
}

/// Opens the same file for reading.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags).map_err(|error| failed(path, &error))?;
    opened.busy_timeout(BUSY_TIMEOUT).map_err(|error| failed(path, &error))?;
    opened.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(opened)
}

/// Checks that no other process has migrated the file to a newer version since it was opened.
pub(super) fn check_version(txn: &Txn<'_>) -> TxResult<()> {
    let version = txn.first("PRAGMA user_version", [], |row| row.get(0))?;
    if version.is_some_and(|version: i64| version > VERSION) {
        let cause = "a newer Countersign has migrated it: upgrade this process";
        return Err(Error::new(Kind::Config(vec![cause.into()])).into());
    }
    Ok(())
}

/// Opens an existing file for a tool: creates nothing, and changes no pragmas.
///
/// # Errors
/// The file does not exist; it is not ours; it is newer; it cannot be read, or written.
#[cfg(feature = "unstable")]
pub(super) fn open_existing(path: &Path, is_writing: bool) -> Result<Connection, Error> {
    if !path.is_file() {
        let what = format!("the database {}", path.display());
        return Err(Kind::Storage { what, cause: "the file does not exist".to_owned() }.into());
    }
    let flags = if is_writing {
        OpenFlags::SQLITE_OPEN_READ_WRITE
    } else {
        OpenFlags::SQLITE_OPEN_READ_ONLY
    };
    let opened = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX);
    let opened = opened.map_err(|error| failed(path, &error))?;
    if version(&opened, path)? == 0 {
        let fault = format!("{} is empty: it is not a Countersign database yet", path.display());
        return Err(Kind::Config(vec![fault]).into());
    }
    if is_writing && opened.is_readonly("main").map_err(|error| failed(path, &error))? {
        return Err(read_only(path));
    }
    Ok(opened)
}

/// Returns the version of our tables in a file, 0 for an empty file. Changes nothing.
fn version(connection: &Connection, path: &Path) -> Result<i64, Error> {
    let read = || {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (application, version) = (number("application_id")?, number("user_version")?);
        let tables = "SELECT count(*) FROM sqlite_schema";
        let tables: i64 = connection.query_row(tables, [], |row| row.get(0))?;
        Ok((application, version, tables))
    };
    let (application, version, tables) = read().map_err(|error| failed(path, &error))?;
    let is_empty = application == 0 && version == 0 && tables == 0;
    let fault = if is_empty {
        None
    } else if application != APPLICATION {
        Some("is a database of another program: name another file".to_owned())
    } else if version > VERSION {
        Some(format!(
            "was written by a newer Countersign (schema {version}, supported: {VERSION}): upgrade this one"
        ))
    } else {
        None
    };
    match fault {
        Some(fault) => Err(Kind::Config(vec![format!("{} {fault}", path.display())]).into()),
        None => Ok(version),
    }
}

/// Sets the connection up; returns the version of the existing tables, 0 for none.
fn prepare(connection: &Connection, path: &Path) -> Result<i64, Error> {
    let version = version(connection, path)?;
    // SQLite silently opens a file that it may not write as read-only.
    if connection.is_readonly("main").map_err(|error| failed(path, &error))? {
        return Err(read_only(path));
    }
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // A foreign file was refused above, before anything is changed. The first write to a new file fixes
    // its `auto_vacuum` mode.
    let incremental = if version == 0 { "PRAGMA auto_vacuum = INCREMENTAL; " } else { "" };
    let pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                   PRAGMA temp_store = MEMORY; PRAGMA cache_size = -4096; \
                   PRAGMA journal_size_limit = 67108864;";
    let checkpoint = format!("PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};");
    let set_up = connection.execute_batch(&format!("{incremental}{pragmas}{checkpoint}"));
    set_up.map_err(|error| failed(path, &error))?;
    Ok(version)
}

/// Creates the file, if it does not exist, so that only its user can read and write it. SQLite gives
/// the log and index files the same mode. The mode of an existing file is not changed.
#[cfg(unix)]
fn make_private(path: &Path) {
    use std::os::unix::fs::OpenOptionsExt;
    // If this fails, opening the file reports why. No lock is lost: no process had the file open.
    let _ = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
}

#[cfg(not(unix))]
fn make_private(_: &Path) {}

/// Creates the tables. Several processes may try at the same time: the first one creates them.
fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == 0 {
        connection.execute_batch(SCHEMA)?;
        connection.pragma_update(None, "application_id", APPLICATION)?;
        connection.pragma_update(None, "user_version", VERSION)?;
    }
    connection.execute_batch("COMMIT")
}

/// Adds missing columns and tables. Several processes may try at the same time: the first one adds them.
fn add_missing(connection: &Connection) -> rusqlite::Result<()> {
    let missing = || {
        let find = "SELECT count(*) FROM pragma_table_info(?) WHERE name = ?";
        let is_missing = |table, column| {
            connection.query_row(find, [table, column], |row| Ok(row.get::<_, i64>(0)? == 0))
        };
        let mut missing = Vec::new();
        for (table, column, kind) in ADDED {
            if is_missing(table, column)? {
                missing.push(format!("ALTER TABLE {table} ADD COLUMN {column} {kind}"));
            }
        }
        for table in ADDED_TABLES {
            if is_missing(table, "seq")? {
                missing.push(format!(
                    "CREATE TABLE {table} (seq INTEGER PRIMARY KEY AUTOINCREMENT, \
                     at INTEGER NOT NULL, fields TEXT NOT NULL)"
                ));
            }
        }
        Ok::<_, rusqlite::Error>(missing)
    };
    if missing()?.is_empty() {
        return Ok(());
    }
    connection.execute_batch("BEGIN IMMEDIATE")?;
    for statement in missing()?.into_iter().chain([ADDED_INDEX.to_owned()]) {
        connection.execute_batch(&statement)?;
    }
    connection.execute_batch("COMMIT")
}

pub(super) fn failed(path: &Path, error: &rusqlite::Error) -> Error {
    let what = format!("the database {}", path.display());
    let cause = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            let fault = "is not a database, or is damaged: name another file, or restore a backup";
            return Kind::Config(vec![format!("{} {fault}", path.display())]).into();
        }
        Some(ErrorCode::DatabaseCorrupt) => format!("it is damaged ({error}): restore a backup"),
        Some(ErrorCode::ReadOnly) => return read_only(path),
        Some(ErrorCode::CannotOpen) => format!("it cannot be opened: {error}"),
        Some(ErrorCode::DiskFull) => "the disk is full: free some space".to_owned(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            format!("another process has locked it for over {} s", BUSY_TIMEOUT.as_secs())
        }
        _ => error.to_string(),
    };
    Kind::Storage { what, cause }.into()
}

fn read_only(path: &Path) -> Error {
    let what = format!("the database {}", path.display());
    let cause = "it is read-only: the process needs write permission for it and its directory";
    Kind::Storage { what, cause: cause.to_owned() }.into()
}

/// Refuses network file systems: processes on several hosts would not see each other's locks.
fn refuse_network(path: &Path) -> Result<(), Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = fs::canonicalize(folder.unwrap_or(Path::new("."))).unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    match file_system(&mounts, &folder.to_string_lossy()).filter(|kind| is_network(kind)) {
        Some(kind) => {
            let fault = format!(
                "{} is on a network file system ({kind}), where file locks are unreliable: name a file on \
                 a local disk",
                path.display()
            );
            Err(Kind::Config(vec![fault]).into())
        }
        None => Ok(()),
    }
}

/// Returns the type of the file system that a folder is on, by a list of mounts in Linux's format.
fn file_system<'m>(mounts: &'m str, folder: &str) -> Option<&'m str> {
    let mut nearest: Option<(usize, &str)> = None;
    for mount in mounts.lines() {
        let mut fields = mount.split(' ').skip(1);
        let (Some(point), Some(kind)) = (fields.next(), fields.next()) else { continue };
        let point = point.replace("\\040", " ");
        let inside = folder.strip_prefix(point.trim_end_matches('/'));
        let is_inside = inside.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        // Of two mounts on one point the later one is visible.
        if is_inside && nearest.is_none_or(|(length, _)| point.len() >= length) {
            nearest = Some((point.len(), kind));
        }
    }
    nearest.map(|(_, kind)| kind)
}

fn is_network(kind: &str) -> bool {
    let named = ["9p", "afs", "ceph", "cifs", "fuse.sshfs", "gfs2", "glusterfs", "lustre", "ncpfs"];
    kind.starts_with("nfs") || kind.starts_with("smb") || named.contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "/dev/vda / ext4 rw 0 0\n\
                          server:/home /home nfs4 rw 0 0\n\
                          /dev/vdb /home/local xfs rw 0 0\n\
                          //nas/data /mnt/my\\040data cifs rw 0 0\n";

    /// A file of an older version gets the columns and tables, and that version continues to write to it.
    #[test]
    fn columns_and_tables_are_added_to_an_older_file() {
        let path = std::env::temp_dir().join(format!("{}.db", uuid::Uuid::new_v4().simple()));
        let old = open(&path).unwrap();
        old.execute_batch("DROP INDEX parks_by_wake").unwrap();
        for (table, column, _) in ADDED {
            old.execute_batch(&format!("ALTER TABLE {table} DROP COLUMN {column}")).unwrap();
        }
        for table in ADDED_TABLES {
            old.execute_batch(&format!("DROP TABLE {table}")).unwrap();
        }
        let insert = "INSERT OR REPLACE INTO parks (task, v, number, waits, asked, holder, until, \
                    ended, alarm, queue, message) VALUES ('t', 1, 1, '', '', NULL, NULL, 0, NULL, \
                    'q', NULL)";
        old.prepare_cached(insert).unwrap().execute([]).unwrap();
        let new = [open(&path).unwrap(), open(&path).unwrap()];
        let digest = || -> Option<String> {
            new[1].query_row("SELECT digest FROM parks", [], |row| row.get(0)).unwrap()
        };
        assert_eq!(digest(), None);
        new[0].execute("UPDATE parks SET digest = 'one'", []).unwrap();
        old.prepare_cached("UPDATE parks SET number = 2").unwrap().execute([]).unwrap();
        assert_eq!(digest().as_deref(), Some("one"), "the same record");
        old.prepare_cached(insert).unwrap().execute([]).unwrap();
        assert_eq!(digest(), None, "another record");
        assert!(new[0].prepare("SELECT digest FROM left_by").is_ok());
        let columns = |table: &str| -> String {
            let find = "SELECT group_concat(name || type || pk) FROM pragma_table_info(?)";
            new[0].query_row(find, [table], |row| row.get(0)).unwrap()
        };
        assert_eq!(ADDED_TABLES.map(columns), [columns("audit"), columns("audit")]);
        drop((old, new));
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", path.display()));
        }
    }

    #[test]
    fn a_network_folder_is_found_by_its_nearest_mount() {
        let kind = |folder| file_system(MOUNTS, folder).is_some_and(is_network);
        assert!(kind("/home"));
        assert!(kind("/home/ana/data"));
        assert!(kind("/mnt/my data/x"));
        assert!(!kind("/home/local/x"));
        assert!(!kind("/homestead"));
        assert!(!kind("/var"));
    }
}
