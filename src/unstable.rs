//! Internals that the `countersign` command and this repository's tests use, behind the feature
//! `unstable`. Any release may change them, and the modules `backend`, `lifecycle` and `protocol`.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use crate::error::{Error, Kind};
use crate::{address, client, clock};

/// Returns the current time by the clock of this machine.
#[must_use]
pub fn now() -> Timestamp {
    clock::now()
}

/// Returns the name of this machine.
#[must_use]
pub fn hostname() -> String {
    client::hostname()
}

/// Returns the URL of a database file.
#[must_use]
pub fn database_url(file: &Path) -> String {
    address::sqlite::url_of(file)
}

/// Replaces the passwords of a URL by `***`.
#[must_use]
pub fn masked(url: &str) -> String {
    address::masked(url)
}

/// Returns a configuration error.
#[must_use]
pub fn config_error(fault: impl Into<String>) -> Error {
    Error::new(Kind::Config(vec![fault.into()]))
}

/// Returns a storage error: what cannot be used, and why.
#[must_use]
pub fn storage_error(what: impl Into<String>, cause: impl Into<String>) -> Error {
    Error::new(Kind::Storage { what: what.into(), cause: cause.into() })
}

/// Returns the error for a decision, or a command on approvals and tasks, that was not sent.
#[must_use]
pub fn decision_error(fault: impl Into<String>) -> Error {
    Error::new(Kind::Decision(fault.into()))
}

/// Returns a timeout error.
#[must_use]
pub fn timeout_error(what: impl Into<String>, after: Duration) -> Error {
    Error::new(Kind::Timeout { what: what.into(), after })
}

/// Returns the error of a closed client.
#[must_use]
pub fn closed_error() -> Error {
    Error::new(Kind::Closed)
}
