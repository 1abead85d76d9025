//! The client for synchronous programs.

mod approvals;
mod follow;

use std::future::IntoFuture;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::{self, Runtime};
use tokio_util::sync::CancellationToken;

use crate::client::{Client as AsyncClient, Enqueue};
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::handle::{self, Handle};
use crate::protocol::{Arguments, Document};
use crate::task::{Revoke, Task, TaskId};

pub use approvals::ApprovalHandle;
pub use follow::Follow;

/// Enqueues tasks and waits for their results, from any thread. On a thread of a runtime it blocks that
/// thread, and never panics.
///
/// All I/O runs on a dedicated thread with its own runtime. When the client is dropped, its connections
/// are closed in the background; [`Client::close`] waits until they are closed.
///
/// ```no_run
/// use countersign::{Arguments, Config, blocking};
///
/// # fn main() -> Result<(), countersign::Error> {
/// let client = blocking::Client::connect(&Config::load()?)?;
/// let task = client.enqueue_named("demo.add", Arguments::of(&(2, 3))?).queue("demo");
/// let handle = client.send(task)?;
/// println!("{}", client.result(handle)?);
///
/// let echoes = (0..1000).map(|n| {
///     client.enqueue_named("demo.echo", Arguments::of(&(n,)).unwrap_or_default()).queue("demo")
/// });
/// let sent = client.send_all(echoes)?.into_iter().flatten();
/// let results = client.gather(sent, 100)?;
/// println!("{} results", results.len());
/// client.close();
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Client {
    client: AsyncClient,
    runtime: runtime::Handle,
    closing: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// Connects to the servers that `config` names.
    ///
    /// # Errors
    /// As [`crate::Client::connect`], and when the system cannot start a thread.
    pub fn connect(config: &Config) -> Result<Self, Error> {
        let runtime =
            runtime::Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
        let handle = runtime.handle().clone();
        let closing = CancellationToken::new();
        let (connected, connection) = mpsc::sync_channel(1);
        let (config, closed) = (config.clone(), closing.clone());
        let thread = thread::Builder::new()
            .name("countersign".into())
            .spawn(move || serve(&runtime, &config, &connected, &closed))
            .map_err(no_thread)?;
        let client = connection.recv().map_err(|_| Kind::Closed)??;
        Ok(Self { client, runtime: handle, closing, thread: Some(thread) })
    }

    /// Prepares a task to enqueue: pass it to [`Client::send`].
    pub fn enqueue<T: Task>(&self, task: T) -> Enqueue<T::Output> {
        self.client.enqueue(task)
    }

    /// Like [`Client::enqueue`], for a task by its name.
    pub fn enqueue_named(&self, name: &str, arguments: Arguments) -> Enqueue<Value> {
        self.client.enqueue_named(name, arguments)
    }

    /// Enqueues a task; returns once the broker has confirmed it.
    ///
    /// # Errors
    /// As awaiting the [`Enqueue`].
    pub fn send<O>(&self, task: Enqueue<O>) -> Result<Handle<O>, Error>
    where
        O: DeserializeOwned + Send + 'static,
    {
        self.wait(task.into_future())?
    }

    /// Enqueues many tasks at once; see [`crate::Client::enqueue_all`].
    ///
    /// # Errors
    /// Only when the client is closed; the list contains the outcome of each task.
    pub fn send_all<O>(
        &self,
        tasks: impl IntoIterator<Item = Enqueue<O>>,
    ) -> Result<Vec<Result<Handle<O>, Error>>, Error>
    where
        O: DeserializeOwned + Send + 'static,
    {
        let (client, tasks) = (self.client.clone(), tasks.into_iter().collect::<Vec<_>>());
        self.wait(async move { client.enqueue_all(tasks).await })
    }

    /// Waits for the result of a task, without a time limit.
    ///
    /// # Errors
    /// As [`Handle::result`].
    pub fn result<O>(&self, handle: Handle<O>) -> Result<O, Error>
    where
        O: DeserializeOwned + Send + 'static,
    {
        self.wait(handle.result())?
    }

    /// Like [`Client::result`], for at most `timeout`.
    ///
    /// # Errors
    /// As [`Handle::result_within`].
    pub fn result_within<O>(&self, handle: Handle<O>, timeout: Duration) -> Result<O, Error>
    where
        O: DeserializeOwned + Send + 'static,
    {
        self.wait(handle.result_within(timeout))?
    }

    /// Waits for the results of many tasks; see [`crate::gather`].
    ///
    /// # Errors
    /// Only when the client is closed; the list contains the outcome of each task.
    pub fn gather<O>(
        &self,
        handles: impl IntoIterator<Item = Handle<O>>,
        concurrency: usize,
    ) -> Result<Vec<Result<O, Error>>, Error>
    where
        O: DeserializeOwned + Send + 'static,
    {
        let handles: Vec<_> = handles.into_iter().collect();
        self.wait(handle::gather(handles, concurrency))
    }

    /// Like [`Client::gather`], for at most `timeout` in all; see [`crate::gather_within`].
    ///
    /// # Errors
    /// Only when the client is closed; the list contains the outcome of each task.
    pub fn gather_within<O>(
        &self,
        handles: impl IntoIterator<Item = Handle<O>>,
        concurrency: usize,
        timeout: Duration,
    ) -> Result<Vec<Result<O, Error>>, Error>
    where
        O: DeserializeOwned + Send + 'static,
    {
        let handles: Vec<_> = handles.into_iter().collect();
        self.wait(handle::gather_within(handles, concurrency, timeout))
    }

    /// Revokes tasks; see [`crate::Client::revoke`].
    ///
    /// # Errors
    /// As [`crate::Client::revoke`].
    pub fn revoke(&self, ids: &[TaskId], revoke: Revoke) -> Result<(), Error> {
        let (client, ids) = (self.client.clone(), ids.to_vec());
        self.wait(async move { client.revoke(&ids, revoke).await })?
    }

    /// Returns the stored document of a task; see [`crate::Client::status`].
    ///
    /// # Errors
    /// If the store does not answer.
    pub fn status(&self, id: &TaskId) -> Result<Option<Document>, Error> {
        let (client, id) = (self.client.clone(), id.clone());
        self.wait(async move { client.status(&id).await })?
    }

    /// Deletes everything that the store has of a task that has ended; see [`crate::Client::forget`].
    ///
    /// # Errors
    /// As [`crate::Client::forget`].
    pub fn forget(&self, id: &TaskId) -> Result<(), Error> {
        let (client, id) = (self.client.clone(), id.clone());
        self.wait(async move { client.forget(&id).await })?
    }

    /// Flushes messages that are being sent, and waits until the connections are closed.
    pub fn close(mut self) {
        self.closing.cancel();
        if let Some(thread) = self.thread.take() {
            // The thread runs no user code, so its panic is not reported.
            let _ = thread.join();
        }
    }

    /// Runs `work` on the client's thread and waits for it here, on a channel that is independent of any
    /// runtime.
    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Error> {
        let (done, result) = mpsc::sync_channel(1);
        self.runtime.spawn(async move { done.send(work.await) });
        result.recv().map_err(|_| Kind::Closed.into())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// Runs the client's thread: connects, reports the result, and drives the runtime until the client is
/// closed.
fn serve(
    runtime: &Runtime,
    config: &Config,
    connected: &mpsc::SyncSender<Result<AsyncClient, Error>>,
    closing: &CancellationToken,
) {
    runtime.block_on(async {
        match AsyncClient::connect(config).await {
            Ok(client) => {
                let _ = connected.send(Ok(client.clone()));
                closing.cancelled().await;
                client.close().await;
            }
            Err(error) => drop(connected.send(Err(error))),
        }
    });
}

#[expect(clippy::needless_pass_by_value, reason = "so it can be given to map_err")]
fn no_thread(error: std::io::Error) -> Error {
    let peer = "a thread for the client".to_owned();
    Kind::Connection { peer, cause: error.to_string() }.into()
}
