//! Copying a database, and rewriting it without its unused pages, while other processes use it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

use super::file;
use crate::error::{Error, Kind};

/// How long rewriting waits for writers.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// Copies the database at `path` to a new file `to`, as a consistent snapshot, and returns the size of
/// the copy in bytes. Workers continue during the copy. The copy has no log file, and only its user can
/// read it. It appears under its name when it is complete and synced.
///
/// # Errors
/// `to` exists, or cannot be written; the database cannot be read, is not ours, or is newer.
pub fn back_up(path: &Path, to: &Path) -> Result<u64, Error> {
    let source = file::open_existing(path, false)?;
    let backup_error = |error: &dyn std::fmt::Display| {
        let what = format!("the backup {}", to.display());
        Error::new(Kind::Storage { what, cause: error.to_string() })
    };
    if fs::symlink_metadata(to).is_ok() {
        return Err(backup_error(&"it exists: name a new file"));
    }
    let part = Part::create_for(to).map_err(|error| backup_error(&error))?;
    let name = part.0.to_string_lossy();
    source.execute("VACUUM INTO ?", [&name]).map_err(|error| backup_error(&error))?;
    let complete = || -> io::Result<u64> {
        let copy = File::open(&part.0)?;
        copy.sync_all()?;
        // Unlike a rename, this cannot replace another file.
        fs::hard_link(&part.0, to)?;
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(copy.metadata()?.len())
    };
    complete().map_err(|error| backup_error(&error))
}

/// An incomplete copy, removed when it is dropped.
struct Part(PathBuf);

impl Part {
    /// Creates an empty file that only its user can read.
    fn create_for(to: &Path) -> io::Result<Self> {
        let mut name = to.to_owned().into_os_string();
        name.push(format!(".{}.part", std::process::id()));
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(&name)?;
        Ok(Self(name.into()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Rewrites the database at `path` without its unused pages; returns its size before and after, in
/// bytes. From then on the file shrinks automatically when many rows have expired. Needs as much free
/// space as the size of the database. Other processes cannot write during that time, and retry.
///
/// # Errors
/// The same as [`back_up`]; and another process has been writing for 30 s without a break.
pub fn compact(path: &Path) -> Result<(u64, u64), Error> {
    let connection = file::open_existing(path, true)?;
    let compact = || -> rusqlite::Result<(u64, u64)> {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let before = size(&connection)?;
        connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL; VACUUM;")?;
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        connection.query_row(checkpoint, [], |row| row.get::<_, i64>(0))?;
        Ok((before, size(&connection)?))
    };
    compact().map_err(|error| file::failed(path, &error))
}

fn size(connection: &Connection) -> rusqlite::Result<u64> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
    Ok(number("page_count")? * number("page_size")?)
}
