//! How to connect to Redis, and how results are stored there.

use std::fmt;
use std::time::Duration;

use crate::backend::PoolSettings;

/// How to connect to Redis, and how results are stored there.
#[derive(Clone)]
pub(crate) struct RedisSettings {
    /// `redis://`, `rediss://` or a Unix socket; of several, joined by `;`, each attempt picks one.
    pub(crate) url: String,
    /// The certificate authority to trust for `rediss://`, instead of the system's.
    pub(crate) ca_pem: Option<Vec<u8>>,
    /// Retention of results. Zero: forever.
    pub(crate) result_expires: Duration,
    /// Celery's `global_keyprefix`.
    pub(crate) key_prefix: String,
    /// Timeout of one attempt to connect.
    pub(crate) connect_timeout: Duration,
    /// Timeout of one command; then the connection is dropped.
    pub(crate) command_timeout: Duration,
    /// Names this process's reply channel. Unguessable: a client that knows it can forge results.
    pub(crate) client_id: String,
    /// The pool of connections for large reads.
    pub(crate) pool: PoolSettings,
    /// How often the records of all waiters are re-read, regardless of notifications.
    pub(crate) reread: Duration,
}

impl RedisSettings {
    /// The defaults for this URL, with a fresh client id.
    pub(crate) fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ca_pem: None,
            result_expires: Duration::from_secs(24 * 60 * 60),
            key_prefix: String::new(),
            connect_timeout: Duration::from_secs(2),
            command_timeout: Duration::from_secs(2),
            client_id: uuid::Uuid::new_v4().to_string(),
            pool: PoolSettings::default(),
            reread: Duration::from_secs(15),
        }
    }
}

impl fmt::Debug for RedisSettings {
    /// Omits the URL, which may contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSettings").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}
