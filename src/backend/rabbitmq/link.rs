//! One supervised connection: connects, watches, and connects again, for as long as it is wanted.

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
use super::refusals::Refusals;
use super::topology::Undeclared;
use super::transport::{self, Hangup};
use super::{RabbitSettings, ladder};

const BACKOFF_FLOOR: Duration = Duration::from_millis(200);
const BACKOFF_CEILING: Duration = Duration::from_secs(5);
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// After a frame that could not be made safe, connecting again waits up to this long: the message in
/// it is delivered again on the next connection.
const REFUSAL_CEILING: Duration = Duration::from_secs(30);
/// A connection that lasted this long was a good one.
const STABLE: Duration = Duration::from_secs(60);

/// By this name refusals of what all delays need are noted.
const DELAYS: &str = "delayed delivery";

/// A connection that works right now. Its generation tells it from those before and after.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) generation: u64,
    pub(super) connection: Arc<Connection>,
    /// Why the broker takes no messages on this connection, while it does not.
    pub(super) blocked: watch::Receiver<Option<String>>,
    /// Whether the delayed-delivery levels have been declared on this connection.
    levels: Arc<OnceCell<()>>,
    pub(super) refusals: Refusals,
}

impl Live {
    /// Declares the delayed-delivery levels, once a connection.
    pub(super) async fn declare_levels(&self) -> Result<(), Undeclared> {
        let declaring = || async {
            ladder::declare_levels(&self.connection).await?;
            debug!("the delayed-delivery exchanges are there");
            self.refusals.clear(DELAYS);
            Ok(())
        };
        let declared = self.levels.get_or_try_init(declaring).await;
        if let Err(Undeclared::Refused(why)) = &declared {
            self.refusals.note(DELAYS, why);
        }
        declared?;
        Ok(())
    }
}

/// A handle to a supervised connection.
#[derive(Clone)]
pub(super) struct Link {
    live: watch::Receiver<Option<Live>>,
    broken: mpsc::UnboundedSender<u64>,
    closing: CancellationToken,
    /// Why the latest attempt to connect failed.
    failed: Arc<Mutex<Option<String>>>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("closing", &self.closing.is_cancelled()).finish()
    }
}

impl Link {
    /// Starts connecting in the background, as `role` in logs and in the broker's own lists.
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

    /// The connection, as soon as there is one; `None` once the link is closed.
    pub(super) async fn live(&self) -> Option<Live> {
        let mut watched = self.live.clone();
        let live = tokio::select! {
            biased;
            live = watched.wait_for(Option::is_some) => live.ok()?.clone(),
            () = self.closing.cancelled() => None,
        };
        live
    }

    /// Why the latest attempt to connect failed, unless it succeeded.
    pub(super) fn connect_error(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connection, if there is one right now.
    pub(super) fn current(&self) -> Option<Live> {
        self.live.borrow().clone()
    }

    /// Completes when the connection of this generation is no more.
    pub(super) async fn gone(&self, generation: u64) {
        let mut watched = self.live.clone();
        let other =
            |live: &Option<Live>| live.as_ref().is_none_or(|live| live.generation != generation);
        let _ = watched.wait_for(other).await;
    }

    /// Reports that the connection of this generation does not answer; it is replaced.
    pub(super) fn broken(&self, generation: u64) {
        let _ = self.broken.send(generation);
    }

    /// Completes when the link is closed.
    pub(super) async fn closed(&self) {
        self.closing.cancelled().await;
    }

    /// Starts an orderly close.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }
}

/// How a connection ended.
struct Lost {
    why: String,
    /// What the broker sent could not be read.
    is_refusal: bool,
}

impl Lost {
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

/// Why connecting failed. A refused login is named as such.
fn refused(error: &lapin::Error) -> String {
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
    live: watch::Sender<Option<Live>>,
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
            // Users of the connection are interrupted, and lapin's thread ends.
            drop(hangup);
            let Some(lost) = ended else { return };
            warn!(role = self.role, "lost RabbitMQ at {address}: {}", lost.why);
            if since.elapsed() > STABLE {
                refusals = 0;
            }
            if lost.is_refusal {
                let delay = BACKOFF_FLOOR * 2_u32.saturating_pow(refusals.min(16));
                let delay = delay.min(REFUSAL_CEILING);
                refusals += 1;
                warn!(role = self.role, "connecting again in {delay:?}");
                if closing.run_until_cancelled(sleep(delay)).await.is_none() {
                    return;
                }
            }
        }
    }

    /// Connects to one of the addresses, however long it takes.
    async fn connect(&self) -> (Connection, Hangup, Address) {
        let mut backoff = BACKOFF_FLOOR;
        let mut said = false;
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
                            Ok(Err(error)) => refused(&error),
                            _ => format!("no answer in {:?}", self.settings.connect_timeout),
                        };
                        self.set_failed(Some(why.clone()));
                        if said {
                            debug!(role = self.role, "no RabbitMQ at {address}: {why}");
                        } else {
                            warn!(
                                role = self.role,
                                "cannot reach RabbitMQ at {address}: {why}; trying until it answers"
                            );
                        }
                    }
                }
            }
            said = true;
            let pause = rand::rng().random_range(Duration::ZERO..=backoff);
            sleep(pause.max(BACKOFF_FLOOR / 4)).await;
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

    /// Shows the connection to whoever waits for one, until it ends: the reason, or `None` when
    /// the link was closed.
    async fn watch(&mut self, connection: Connection, address: &Address) -> Option<Lost> {
        let mut events = Box::pin(connection.events_listener());
        let (blocked, watched) = watch::channel(None);
        let connection = Arc::new(connection);
        let live = Live {
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
                        warn!(role = self.role, "RabbitMQ at {address} takes no messages: {why}");
                        blocked.send_replace(Some(why));
                    }
                    Some(Event::ConnectionUnblocked) => {
                        info!(role = self.role, "RabbitMQ at {address} takes messages again");
                        blocked.send_replace(None);
                    }
                    // An error may be a channel's only: the connection's own state decides.
                    Some(Event::Error(error)) if !connection.status().connected() => {
                        return Some(Lost::by(&error));
                    }
                    Some(_) => {}
                    None => return Some(Lost::because("the connection ended")),
                },
                Some(generation) = self.reports.recv() => {
                    if generation == self.generation {
                        return Some(Lost::because("it stopped answering"));
                    }
                }
            }
        }
    }
}
