//! Publishing: persistent, mandatory, confirmed, and sent again when its fate is unknown.
//!
//! One task owns the publish channel and polls every confirm. That is what makes a returned
//! message certain: lapin may hand it out with the confirm of another message, but never with one
//! that resolves later, so everything that has resolved is looked at before anything is answered.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, ErrorKind};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::debug;

use super::ladder::{self, Route};
use super::link::{Link, Live};
use super::topology::Undeclared;
use super::{codec, topology};
use crate::backend::{Parcel, Recorded};
use crate::error::{Error, Kind};

/// Confirms waited for at once.
const WINDOW: usize = 1024;
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
const REOPEN_PAUSE: Duration = Duration::from_millis(50);
const EXPIRY_TICK: Duration = Duration::from_millis(100);

/// A message on its way, and who waits for it.
pub(super) struct Job {
    pub(super) parcel: Parcel,
    pub(super) deadline: Instant,
    pub(super) done: oneshot::Sender<Result<Recorded, Error>>,
}

impl Job {
    fn end(self, result: Result<Recorded, Error>) {
        // Nobody waits any more: the message is out all the same.
        let _ = self.done.send(result);
    }

    fn expire(self, blocked: Option<String>) {
        let what =
            format!("publishing task {} to {}", self.parcel.message.id, self.parcel.queue.name);
        let after = self.parcel.timeout;
        self.end(Err(match blocked {
            Some(cause) => Kind::Backpressure { what, cause }.into(),
            None => Kind::Timeout { what, after }.into(),
        }));
    }
}

/// What the broker answered.
struct Confirmed {
    accepted: bool,
    /// The message id of a returned message that came with this answer. It need not be this one's.
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

/// What became of one attempt.
enum Fate {
    Confirmed(Confirmed),
    /// It was not taken, and is not tried again here.
    Refused(Error),
    /// The connection or the channel broke: it may or may not have arrived.
    Unknown(String),
    Expired,
}

type Flight = BoxFuture<'static, (Job, Fate)>;

/// Publishes jobs until the sender of them is gone and the last one is answered.
pub(super) async fn run(link: Link, mut jobs: mpsc::Receiver<Job>) {
    let mut backlog = VecDeque::new();
    while let Some(live) = connected(&link, &mut jobs, &mut backlog).await {
        let session = match open(&live).await {
            Ok(channel) => {
                let (declared, laddered) = (HashSet::new(), HashSet::new());
                Session { channel, live, declared, laddered }
            }
            Err(why) => {
                debug!("cannot open a publish channel: {why}");
                link.broken(live.generation);
                link.gone(live.generation).await;
                continue;
            }
        };
        let generation = session.live.generation;
        match session.serve(&link, &mut jobs, &mut backlog).await {
            Served::Closed => return,
            Served::ChannelLost => sleep(REOPEN_PAUSE).await,
            Served::ConnectionLost => {
                link.broken(generation);
                link.gone(generation).await;
            }
        }
    }
    for job in backlog {
        job.end(Err(Kind::Closed.into()));
    }
}

/// Waits for a connection while deadlines go on passing.
async fn connected(
    link: &Link,
    jobs: &mut mpsc::Receiver<Job>,
    backlog: &mut VecDeque<Job>,
) -> Option<Live> {
    loop {
        tokio::select! {
            biased;
            live = link.live() => return live,
            job = jobs.recv(), if backlog.len() < WINDOW => match job {
                Some(job) => backlog.push_back(job),
                None if backlog.is_empty() => return None,
                None => expire(backlog, &mut sleep_then(EXPIRY_TICK).await),
            },
            mut now = sleep_then(EXPIRY_TICK) => expire(backlog, &mut now),
        }
    }
}

async fn sleep_then(pause: Duration) -> Instant {
    let then = Instant::now() + pause;
    sleep_until(then).await;
    then
}

fn expire(backlog: &mut VecDeque<Job>, now: &mut Instant) {
    for job in std::mem::take(backlog) {
        if job.deadline <= *now { job.expire(None) } else { backlog.push_back(job) }
    }
}

async fn open(live: &Live) -> Result<Channel, String> {
    let open = async {
        let channel = live.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok::<_, lapin::Error>(channel)
    };
    match timeout(OPEN_DEADLINE, open).await {
        Ok(opened) => opened.map_err(|error| error.to_string()),
        Err(_) => Err("no answer".into()),
    }
}

enum Served {
    Closed,
    ChannelLost,
    ConnectionLost,
}

struct Session {
    channel: Channel,
    live: Live,
    /// Queues known to exist, so that nothing is declared twice on one connection.
    declared: HashSet<String>,
    /// Queues that the delay ladder is known to lead to.
    laddered: HashSet<String>,
}

impl Session {
    async fn serve(
        mut self,
        link: &Link,
        jobs: &mut mpsc::Receiver<Job>,
        backlog: &mut VecDeque<Job>,
    ) -> Served {
        let mut flights: FuturesUnordered<Flight> =
            std::mem::take(backlog).into_iter().map(|job| self.send(job)).collect();
        let mut open = true;
        let mut landed = Vec::new();
        while open || !flights.is_empty() {
            tokio::select! {
                biased;
                Some(first) = flights.next() => {
                    landed.push(first);
                    while let Some(Some(next)) = flights.next().now_or_never() {
                        landed.push(next);
                    }
                    if let Some(lost) = self.answer(&mut landed, backlog) {
                        // The others' confirms fail now too, or never come: all are sent again.
                        while let Some((job, fate)) = flights.next().await {
                            landed.push((job, fate));
                        }
                        self.answer(&mut landed, backlog);
                        return lost;
                    }
                }
                job = jobs.recv(), if open && flights.len() < WINDOW => match job {
                    Some(job) => flights.push(self.send(job)),
                    None => open = false,
                },
                () = link.gone(self.live.generation), if flights.is_empty() => {
                    return Served::ChannelLost;
                }
            }
        }
        Served::Closed
    }

    /// Starts one attempt. Its frames are written when it is first polled.
    fn send(&self, job: Job) -> Flight {
        let properties = match codec::encode(&job.parcel.message) {
            Ok(properties) => properties,
            Err(cause) => {
                let what = format!("task {}", job.parcel.message.id);
                let refused = Kind::Codec { what, cause }.into();
                return Box::pin(async move { (job, Fate::Refused(refused)) });
            }
        };
        if let Some(cause) = self.live.blocked.borrow().clone() {
            // Not written, so that whoever is told may send it again.
            let what = format!("task {}", job.parcel.message.id);
            let refused = Kind::Backpressure { what, cause }.into();
            return Box::pin(async move { (job, Fate::Refused(refused)) });
        }
        let connection = self.live.connection.clone();
        let queue = &job.parcel.queue.name;
        let declare = !self.declared.contains(queue);
        let climb = job.parcel.delay.is_some() && !self.laddered.contains(queue);
        let channel = self.channel.clone();
        Box::pin(async move {
            let attempt = async {
                let (exchange, key) = match route(&job.parcel) {
                    Ok(route) => route,
                    Err(refused) => return Fate::Refused(refused),
                };
                if declare {
                    match topology::declare(&connection, &job.parcel.queue).await {
                        Ok(()) => {}
                        Err(Undeclared::Refused(why)) => {
                            return Fate::Refused(refused(&job.parcel, why));
                        }
                        Err(Undeclared::Unknown(why)) => return Fate::Unknown(why),
                    }
                }
                if climb && let Err(why) = ladder::declare(&connection, &job.parcel.queue).await {
                    return Fate::Unknown(why);
                }
                publish(&channel, &job.parcel, exchange, key, properties).await
            };
            let fate = timeout_at(job.deadline, attempt).await.unwrap_or(Fate::Expired);
            (job, fate)
        })
    }

    /// Answers every caller whose message has landed; the others go to the backlog.
    fn answer(
        &mut self,
        landed: &mut Vec<(Job, Fate)>,
        backlog: &mut VecDeque<Job>,
    ) -> Option<Served> {
        let mut returned: HashMap<String, usize> = HashMap::new();
        for (_, fate) in landed.iter_mut() {
            if let Fate::Confirmed(confirmed) = fate
                && let Some(id) = confirmed.returned.take()
            {
                *returned.entry(id).or_default() += 1;
            }
        }
        let blocked = self.live.blocked.borrow().clone();
        let mut lost = None;
        for (job, fate) in landed.drain(..) {
            match fate {
                Fate::Confirmed(Confirmed { accepted: false, .. }) => {
                    let what = format!("task {}", job.parcel.message.id);
                    let cause = format!("queue {} is full", job.parcel.queue.name);
                    job.end(Err(Kind::Backpressure { what, cause }.into()));
                }
                Fate::Confirmed(_) => self.confirm(job, &mut returned),
                Fate::Refused(error) => job.end(Err(error)),
                Fate::Expired => {
                    // Without an alarm to explain it, a silent broker is a broken connection.
                    if blocked.is_none() {
                        lost = Some(Served::ConnectionLost);
                    }
                    job.expire(blocked.clone());
                }
                Fate::Unknown(why) => {
                    debug!(
                        "fate of task {} unknown: {why}; sending it again",
                        job.parcel.message.id
                    );
                    lost.get_or_insert(Served::ChannelLost);
                    backlog.push_back(job);
                }
            }
        }
        lost
    }

    fn confirm(&mut self, job: Job, returned: &mut HashMap<String, usize>) {
        let id = message_id(&job.parcel);
        match returned.get_mut(id).filter(|times| **times > 0) {
            Some(times) => {
                *times -= 1;
                let route = job.parcel.queue.name.clone();
                self.declared.remove(&route);
                self.laddered.remove(&route);
                job.end(Err(Kind::Unroutable { route }.into()));
            }
            None => {
                let queue = &job.parcel.queue.name;
                if !self.declared.contains(queue) {
                    self.declared.insert(queue.clone());
                }
                if job.parcel.delay.is_some() && !self.laddered.contains(queue) {
                    self.laddered.insert(queue.clone());
                }
                let recorded = Recorded::new(job.parcel.message.id.clone());
                job.end(Ok(recorded));
            }
        }
    }
}

fn message_id(parcel: &Parcel) -> &str {
    parcel.message.properties.message_id.as_deref().unwrap_or(parcel.message.id.as_str())
}

/// Where it goes: an exchange and a routing key. A name too long for a key is refused.
fn route(parcel: &Parcel) -> Result<(ShortString, ShortString), Error> {
    let route = match parcel.delay {
        Some(delay) => ladder::route(&parcel.queue, delay),
        None => Route { exchange: String::new(), routing_key: parcel.queue.name.clone() },
    };
    let key = codec::short(&route.routing_key).map_err(|why| refused(parcel, why))?;
    Ok((route.exchange.into(), key))
}

fn refused(parcel: &Parcel, cause: String) -> Error {
    let what = format!("queue {:.255}", parcel.queue.name);
    Kind::Codec { what, cause }.into()
}

async fn publish(
    channel: &Channel,
    parcel: &Parcel,
    exchange: ShortString,
    key: ShortString,
    properties: BasicProperties,
) -> Fate {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent =
        channel.basic_publish(exchange, key, options, &parcel.message.body, properties).await;
    match sent {
        Ok(confirm) => match confirm.await {
            Ok(confirmation) => Fate::Confirmed(Confirmed::new(confirmation)),
            Err(error) => unknown_or_refused(&error, parcel),
        },
        Err(error) => Fate::Unknown(error.to_string()),
    }
}

/// A body over the broker's own limit closes the channel, and would do so each time.
fn unknown_or_refused(error: &lapin::Error, parcel: &Parcel) -> Fate {
    let text = error.to_string();
    if matches!(error.kind(), ErrorKind::ProtocolError(_)) && text.contains("max size") {
        let what = format!("task {} ({} bytes)", parcel.message.id, parcel.message.body.len());
        return Fate::Refused(Kind::Codec { what, cause: text }.into());
    }
    Fate::Unknown(text)
}
