//! URLs of brokers, stores and databases: the accepted forms, the meaning of each part, and the refused
//! parts. Nothing connects here.
//!
//! An unsupported part is an error that names the supported form. Errors never contain the URL, which
//! may hold a password.

pub(crate) mod amqp;
pub(crate) mod redis;
pub(crate) mod sqlite;

use percent_encoding::percent_decode_str;
use url::Url;

/// Splits a list of URLs at `;`. A `;` that is not followed by a URL belongs to the URL before it, so a
/// password with a `;` is never split. A trailing `;` is ignored, as in Celery.
pub(crate) fn each(urls: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut begin = 0;
    for (at, _) in urls.match_indices(';') {
        if begins_url(urls[at + 1..].trim_start()) {
            found.push(&urls[begin..at]);
            begin = at + 1;
        }
    }
    found.push(&urls[begin..]);
    found.iter().map(|url| url.trim().trim_end_matches(';').trim_end()).collect()
}

/// Whether a text begins with a scheme and `://`.
fn begins_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    })
}

/// The scheme of a URL in lower case; empty when it has none.
pub(crate) fn scheme(url: &str) -> String {
    url.split_once("://").map_or_else(String::new, |(scheme, _)| scheme.to_ascii_lowercase())
}

/// Masks the secrets of a URL: the password becomes `***`, and so does a password among the options.
pub(crate) fn masked(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // The text is not a URL, but it may contain a password.
        return url
            .rsplit_once('@')
            .map_or_else(|| url.to_owned(), |(_, host)| format!("***@{host}"));
    };
    let rest = match rest.rsplit_once('@') {
        Some((login, host)) => {
            let user = login.split(':').next().unwrap_or_default();
            format!("{user}:***@{host}")
        }
        None => rest.to_owned(),
    };
    let Some((place, query)) = rest.split_once('?') else {
        return format!("{scheme}://{rest}");
    };
    let options: Vec<_> = query
        .split('&')
        .map(|option| match option.split_once('=') {
            Some((name, _)) if name.starts_with("pass") => format!("{name}=***"),
            _ => option.to_owned(),
        })
        .collect();
    format!("{scheme}://{place}?{}", options.join("&"))
}

/// Parses a URL with a host.
fn parse(text: &str) -> Result<Url, String> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let end_of_host = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    if rest.contains(';') || rest[end_of_host..].contains('@') {
        return Err("a special character must be percent-encoded in a user name, a password or a \
                    path: `;` is %3B, `/` is %2F, `?` is %3F, `#` is %23, `@` is %40"
            .to_owned());
    }
    if !is_percent_encoded(text) {
        return Err("a literal `%` must be written as %25".to_owned());
    }
    let url = Url::parse(text).map_err(|error| {
        format!("{error}; special characters in a user name or a password are percent-encoded")
    })?;
    if url.port() == Some(0) {
        return Err("port 0 is not a valid port".to_owned());
    }
    if url.host_str().is_some_and(|host| host.contains(|c: char| c.is_control() || c == '%')) {
        return Err(
            "a host name must not contain control characters or percent-encoded ones".to_owned()
        );
    }
    Ok(url)
}

/// Whether two hexadecimal digits follow each `%`.
fn is_percent_encoded(text: &str) -> bool {
    text.match_indices('%').all(|(at, _)| {
        let digits = text.as_bytes().get(at + 1..at + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Decodes a percent-encoded part; `what` names it in the error.
fn decoded(part: &str, what: &str) -> Result<String, String> {
    let text = percent_decode_str(part).decode_utf8();
    let text = text.map_err(|_| format!("the {what} is not UTF-8 when decoded"))?;
    if text.contains(char::is_control) {
        return Err(format!("the {what} has a control character when decoded"));
    }
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_only_where_a_url_begins() {
        assert_eq!(each("amqp://a; amqp://b ;"), ["amqp://a", "amqp://b"]);
        assert_eq!(each("amqp://u:pa;ss@a;amqps://b"), ["amqp://u:pa;ss@a", "amqps://b"]);
        assert_eq!(each("a;b"), ["a;b"]);
        assert_eq!(each(""), [""]);
    }

    #[test]
    fn no_secret_is_shown() {
        for url in ["amqp://ana:s3;cret@one/v", "amqp://ana:s3/c#r?t@one/v", "amqp://ana:s@3@one/v"]
        {
            assert_eq!(masked(url), "amqp://ana:***@one/v");
        }
        for text in ["redis:/:s3cret@h", ":s3cret@h", r"redis:\\:s3cret@h"] {
            assert_eq!(masked(text), "***@h");
        }
        let url = "unix:///run/redis.sock?db=1&pass=s3cret&password=s3cret";
        assert_eq!(masked(url), "unix:///run/redis.sock?db=1&pass=***&password=***");
    }
}
