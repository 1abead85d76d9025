//! Why a job in a transaction failed.

use std::time::Duration;

use rusqlite::ErrorCode;

use super::shared::Shared;
use crate::error::{Error, Kind};

/// How long to wait for a file that another process has locked.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The result of a job.
pub(super) type TxResult<T> = Result<T, Fault>;

/// Why a job failed. All of its writes are rolled back.
#[derive(Debug)]
pub(super) enum Fault {
    Sql(rusqlite::Error),
    Refused(Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// Converts a fault to the error for callers. Most faults are temporary: a full disk, a held lock.
pub(super) fn to_error(fault: Fault, shared: &Shared) -> Error {
    let error = match fault {
        Fault::Refused(error) => return error,
        Fault::Sql(error) => error,
    };
    Kind::Connection { peer: shared.shown.clone(), cause: cause(&error) }.into()
}

/// Explains an error of SQLite to users.
pub(super) fn cause(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => {
            "the disk is full; no data is lost: free some space".to_owned()
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            format!("another process has locked it for over {} s", BUSY_TIMEOUT.as_secs())
        }
        Some(ErrorCode::ReadOnly) => "it is read-only".to_owned(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            format!("it is damaged ({error}): restore a backup")
        }
        _ => error.to_string(),
    }
}
