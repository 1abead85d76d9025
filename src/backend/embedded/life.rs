//! How a test plays several processes in one thread: each may be slow, and dies between any two of
//! its calls. In any other build a process just lives.

#[cfg(not(feature = "faults"))]
pub(super) use lives::Life;
#[cfg(feature = "faults")]
pub use played::{Life, Stage};

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
    use std::sync::atomic::Ordering;
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::Duration;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use tokio::time::sleep;
    use tokio_util::sync::CancellationToken;

    use super::super::db::Db;
    use super::super::upkeep::{self, LEASE};
    use crate::backend::Backends;
    use crate::config::Config;
    use crate::error::Error;

    /// One database in memory, and the processes that use it.
    #[derive(Debug)]
    pub struct Stage {
        db: Db,
    }

    /// What a test does to one process. The default one lives, and is never slow.
    #[derive(Clone, Debug, Default)]
    pub struct Life(Option<Arc<Played>>);

    #[derive(Debug)]
    struct Played {
        chance: Mutex<StdRng>,
        slowest: Duration,
        dies: f64,
        over: CancellationToken,
    }

    impl Stage {
        /// An empty database.
        ///
        /// # Errors
        /// As those of [`crate::backend::connect`].
        pub fn new() -> Result<Self, Error> {
            Ok(Self { db: Db::in_memory()? })
        }

        /// A process of its own. Each of its calls takes up to `slowest`, and it dies before or
        /// after one of them with this probability: then it does nothing any more, and what it had
        /// in its hands comes back after a while.
        pub fn process(
            &self,
            config: &Config,
            seed: u64,
            slowest: Duration,
            dies: f64,
        ) -> (Backends, Life) {
            let chance = Mutex::new(StdRng::seed_from_u64(seed));
            let played = Played { chance, slowest, dies, over: CancellationToken::new() };
            let life = Life(Some(Arc::new(played)));
            let db = self.db.of_another(life.clone());
            let (witness, session, lived) =
                (self.db.clone(), Arc::clone(&db.session), life.clone());
            tokio::spawn(async move {
                lived.ended().await;
                sleep(Duration::from_millis(LEASE.unsigned_abs())).await;
                let session = session.load(Ordering::Acquire);
                let _ = witness.write(move |txn| upkeep::leave(txn, session)).await;
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
            let (pause, dies) = {
                let mut chance = played.chance.lock().unwrap_or_else(PoisonError::into_inner);
                let pause = chance.random_range(Duration::ZERO..=played.slowest);
                (pause, chance.random_bool(played.dies))
            };
            if !pause.is_zero() {
                sleep(pause).await;
            }
            if dies {
                self.end();
            }
            if self.is_over() {
                std::future::pending::<()>().await;
            }
        }
    }
}
