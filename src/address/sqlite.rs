//! `sqlite:path/to/file.db` and `sqlite::memory:`, and SQLAlchemy's and Celery's `sqlite:///path`.

#[cfg(feature = "unstable")]
use std::path::Path;
use std::path::PathBuf;

#[cfg(feature = "unstable")]
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

const SCHEME: &str = "sqlite:";
const MEMORY: &str = ":memory:";
/// Characters to encode: a shell or this URL may give them another meaning.
#[cfg(feature = "unstable")]
const SPECIAL: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_').remove(b'~');

/// The database that a URL names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Database {
    /// In memory; it is gone when its client closes.
    Memory,
    File(PathBuf),
}

/// Whether a URL names a database.
pub(crate) fn is_database(url: &str) -> bool {
    without_scheme(url).is_some()
}

/// Returns the text after the scheme, which may be in upper or lower case.
fn without_scheme(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then_some(rest)
}

/// Builds the URL of a database file.
#[cfg(feature = "unstable")]
pub(crate) fn url_of(file: &Path) -> String {
    // `sqlite://` would start a host.
    let file = file.to_string_lossy();
    let path = file.strip_prefix("//").map_or(file.to_string(), |rest| format!("/{rest}"));
    format!("{SCHEME}{}", utf8_percent_encode(&path, SPECIAL))
}

/// Parses the URL of a database. As in SQLAlchemy, `sqlite:///x` is the relative path `x` and
/// `sqlite:////x` the absolute path `/x`; without slashes, `sqlite:x` and `sqlite:/x`.
pub(crate) fn parse(url: &str) -> Result<Database, String> {
    let Some(rest) = without_scheme(url) else {
        return Err("a database is written sqlite:path/to/file.db, or sqlite::memory:".to_owned());
    };
    let path = match rest.strip_prefix("//") {
        Some("") => MEMORY,
        Some(path) => path.strip_prefix('/').ok_or(
            "a database has no host: write sqlite:x or sqlite:///x for the file x, and sqlite:/x or \
             sqlite:////x for /x",
        )?,
        None => rest,
    };
    refuse_special(path)?;
    let path = super::decoded(path, "path")?;
    match path.as_str() {
        "" => Err("a database is written sqlite:path/to/file.db, or sqlite::memory:".to_owned()),
        MEMORY => Ok(Database::Memory),
        _ if path.ends_with("/:memory:") => {
            Err("a database in memory is written sqlite::memory:".to_owned())
        }
        _ if path.starts_with("file:") => Err("write the path without `file:`".to_owned()),
        _ => Ok(Database::File(PathBuf::from(path))),
    }
}

fn refuse_special(path: &str) -> Result<(), String> {
    let fault = if path.contains(';') {
        "one database is broker and store, so there is no list; `;` in a path is %3B"
    } else if path.contains('?') {
        "a database has no options such as ?mode=; `?` in a path is %3F"
    } else if path.contains('#') {
        "`#` in a path is %23"
    } else if !super::is_percent_encoded(path) {
        "`%` in a path is %25"
    } else {
        return Ok(());
    };
    Err(fault.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_sqlalchemy() {
        for (url, path) in [
            ("sqlite:x.db", "x.db"),
            ("sqlite:/x.db", "/x.db"),
            ("sqlite:///x.db", "x.db"),
            ("sqlite:////x.db", "/x.db"),
            ("sqlite:///a%20b%23.db", "a b#.db"),
        ] {
            assert_eq!(parse(url), Ok(Database::File(path.into())), "{url}");
        }
        for url in ["sqlite::memory:", "sqlite:///:memory:", "sqlite://"] {
            assert_eq!(parse(url), Ok(Database::Memory), "{url}");
        }
    }

    #[test]
    fn an_ambiguous_path_is_refused_with_its_remedy() {
        for (url, remedy) in [
            ("sqlite:", "sqlite:path"),
            ("sqlite://x.db", "sqlite:///x"),
            ("sqlite:x.db?mode=ro", "%3F"),
            ("sqlite:x.db;y.db", "%3B"),
            ("sqlite:x#y.db", "%23"),
            ("sqlite:100%.db", "%25"),
            ("sqlite:x%zz", "%25"),
            ("sqlite:/:memory:", "sqlite::memory:"),
            ("sqlite:////:memory:", "sqlite::memory:"),
            ("sqlite:file:x.db", "file:"),
            ("sqlite:x%00", "control character"),
            ("sqlite:%ff", "UTF-8"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(remedy), "{url}: {error}");
        }
    }

    #[cfg(feature = "unstable")]
    #[test]
    fn the_url_of_a_file_names_that_file() {
        for file in ["/tmp/a b?c#d;e%41.db", "x.db", "ä.db"] {
            assert_eq!(parse(&url_of(Path::new(file))), Ok(Database::File(file.into())));
        }
    }
}
