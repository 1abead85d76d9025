use std::collections::HashMap;
use std::time::Duration;

use redis::{AsyncCommands, AsyncConnectionConfig};

use crate::queue_name;

const PATIENCE: Duration = Duration::from_secs(60);

/// What tasks did, counted in a Redis list: `demo.mark` adds one entry a run.
#[derive(Debug)]
pub struct Effects {
    /// The key of the list.
    pub list: String,
    redis: redis::aio::MultiplexedConnection,
}

impl Effects {
    /// An empty list in this Redis.
    pub async fn at(store_url: &str) -> Self {
        let client = redis::Client::open(store_url).unwrap();
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        let redis = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
        Self { list: format!("effects-{}", queue_name()), redis }
    }

    /// How many entries there are.
    pub async fn count(&mut self) -> usize {
        self.redis.llen(&self.list).await.unwrap()
    }

    /// The entries, in the order in which they were made.
    pub async fn entries(&mut self) -> Vec<String> {
        self.redis.lrange(&self.list, 0, -1).await.unwrap()
    }

    /// The entries, and how often each one was made.
    pub async fn runs(&mut self) -> HashMap<String, usize> {
        let mut runs = HashMap::new();
        for entry in self.entries().await {
            *runs.entry(entry).or_default() += 1;
        }
        runs
    }
}
