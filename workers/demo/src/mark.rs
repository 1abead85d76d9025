//! `demo.mark(key, value, pause_s=0)`: appends to a Redis list, waits, and answers the list's length
//! after the append. Tests count runs with it. `DEMO_MARKS_URL` names the Redis of the lists, where
//! tests restart the one that stores results.

use std::time::Duration;

use countersign::{Task, TaskResult};
use redis::AsyncCommands;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use serde::{Deserialize, Serialize};

/// Longer than tests stop a worker for: a response that arrives during the stop is still read.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Serialize, Deserialize)]
pub(crate) struct Mark {
    key: String,
    value: String,
    #[serde(default)]
    pause_s: f64,
}

impl Task for Mark {
    const NAME: &'static str = "demo.mark";
    const QUEUE: Option<&'static str> = Some("demo");
    type Output = u64;
}

/// Where marks are made: connected at the first one.
#[derive(Clone)]
pub(crate) struct Marks(Result<ConnectionManager, String>);

impl Marks {
    /// Lists live in the Redis of this URL (the first one, if it names several).
    pub(crate) fn new(url: &str) -> Self {
        let first = url.split(';').next().unwrap_or_default();
        let connection = redis::Client::open(first).and_then(|client| {
            let config = ConnectionManagerConfig::new();
            let config = config.set_response_timeout(Some(RESPONSE_TIMEOUT));
            ConnectionManager::new_lazy_with_config(client, config)
        });
        Self(connection.map_err(|error| error.to_string()))
    }
}

pub(crate) async fn mark(marks: Marks, Mark { key, value, pause_s }: Mark) -> TaskResult<u64> {
    let length: u64 = marks.0?.rpush(key, value).await?;
    let pause = Duration::try_from_secs_f64(pause_s)?;
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    Ok(length)
}
