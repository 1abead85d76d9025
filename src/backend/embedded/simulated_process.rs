//! A simulated process for tests: it may be slow, is stopped for a while and continues, and dies between
//! any two of its calls. In any other build this does nothing.

#[cfg(not(feature = "faults"))]
pub(super) use disabled::SimulatedProcess;
#[cfg(feature = "faults")]
pub use enabled::{FaultChances, SimulatedProcess};

#[cfg(not(feature = "faults"))]
mod disabled {
    /// Simulates nothing.
    #[derive(Clone, Debug, Default)]
    pub(in super::super) struct SimulatedProcess;

    impl SimulatedProcess {
        #[expect(clippy::unused_async, reason = "where it is played, it waits")]
        pub(in super::super) async fn proceed(&self) {}

        pub(in super::super) fn is_dead(&self) -> bool {
            false
        }
    }
}

#[cfg(feature = "faults")]
mod enabled {
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::Duration;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use tokio::time::{Instant, sleep, sleep_until};
    use tokio_util::sync::CancellationToken;

    /// The faults that a process may have before and after each of its calls to the database.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct FaultChances {
        /// The longest time that a call takes.
        pub slowest: Duration,
        /// The probability that the process is stopped: none of its calls proceeds until it continues,
        /// and then it does not know that it was stopped.
        pub stops: f64,
        /// The longest time that a process is stopped.
        pub longest_stop: Duration,
        /// The probability that the process dies: it does nothing any more.
        pub dies: f64,
        /// After this time of the stage no process is stopped, and none dies.
        pub calm_after: Duration,
    }

    /// Controls the simulation of one process. The default one never fails, and is never slow.
    #[derive(Clone, Debug, Default)]
    pub struct SimulatedProcess(Option<Arc<Faults>>);

    #[derive(Debug)]
    struct Faults {
        chances: FaultChances,
        calm: Instant,
        seed: Mutex<StdRng>,
        stopped_until: Mutex<Instant>,
        over: CancellationToken,
    }

    impl SimulatedProcess {
        /// Starts a process whose faults are drawn from `seed`. After `calm` it has none.
        pub(in super::super) fn new(chances: FaultChances, calm: Instant, seed: u64) -> Self {
            Self(Some(Arc::new(Faults {
                chances,
                calm,
                seed: Mutex::new(StdRng::seed_from_u64(seed)),
                stopped_until: Mutex::new(Instant::now()),
                over: CancellationToken::new(),
            })))
        }

        /// Returns whether the process is dead.
        #[must_use]
        pub fn is_dead(&self) -> bool {
            self.0.as_ref().is_some_and(|faults| faults.over.is_cancelled())
        }

        /// Completes when the process is dead.
        pub async fn ended(&self) {
            match &self.0 {
                Some(faults) => faults.over.cancelled().await,
                None => std::future::pending().await,
            }
        }

        /// Ends the process now.
        pub fn end(&self) {
            self.0.iter().for_each(|faults| faults.over.cancel());
        }

        /// Completes, perhaps later, while the process lives; never after it has died.
        pub async fn proceed(&self) {
            let Some(faults) = &self.0 else { return };
            let (delay, dies) = faults.draw();
            if !delay.is_zero() {
                sleep(delay).await;
            }
            if dies {
                self.end();
            }
            while let Some(until) = faults.stopped() {
                sleep_until(until).await;
            }
            if self.is_dead() {
                std::future::pending::<()>().await;
            }
        }
    }

    impl Faults {
        /// Returns how long the next call takes, and whether the process dies at it. May also stop the
        /// process, which affects all of its calls.
        fn draw(&self) -> (Duration, bool) {
            let FaultChances { slowest, stops, longest_stop, dies, .. } = self.chances;
            let mut chance = self.seed.lock().unwrap_or_else(PoisonError::into_inner);
            if Instant::now() >= self.calm {
                return (chance.random_range(Duration::ZERO..=slowest), false);
            }
            if chance.random_bool(stops) {
                let stop = chance.random_range(Duration::ZERO..=longest_stop);
                let until = Instant::now() + stop;
                let mut stopped = self.stopped_until.lock().unwrap_or_else(PoisonError::into_inner);
                *stopped = until.max(*stopped);
            }
            (chance.random_range(Duration::ZERO..=slowest), chance.random_bool(dies))
        }

        /// Returns until when the process is stopped, if it is.
        fn stopped(&self) -> Option<Instant> {
            let until = *self.stopped_until.lock().unwrap_or_else(PoisonError::into_inner);
            (until > Instant::now()).then_some(until)
        }
    }
}
