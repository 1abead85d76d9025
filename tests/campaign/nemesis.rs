//! Draws faults and injects them until the time is over.
//!
//! Each kind is injected once, in random order, before kinds are drawn by weight, so that a short
//! campaign has all of them. Two faults may overlap. The draws depend only on the seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::ledger::Ledger;

const AT_ONCE: usize = 2;
/// The probability that the next fault does not wait for the end of this one. It never waits for a
/// fault longer than `LONG`.
const OVERLAP: f64 = 0.3;
const LONG: Duration = Duration::from_secs(5);
/// Milliseconds between two faults.
const PAUSE: (u64, u64) = (300, 3_000);

/// A kind of fault, the weight with which it is drawn, and the range of its duration in milliseconds.
pub(crate) struct Kind<K> {
    pub(crate) what: K,
    pub(crate) name: &'static str,
    pub(crate) weight: u32,
    pub(crate) lasts: (u64, u64),
}

impl<K> Kind<K> {
    pub(crate) fn new(what: K, name: &'static str, weight: u32, lasts: (u64, u64)) -> Self {
        Self { what, name, weight, lasts }
    }
}

/// One fault that was drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault<K> {
    pub(crate) what: K,
    pub(crate) name: &'static str,
    /// The place of the worker that it hits.
    pub(crate) place: usize,
    /// Whether it hits the connections of every worker and of the client instead.
    pub(crate) is_everywhere: bool,
    pub(crate) hold: Hold,
}

/// The duration of a fault. No fault lasts longer than the campaign.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold {
    lasts: Duration,
    end: Instant,
}

impl Hold {
    /// Returns the duration of a fault that begins now.
    pub(crate) fn duration(self) -> Duration {
        self.lasts.min(self.end.saturating_duration_since(Instant::now()))
    }

    /// Waits for the duration of the fault.
    pub(crate) async fn pass(self) {
        sleep(self.duration()).await;
    }
}

/// The number of workers, the seed of the draws, and the end of the last fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) places: usize,
    pub(crate) seed: u64,
    pub(crate) end: Instant,
}

struct Schedule<K> {
    kinds: Vec<Kind<K>>,
    /// The kinds that have not been injected yet.
    first: Vec<usize>,
    random: StdRng,
    bounds: Bounds,
}

impl<K: Copy> Schedule<K> {
    fn new(kinds: Vec<Kind<K>>, bounds: Bounds) -> Self {
        let mut random = StdRng::seed_from_u64(bounds.seed);
        let mut first: Vec<usize> = (0..kinds.len()).collect();
        first.shuffle(&mut random);
        Self { kinds, first, random, bounds }
    }

    fn draw(&mut self) -> Fault<K> {
        let index = match self.first.pop() {
            Some(index) => index,
            None => self.draw_by_weight(),
        };
        let Kind { what, name, lasts: (shortest, longest), .. } = self.kinds[index];
        let lasts = Duration::from_millis(self.random.random_range(shortest..=longest));
        Fault {
            what,
            name,
            place: self.random.random_range(0..self.bounds.places),
            is_everywhere: self.random.random_bool(0.3),
            hold: Hold { lasts, end: self.bounds.end },
        }
    }

    fn draw_by_weight(&mut self) -> usize {
        let total: u32 = self.kinds.iter().map(|kind| kind.weight).sum();
        let mut left = self.random.random_range(0..total);
        let mut index = 0;
        while left >= self.kinds[index].weight {
            left -= self.kinds[index].weight;
            index += 1;
        }
        index
    }
}

/// Injects faults until the end. When this returns, every fault has healed.
pub(crate) async fn attack<K, F>(
    kinds: Vec<Kind<K>>,
    bounds: Bounds,
    ledger: &Ledger,
    inject: impl Fn(Fault<K>) -> F,
) where
    K: Copy,
    F: Future<Output = ()> + Send + 'static,
{
    let begun = Instant::now();
    let mut schedule = Schedule::new(kinds, bounds);
    let mut running = JoinSet::new();
    while Instant::now() < bounds.end {
        let fault = schedule.draw();
        let overlaps = schedule.random.random_bool(OVERLAP);
        let pause = Duration::from_millis(schedule.random.random_range(PAUSE.0..PAUSE.1));
        let Fault { name, place, is_everywhere, hold, .. } = fault;
        let overlaps = overlaps || hold.lasts > LONG;
        let (at, lasts) = (begun.elapsed().as_secs_f64(), hold.duration().as_secs_f64());
        eprintln!("{at:7.1} s: {name} (worker {place}, everywhere {is_everywhere}, {lasts:.1} s)");
        ledger.fault(name);
        running.spawn(inject(fault));
        wait(&mut running, if overlaps { AT_ONCE - 1 } else { 0 }, ledger).await;
        sleep(pause.min(bounds.end.saturating_duration_since(Instant::now()))).await;
    }
    wait(&mut running, 0, ledger).await;
}

/// Waits until at most this number of faults are left.
async fn wait(running: &mut JoinSet<()>, left: usize, ledger: &Ledger) {
    while running.len() > left {
        if let Some(Err(error)) = running.join_next().await {
            ledger.violation(format!("a fault could not be injected: {error}"));
        }
    }
}
