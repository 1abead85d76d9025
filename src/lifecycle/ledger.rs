//! Computes the acks to write for the deliveries of one channel that were settled since the last write.

use std::collections::BTreeSet;

/// How the delivery with this tag was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Acked.
    Ack(u64),
    /// Returned to its queue.
    Requeue(u64),
}

/// One frame to write to the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Acks this tag, and with `multiple` every unsettled one below it.
    Ack {
        /// Delivery tag.
        tag: u64,
        /// Also every unsettled tag below.
        multiple: bool,
    },
    /// Returns this tag to its queue.
    Requeue {
        /// Delivery tag.
        tag: u64,
    },
}

/// Tracks which tags of a channel are settled, so that a contiguous run of acks costs one frame.
///
/// Tags begin at 1 and have no gaps (AMQP 0-9-1, section 1.8.3.13 `delivery-tag`).
#[derive(Debug, Default)]
pub struct AckLedger {
    /// Every tag up to this one is settled.
    floor: u64,
    /// Settled tags above the floor.
    above: BTreeSet<u64>,
}

impl AckLedger {
    /// Returns the frames that settle `batch`, in the order in which they must be written: requeues come
    /// first, because a `multiple` ack would also ack a requeued tag below it.
    pub fn settle(&mut self, batch: &mut Vec<Settlement>) -> Vec<Frame> {
        let mut frames = Vec::new();
        let mut acks = Vec::with_capacity(batch.len());
        for settlement in batch.drain(..) {
            match settlement {
                Settlement::Ack(tag) => acks.push(tag),
                Settlement::Requeue(tag) => {
                    self.above.insert(tag);
                    frames.push(Frame::Requeue { tag });
                }
            }
        }
        acks.sort_unstable();
        self.above.extend(acks.iter().copied());
        self.raise_floor();

        let covered = acks.partition_point(|&tag| tag <= self.floor);
        let (run, scattered) = acks.split_at(covered);
        if let Some(&tag) = run.last() {
            frames.push(Frame::Ack { tag, multiple: run.len() > 1 });
        }
        frames.extend(scattered.iter().map(|&tag| Frame::Ack { tag, multiple: false }));
        frames
    }

    fn raise_floor(&mut self) {
        while self.above.first() == Some(&(self.floor + 1)) {
            self.above.pop_first();
            self.floor += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Settlement::{Ack, Requeue};
    use super::*;

    #[test]
    fn a_contiguous_run_is_one_frame() {
        let mut ledger = AckLedger::default();
        let frames = ledger.settle(&mut vec![Ack(2), Ack(1), Ack(3)]);
        assert_eq!(frames, [Frame::Ack { tag: 3, multiple: true }]);
    }

    #[test]
    fn a_lone_ack_is_not_multiple() {
        let mut ledger = AckLedger::default();
        assert_eq!(ledger.settle(&mut vec![Ack(1)]), [Frame::Ack { tag: 1, multiple: false }]);
    }

    #[test]
    fn an_unsettled_tag_is_never_acked() {
        let mut ledger = AckLedger::default();
        let frames = ledger.settle(&mut vec![Ack(1), Ack(3), Ack(4)]);
        let single = |tag| Frame::Ack { tag, multiple: false };
        assert_eq!(frames, [single(1), single(3), single(4)]);
        assert_eq!(
            ledger.settle(&mut vec![Ack(2), Ack(5)]),
            [Frame::Ack { tag: 5, multiple: true }]
        );
    }

    #[test]
    fn a_requeue_is_written_before_an_ack_that_would_cover_it() {
        let mut ledger = AckLedger::default();
        let frames = ledger.settle(&mut vec![Ack(1), Ack(3), Requeue(2)]);
        assert_eq!(frames, [Frame::Requeue { tag: 2 }, Frame::Ack { tag: 3, multiple: true }]);
    }

    /// The model channel tracks tags as a broker does, and refuses invalid frames as a broker does.
    #[test]
    fn any_order_of_settlements_settles_each_tag_once_as_requested() {
        let mut seed = 0x9e37_79b9_u64;
        let mut draw = move |n: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % n
        };
        for _ in 0..200 {
            let mut waiting: Vec<u64> = (1..=60).collect();
            let mut unsettled: BTreeSet<u64> = waiting.iter().copied().collect();
            let mut ledger = AckLedger::default();
            let mut returned = BTreeSet::new();
            let mut requeued = BTreeSet::new();
            while !waiting.is_empty() {
                let mut batch = Vec::new();
                for _ in 0..=draw(8).min(waiting.len() as u64 - 1) {
                    let tag = waiting.swap_remove(draw(waiting.len() as u64) as usize);
                    if draw(5) == 0 {
                        requeued.insert(tag);
                        batch.push(Requeue(tag));
                    } else {
                        batch.push(Ack(tag));
                    }
                }
                for frame in ledger.settle(&mut batch) {
                    match frame {
                        Frame::Requeue { tag } => {
                            assert!(unsettled.remove(&tag));
                            returned.insert(tag);
                        }
                        Frame::Ack { tag, multiple: false } => assert!(unsettled.remove(&tag)),
                        Frame::Ack { tag, multiple: true } => {
                            assert!(unsettled.contains(&tag), "a broker would close the channel");
                            unsettled.retain(|&other| other > tag);
                        }
                    }
                }
                assert!(
                    waiting.iter().all(|tag| unsettled.contains(tag)),
                    "an unsettled tag was acked"
                );
            }
            assert!(unsettled.is_empty());
            assert_eq!(returned, requeued);
        }
    }
}
