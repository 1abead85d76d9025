//! `redis://user:password@host:port/database?option=value`, and Celery's forms for TLS and Unix
//! sockets.

use std::path::PathBuf;

use url::Url;

/// The accepted schemes.
pub(crate) const SCHEMES: &[&str] =
    &["redis", "rediss", "valkey", "valkeys", "unix", "redis+socket", "socket"];

/// A server and its credentials.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RedisAddress {
    pub(crate) endpoint: Endpoint,
    pub(crate) database: u32,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
}

/// The address where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Tcp { host: String, port: u16 },
    Tls { host: String, port: u16, tls: TlsOptions },
    Unix(PathBuf),
}

/// How to verify the server's certificate, and which certificate the client presents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsOptions {
    /// The server's certificate is not verified: `ssl_cert_reqs=none` or `#insecure`.
    pub(crate) is_insecure: bool,
    /// The file of the certificate authorities; otherwise the system's and `tls.ca_file`.
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) certificate_file: Option<PathBuf>,
    pub(crate) key_file: Option<PathBuf>,
}

/// The contents of the files of [`TlsOptions`], as PEM.
#[derive(Default)]
pub(crate) struct Certificates {
    pub(crate) authorities: Option<Vec<u8>>,
    /// The client's certificate and its key.
    pub(crate) client: Option<(Vec<u8>, Vec<u8>)>,
}

impl TlsOptions {
    /// Reads the files.
    pub(crate) fn certificates(&self) -> Result<Certificates, String> {
        let read = |name: &str, path: &Option<PathBuf>| match path {
            None => Ok(None),
            Some(path) => match std::fs::read(path) {
                Ok(pem) if pem.windows(11).any(|at| at == b"-----BEGIN ") => Ok(Some(pem)),
                Ok(_) => Err(format!("{name}: {} has no PEM block", path.display())),
                Err(error) => Err(format!("{name}: cannot read {}: {error}", path.display())),
            },
        };
        let certificate = read("ssl_certfile", &self.certificate_file)?;
        let key = read("ssl_keyfile", &self.key_file)?;
        let authorities = read("ssl_ca_certs", &self.ca_file)?;
        Ok(Certificates { authorities, client: certificate.zip(key) })
    }
}

/// Parses the URL of one server.
pub(crate) fn parse(text: &str) -> Result<RedisAddress, String> {
    let scheme = &*super::scheme(text);
    if scheme.is_empty() {
        return Err("a URL begins with redis://, or is sqlite:path/to/file.db".to_owned());
    }
    if !SCHEMES.contains(&scheme) {
        return Err(format!("{scheme}:// is not one of {}://", SCHEMES.join("://, ")));
    }
    let is_socket = matches!(scheme, "unix" | "redis+socket" | "socket");
    let is_tls = scheme.ends_with("ss") || scheme == "valkeys";
    let url = if is_socket { parse_socket(text)? } else { super::parse(text)? };
    let mut address = RedisAddress {
        endpoint: Endpoint::Unix(PathBuf::new()),
        database: 0,
        user: optional_part(url.username(), "user name")?,
        password: optional_part(url.password().unwrap_or_default(), "password")?,
    };
    let mut tls = TlsOptions::default();
    let mut database = if is_socket { None } else { database(url.path().trim_matches('/'))? };
    for (name, value) in url.query_pairs() {
        match name.as_ref() {
            "db" | "virtual_host" => {
                let named = self::database(value.trim_matches('/'))?;
                if database.is_some() && database != named {
                    return Err(format!("the path and `{name}` name two databases"));
                }
                database = named;
            }
            "username" | "user" => address.user = Some(value.into_owned()),
            "password" | "pass" => address.password = Some(value.into_owned()),
            ssl if ssl.starts_with("ssl_") => {
                if !is_tls {
                    return Err(format!("`{ssl}` needs TLS: write rediss://"));
                }
                set_tls(&mut tls, ssl, &value)?;
            }
            _ => check_included(&name, &value)?,
        }
    }
    match url.fragment() {
        None => {}
        Some("insecure") if is_tls => tls.is_insecure = true,
        Some(_) => return Err("write `#` as %23 in a password or a path".to_owned()),
    }
    if tls.certificate_file.is_some() != tls.key_file.is_some() {
        return Err("set `ssl_certfile` and `ssl_keyfile` together".to_owned());
    }
    address.database = database.unwrap_or(0);
    address.endpoint = endpoint(&url, is_socket, is_tls.then_some(tls))?;
    Ok(address)
}

/// Parses the URL of a socket as if it had a host, because the parser requires one to accept a
/// password.
fn parse_socket(text: &str) -> Result<Url, String> {
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let (login, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if path.len() < 2 || !(login.is_empty() || login.ends_with('@')) {
        return Err("a socket is written unix:///path/to/redis.sock, without a host".to_owned());
    }
    super::parse(&format!("redis://{login}localhost{path}"))
}

fn endpoint(url: &Url, is_socket: bool, tls: Option<TlsOptions>) -> Result<Endpoint, String> {
    if is_socket {
        return Ok(Endpoint::Unix(super::decoded(url.path(), "path")?.into()));
    }
    let host = url.host_str().filter(|host| !host.is_empty()).unwrap_or("localhost");
    let host = host.trim_matches(['[', ']']).to_owned();
    let port = url.port().unwrap_or(6379);
    Ok(match tls {
        Some(tls) => Endpoint::Tls { host, port, tls },
        None => Endpoint::Tcp { host, port },
    })
}

fn optional_part(part: &str, what: &str) -> Result<Option<String>, String> {
    Ok(Some(super::decoded(part, what)?).filter(|text| !text.is_empty()))
}

fn database(text: &str) -> Result<Option<u32>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let number = text.parse().map_err(|_| format!("{text:?} is not the number of a database"))?;
    Ok(Some(number))
}

fn set_tls(tls: &mut TlsOptions, name: &str, value: &str) -> Result<(), String> {
    match (name, value.to_ascii_lowercase().trim_start_matches("cert_")) {
        // For a client, Python's CERT_OPTIONAL is the same as CERT_REQUIRED.
        ("ssl_cert_reqs", "required" | "optional") => {}
        ("ssl_cert_reqs", "none") => tls.is_insecure = true,
        ("ssl_cert_reqs", _) => {
            return Err("`ssl_cert_reqs` is required, optional or none".to_owned());
        }
        ("ssl_ca_certs", _) => tls.ca_file = Some(value.into()),
        ("ssl_certfile", _) => tls.certificate_file = Some(value.into()),
        ("ssl_keyfile", _) => tls.key_file = Some(value.into()),
        ("ssl_check_hostname", "true" | "1") => {}
        ("ssl_check_hostname", _) => {
            return Err(
                "`ssl_check_hostname` is always on: give the server a certificate for its \
                        host, or write ssl_cert_reqs=none, which verifies nothing"
                    .to_owned(),
            );
        }
        _ => return Err(format!("option `{name}` is not supported: remove it")),
    }
    Ok(())
}

/// Accepts an option of redis-py whose effect this client always has; refuses all others.
fn check_included(name: &str, value: &str) -> Result<(), String> {
    let is_on = matches!(value.to_ascii_lowercase().as_str(), "true" | "1" | "yes" | "on");
    let instead = match name {
        "health_check_interval" => return Ok(()),
        "socket_keepalive" | "retry_on_timeout" if is_on => return Ok(()),
        "protocol" if value == "3" => return Ok(()),
        "socket_keepalive" | "retry_on_timeout" => "it is always on; remove it",
        "protocol" => "RESP3 is always used; remove it",
        "socket_timeout" => "set store.command_timeout",
        "socket_connect_timeout" => "set connect_timeout",
        "max_connections" => "a process has a fixed, small number of connections; remove it",
        _ => "remove it; `?` is %3F in a password or a path",
    };
    Err(format!("option `{name}` is not read from a URL: {instead}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(url: &str) -> TlsOptions {
        match parse(url).unwrap().endpoint {
            Endpoint::Tls { tls, .. } => tls,
            other => panic!("{url}: {other:?}"),
        }
    }

    #[test]
    fn every_form_of_a_database_is_used() {
        let urls = [
            "redis://h/3",
            "REDIS://h?db=3",
            "redis://h/?virtual_host=/3",
            "redis://h/3?db=3",
            "unix:///run/r.sock?db=3",
            "redis+socket:///run/r.sock?virtual_host=3",
            "socket:///run/r.sock?virtual_host=3",
        ];
        for url in urls {
            assert_eq!(parse(url).unwrap().database, 3, "{url}");
        }
        assert_eq!(parse("redis://h").unwrap().database, 0);
        let path = parse("socket://:p%40@/run/a%20b.sock").unwrap();
        assert_eq!(path.endpoint, Endpoint::Unix("/run/a b.sock".into()));
        assert_eq!(path.password.as_deref(), Some("p@"));
    }

    #[test]
    fn tls_options_are_used() {
        assert_eq!(tls("rediss://h?ssl_cert_reqs=CERT_REQUIRED"), TlsOptions::default());
        for url in
            ["rediss://h#insecure", "rediss://h/1?ssl_cert_reqs=none", "valkeys://h#insecure"]
        {
            assert!(tls(url).is_insecure, "{url}");
        }
        let files = tls("rediss://h?ssl_ca_certs=/ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem");
        let [ca, certificate, key] = ["/ca.pem", "/c.pem", "/k.pem"].map(PathBuf::from);
        assert_eq!(files.ca_file, Some(ca));
        assert_eq!((files.certificate_file, files.key_file), (Some(certificate), Some(key)));
    }

    #[test]
    fn options_that_match_fixed_behaviour_are_accepted() {
        let url = "redis://u:p@h?health_check_interval=30&socket_keepalive=true&protocol=3";
        let address = parse(url).unwrap();
        assert_eq!((address.user.as_deref(), address.password.as_deref()), (Some("u"), Some("p")));
        assert_eq!(parse("redis://h?password=p&username=u").unwrap().user.as_deref(), Some("u"));
    }

    #[test]
    fn an_unsupported_part_is_refused_with_its_remedy() {
        for (url, remedy) in [
            ("http://h", "redis://"),
            ("", "begins with redis://"),
            ("redis://h/x", "number"),
            ("redis://h/1?db=2", "two databases"),
            ("redis://h?ssl_cert_reqs=none", "rediss://"),
            ("redis://h#insecure", "%23"),
            ("rediss://h?ssl_cert_reqs=maybe", "required"),
            ("rediss://h?ssl_check_hostname=false", "ssl_cert_reqs=none"),
            ("rediss://h?ssl_certfile=/c.pem", "ssl_keyfile"),
            ("rediss://h?ssl_ciphers=x", "remove"),
            ("redis://h?socket_timeout=5", "store.command_timeout"),
            ("redis://h?socket_connect_timeout=5", "connect_timeout"),
            ("redis://h?protocol=2", "RESP3"),
            ("redis://h?unknown=1", "remove"),
            ("redis://:pa;ss@h", "%3B"),
            ("redis://:pa/ss@h", "%2F"),
            ("redis://:pa#ss@h", "%23"),
            ("unix://", "unix:///"),
            ("unix://run/r.sock", "unix:///"),
        ] {
            let error = parse(url).err().unwrap_or_else(|| panic!("{url} is accepted"));
            assert!(error.contains(remedy) && !error.contains("ss@"), "{url}: {error}");
        }
    }
}
