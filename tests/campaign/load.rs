//! The Rust producer: enqueues tasks at a bounded rate, until the time is over.

use std::sync::Arc;
use std::time::Duration;

use countersign::{Arguments, Client, TaskId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use support::IN_FLIGHT;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::ledger::{Expected, Ledger};

/// Above the limit of `demo.refund`: it needs an approval.
const CENTS: u64 = 20_000;

/// The queues of the tasks, and the list in which their runs are counted.
pub(crate) struct Load {
    pub(crate) client: Client,
    pub(crate) queues: Vec<String>,
    pub(crate) list: String,
    pub(crate) ledger: Arc<Ledger>,
}

/// A task that was drawn.
struct Drawn {
    name: &'static str,
    arguments: Arguments,
    delay: Option<Duration>,
    expected: Expected,
}

impl Load {
    /// Enqueues until `end`, with at most [`IN_FLIGHT`] publishes at a time. When this returns, every
    /// publish has ended. A failed publish is not repeated.
    pub(crate) async fn run(self: Arc<Self>, seed: u64, per_second: u32, end: Instant) {
        let mut random = StdRng::seed_from_u64(seed);
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT));
        let mut ticks = interval(Duration::from_secs(1) / per_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while Instant::now() < end {
            ticks.tick().await;
            let permit = Arc::clone(&in_flight).acquire_owned().await.unwrap();
            let id = TaskId::random();
            let task = self.draw(&mut random, &id);
            let queue = self.queues[random.random_range(0..self.queues.len())].clone();
            let load = Arc::clone(&self);
            tokio::spawn(async move {
                load.send(id, queue, task).await;
                drop(permit);
            });
        }
        let every_permit = u32::try_from(IN_FLIGHT).unwrap();
        drop(in_flight.acquire_many(every_permit).await.unwrap());
    }

    async fn send(&self, id: TaskId, queue: String, task: Drawn) {
        let Drawn { name, arguments, delay, expected } = task;
        self.ledger.sent(id.clone());
        let enqueue = self.client.enqueue_named(name, arguments).queue(queue).id(id.as_str());
        let enqueue = match delay {
            Some(delay) => enqueue.delay(delay),
            None => enqueue,
        };
        match enqueue.await {
            Ok(handle) => self.ledger.accept(handle, expected),
            Err(error) => self.ledger.not_accepted(&id, &error),
        }
    }

    fn draw(&self, random: &mut StdRng, id: &TaskId) -> Drawn {
        let number = random.random_range(1..1_000_i64);
        let delay = Duration::from_millis(random.random_range(0..5_000));
        let pause: f64 = random.random_range(0.05..2.0);
        match random.random_range(0..100) {
            0..55 => self.mark(id, 0.0),
            55..70 => Drawn { delay: Some(delay), ..self.mark(id, 0.0) },
            70..80 => self.mark(id, pause),
            80..90 => Drawn {
                name: "demo.add",
                arguments: Arguments::of(&(number, 1)).unwrap(),
                delay: None,
                expected: Expected::Value(Value::from(number + 1)),
            },
            // It fails once, and returns the number of its retries.
            90..97 => Drawn {
                name: "demo.retry",
                arguments: Arguments::of(&(1, pause)).unwrap(),
                delay: None,
                expected: Expected::Value(Value::from(1)),
            },
            _ => refund(id),
        }
    }

    /// A task whose runs append its id to the list, and then take `pause` seconds.
    fn mark(&self, id: &TaskId, pause: f64) -> Drawn {
        Drawn {
            name: "demo.mark",
            arguments: Arguments::of(&(&self.list, id.as_str(), pause)).unwrap(),
            delay: None,
            expected: Expected::Mark,
        }
    }
}

/// A task that is suspended until it is approved.
fn refund(id: &TaskId) -> Drawn {
    let receipt = format!("refunded {CENTS} cents for {id} (hold-{id}-{CENTS})");
    Drawn {
        name: "demo.refund",
        arguments: Arguments::of(&(id.as_str(), CENTS)).unwrap(),
        delay: None,
        expected: Expected::Value(Value::from(receipt)),
    }
}
