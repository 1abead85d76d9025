//! Publishing: persistent, mandatory, confirmed.
//!
//! One task owns the publish channel and polls every confirm, so that each returned message is
//! detected. lapin may report a returned message with the confirm of another message, but never with
//! one that resolves later. So the task inspects all resolved confirms before it answers any caller.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, ErrorKind};
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::debug;

use super::connection::{ConnectionHandle, OpenConnection};
use super::delayed_delivery;
use super::publish_job::{self, EncodedMessage, PendingConfirm, PublishJob, PublishResult};
use super::topology::{self, ACCESS_REFUSED, DeclareError};
use crate::backend::Expiry;
use crate::error::{Error, Kind};

/// The most confirms to wait for at once.
const WINDOW: usize = 1024;
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
const REOPEN_DELAY: Duration = Duration::from_millis(50);
const EXPIRY_TICK: Duration = Duration::from_millis(100);

/// The broker's reply.
struct Confirmed {
    accepted: bool,
    /// The message id of a returned message that lapin reported with this confirm. It may be the id of
    /// another message.
    returned: Option<String>,
}

impl Confirmed {
    fn new(confirmation: Confirmation) -> Self {
        let accepted = !confirmation.is_nack();
        let returned = confirmation.take_message();
        let id = returned
            .and_then(|message| Some(message.properties.message_id().as_ref()?.to_string()));
        Self { accepted, returned: id }
    }
}

/// The outcome of one attempt.
enum PublishOutcome {
    Confirmed(Confirmed),
    /// The broker rejected it; it is not retried here.
    Refused(Error),
    /// The connection or the channel broke: the message may or may not have arrived.
    Unknown(String),
    Expired,
    /// The deadline had passed before the message was sent.
    Late,
}

/// Publishes jobs until their sender is dropped and the last one is answered.
pub(super) async fn run(handle: ConnectionHandle, mut jobs: mpsc::Receiver<PublishJob>) {
    let mut backlog = VecDeque::new();
    while let Some(live) = connected(&handle, &mut jobs, &mut backlog).await {
        let publisher = match open(&live).await {
            Ok(channel) => {
                let (declared, delays_declared) = (HashSet::new(), HashSet::new());
                ChannelPublisher { channel, live, declared, delays_declared }
            }
            Err(why) => {
                debug!("cannot open a publish channel: {why}");
                handle.broken(live.generation);
                handle.replaced(live.generation).await;
                continue;
            }
        };
        let generation = publisher.live.generation;
        match publisher.serve(&handle, &mut jobs, &mut backlog).await {
            ServeEnd::Closed => return,
            ServeEnd::ChannelLost => sleep(REOPEN_DELAY).await,
            ServeEnd::ConnectionLost => {
                handle.broken(generation);
                handle.replaced(generation).await;
            }
        }
    }
    for job in backlog {
        job.pending.fail(Kind::Closed);
    }
}

/// Waits for a connection. Jobs whose deadline passes fail in the meantime.
async fn connected(
    handle: &ConnectionHandle,
    jobs: &mut mpsc::Receiver<PublishJob>,
    backlog: &mut VecDeque<PublishJob>,
) -> Option<OpenConnection> {
    loop {
        tokio::select! {
            biased;
            live = handle.live() => return live,
            job = jobs.recv(), if backlog.len() < WINDOW => match job {
                Some(job) => backlog.push_back(job),
                None if backlog.is_empty() => return None,
                None => expire(backlog, &mut sleep_then(EXPIRY_TICK).await),
            },
            mut now = sleep_then(EXPIRY_TICK) => expire(backlog, &mut now),
        }
    }
}

async fn sleep_then(delay: Duration) -> Instant {
    let at = Instant::now() + delay;
    sleep_until(at).await;
    at
}

fn expire(backlog: &mut VecDeque<PublishJob>, now: &mut Instant) {
    for job in std::mem::take(backlog) {
        if job.pending.deadline <= *now { job.pending.expire(None) } else { backlog.push_back(job) }
    }
}

async fn open(live: &OpenConnection) -> Result<Channel, String> {
    let open = async {
        let channel = live.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok::<_, lapin::Error>(channel)
    };
    match timeout(OPEN_DEADLINE, open).await {
        Ok(opened) => opened.map_err(|error| error.to_string()),
        Err(_) => Err("no reply".into()),
    }
}

enum ServeEnd {
    Closed,
    ChannelLost,
    ConnectionLost,
}

struct ChannelPublisher {
    channel: Channel,
    live: OpenConnection,
    /// Queues known to exist, so that each is declared only once per connection.
    declared: HashSet<String>,
    /// Queues known to be bound to the delay exchanges.
    delays_declared: HashSet<String>,
}

impl ChannelPublisher {
    async fn serve(
        mut self,
        handle: &ConnectionHandle,
        jobs: &mut mpsc::Receiver<PublishJob>,
        backlog: &mut VecDeque<PublishJob>,
    ) -> ServeEnd {
        let mut in_flight: FuturesUnordered<_> =
            backlog.drain(..).map(|job| self.send(job)).collect();
        let mut open = true;
        let (mut received, mut completed) = (Vec::new(), Vec::new());
        while open || !in_flight.is_empty() {
            let available = WINDOW - in_flight.len();
            tokio::select! {
                biased;
                Some(first) = in_flight.next() => {
                    completed.push(first);
                    // Confirms arrive in bursts: answer all that have resolved.
                    yield_now().await;
                    while let Some(Some(next)) = in_flight.next().now_or_never() {
                        completed.push(next);
                    }
                    if let Some(lost) = self.complete_all(&mut completed) {
                        // The other confirms now fail or never arrive: those messages are sent again.
                        while let Some(other) = in_flight.next().await {
                            completed.push(other);
                        }
                        self.complete_all(&mut completed);
                        return lost;
                    }
                }
                count = jobs.recv_many(&mut received, available), if open && available > 0 => {
                    open = count > 0;
                    in_flight.extend(received.drain(..).map(|job| self.send(job)));
                }
                () = handle.replaced(self.live.generation), if in_flight.is_empty() => {
                    return ServeEnd::ChannelLost;
                }
            }
        }
        ServeEnd::Closed
    }

    /// Starts one attempt. Its frames are written when it is first polled.
    fn send(
        &self,
        job: PublishJob,
    ) -> impl Future<Output = (PendingConfirm, PublishOutcome)> + Send + use<> {
        let PublishJob { encoded, pending } = job;
        let declare = !self.declared.contains(&pending.queue.name);
        let needs_delay = pending.is_delayed && !self.delays_declared.contains(&pending.queue.name);
        let live = (declare || needs_delay).then(|| self.live.clone());
        let channel = self.channel.clone();
        async move {
            if pending.deadline <= Instant::now() {
                return (pending, PublishOutcome::Late);
            }
            let attempt = async {
                if let Some(live) = live {
                    // Boxed, because it is rare and would enlarge every attempt.
                    let prepared = prepare(&live, &pending, declare, needs_delay);
                    if let Err(outcome) = Box::pin(prepared).await {
                        return outcome;
                    }
                }
                publish(&channel, encoded, &pending).await
            };
            let outcome =
                timeout_at(pending.deadline, attempt).await.unwrap_or(PublishOutcome::Expired);
            (pending, outcome)
        }
    }

    /// Answers the callers of completed messages. Returns how serving ended if the channel is lost.
    fn complete_all(
        &mut self,
        completed: &mut Vec<(PendingConfirm, PublishOutcome)>,
    ) -> Option<ServeEnd> {
        let mut returned: HashMap<String, usize> = HashMap::new();
        for (_, outcome) in completed.iter_mut() {
            if let PublishOutcome::Confirmed(confirmed) = outcome
                && let Some(id) = confirmed.returned.take()
            {
                *returned.entry(id).or_default() += 1;
            }
        }
        let blocked = self.live.blocked.borrow().clone();
        let mut lost = None;
        for (pending, outcome) in completed.drain(..) {
            match outcome {
                PublishOutcome::Confirmed(Confirmed { accepted: false, .. }) => {
                    let what = format!("task {}", pending.id);
                    let cause = format!("queue {} is full", pending.queue.name);
                    pending.fail(Kind::Backpressure { what, cause });
                }
                PublishOutcome::Confirmed(_) => self.confirm(pending, &mut returned),
                PublishOutcome::Refused(error) => pending.end(PublishResult::Failed(error)),
                PublishOutcome::Expired => {
                    // A broker that is silent without a resource alarm means a broken connection.
                    if blocked.is_none() {
                        lost = Some(ServeEnd::ConnectionLost);
                    }
                    pending.expire(blocked.clone());
                }
                PublishOutcome::Late => pending.expire(blocked.clone()),
                PublishOutcome::Unknown(why) => {
                    lost.get_or_insert(ServeEnd::ChannelLost);
                    pending.end(PublishResult::Unknown(why));
                }
            }
        }
        lost
    }

    fn confirm(&mut self, pending: PendingConfirm, returned: &mut HashMap<String, usize>) {
        let queue = &pending.queue.name;
        match returned.get_mut(pending.message_id.as_str()).filter(|times| **times > 0) {
            Some(times) => {
                *times -= 1;
                self.declared.remove(queue);
                self.delays_declared.remove(queue);
                let route = queue.clone();
                pending.fail(Kind::Unroutable { route });
            }
            None => {
                if !self.declared.contains(queue) {
                    self.declared.insert(queue.clone());
                }
                if pending.is_delayed && !self.delays_declared.contains(queue) {
                    self.delays_declared.insert(queue.clone());
                }
                pending.end(PublishResult::Confirmed);
            }
        }
    }
}

/// Ensures that a route to the queue exists.
async fn prepare(
    live: &OpenConnection,
    pending: &PendingConfirm,
    declare: bool,
    needs_delay: bool,
) -> Result<(), PublishOutcome> {
    let (channels, what) = (&live.channels, format!("publishing to {}", pending.queue.name));
    let preparing = async {
        if declare {
            if let Some(Expiry { to, .. }) = &pending.queue.expiry {
                topology::declare(channels, to).await?;
                delayed_delivery::bind(channels, to).await?;
            }
            topology::declare(channels, &pending.queue).await?;
        }
        if needs_delay {
            live.declare_levels().await?;
            delayed_delivery::bind(channels, &pending.queue).await?;
        }
        live.refusals.clear(&what);
        Ok(())
    };
    preparing.await.map_err(|error| match error {
        DeclareError::Refused(why) => {
            live.refusals.note(&what, &why);
            PublishOutcome::Refused(publish_job::access_refused(&pending.queue, why))
        }
        DeclareError::Unknown(why) => PublishOutcome::Unknown(why),
    })
}

async fn publish(
    channel: &Channel,
    encoded: Box<EncodedMessage>,
    pending: &PendingConfirm,
) -> PublishOutcome {
    let EncodedMessage { exchange, key, properties, body } = *encoded;
    let to = exchange.clone();
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    match channel.basic_publish(exchange, key, options, &body, properties).await {
        Ok(confirm) => match confirm.await {
            Ok(confirmation) => PublishOutcome::Confirmed(Confirmed::new(confirmation)),
            Err(error) => unknown_or_refused(&error, pending, to.as_str(), body.len()),
        },
        Err(error) => PublishOutcome::Unknown(error.to_string()),
    }
}

/// Classifies a channel error. A body over the broker's limit closes the channel at every attempt.
///
/// So does an exchange that the user may not write to. The channel's other messages fail with the same
/// error, so only messages to that exchange are refused.
fn unknown_or_refused(
    error: &lapin::Error,
    pending: &PendingConfirm,
    to: &str,
    size: usize,
) -> PublishOutcome {
    let text = error.to_string();
    let named = if to.is_empty() { "amq.default" } else { to };
    if topology::is(error, ACCESS_REFUSED) && text.contains(&format!("'{named}'")) {
        let why = topology::explain_refusal(error, "write");
        return PublishOutcome::Refused(publish_job::access_refused(&pending.queue, why));
    }
    if matches!(error.kind(), ErrorKind::ProtocolError(_)) && text.contains("max size") {
        let what = format!("task {} ({size} bytes)", pending.id);
        return PublishOutcome::Refused(Kind::Codec { what, cause: text }.into());
    }
    PublishOutcome::Unknown(text)
}
