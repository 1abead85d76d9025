//! Broker URLs as Celery writes them, made into what lapin takes.

use std::fmt;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use percent_encoding::percent_decode_str;
use url::Url;

/// What RabbitMQ proposes unless it is configured otherwise. lapin, which keeps buffers of 32
/// frames, leaves those that it need not grow untouched until they are used.
pub(super) const FRAME_MAX: u32 = 131_072;

/// One broker node, and how to log in to it. Displays without the password.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) uri: AMQPUri,
}

impl Address {
    /// Reads `amqp://user:pw@host:port/vhost`, or several of them joined by `;`.
    ///
    /// As in Celery, an empty path and `/` both mean the virtual host `/`.
    pub(super) fn parse_list(urls: &str, heartbeat: u16) -> Result<Vec<Self>, String> {
        urls.split(';')
            .map(str::trim)
            .filter(|url| !url.is_empty())
            .map(|url| Self::parse(url, heartbeat))
            .collect()
    }

    fn parse(text: &str, heartbeat: u16) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("broker URL: {error}"))?;
        let (scheme, port) = match url.scheme() {
            "amqp" | "pyamqp" => (AMQPScheme::AMQP, 5672),
            "amqps" => (AMQPScheme::AMQPS, 5671),
            other => return Err(format!("broker URL: {other}:// is not amqp:// or amqps://")),
        };
        let decode = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        let vhost = match url.path().strip_prefix('/').unwrap_or_default() {
            "" => "/".to_owned(),
            path => decode(path),
        };
        let (username, password) = match (url.username(), url.password()) {
            ("", None) => ("guest".to_owned(), "guest".to_owned()),
            (user, password) => (decode(user), decode(password.unwrap_or("guest"))),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).unwrap_or("localhost");
        let query = AMQPQueryString {
            heartbeat: Some(heartbeat),
            frame_max: Some(FRAME_MAX),
            ..AMQPQueryString::default()
        };
        let authority = AMQPAuthority {
            userinfo: AMQPUserInfo { username, password },
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(port),
        };
        Ok(Self { uri: AMQPUri { scheme, authority, vhost, query } })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPAuthority { userinfo, host, port } = &self.uri.authority;
        write!(f, "{}://{}@{host}:{port}/{}", self.uri.scheme, userinfo.username, self.uri.vhost)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn celery_forms_are_read_and_passwords_are_not_shown() {
        let list = Address::parse_list(
            "amqp://ana:s%40crit@one;amqps://two:1234/jobs;amqp://three//nested",
            10,
        )
        .unwrap();
        assert_eq!(list.len(), 3);
        assert_eq!(list[0].uri.authority.userinfo.password, "s@crit");
        assert_eq!(list[0].to_string(), "amqp://ana@one:5672//");
        assert_eq!(list[1].uri.vhost, "jobs");
        assert_eq!(list[1].uri.authority.port, 1234);
        assert_eq!(list[2].uri.vhost, "/nested");
        assert!(!format!("{list:?}").contains("crit"));
    }

    #[test]
    fn another_scheme_is_refused() {
        assert!(Address::parse_list("http://host", 10).unwrap_err().contains("http://"));
    }
}
