//! `amqp://user:password@host:port/vhost`, in Celery's format.

use std::fmt;

/// A broker node and its credentials. `Display` and `Debug` omit the password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct AmqpAddress {
    pub(crate) is_tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) vhost: String,
}

/// Parses the URL of one node. An empty path and `/` both mean the virtual host `/`.
pub(crate) fn parse(text: &str) -> Result<AmqpAddress, String> {
    let url = super::parse(text)?;
    let (is_tls, port) = match url.scheme() {
        "amqp" | "pyamqp" => (false, 5672),
        "amqps" => (true, 5671),
        other => return Err(format!("{other}:// is not amqp:// or amqps://")),
    };
    if let Some((name, _)) = url.query_pairs().next() {
        return Err(format!("option `{name}` is not read from a URL: {}", instead_of(&name)));
    }
    if url.fragment().is_some() {
        return Err("write `#` as %23 in a password or a path".to_owned());
    }
    let vhost = match url.path().strip_prefix('/').unwrap_or_default() {
        "" => "/".to_owned(),
        path => super::decoded(path, "virtual host")?,
    };
    let (user, password) = match (url.username(), url.password()) {
        ("", None) => ("guest".to_owned(), "guest".to_owned()),
        (user, password) => (
            super::decoded(user, "user name")?,
            super::decoded(password.unwrap_or("guest"), "password")?,
        ),
    };
    let host = url.host_str().filter(|host| !host.is_empty()).unwrap_or("localhost");
    let host = host.trim_matches(['[', ']']).to_owned();
    Ok(AmqpAddress { is_tls, host, port: url.port().unwrap_or(port), user, password, vhost })
}

/// Returns what to do instead of setting this option.
fn instead_of(option: &str) -> &'static str {
    match option {
        "heartbeat" => "set broker.heartbeat",
        "connection_timeout" | "connect_timeout" => "set connect_timeout",
        "cacertfile" | "ca_certs" => "set tls.ca_file",
        "ssl" | "ssl_options" | "verify" => "write amqps:// for TLS; certificates are verified",
        "certfile" | "keyfile" => "client certificates are not supported for RabbitMQ; remove it",
        "frame_max" | "channel_max" => "it is negotiated with the broker; remove it",
        _ => "remove it; `?` is %3F in a password or a path",
    }
}

impl fmt::Display for AmqpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "amqps" } else { "amqp" };
        let Self { user, host, port, vhost, .. } = self;
        write!(f, "{scheme}://{user}@{host}:{port}/{vhost}")
    }
}

impl fmt::Debug for AmqpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn celery_forms_are_read_and_passwords_are_not_shown() {
        let one = parse("amqp://ana:s%40crit@one").unwrap();
        assert_eq!(one.password, "s@crit");
        assert_eq!(one.to_string(), "amqp://ana@one:5672//");
        assert!(!format!("{one:?}").contains("crit"));
        let two = parse("amqps://two:1234/jobs").unwrap();
        assert_eq!((two.is_tls, two.port, two.vhost.as_str()), (true, 1234, "jobs"));
        assert_eq!(parse("pyamqp://three//nested").unwrap().vhost, "/nested");
        assert_eq!(parse("amqp://a:p@ss@host/").unwrap().password, "p@ss");
        assert_eq!(parse("amqp://[::1]:5/").unwrap().host, "::1");
        assert!(parse("AMQPS://two").unwrap().is_tls);
    }

    #[test]
    fn an_unsupported_part_is_refused_with_its_remedy() {
        for (url, remedy) in [
            ("http://host", "amqp://"),
            ("amqp://host?heartbeat=3", "broker.heartbeat"),
            ("amqps://host/v?cacertfile=/ca.pem", "tls.ca_file"),
            ("amqp://host?x=1", "%3F"),
            ("amqp://u:pa;ss@host", "%3B"),
            ("amqp://u:pa#ss@host", "%23"),
            ("amqp://u:pa/ss@host/v", "%2F"),
            ("amqp://u:pa?ss@host", "%3F"),
            ("amqp://host/v@x", "%40"),
            ("amqp://host:99999/", "percent-encoded"),
            ("amqp://u:%ff@host", "UTF-8"),
            ("amqp://u:p%00@host", "control character"),
            ("amqp://u:p%zz@host", "%25"),
            ("amqp://host:0/", "port 0"),
            ("amqp://ho%1bst/", "host name"),
            ("amqp://ho\u{1b}st/", "host name"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(remedy) && !error.contains("ss@"), "{url}: {error}");
        }
    }
}
