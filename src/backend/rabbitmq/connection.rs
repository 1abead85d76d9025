//! One supervised connection: connects, watches the connection, and reconnects until it is closed.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::types::ShortString;
use lapin::{Connection, ConnectionProperties, ErrorKind, Event};
use rand::Rng;
use rand::seq::SliceRandom;
use tokio::sync::{OnceCell, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::address::Address;
use super::channel_pool::ChannelPool;
use super::delayed_delivery;
use super::refusals::Refusals;
use super::settings::RabbitSettings;
use super::topology::DeclareError;
use super::transport::{self, Hangup};

const BACKOFF_FLOOR: Duration = Duration::from_millis(200);
const BACKOFF_CEILING: Duration = Duration::from_secs(5);
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// The longest delay before reconnecting after a frame that could not be made safe: the broker
/// redelivers its message on the next connection.
const REFUSAL_CEILING: Duration = Duration::from_secs(30);
/// After this time a connection counts as stable, and the refusal delay starts again.
const STABLE: Duration = Duration::from_secs(60);

/// The key of refusals that concern all delays.
const DELAYS: &str = "delayed delivery";

/// A live connection. The generation distinguishes it from earlier and later connections.
#[derive(Clone)]
pub(super) struct OpenConnection {
    pub(super) generation: u64,
    pub(super) connection: Arc<Connection>,
    /// Why the broker blocks publishing on this connection; `None` while it does not.
    pub(super) blocked: watch::Receiver<Option<String>>,
    /// Channels for requests.
    pub(super) channels: ChannelPool,
    /// Whether the delayed-delivery levels have been declared on this connection.
    levels: Arc<OnceCell<()>>,
    pub(super) refusals: Refusals,
}

impl OpenConnection {
    /// Declares the delayed-delivery levels once per connection.
    pub(super) async fn declare_levels(&self) -> Result<(), DeclareError> {
        let declaring = || async {
            delayed_delivery::declare_levels(&self.channels).await?;
            debug!("declared the delayed-delivery exchanges");
            self.refusals.clear(DELAYS);
            Ok(())
        };
        let declared = self.levels.get_or_try_init(declaring).await;
        if let Err(DeclareError::Refused(why)) = &declared {
            self.refusals.note(DELAYS, why);
        }
        declared?;
        Ok(())
    }
}

/// A handle to a supervised connection.
#[derive(Clone)]
pub(super) struct ConnectionHandle {
    live: watch::Receiver<Option<OpenConnection>>,
    broken: mpsc::UnboundedSender<u64>,
    closing: CancellationToken,
    /// Why the latest attempt to connect failed.
    failed: Arc<Mutex<Option<String>>>,
}

impl fmt::Debug for ConnectionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionHandle").field("closing", &self.closing.is_cancelled()).finish()
    }
}

impl ConnectionHandle {
    /// Starts to connect in the background. `role` appears in logs and in the broker's connection list.
    pub(super) fn start(
        settings: Arc<RabbitSettings>,
        role: &'static str,
        tasks: &TaskTracker,
        refusals: Refusals,
    ) -> Self {
        let (live, watched) = watch::channel(None);
        let (broken, reports) = mpsc::unbounded_channel();
        let closing = CancellationToken::new();
        let failed = Arc::<Mutex<_>>::default();
        let supervisor = Supervisor {
            failed: Arc::clone(&failed),
            settings,
            role,
            live,
            reports,
            closing: closing.clone(),
            generation: 0,
            refusals,
        };
        tasks.spawn(supervisor.run());
        Self { live: watched, broken, closing, failed }
    }

    /// Waits for a live connection. Returns `None` once the handle is closed.
    pub(super) async fn live(&self) -> Option<OpenConnection> {
        let mut watched = self.live.clone();
        let live = tokio::select! {
            biased;
            live = watched.wait_for(Option::is_some) => live.ok()?.clone(),
            () = self.closing.cancelled() => None,
        };
        live
    }

    /// Why the latest attempt to connect failed; `None` if it succeeded.
    pub(super) fn connect_error(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connection, if it is live right now.
    pub(super) fn current(&self) -> Option<OpenConnection> {
        self.live.borrow().clone()
    }

    /// Completes when the connection of this generation is gone.
    pub(super) async fn replaced(&self, generation: u64) {
        let mut watched = self.live.clone();
        let other = |live: &Option<OpenConnection>| {
            live.as_ref().is_none_or(|live| live.generation != generation)
        };
        let _ = watched.wait_for(other).await;
    }

    /// Reports that the connection of this generation does not respond; the supervisor replaces it.
    pub(super) fn broken(&self, generation: u64) {
        let _ = self.broken.send(generation);
    }

    /// Completes when the handle is closed.
    pub(super) async fn closed(&self) {
        self.closing.cancelled().await;
    }

    /// Starts an orderly close.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }
}

/// Why a connection ended.
struct ConnectionLoss {
    why: String,
    /// The broker sent a frame that could not be read.
    is_refusal: bool,
}

impl ConnectionLoss {
    fn because(why: &str) -> Self {
        Self { why: why.to_owned(), is_refusal: false }
    }

    fn by(error: &lapin::Error) -> Self {
        let is_refusal = match error.kind() {
            ErrorKind::IOError(error) => error.kind() == io::ErrorKind::InvalidData,
            ErrorKind::ParsingError(_) => true,
            _ => false,
        };
        Self { why: error.to_string(), is_refusal }
    }
}

/// Explains why connecting failed. Names a refused login.
fn connect_failure(error: &lapin::Error) -> String {
    let text = error.to_string();
    if text.contains("ACCESS_REFUSED") {
        return format!("the user name or the password is wrong: {text}");
    }
    text
}

struct Supervisor {
    failed: Arc<Mutex<Option<String>>>,
    settings: Arc<RabbitSettings>,
    role: &'static str,
    live: watch::Sender<Option<OpenConnection>>,
    reports: mpsc::UnboundedReceiver<u64>,
    closing: CancellationToken,
    generation: u64,
    refusals: Refusals,
}

impl Supervisor {
    async fn run(mut self) {
        let closing = self.closing.clone();
        let mut refusals = 0_u32;
        while let Some((connection, hangup, address)) =
            closing.run_until_cancelled(self.connect()).await
        {
            self.generation += 1;
            let since = Instant::now();
            let ended = self.watch(connection, &address).await;
            self.live.send_replace(None);
            // This interrupts the connection's users and ends lapin's thread.
            drop(hangup);
            let Some(lost) = ended else { return };
            warn!(role = self.role, "lost the connection to RabbitMQ at {address}: {}", lost.why);
            if since.elapsed() > STABLE {
                refusals = 0;
            }
            if lost.is_refusal {
                let delay = BACKOFF_FLOOR * 2_u32.saturating_pow(refusals.min(16));
                let delay = delay.min(REFUSAL_CEILING);
                refusals += 1;
                warn!(role = self.role, "reconnecting in {delay:?}");
                if closing.run_until_cancelled(sleep(delay)).await.is_none() {
                    return;
                }
            }
        }
    }

    /// Connects to one of the addresses. Retries without a time limit.
    async fn connect(&self) -> (Connection, Hangup, Address) {
        let mut backoff = BACKOFF_FLOOR;
        let mut is_logged = false;
        loop {
            let mut addresses = self.settings.addresses.clone();
            addresses.shuffle(&mut rand::rng());
            for address in addresses {
                match timeout(self.settings.connect_timeout, self.attempt(&address)).await {
                    Ok(Ok((connection, hangup))) => {
                        info!(role = self.role, "connected to RabbitMQ at {address}");
                        self.set_failed(None);
                        return (connection, hangup, address);
                    }
                    failed => {
                        let why = match failed {
                            Ok(Err(error)) => connect_failure(&error),
                            _ => format!("no reply within {:?}", self.settings.connect_timeout),
                        };
                        self.set_failed(Some(why.clone()));
                        if is_logged {
                            debug!(
                                role = self.role,
                                "connecting to RabbitMQ at {address} failed again: {why}"
                            );
                        } else {
                            warn!(
                                role = self.role,
                                "cannot connect to RabbitMQ at {address}: {why}; retrying"
                            );
                        }
                    }
                }
            }
            is_logged = true;
            let delay = rand::rng().random_range(Duration::ZERO..=backoff);
            sleep(delay.max(BACKOFF_FLOOR / 4)).await;
            backoff = (backoff * 2).min(BACKOFF_CEILING);
        }
    }

    fn set_failed(&self, why: Option<String>) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    async fn attempt(&self, address: &Address) -> Result<(Connection, Hangup), lapin::Error> {
        let name = format!("{} ({})", self.settings.name, self.role);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        transport::connect(address, self.settings.tls.as_ref(), properties).await
    }

    /// Publishes the connection to its users until it ends. Returns the reason, or `None` when the
    /// handle was closed.
    async fn watch(&mut self, connection: Connection, address: &Address) -> Option<ConnectionLoss> {
        let mut events = Box::pin(connection.events_listener());
        let (blocked, watched) = watch::channel(None);
        let connection = Arc::new(connection);
        let channels = match ChannelPool::new(Arc::clone(&connection)) {
            Ok(channels) => channels,
            Err(error) => return Some(ConnectionLoss::because(&error.to_string())),
        };
        let live = OpenConnection {
            channels,
            generation: self.generation,
            connection: Arc::clone(&connection),
            blocked: watched,
            levels: Arc::default(),
            refusals: self.refusals.clone(),
        };
        self.live.send_replace(Some(live));
        loop {
            tokio::select! {
                () = self.closing.cancelled() => {
                    let close = connection.close(200, ShortString::from("OK"));
                    let _ = timeout(CLOSE_DEADLINE, close).await;
                    return None;
                }
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(why)) => {
                        warn!(role = self.role, "RabbitMQ at {address} has blocked publishing: {why}");
                        blocked.send_replace(Some(why));
                    }
                    Some(Event::ConnectionUnblocked) => {
                        info!(role = self.role, "RabbitMQ at {address} has unblocked publishing");
                        blocked.send_replace(None);
                    }
                    // The error may concern only a channel: the connection's own status decides.
                    Some(Event::Error(error)) if !connection.status().connected() => {
                        return Some(ConnectionLoss::by(&error));
                    }
                    Some(_) => {}
                    None => return Some(ConnectionLoss::because("the connection ended")),
                },
                Some(generation) = self.reports.recv() => {
                    if generation == self.generation {
                        return Some(ConnectionLoss::because("it stopped responding"));
                    }
                }
            }
        }
    }
}
