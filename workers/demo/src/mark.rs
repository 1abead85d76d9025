//! `demo.mark(key, value, pause_s=0)`: appends to a Redis list, waits, and returns the list's length
//! after the append. Tests count runs with it. Tests that restart the Redis with the results set
//! `DEMO_MARKS_URL` to another Redis for the lists.

use std::time::Duration;

use countersign::{ContextWith, Task, TaskResult};
use deadpool_redis::{Manager, Pool};
use redis::{AsyncCommands, AsyncConnectionConfig};
use serde::{Deserialize, Serialize};

/// Longer than any test suspends the worker process, so that a response that arrives then is still read.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(120);
/// The size of the pool.
const CONNECTIONS: usize = 16;

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

/// The state of the demo worker: a pool of connections for marks. Connections are opened on demand.
#[derive(Debug)]
pub struct Marks(Result<Pool, String>);

impl Marks {
    /// Uses the Redis of this URL for the lists (the first one, if it names several).
    pub(crate) fn new(url: &str) -> Self {
        let first = url.split(';').next().unwrap_or_default();
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(RESPONSE_TIMEOUT));
        let manager = Manager::new_with_config(first, config).map_err(|error| error.to_string());
        let pool = |manager| Pool::builder(manager).max_size(CONNECTIONS).build();
        Self(manager.and_then(|manager| pool(manager).map_err(|error| error.to_string())))
    }
}

pub(crate) async fn mark(
    ctx: ContextWith<Marks>,
    Mark { key, value, pause_s }: Mark,
) -> TaskResult<u64> {
    let pool = ctx.state().0.as_ref().map_err(String::clone)?;
    // Returned to the pool before the pause.
    let length: u64 = pool.get().await?.rpush(key, value).await?;
    let pause = Duration::try_from_secs_f64(pause_s)?;
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    Ok(length)
}
