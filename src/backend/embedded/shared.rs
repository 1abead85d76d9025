//! The state of a database that all of its threads share.

use std::sync::Arc;

use rand::Rng;

use super::availability::Availability;
use super::clock::Clock;
use super::notifications::Notifications;
use super::session::Session;
use super::warnings::Warnings;

/// The state that all threads of the database share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) notifications: Notifications,
    pub(super) clock: Clock,
    /// Whether other processes may use it, too.
    pub(super) is_file: bool,
    /// Distinguishes this process from others.
    pub(super) identity: i64,
    /// Whether sessions that are not renewed are ended. In memory there is one process, unless a test
    /// simulates several.
    pub(super) sessions_expire: bool,
    /// The session of this process: the one that the writer thread renews.
    pub(super) session: Arc<Session>,
    /// The name of the database in messages to users.
    pub(super) shown: String,
    /// Whether it takes writes.
    pub(super) availability: Availability,
    pub(super) warnings: Warnings,
}

impl Shared {
    pub(super) fn in_memory(sessions_expire: bool) -> Arc<Self> {
        let shown = "the database in memory".to_owned();
        Self::new(Clock::of_runtime(), false, sessions_expire, shown)
    }

    pub(super) fn new(
        clock: Clock,
        is_file: bool,
        sessions_expire: bool,
        shown: String,
    ) -> Arc<Self> {
        let (notifications, identity) = (Notifications::default(), rand::rng().random());
        Arc::new(Self {
            notifications,
            clock,
            is_file,
            identity,
            sessions_expire,
            session: Arc::default(),
            shown,
            availability: Availability::default(),
            warnings: Warnings::default(),
        })
    }
}
