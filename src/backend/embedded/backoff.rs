//! How long to wait before something that failed is tried again.

use std::time::Duration;

use rand::Rng;
use tokio::time::sleep;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// A delay that doubles from 100 ms to 5 s, of which a random part is waited.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Backoff {
    /// Waits between half of the delay and all of it, and doubles it.
    pub(super) async fn wait(&mut self) {
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
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..8).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }
}
