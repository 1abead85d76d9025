//! A process that is killed while it writes to a database file.

use rusqlite::Connection;

/// Takes the write lock, changes something, prints a line, and never commits.
pub(super) fn run(file: &str) {
    let connection = Connection::open(file).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE; DELETE FROM messages").unwrap();
    println!("locked");
    std::thread::park();
}
