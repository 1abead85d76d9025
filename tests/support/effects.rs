use std::collections::HashMap;

use redis::{AsyncCommands, AsyncConnectionConfig};

use crate::TIMEOUT;
use crate::queue_name;

/// The effects of tasks, in a Redis list: `demo.mark` adds one entry per run.
#[derive(Debug)]
pub struct Effects {
    /// The key of the list.
    pub list: String,
    redis: redis::aio::MultiplexedConnection,
}

impl Effects {
    /// Creates an empty list in this Redis.
    pub async fn at(store_url: &str) -> Self {
        let client = redis::Client::open(store_url).unwrap();
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(TIMEOUT));
        let redis = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
        Self { list: format!("effects-{}", queue_name()), redis }
    }

    /// Returns the number of entries.
    pub async fn count(&mut self) -> usize {
        self.redis.llen(&self.list).await.unwrap()
    }

    /// Returns the entries in the order in which they were added.
    pub async fn entries(&mut self) -> Vec<String> {
        self.redis.lrange(&self.list, 0, -1).await.unwrap()
    }

    /// Returns the number of occurrences of each entry.
    pub async fn runs(&mut self) -> HashMap<String, usize> {
        let mut runs = HashMap::new();
        for entry in self.entries().await {
            *runs.entry(entry).or_default() += 1;
        }
        runs
    }
}
