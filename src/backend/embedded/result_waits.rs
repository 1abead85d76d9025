//! The waits for results: their timeouts, and reading the results again.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::db::Db;
use super::documents;
use super::notifications::Event;
use crate::task::TaskId;

/// How often the results of all waiters are read again, in case a notification was missed.
const REREAD: Duration = Duration::from_secs(15);

/// Resolves the waiters of a task, if it has ended.
pub(super) fn refresh(db: &Db, id: TaskId) {
    let shared = db.shared().clone();
    db.read_with(
        move |txn| documents::read(txn, &id),
        move |found| match found {
            Ok(Some(document)) if document.state.is_terminal() => {
                shared.notifications.notify(Event::Ended(Box::new(document)));
            }
            Ok(_) => {}
            Err(error) => shared.warnings.warn("cannot read the result of an awaited task", &error),
        },
    );
}

/// Ends waits at their deadline, and regularly reads the results of all others. Runs until dropped.
pub(super) async fn run_timers(db: Db) {
    let notifications = &db.shared().notifications;
    let mut reread = Instant::now() + REREAD;
    loop {
        let (next, is_idle) = {
            let waiters = notifications.waiters();
            (waiters.next_deadline(), waiters.is_empty())
        };
        let rereading = async {
            if is_idle {
                std::future::pending::<()>().await;
            }
            sleep_until(reread).await;
        };
        let deadline = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = notifications.waited.notified() => {}
            () = deadline => drop(notifications.waiters().expire(Instant::now())),
            () = rereading => {
                let ids: Vec<_> = {
                    let mut waiters = notifications.waiters();
                    drop(waiters.forget_dropped());
                    waiters.ids().cloned().collect()
                };
                ids.into_iter().for_each(|id| refresh(&db, id));
                reread = Instant::now() + REREAD;
            }
        }
    }
}
