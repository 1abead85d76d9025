//! Broker addresses as lapin's types.

use std::fmt;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};

use crate::address;
use crate::address::amqp::{self, AmqpAddress};

/// RabbitMQ's default proposal. lapin allocates buffers of 32 frames; pages that it does not use stay
/// untouched.
pub(super) const FRAME_MAX: u32 = 131_072;

/// A broker node and its credentials. `Display` and `Debug` omit the password.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) uri: AMQPUri,
    read: AmqpAddress,
}

impl Address {
    /// Parses `amqp://user:pw@host:port/vhost`, or several URLs joined by `;`.
    pub(super) fn parse_list(urls: &str, heartbeat: u16) -> Result<Vec<Self>, String> {
        let read = |url| amqp::parse(url).map_err(|error| format!("broker URL: {error}"));
        let nodes = address::each(urls).into_iter().map(read);
        nodes.map(|node| Ok(Self::of(node?, heartbeat))).collect()
    }

    fn of(read: AmqpAddress, heartbeat: u16) -> Self {
        let AmqpAddress { is_tls, host, port, user, password, vhost } = read.clone();
        let scheme = if is_tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP };
        let query = AMQPQueryString {
            heartbeat: Some(heartbeat),
            frame_max: Some(FRAME_MAX),
            ..AMQPQueryString::default()
        };
        let userinfo = AMQPUserInfo { username: user, password };
        let authority = AMQPAuthority { userinfo, host, port };
        Self { uri: AMQPUri { scheme, authority, vhost, query }, read }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.read, f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.read, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_several_nodes() {
        let list =
            Address::parse_list("amqp://ana:s%40crit@one;amqps://two:1234/jobs;", 10).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].uri.authority.userinfo.password, "s@crit");
        assert_eq!(list[0].to_string(), "amqp://ana@one:5672//");
        assert_eq!((list[1].uri.vhost.as_str(), list[1].uri.authority.port), ("jobs", 1234));
        assert!(!format!("{list:?}").contains("crit"));
        assert!(Address::parse_list("http://host", 10).unwrap_err().contains("http://"));
    }
}
