//! `demo.mark(key, value)`: appends to a Redis list and answers its length. Tests count effects
//! with it; `DEMO_MARKS_URL` puts the lists into another Redis than the one that they restart.

use std::time::Duration;

use countersign::{Task, TaskResult};
use redis::AsyncCommands;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use serde::{Deserialize, Serialize};

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
pub(crate) struct Mark {
    key: String,
    value: String,
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
            let patient = ConnectionManagerConfig::new().set_response_timeout(Some(PATIENCE));
            ConnectionManager::new_lazy_with_config(client, patient)
        });
        Self(connection.map_err(|error| error.to_string()))
    }
}

pub(crate) async fn mark(marks: Marks, Mark { key, value }: Mark) -> TaskResult<u64> {
    Ok(marks.0?.rpush(key, value).await?)
}
