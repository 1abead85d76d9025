//! The campaign's own RabbitMQ and Redis, and the faults of these servers and of the connections.

use std::sync::Arc;
use std::time::Duration;

use countersign::config::{QueueSettings, QueueType};
use countersign::{Client, Config, TaskId};
use support::amqp::{CORRELATION_ID, HEADERS, RawChannel, long, nested, short, text};
use support::{IN_FLIGHT, Proxy, Server, queue_name};
use tokio::sync::Mutex;

use crate::hostile;
use crate::ledger::{Expected, Ledger};
use crate::nemesis::{Fault, Kind};
use crate::workers::{PREFETCH, SLOTS, Silence, WORKERS, Workers, command};

const HEARTBEAT: Duration = Duration::from_secs(5);
/// RabbitMQ closes a connection two to three heartbeats after its last frame, which may be half a
/// heartbeat old when a worker is stopped.
const SILENCE: Duration = Duration::from_secs(7);
/// Longer than a worker tolerates an unreachable store. After that, the worker returns the messages that it
/// holds to their queues as copies.
const STORE_GRACE: Duration = Duration::from_secs(5);
/// The runs of a worker, plus the prefetched messages of two queues.
const HELD: usize = SLOTS + 2 * PREFETCH;
/// Publishes in flight: those of the Rust producer, and one of the Celery producer.
const PUBLISHES: usize = IN_FLIGHT + 1;
/// Deeper than any parser should recurse.
const DEPTH: usize = 5_000;

#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    CutRabbit,
    CutRedis,
    FreezeRabbit,
    FreezeRedis,
    Blackhole,
    RestartRabbit,
    KillRabbit,
    RestartRedis,
    Kill,
    Stop,
    Drain,
    DrainTwice,
    Hostile,
    HostileFrames,
}

/// Returns the faults, with their weights and durations.
pub(crate) fn kinds() -> Vec<Kind<What>> {
    vec![
        Kind::new(What::CutRabbit, "RabbitMQ connections cut", 12, (0, 0)),
        Kind::new(What::CutRedis, "Redis connections cut", 10, (0, 0)),
        Kind::new(What::FreezeRabbit, "RabbitMQ connections half open", 8, (0, 0)),
        Kind::new(What::FreezeRedis, "Redis connections half open", 8, (0, 0)),
        Kind::new(What::Blackhole, "networks silent", 8, (1_000, 12_000)),
        Kind::new(What::RestartRabbit, "RabbitMQ restarted", 3, (0, 4_000)),
        Kind::new(What::KillRabbit, "RabbitMQ killed", 3, (0, 4_000)),
        Kind::new(What::RestartRedis, "Redis restarted", 5, (0, 4_000)),
        Kind::new(What::Kill, "worker killed", 12, (0, 0)),
        Kind::new(What::Stop, "worker stopped", 8, (1_000, 12_000)),
        Kind::new(What::Stop, "worker stopped for long", 3, (12_000, 70_000)),
        Kind::new(What::Drain, "worker drained", 8, (0, 0)),
        Kind::new(What::DrainTwice, "worker drained by two signals", 4, (0, 0)),
        Kind::new(What::Hostile, "hostile messages", 4, (0, 0)),
        Kind::new(What::HostileFrames, "hostile frames", 4, (0, 0)),
    ]
}

/// The connections of one process, each through its own proxy.
struct Network {
    rabbit: Proxy,
    redis: Proxy,
    broker_url: String,
    store_url: String,
}

impl Network {
    async fn to(rabbit_server: &Server, redis_server: &Server) -> Self {
        let rabbit = Proxy::start(rabbit_server.address()).await;
        let redis = Proxy::start(redis_server.address()).await;
        let broker_url = rabbit_server.url_through(&rabbit);
        let store_url = redis_server.url_through(&redis);
        Self { rabbit, redis, broker_url, store_url }
    }
}

/// All servers, connections and processes that the faults hit.
pub(crate) struct Fixture {
    rabbit: Mutex<Server>,
    redis: Mutex<Server>,
    /// The networks of the workers by place; the last one is the client's.
    networks: Vec<Network>,
    /// The Celery producer's proxy. It is never silent, since that client would wait without limit.
    celery: Proxy,
    pub(crate) celery_url: String,
    pub(crate) workers: Workers,
    pub(crate) client: Client,
    /// A classic queue and a quorum queue.
    pub(crate) queues: Vec<String>,
    ledger: Arc<Ledger>,
}

impl Fixture {
    pub(crate) async fn start(ledger: &Arc<Ledger>) -> Self {
        let (rabbit, redis) = tokio::join!(Server::rabbit(), Server::redis());
        let mut networks = Vec::new();
        for _ in 0..=WORKERS {
            networks.push(Network::to(&rabbit, &redis).await);
        }
        let celery = Proxy::start(rabbit.address()).await;
        let celery_url = rabbit.url_through(&celery);
        let queues = vec![queue_name(), queue_name()];
        let client = client(&networks[WORKERS], &queues[1]);
        client.connected().await;
        let settings = format!("[queues.{}]\ntype = \"quorum\"\n", queues[1]);
        let settings = support::file("campaign.toml", &settings);
        let urls = |it: &Network| (it.broker_url.clone(), it.store_url.clone());
        let urls: Vec<(String, String)> = networks.iter().map(urls).collect();
        let (names, first) = (queues.join(","), queues[0].clone());
        let silence = Silence { limit: SILENCE, excused: HELD };
        let workers = Workers::start(ledger, silence, move |place| {
            let (broker_url, store_url) = &urls[place];
            let mut command = command(&names, &format!("{first}-{place}"));
            command.env("COUNTERSIGN_BROKER_URL", broker_url);
            command.env("COUNTERSIGN_STORE_URL", store_url);
            command.env("COUNTERSIGN_BROKER_HEARTBEAT", format!("{}s", HEARTBEAT.as_secs()));
            command.env("COUNTERSIGN_CONFIG", &settings);
            command
        });
        let workers = workers.await;
        let (rabbit, redis) = (Mutex::new(rabbit), Mutex::new(redis));
        let ledger = Arc::clone(ledger);
        Self { rabbit, redis, networks, celery, celery_url, workers, client, queues, ledger }
    }

    /// Injects a fault. When this returns, it has healed.
    pub(crate) async fn inject(&self, fault: Fault<What>) {
        match fault.what {
            What::CutRabbit => {
                self.excuse(&fault, SLOTS);
                self.hit(&fault).iter().for_each(|network| network.rabbit.cut());
                if fault.is_everywhere {
                    self.celery.cut();
                }
            }
            What::CutRedis => self.hit(&fault).iter().for_each(|network| network.redis.cut()),
            What::FreezeRabbit => {
                self.excuse(&fault, SLOTS);
                self.hit(&fault).iter().for_each(|network| network.rabbit.freeze());
            }
            What::FreezeRedis => {
                self.hit(&fault).iter().for_each(|network| network.redis.freeze());
            }
            What::Blackhole => self.blackhole(&fault).await,
            What::RestartRabbit => self.restart_rabbit(&fault, true).await,
            What::KillRabbit => self.restart_rabbit(&fault, false).await,
            What::RestartRedis => {
                let mut redis = self.redis.lock().await;
                redis.stop().await;
                fault.hold.pass().await;
                redis.start().await;
            }
            What::Kill => self.workers.kill(fault.place).await,
            What::Stop => self.workers.stop(fault.place, fault.hold).await,
            What::Drain => self.workers.drain(fault.place, false).await,
            What::DrainTwice => self.workers.drain(fault.place, true).await,
            What::Hostile => hostile::publish_all(&self.client, &self.queues, &self.ledger).await,
            What::HostileFrames => self.publish_hostile_frames().await,
        }
    }

    /// Returns the networks that a fault hits.
    fn hit(&self, fault: &Fault<What>) -> &[Network] {
        if fault.is_everywhere { &self.networks } else { &self.networks[fault.place..=fault.place] }
    }

    /// Excuses `runs` of each worker that a fault hits. If it hits all, also the publishes of the producers.
    fn excuse(&self, fault: &Fault<What>, runs: usize) {
        let (workers, publishes) = if fault.is_everywhere { (WORKERS, PUBLISHES) } else { (1, 0) };
        self.ledger.excuse(fault.name, workers * runs + publishes);
    }

    /// Holds all bytes back without closing a connection; then forwards everything that was held back.
    async fn blackhole(&self, fault: &Fault<What>) {
        let is_long = fault.hold.duration() > STORE_GRACE;
        self.excuse(fault, if is_long { HELD } else { SLOTS });
        for network in self.hit(fault) {
            network.rabbit.blackhole();
            network.redis.blackhole();
        }
        fault.hold.pass().await;
        for network in self.hit(fault) {
            network.rabbit.heal();
            network.redis.heal();
        }
    }

    async fn restart_rabbit(&self, fault: &Fault<What>, is_orderly: bool) {
        self.ledger.excuse(fault.name, WORKERS * SLOTS + PUBLISHES);
        let mut rabbit = self.rabbit.lock().await;
        if is_orderly {
            rabbit.stop().await;
        } else {
            rabbit.kill().await;
        }
        fault.hold.pass().await;
        rabbit.start().await;
    }

    /// Publishes content headers that no client library writes: nested too deep, and not UTF-8.
    async fn publish_hostile_frames(&self) {
        // The lock prevents a restart of RabbitMQ until the frames are published.
        let rabbit = self.rabbit.lock().await;
        let mut channel = RawChannel::open(rabbit.url()).await;
        for queue in &self.queues {
            for form in ["deep-frame", "binary-frame"] {
                let id = TaskId::from(format!("hostile-{form}-{}", TaskId::random()));
                let task = [text("id", id.as_str().as_bytes()), text("task", b"demo.add")].concat();
                let (flags, list) = match form {
                    "deep-frame" => (HEADERS, long(&[task, nested("deep", DEPTH)].concat())),
                    _ => (HEADERS | CORRELATION_ID, [long(&task), short(b"\xff")].concat()),
                };
                self.ledger.sent_hostile(id.clone());
                channel.publish(("", queue.as_str()), flags, &list, b"[[1, 2], {}, {}]").await;
                self.ledger.accept(self.client.handle(id.as_str()), Expected::Failure);
            }
        }
    }
}

fn client(network: &Network, quorum_queue: &str) -> Client {
    let mut config = Config::new(&network.broker_url, &network.store_url).unwrap();
    config.heartbeat = HEARTBEAT;
    let settings = QueueSettings { kind: QueueType::Quorum, ..QueueSettings::default() };
    config.queues.insert(quorum_queue.to_owned(), settings);
    Client::start(config).unwrap()
}
