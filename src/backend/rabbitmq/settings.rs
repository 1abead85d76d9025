//! How to connect to RabbitMQ.

use std::time::Duration;

use lapin::uri::AMQPScheme;

use super::address::Address;
use super::transport::Tls;

/// How to connect to RabbitMQ.
#[derive(Clone, Debug)]
pub(crate) struct RabbitSettings {
    pub(super) addresses: Vec<Address>,
    pub(super) tls: Option<Tls>,
    pub(super) connect_timeout: Duration,
    /// A connection that is silent for longer is dropped.
    pub(super) silence_limit: Duration,
    pub(super) name: String,
}

impl RabbitSettings {
    /// Parses the URLs (joined by `;`). An error is one line for users, without passwords.
    pub(crate) fn new(
        urls: &str,
        ca_pem: Option<&str>,
        connect_timeout: Duration,
        heartbeat: Duration,
        name: &str,
    ) -> Result<Self, String> {
        let heartbeat = u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX).max(1);
        let addresses = Address::parse_list(urls, heartbeat)?;
        if addresses.is_empty() {
            return Err("broker URL: no address given".into());
        }
        let silence_limit = Duration::from_secs(heartbeat.into()) * 2;
        let is_secure = |address: &Address| address.uri.scheme == AMQPScheme::AMQPS;
        let tls = addresses.iter().any(is_secure).then(|| Tls::new(ca_pem)).transpose()?;
        Ok(Self { addresses, tls, connect_timeout, silence_limit, name: name.into() })
    }
}
