//! Recently stored results, to be stored again on a server that may have lost them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::backend::StoreResult;

const RETENTION: Duration = Duration::from_secs(60);
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// The size of an entry without its document: its place in the queue, which may be half empty, the id,
/// the reply channel, reference counts and allocator overhead.
const OVERHEAD: usize = 2 * size_of::<(Instant, StoreResult)>() + 160;

/// The results of the last minute, at most 8 MiB.
#[derive(Debug, Default)]
pub(super) struct RecentResults {
    entries: VecDeque<(Instant, StoreResult)>,
    bytes: usize,
}

impl RecentResults {
    /// Adds a result that was just stored. Other states are not kept: the task will store another one, or its
    /// wake message finds that the server has lost it.
    pub(super) fn remember(&mut self, result: StoreResult, now: Instant) {
        if !result.document.state.is_terminal() {
            return;
        }
        self.bytes += size(&result);
        self.entries.push_back((now, result));
        self.forget_old(now);
    }

    /// Drops entries over the age limit or the size limit.
    pub(super) fn forget_old(&mut self, now: Instant) {
        while let Some((since, result)) = self.entries.front() {
            if self.bytes <= MAX_BYTES && now.duration_since(*since) <= RETENTION {
                break;
            }
            self.bytes -= size(result);
            self.entries.pop_front();
        }
        if self.entries.is_empty() {
            self.entries.shrink_to(64);
        }
    }

    /// Removes and returns all entries, oldest first.
    pub(super) fn take(&mut self) -> impl Iterator<Item = StoreResult> {
        self.bytes = 0;
        std::mem::take(&mut self.entries).into_iter().map(|(_, result)| result)
    }
}

fn size(result: &StoreResult) -> usize {
    result.document.json.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::protocol::{Document, State};

    fn result(size: usize) -> StoreResult {
        let json = Bytes::from(vec![b' '; size]);
        let document = Document { id: "a".into(), state: State::Success, json };
        StoreResult { document, reply_to: None, received: None }
    }

    #[test]
    fn the_oldest_are_forgotten_beyond_eight_mebibytes() {
        let mut recent = RecentResults::default();
        for _ in 0..10 {
            recent.remember(result(1024 * 1024), Instant::now());
        }
        assert_eq!(recent.take().count(), 7);
    }

    #[test]
    fn what_is_older_than_a_minute_is_forgotten() {
        let mut recent = RecentResults::default();
        let start = Instant::now();
        recent.remember(result(1), start);
        recent.remember(result(1), start + Duration::from_secs(61));
        assert_eq!(recent.take().count(), 1);
    }

    #[test]
    fn a_state_that_is_not_final_is_not_kept() {
        let mut recent = RecentResults::default();
        let mut suspended = result(1);
        suspended.document.state = State::named(crate::protocol::SUSPENDED);
        recent.remember(suspended, Instant::now());
        assert_eq!(recent.take().count(), 0);
    }
}
