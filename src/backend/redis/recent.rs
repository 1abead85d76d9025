//! What was stored lately, to be stored again on a server that may have lost it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::backend::Finish;

const KEPT_FOR: Duration = Duration::from_secs(60);
const KEPT_BYTES: usize = 8 * 1024 * 1024;
/// What an entry takes beside its document: its place in the queue, which may be half empty, the
/// id, the reply channel, reference counts and the allocator's share.
const OVERHEAD: usize = 2 * size_of::<(Instant, Finish)>() + 160;

/// The results of the last minute, at most 8 MiB of them.
#[derive(Debug, Default)]
pub(super) struct Recent {
    entries: VecDeque<(Instant, Finish)>,
    bytes: usize,
}

impl Recent {
    /// Remembers a result that was stored just now.
    pub(super) fn remember(&mut self, finish: Finish, now: Instant) {
        self.bytes += size(&finish);
        self.entries.push_back((now, finish));
        self.forget_old(now);
    }

    /// Drops what is too old, or too much.
    pub(super) fn forget_old(&mut self, now: Instant) {
        while let Some((since, finish)) = self.entries.front() {
            if self.bytes <= KEPT_BYTES && now.duration_since(*since) <= KEPT_FOR {
                break;
            }
            self.bytes -= size(finish);
            self.entries.pop_front();
        }
        if self.entries.is_empty() {
            self.entries.shrink_to(64);
        }
    }

    /// Everything remembered, oldest first.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Finish> {
        self.bytes = 0;
        std::mem::take(&mut self.entries).into_iter().map(|(_, finish)| finish)
    }
}

fn size(finish: &Finish) -> usize {
    finish.document.json.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::protocol::{Document, State};

    fn result(size: usize) -> Finish {
        let json = Bytes::from(vec![b' '; size]);
        let document = Document { id: "a".into(), state: State::Success, json };
        Finish { document, reply_to: None, received: None }
    }

    #[test]
    fn the_oldest_are_forgotten_beyond_eight_mebibytes() {
        let mut recent = Recent::default();
        for _ in 0..10 {
            recent.remember(result(1024 * 1024), Instant::now());
        }
        assert_eq!(recent.take().count(), 7);
    }

    #[test]
    fn what_is_older_than_a_minute_is_forgotten() {
        let mut recent = Recent::default();
        let start = Instant::now();
        recent.remember(result(1), start);
        recent.remember(result(1), start + Duration::from_secs(61));
        assert_eq!(recent.take().count(), 1);
    }
}
