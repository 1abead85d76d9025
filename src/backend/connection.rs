//! The connection of a backend: its state, and its end.

use futures_util::future::BoxFuture;

use super::sealed;

/// The connection of a backend to its servers or its file. A part of [`super::Broker`] and
/// [`super::Store`], and sealed like them.
pub trait Connection: sealed::Sealed {
    /// Completes when the backend is reachable: for RabbitMQ, when both connections are open.
    fn connected(&self) -> BoxFuture<'_, ()>;

    /// Returns whether the backend is reachable now.
    fn is_connected(&self) -> bool;

    /// Returns why the latest connection attempt failed; `None` when it succeeded, or none has ended yet.
    fn connect_error(&self) -> Option<String>;

    /// Closes the connections. A broker first flushes acks and confirms, and waits for every
    /// [`super::Delivery`] that is not settled yet. A store ends every wait with an error.
    fn close(&self) -> BoxFuture<'_, ()>;
}
