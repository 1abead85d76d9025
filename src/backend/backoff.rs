//! The delay before a failed operation is retried.

use std::time::Duration;

use rand::Rng;
use tokio::time::sleep;

const LONGEST: Duration = Duration::from_secs(5);

/// A delay that doubles up to 5 s, with jitter.
#[derive(Debug)]
pub(in crate::backend) struct Backoff(Duration);

impl Backoff {
    /// Starts with the delay `first`.
    pub(in crate::backend) fn new(first: Duration) -> Self {
        Self(first)
    }

    /// Waits between half of the delay and all of it, and doubles it.
    pub(in crate::backend) async fn wait(&mut self) {
        let part = rand::rng().random_range(0.5..=1.0);
        sleep(self.next().mul_f64(part)).await;
    }

    fn next(&mut self) -> Duration {
        let delay = self.0;
        self.0 = (delay * 2).min(LONGEST);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_five_seconds() {
        let mut backoff = Backoff::new(Duration::from_millis(100));
        let delays: Vec<_> = (0..8).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }
}
