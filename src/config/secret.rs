//! URLs that may contain passwords.

use std::fmt;

use crate::address;

/// A URL whose password is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(pub(super) String);

impl SecretUrl {
    /// Returns the URL with its password: for connecting, never for display.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<_> = address::each(&self.0).into_iter().map(address::masked).collect();
        f.write_str(&shown.join(";"))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let url = SecretUrl("amqp://ana:s3cret@one/v;amqp://bob:p@ss@two".into());
        assert_eq!(format!("{url} {url:?}"), format!("{url} {url}"));
        assert_eq!(url.to_string(), "amqp://ana:***@one/v;amqp://bob:***@two");
    }
}
