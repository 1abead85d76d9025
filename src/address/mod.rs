//! Addresses of brokers, stores and databases: which URLs are read, what each part means, and which
//! parts are refused. Nothing connects here.
//!
//! A part that cannot be honoured is an error that says what to write instead. Errors never contain
//! the URL: it may have a password.

pub(crate) mod amqp;
pub(crate) mod redis;
pub(crate) mod sqlite;

use percent_encoding::percent_decode_str;
use url::Url;

/// The URLs of a list, separated by `;`. A `;` that no URL follows belongs to the URL before it, so a
/// password with a `;` is never cut in two. A `;` at the end is ignored, as Celery does.
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

/// The scheme of a URL, in lower case; empty when it has none.
pub(crate) fn scheme(url: &str) -> String {
    url.split_once("://").map_or_else(String::new, |(scheme, _)| scheme.to_ascii_lowercase())
}

/// A URL without its secrets: the password is `***`, and so is a password among the options.
pub(crate) fn masked(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // It is no URL, and may have a password all the same.
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

/// Reads a URL with a host.
fn parse(text: &str) -> Result<Url, String> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let end_of_host = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    if rest.contains(';') || rest[end_of_host..].contains('@') {
        return Err("a special character must be percent-encoded in a user name, a password or a \
                    path: `;` is %3B, `/` is %2F, `?` is %3F, `#` is %23, `@` is %40"
            .to_owned());
    }
    Url::parse(text).map_err(|error| {
        format!("{error}; special characters in a user name or a password are percent-encoded")
    })
}

/// The text of a percent-encoded part; `what` names it in the error.
fn decoded(part: &str, what: &str) -> Result<String, String> {
    let text = percent_decode_str(part).decode_utf8();
    text.map(|text| text.into_owned()).map_err(|_| format!("the {what} is not UTF-8 when decoded"))
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
