//! A transaction.

use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, Params};

use super::fault::TxResult;
use super::notifications::Event;
use super::shared::Shared;

/// A transaction that several jobs may share.
pub(super) struct Txn<'c> {
    pub(super) connection: &'c Connection,
    /// The store's clock, in milliseconds.
    pub(super) now: i64,
    pub(super) shared: &'c Arc<Shared>,
    pub(super) events: Vec<Event>,
}

impl<'c> Txn<'c> {
    pub(super) fn of(connection: &'c Connection, shared: &'c Arc<Shared>) -> Self {
        Self { connection, now: shared.clock.now(), shared, events: Vec::new() }
    }

    /// Returns a cached prepared statement.
    pub(super) fn prepare(&self, sql: &str) -> TxResult<CachedStatement<'_>> {
        Ok(self.connection.prepare_cached(sql)?)
    }

    /// Runs a statement; returns the number of changed rows.
    pub(super) fn execute(&self, sql: &str, parameters: impl Params) -> TxResult<usize> {
        Ok(self.prepare(sql)?.execute(parameters)?)
    }

    /// Returns the first row, if there is one.
    pub(super) fn first<T>(
        &self,
        sql: &str,
        parameters: impl Params,
        read: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> TxResult<Option<T>> {
        let mut statement = self.prepare(sql)?;
        let mut rows = statement.query(parameters)?;
        Ok(rows.next()?.map(read).transpose()?)
    }

    /// Returns every row.
    pub(super) fn all<T>(
        &self,
        sql: &str,
        parameters: impl Params,
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> TxResult<Vec<T>> {
        let mut statement = self.prepare(sql)?;
        let rows = statement.query_map(parameters, read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns the rowid of the last insert.
    pub(super) fn inserted(&self) -> i64 {
        self.connection.last_insert_rowid()
    }

    /// Sends an event to its subscribers, in this process and others, once the transaction is durable.
    pub(super) fn notify(&mut self, event: Event) {
        if let (Event::Queue(queue), Some(Event::Queue(last))) = (&event, self.events.last())
            && queue == last
        {
            return;
        }
        self.events.push(event);
    }

    pub(super) fn shared(&self) -> &Shared {
        self.shared
    }
}
