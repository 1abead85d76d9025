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

/// Tracks which tags of a channel are settled, so that a contiguous run of acks costs one frame: a broker
/// spends more CPU time on an ack than on the delivery.
///
/// Tags begin at 1 and have no gaps (AMQP 0-9-1, section 1.8.3.13 `delivery-tag`).
#[derive(Debug, Default)]
pub struct AckLedger {
    /// Every tag up to this one is settled.
    floor: u64,
    /// Settled tags above the floor.
    above: BTreeSet<u64>,
    /// Acked tags that were not written: a tag below them is unsettled.
    held: BTreeSet<u64>,
}

impl AckLedger {
    /// Returns the frames that settle `batch`, in the order in which they must be written: requeues come
    /// first, because a `multiple` ack would also ack a requeued tag below it. Acks above an unsettled tag
    /// are held until a later call covers them, or [`AckLedger::flush`] returns them.
    pub fn settle(&mut self, batch: &mut Vec<Settlement>) -> Vec<Frame> {
        let mut frames = Vec::new();
        for settlement in batch.drain(..) {
            match settlement {
                Settlement::Ack(tag) => {
                    self.above.insert(tag);
                    self.held.insert(tag);
                }
                Settlement::Requeue(tag) => {
                    self.above.insert(tag);
                    frames.push(Frame::Requeue { tag });
                }
            }
        }
        self.raise_floor();
        let scattered = self.held.split_off(&(self.floor + 1));
        let run = std::mem::replace(&mut self.held, scattered);
        if let Some(&tag) = run.last() {
            frames.push(Frame::Ack { tag, multiple: run.len() > 1 });
        }
        frames
    }

    /// Returns the number of acks that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Returns a frame for each ack that is held.
    pub fn flush(&mut self) -> Vec<Frame> {
        let held = std::mem::take(&mut self.held);
        held.into_iter().map(|tag| Frame::Ack { tag, multiple: false }).collect()
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
        let single = |tag| Frame::Ack { tag, multiple: false };
        assert_eq!(ledger.settle(&mut vec![Ack(1), Ack(3), Ack(4)]), [single(1)]);
        assert_eq!((ledger.held(), ledger.flush()), (2, vec![single(3), single(4)]));
        assert_eq!((ledger.held(), ledger.flush()), (0, vec![]));
        assert_eq!(
            ledger.settle(&mut vec![Ack(2), Ack(5)]),
            [Frame::Ack { tag: 5, multiple: true }]
        );
    }

    #[test]
    fn held_acks_are_covered_by_a_later_frame() {
        let mut ledger = AckLedger::default();
        assert_eq!(
            ledger.settle(&mut vec![Ack(4), Ack(2), Requeue(3)]),
            [Frame::Requeue { tag: 3 }]
        );
        assert_eq!(ledger.settle(&mut vec![Ack(1)]), [Frame::Ack { tag: 4, multiple: true }]);
        assert_eq!(ledger.held(), 0);
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
                let mut frames = ledger.settle(&mut batch);
                if draw(3) == 0 || waiting.is_empty() {
                    frames.extend(ledger.flush());
                }
                for frame in frames {
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
