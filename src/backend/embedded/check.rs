//! Checks a database: by SQLite's own check, and by the invariants between our tables.

use std::path::Path;

use rusqlite::Connection;

use super::file;
use crate::error::Error;

/// The most faults of SQLite's own check that are listed.
const LISTED: usize = 20;

/// Invariants, each with a query for the number of rows that violate it.
const RULES: &[(&str, &str)] = &[
    (
        "every held message has a session (a worker returns others to their queue)",
        "SELECT count(*) FROM messages \
         WHERE holder IS NOT NULL AND holder NOT IN (SELECT id FROM sessions)",
    ),
    (
        "every message is in a queue",
        "SELECT count(*) FROM messages WHERE queue NOT IN (SELECT id FROM queues)",
    ),
    (
        "every message can be decoded",
        "SELECT count(*) FROM messages WHERE NOT json_valid(CAST(head AS TEXT))",
    ),
    (
        "every result can be decoded",
        "SELECT count(*) FROM results WHERE NOT json_valid(CAST(json AS TEXT))",
    ),
    (
        "every suspended task has its message",
        "SELECT count(*) FROM parks WHERE ended = 0 AND waits <> '' \
         AND message IS NULL AND packed IS NULL",
    ),
    (
        "every open approval request can be decoded",
        "SELECT count(*) FROM questions WHERE NOT json_valid(document)",
    ),
    (
        "the audit is in order",
        "SELECT count(*) FROM (SELECT at, lag(at) OVER (ORDER BY seq) AS before FROM audit) \
         WHERE at < before",
    ),
];

/// One check and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The invariant.
    pub what: &'static str,
    /// The violations; empty if there are none.
    pub faults: Vec<String>,
}

/// Checks the database at `path`, and changes nothing. Other processes may continue.
///
/// # Errors
/// The file does not exist; it is not ours; it is newer; it cannot be read at all.
pub fn check(path: &Path) -> Result<Vec<Checked>, Error> {
    let connection = file::open_existing(path, false)?;
    let checked = || -> rusqlite::Result<Vec<Checked>> {
        // All queries see the same snapshot.
        connection.execute_batch("BEGIN")?;
        let mut checked = vec![integrity(&connection)?];
        for (what, query) in RULES {
            let count: i64 = connection.query_row(query, [], |row| row.get(0))?;
            let faults = if count == 0 { Vec::new() } else { vec![format!("{count} rows")] };
            checked.push(Checked { what, faults });
        }
        Ok(checked)
    };
    checked().map_err(|error| file::failed(path, &error))
}

fn integrity(connection: &Connection) -> rusqlite::Result<Checked> {
    let mut check = connection.prepare(&format!("PRAGMA integrity_check({LISTED})"))?;
    let found = check.query_map([], |row| row.get::<_, String>(0))?;
    let faults = found.filter(|line| line.as_deref() != Ok("ok")).collect::<Result<_, _>>()?;
    Ok(Checked { what: "the file is undamaged", faults })
}
