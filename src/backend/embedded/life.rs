//! How a test plays several processes in one thread: each may be slow, is stopped for a while and
//! continues, and dies between any two of its calls. In any other build a process just lives.

#[cfg(not(feature = "faults"))]
pub(super) use lives::Life;
#[cfg(feature = "faults")]
pub use played::{Chances, Life, Stage};

#[cfg(not(feature = "faults"))]
mod lives {
    /// Nothing is played.
    #[derive(Clone, Debug, Default)]
    pub(in super::super) struct Life;

    impl Life {
        #[expect(clippy::unused_async, reason = "where it is played, it waits")]
        pub(in super::super) async fn goes_on(&self) {}

        pub(in super::super) fn is_over(&self) -> bool {
            false
        }
    }
}

#[cfg(feature = "faults")]
mod played {
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::Duration;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use tokio::time::{Instant, sleep, sleep_until};
    use tokio_util::sync::CancellationToken;

    use super::super::db::{Db, MAINTENANCE};
    use super::super::upkeep;
    use crate::backend::Backends;
    use crate::config::Config;
    use crate::error::Error;

    /// One database in memory, and the processes that use it.
    #[derive(Debug)]
    pub struct Stage {
        db: Db,
        begun: Instant,
    }

    /// What may happen to a process before and after each of its calls to the database.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Chances {
        /// A call takes at most this long.
        pub slowest: Duration,
        /// The probability that the process is stopped: none of its calls goes on before it
        /// continues, and then it does not know that it was stopped.
        pub stops: f64,
        /// A process is stopped for at most this long.
        pub longest_stop: Duration,
        /// The probability that the process dies: it does nothing any more.
        pub dies: f64,
        /// After this time of the stage no process is stopped, and none dies.
        pub calm_after: Duration,
    }

    /// What a test does to one process. The default one lives, and is never slow.
    #[derive(Clone, Debug, Default)]
    pub struct Life(Option<Arc<Played>>);

    #[derive(Debug)]
    struct Played {
        chances: Chances,
        calm: Instant,
        seed: Mutex<StdRng>,
        stopped_until: Mutex<Instant>,
        over: CancellationToken,
    }

    impl Stage {
        /// An empty database.
        ///
        /// # Errors
        /// As those of [`crate::backend::connect`].
        pub fn new() -> Result<Self, Error> {
            Ok(Self { db: Db::in_memory_for_several()?, begun: Instant::now() })
        }

        /// A process of its own, with a session of its own. While it is stopped or dead it does not
        /// renew that session, so that another process takes back what it holds.
        pub fn process(&self, config: &Config, seed: u64, chances: Chances) -> (Backends, Life) {
            let life = Life(Some(Arc::new(Played {
                chances,
                calm: self.begun + chances.calm_after,
                seed: Mutex::new(StdRng::seed_from_u64(seed)),
                stopped_until: Mutex::new(Instant::now()),
                over: CancellationToken::new(),
            })));
            let db = self.db.of_another(life.clone());
            let maintained = db.clone();
            tokio::spawn(async move {
                while !maintained.is_closed() {
                    sleep(MAINTENANCE).await;
                    let of = Arc::clone(&maintained.session);
                    let _ = maintained.write(move |txn| upkeep::keep_up(txn, &of)).await;
                }
            });
            (super::super::backends(db, config), life)
        }
    }

    impl Life {
        /// It is dead: it does nothing any more.
        #[must_use]
        pub fn is_over(&self) -> bool {
            self.0.as_ref().is_some_and(|played| played.over.is_cancelled())
        }

        /// Completes when it is dead.
        pub async fn ended(&self) {
            match &self.0 {
                Some(played) => played.over.cancelled().await,
                None => std::future::pending().await,
            }
        }

        /// Ends it now.
        pub fn end(&self) {
            self.0.iter().for_each(|played| played.over.cancel());
        }

        /// Completes, perhaps later, while it lives.
        pub async fn goes_on(&self) {
            let Some(played) = &self.0 else { return };
            let (pause, dies) = played.draw();
            if !pause.is_zero() {
                sleep(pause).await;
            }
            if dies {
                self.end();
            }
            while let Some(until) = played.stopped() {
                sleep_until(until).await;
            }
            if self.is_over() {
                std::future::pending::<()>().await;
            }
        }
    }

    impl Played {
        /// How long the next call takes, and whether the process dies at it. It may be stopped, too:
        /// that is the same for all of its calls.
        fn draw(&self) -> (Duration, bool) {
            let Chances { slowest, stops, longest_stop, dies, .. } = self.chances;
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

        /// Until when it is stopped, if it is.
        fn stopped(&self) -> Option<Instant> {
            let until = *self.stopped_until.lock().unwrap_or_else(PoisonError::into_inner);
            (until > Instant::now()).then_some(until)
        }
    }
}
