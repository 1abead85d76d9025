//! Opening the file: whether it is ours, and may be used.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::txn::{Done, Txn};
use crate::error::{Error, Kind};

/// `CSGN`: by this, `file` and we tell our databases from others.
const APPLICATION: i64 = 0x4353_474e;
/// Of the tables in `schema.sql`.
const VERSION: i64 = 1;
const SCHEMA: &str = include_str!("schema.sql");
/// Columns that files of this version may lack. Older processes go on working beside them: they name
/// the columns that they read and write, and what they replace has none of these.
const ADDED: [(&str, &str); 4] =
    [("parks", "digest"), ("left_by", "digest"), ("questions", "nonce"), ("ballots", "nonce")];
/// How long another process may keep the file locked.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
const STATEMENTS: usize = 128;

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

/// Opens a file for writing, and makes its tables if it is new.
pub(super) fn open(path: &Path) -> Result<Connection, Error> {
    refuse_network(path)?;
    let what = || format!("the database {}", path.display());
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty())
        && !folder.is_dir()
    {
        let cause = format!("there is no folder {}: make it first", folder.display());
        return Err(Kind::Storage { what: what(), cause }.into());
    }
    make_private(path);
    let opened = Connection::open(path).map_err(|error| failed(path, &error))?;
    let version = prepare(&opened, path)?;
    if version == 0 {
        create(&opened).map_err(|error| failed(path, &error))?;
    }
    add_columns(&opened).map_err(|error| failed(path, &error))?;
    Ok(opened)
}

/// Opens the same file for reading.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags).map_err(|error| failed(path, &error))?;
    opened.busy_timeout(PATIENCE).map_err(|error| failed(path, &error))?;
    opened.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(opened)
}

/// Another process may have given the file newer tables while we run.
pub(super) fn check_version(txn: &Txn<'_>) -> Done<()> {
    let version = txn.first("PRAGMA user_version", [], |row| row.get(0))?;
    if version.is_some_and(|version: i64| version > VERSION) {
        let cause = "a newer Countersign has migrated it: restart this one as that version";
        return Err(Error::new(Kind::Config(vec![cause.into()])).into());
    }
    Ok(())
}

/// Opens a file that is there, for a tool: nothing is made, and its pragmas stay as they are.
///
/// # Errors
/// There is no such file; it is not ours; it is newer; it cannot be read, or written.
#[cfg(feature = "cli")]
pub(super) fn open_existing(path: &Path, is_writing: bool) -> Result<Connection, Error> {
    if !path.is_file() {
        let what = format!("the database {}", path.display());
        return Err(Kind::Storage { what, cause: "there is no such file".to_owned() }.into());
    }
    let flags = if is_writing {
        OpenFlags::SQLITE_OPEN_READ_WRITE
    } else {
        OpenFlags::SQLITE_OPEN_READ_ONLY
    };
    let opened = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX);
    let opened = opened.map_err(|error| failed(path, &error))?;
    if version(&opened, path)? == 0 {
        let fault = format!("{} is empty: no Countersign has used it yet", path.display());
        return Err(Kind::Config(vec![fault]).into());
    }
    if is_writing && opened.is_readonly("main").map_err(|error| failed(path, &error))? {
        return Err(read_only(path));
    }
    Ok(opened)
}

/// Which version of our tables is in a file, 0 for an empty file. Changes nothing.
fn version(connection: &Connection, path: &Path) -> Result<i64, Error> {
    let read = || {
        connection.busy_timeout(PATIENCE)?;
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
            "is of a newer Countersign (tables {version}, ours {VERSION}): upgrade this one"
        ))
    } else {
        None
    };
    match fault {
        Some(fault) => Err(Kind::Config(vec![format!("{} {fault}", path.display())]).into()),
        None => Ok(version),
    }
}

/// Sets the connection up; says which version of the tables is there, 0 for none.
fn prepare(connection: &Connection, path: &Path) -> Result<i64, Error> {
    let version = version(connection, path)?;
    // SQLite opens what it may not write for reading, without a word.
    if connection.is_readonly("main").map_err(|error| failed(path, &error))? {
        return Err(read_only(path));
    }
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Before anything of a foreign file is changed, the above has refused it. How a file gives
    // pages back is decided by what writes to it first.
    let incremental = if version == 0 { "PRAGMA auto_vacuum = INCREMENTAL; " } else { "" };
    let pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                   PRAGMA temp_store = MEMORY; PRAGMA cache_size = -4096; \
                   PRAGMA journal_size_limit = 67108864;";
    let set_up = connection.execute_batch(&format!("{incremental}{pragmas}"));
    set_up.map_err(|error| failed(path, &error))?;
    Ok(version)
}

/// Makes the file, if it is not there, so that only its user can read and write it. SQLite gives the
/// files beside it the same mode. The mode of a file that is there is left alone.
#[cfg(unix)]
fn make_private(path: &Path) {
    use std::os::unix::fs::OpenOptionsExt;
    // Where this fails, opening it says why. No lock is lost: no process had the file open.
    let _ = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
}

#[cfg(not(unix))]
fn make_private(_: &Path) {}

/// Several processes may try at once: the first makes the tables.
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

/// Several processes may try at once: the first adds what is missing.
fn add_columns(connection: &Connection) -> rusqlite::Result<()> {
    let missing = || {
        let find = "SELECT count(*) FROM pragma_table_info(?) WHERE name = ?";
        let mut missing = Vec::new();
        for (table, column) in ADDED {
            let count: i64 = connection.query_row(find, [table, column], |row| row.get(0))?;
            missing.extend((count == 0).then_some((table, column)));
        }
        Ok::<_, rusqlite::Error>(missing)
    };
    if missing()?.is_empty() {
        return Ok(());
    }
    connection.execute_batch("BEGIN IMMEDIATE")?;
    for (table, column) in missing()? {
        connection.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} TEXT"))?;
    }
    connection.execute_batch("COMMIT")
}

pub(super) fn failed(path: &Path, error: &rusqlite::Error) -> Error {
    let what = format!("the database {}", path.display());
    let cause = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            let fault = "is no database, or a damaged one: name another file, or restore a copy";
            return Kind::Config(vec![format!("{} {fault}", path.display())]).into();
        }
        Some(ErrorCode::DatabaseCorrupt) => format!("it is damaged ({error}): restore a copy"),
        Some(ErrorCode::ReadOnly) => return read_only(path),
        Some(ErrorCode::CannotOpen) => format!("it cannot be opened: {error}"),
        Some(ErrorCode::DiskFull) => "the disk is full: make room".to_owned(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            format!("another process keeps it locked for {} s", PATIENCE.as_secs())
        }
        _ => error.to_string(),
    };
    Kind::Storage { what, cause }.into()
}

fn read_only(path: &Path) -> Error {
    let what = format!("the database {}", path.display());
    let cause = "it is read-only: its user must be able to write it and its folder";
    Kind::Storage { what, cause: cause.to_owned() }.into()
}

/// Processes of several machines would not see each other's locks.
fn refuse_network(path: &Path) -> Result<(), Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = fs::canonicalize(folder.unwrap_or(Path::new("."))).unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    match file_system(&mounts, &folder.to_string_lossy()).filter(|kind| is_network(kind)) {
        Some(kind) => {
            let fault = format!(
                "{} is on a network file system ({kind}), where locks do not hold: name a file on \
                 a local disk",
                path.display()
            );
            Err(Kind::Config(vec![fault]).into())
        }
        None => Ok(()),
    }
}

/// The type of the file system that a folder is on, by a list of mounts as Linux writes it.
fn file_system<'m>(mounts: &'m str, folder: &str) -> Option<&'m str> {
    let mut nearest: Option<(usize, &str)> = None;
    for mount in mounts.lines() {
        let mut fields = mount.split(' ').skip(1);
        let (Some(point), Some(kind)) = (fields.next(), fields.next()) else { continue };
        let point = point.replace("\\040", " ");
        let inside = folder.strip_prefix(point.trim_end_matches('/'));
        let is_inside = inside.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        // Of two mounts on one point the later one is seen.
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

    /// A file of the version before gets the columns, and that version goes on writing to it.
    #[test]
    fn columns_are_added_to_an_older_file() {
        let path = std::env::temp_dir().join(format!("{}.db", uuid::Uuid::new_v4().simple()));
        let old = open(&path).unwrap();
        for (table, column) in ADDED {
            old.execute_batch(&format!("ALTER TABLE {table} DROP COLUMN {column}")).unwrap();
        }
        let park = "INSERT OR REPLACE INTO parks (task, v, number, waits, asked, holder, until, \
                    ended, alarm, queue, message) VALUES ('t', 1, 1, '', '', NULL, NULL, 0, NULL, \
                    'q', NULL)";
        old.prepare_cached(park).unwrap().execute([]).unwrap();
        let new = [open(&path).unwrap(), open(&path).unwrap()];
        let digest = || -> Option<String> {
            new[1].query_row("SELECT digest FROM parks", [], |row| row.get(0)).unwrap()
        };
        assert_eq!(digest(), None);
        new[0].execute("UPDATE parks SET digest = 'one'", []).unwrap();
        old.prepare_cached("UPDATE parks SET number = 2").unwrap().execute([]).unwrap();
        assert_eq!(digest().as_deref(), Some("one"), "the same record");
        old.prepare_cached(park).unwrap().execute([]).unwrap();
        assert_eq!(digest(), None, "another record");
        assert!(new[0].prepare("SELECT digest FROM left_by").is_ok());
        drop((old, new));
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", path.display()));
        }
    }

    #[test]
    fn the_nearest_mount_says_whether_a_folder_is_on_the_network() {
        let kind = |folder| file_system(MOUNTS, folder).is_some_and(is_network);
        assert!(kind("/home"));
        assert!(kind("/home/ana/data"));
        assert!(kind("/mnt/my data/x"));
        assert!(!kind("/home/local/x"));
        assert!(!kind("/homestead"));
        assert!(!kind("/var"));
    }
}
