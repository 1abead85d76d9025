//! Publishing: persistent, mandatory, confirmed.
//!
//! One task owns the publish channel and polls every confirm. That is what makes a returned
//! message certain: lapin may hand it out with the confirm of another message, but never with one
//! that resolves later, so everything that has resolved is looked at before anything is answered.

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

use super::job::{self, Answer, Job, Letter, Waiter};
use super::ladder;
use super::link::{Link, Live};
use super::topology::{self, ACCESS_REFUSED, Undeclared};
use crate::error::{Error, Kind};

/// Confirms waited for at once.
const WINDOW: usize = 1024;
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
const REOPEN_PAUSE: Duration = Duration::from_millis(50);
const EXPIRY_TICK: Duration = Duration::from_millis(100);

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
    /// Its deadline had passed before it was sent.
    Late,
}

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
        job.waiter.fail(Kind::Closed);
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
        if job.waiter.deadline <= *now { job.waiter.expire(None) } else { backlog.push_back(job) }
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
        let mut flights: FuturesUnordered<_> =
            backlog.drain(..).map(|job| self.send(job)).collect();
        let mut open = true;
        let (mut taken_up, mut landed) = (Vec::new(), Vec::new());
        while open || !flights.is_empty() {
            let room = WINDOW - flights.len();
            tokio::select! {
                biased;
                Some(first) = flights.next() => {
                    landed.push(first);
                    // Confirms come in bursts: what resolves meanwhile is answered with this one.
                    yield_now().await;
                    while let Some(Some(next)) = flights.next().now_or_never() {
                        landed.push(next);
                    }
                    if let Some(lost) = self.answer(&mut landed) {
                        // The others' confirms fail now too, or never come: all are sent again.
                        while let Some(other) = flights.next().await {
                            landed.push(other);
                        }
                        self.answer(&mut landed);
                        return lost;
                    }
                }
                taken = jobs.recv_many(&mut taken_up, room), if open && room > 0 => {
                    open = taken > 0;
                    flights.extend(taken_up.drain(..).map(|job| self.send(job)));
                }
                () = link.gone(self.live.generation), if flights.is_empty() => {
                    return Served::ChannelLost;
                }
            }
        }
        Served::Closed
    }

    /// Starts one attempt. Its frames are written when it is first polled.
    fn send(&self, job: Job) -> impl Future<Output = (Waiter, Fate)> + Send + use<> {
        let Job { letter, waiter } = job;
        let declare = !self.declared.contains(&waiter.queue.name);
        let climb = waiter.is_delayed && !self.laddered.contains(&waiter.queue.name);
        let live = (declare || climb).then(|| self.live.clone());
        let channel = self.channel.clone();
        async move {
            if waiter.deadline <= Instant::now() {
                return (waiter, Fate::Late);
            }
            let attempt = async {
                if let Some(live) = live {
                    // Boxed: it is rare, and would make every attempt large.
                    let prepared = prepare(&live, &waiter, declare, climb);
                    if let Err(fate) = Box::pin(prepared).await {
                        return fate;
                    }
                }
                publish(&channel, letter, &waiter).await
            };
            let fate = timeout_at(waiter.deadline, attempt).await.unwrap_or(Fate::Expired);
            (waiter, fate)
        }
    }

    /// Answers every caller whose message has landed. Says so when the channel is lost.
    fn answer(&mut self, landed: &mut Vec<(Waiter, Fate)>) -> Option<Served> {
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
        for (waiter, fate) in landed.drain(..) {
            match fate {
                Fate::Confirmed(Confirmed { accepted: false, .. }) => {
                    let what = format!("task {}", waiter.id);
                    let cause = format!("queue {} is full", waiter.queue.name);
                    waiter.fail(Kind::Backpressure { what, cause });
                }
                Fate::Confirmed(_) => self.confirm(waiter, &mut returned),
                Fate::Refused(error) => waiter.end(Answer::Failed(error)),
                Fate::Expired => {
                    // Without an alarm to explain it, a silent broker is a broken connection.
                    if blocked.is_none() {
                        lost = Some(Served::ConnectionLost);
                    }
                    waiter.expire(blocked.clone());
                }
                Fate::Late => waiter.expire(blocked.clone()),
                Fate::Unknown(why) => {
                    lost.get_or_insert(Served::ChannelLost);
                    waiter.end(Answer::Unknown(why));
                }
            }
        }
        lost
    }

    fn confirm(&mut self, waiter: Waiter, returned: &mut HashMap<String, usize>) {
        let queue = &waiter.queue.name;
        match returned.get_mut(waiter.message_id.as_str()).filter(|times| **times > 0) {
            Some(times) => {
                *times -= 1;
                self.declared.remove(queue);
                self.laddered.remove(queue);
                let route = queue.clone();
                waiter.fail(Kind::Unroutable { route });
            }
            None => {
                if !self.declared.contains(queue) {
                    self.declared.insert(queue.clone());
                }
                if waiter.is_delayed && !self.laddered.contains(queue) {
                    self.laddered.insert(queue.clone());
                }
                waiter.end(Answer::Confirmed);
            }
        }
    }
}

/// Makes sure that there is a way to the queue.
async fn prepare(live: &Live, waiter: &Waiter, declare: bool, climb: bool) -> Result<(), Fate> {
    let (connection, what) = (&live.connection, format!("publishing to {}", waiter.queue.name));
    let preparing = async {
        if declare {
            topology::declare(connection, &waiter.queue).await?;
        }
        if climb {
            live.declare_levels().await?;
            ladder::bind(connection, &waiter.queue).await?;
        }
        live.refusals.clear(&what);
        Ok(())
    };
    preparing.await.map_err(|error| match error {
        Undeclared::Refused(why) => {
            live.refusals.note(&what, &why);
            Fate::Refused(job::access_refused(&waiter.queue, why))
        }
        Undeclared::Unknown(why) => Fate::Unknown(why),
    })
}

async fn publish(channel: &Channel, letter: Box<Letter>, waiter: &Waiter) -> Fate {
    let Letter { exchange, key, properties, body } = *letter;
    let to = exchange.clone();
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    match channel.basic_publish(exchange, key, options, &body, properties).await {
        Ok(confirm) => match confirm.await {
            Ok(confirmation) => Fate::Confirmed(Confirmed::new(confirmation)),
            Err(error) => unknown_or_refused(&error, waiter, to.as_str(), body.len()),
        },
        Err(error) => Fate::Unknown(error.to_string()),
    }
}

/// A body over the broker's own limit closes the channel, and would do so each time.
///
/// So does an exchange that its user may not write to. The channel's other messages fail by the same
/// error: only those to that exchange are refused.
fn unknown_or_refused(error: &lapin::Error, waiter: &Waiter, to: &str, size: usize) -> Fate {
    let text = error.to_string();
    let named = if to.is_empty() { "amq.default" } else { to };
    if topology::is(error, ACCESS_REFUSED) && text.contains(&format!("'{named}'")) {
        let why = topology::explain_refusal(error, "write");
        return Fate::Refused(job::access_refused(&waiter.queue, why));
    }
    if matches!(error.kind(), ErrorKind::ProtocolError(_)) && text.contains("max size") {
        let what = format!("task {} ({size} bytes)", waiter.id);
        return Fate::Refused(Kind::Codec { what, cause: text }.into());
    }
    Fate::Unknown(text)
}
