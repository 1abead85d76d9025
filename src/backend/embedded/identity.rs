//! Checks whether the open file is still the one that its path names.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The identity of the database file and its log at the time of opening. SQLite keeps both while any
/// process has the database open, so neither changes by itself.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    database: Named,
    log: Named,
}

#[derive(Clone, Debug)]
struct Named {
    path: PathBuf,
    /// Device and inode; `None` until the file was seen.
    seen: Option<(u64, u64)>,
}

impl Identity {
    /// Reads the identity of a database that was just opened.
    pub(super) fn of(database: &Path) -> Self {
        let database = std::path::absolute(database).unwrap_or_else(|_| database.to_owned());
        let mut log = database.clone().into_os_string();
        log.push("-wal");
        let mut identity = Self { database: Named::new(database), log: Named::new(log.into()) };
        identity.fault();
        identity
    }

    /// Returns a text about the change, if the files are not the ones that were opened. Makes two system
    /// calls.
    pub(super) fn fault(&mut self) -> Option<String> {
        self.database.fault().or_else(|| self.log.fault())
    }
}

impl Named {
    fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    fn fault(&mut self) -> Option<String> {
        match (self.seen, inode(&self.path)) {
            (None, found) => self.seen = found.ok(),
            (Some(seen), Ok(found)) if seen != found => {
                return Some(format!("{} was replaced", self.path.display()));
            }
            (Some(_), Err(error)) if error.kind() == ErrorKind::NotFound => {
                return Some(format!("{} was deleted or moved", self.path.display()));
            }
            // An error other than "not found" does not prove that the file is gone.
            (Some(_), _) => {}
        }
        None
    }
}

#[cfg(unix)]
fn inode(path: &Path) -> std::io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(path)?;
    Ok((found.dev(), found.ino()))
}

#[cfg(not(unix))]
fn inode(_: &Path) -> std::io::Result<(u64, u64)> {
    Ok((0, 0))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Folder;
    use super::*;

    #[test]
    fn a_file_that_was_deleted_or_replaced_is_noticed() {
        let folder = Folder::new();
        let (file, log) = (folder.file(), folder.0.join("tasks.db-wal"));
        std::fs::write(&file, "").unwrap();
        let mut identity = Identity::of(&file);
        assert_eq!(identity.fault(), None);
        std::fs::write(&log, "").unwrap();
        assert_eq!(identity.fault(), None, "the log is made later");
        std::fs::rename(&log, folder.0.join("else")).unwrap();
        assert!(identity.fault().unwrap().contains("tasks.db-wal was deleted"));
        std::fs::write(&log, "").unwrap();
        assert!(identity.fault().unwrap().contains("tasks.db-wal was replaced"));
        std::fs::rename(folder.0.join("else"), &log).unwrap();
        assert_eq!(identity.fault(), None);
        std::fs::remove_file(&file).unwrap();
        assert!(identity.fault().unwrap().contains("tasks.db was deleted or moved"));
    }
}
