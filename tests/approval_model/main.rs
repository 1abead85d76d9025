//! Compares approvals in every backend with a simple model, in random sequences of events: requests of tasks
//! and services, votes of people and policies, edits, extensions, withdrawals, moved clocks, expired keys,
//! crashed workers, and old messages and decisions that are sent again. After each event the store returns
//! the same data as the model. Each run of the action has its own decision.
//!
//! `COUNTERSIGN_TEST_SEEDS` sets the number of sequences, and `COUNTERSIGN_TEST_SEED` repeats one of them.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test panics when it fails"
)]

mod draw;
mod events;
mod model;
mod stores;
mod world;

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use support::Server;

use crate::stores::Fixture;
use crate::world::World;

const SEQUENCES: u64 = 200;
const STEPS: usize = 40;

async fn play_all(mut fixture: Fixture) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("COUNTERSIGN_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("COUNTERSIGN_TEST_SEEDS").unwrap_or(SEQUENCES),
    };
    let are_many = seeds.end - seeds.start >= SEQUENCES;
    let mut acted = 0;
    for seed in seeds {
        stores::empty(&mut fixture).await;
        let mut world = World::new(&mut fixture, seed);
        if let Err(panic) = AssertUnwindSafe(world.play(STEPS)).catch_unwind().await {
            eprintln!("COUNTERSIGN_TEST_SEED={seed}:\n{}", world.trace.join("\n"));
            std::panic::resume_unwind(panic);
        }
        acted += world.acted;
    }
    eprintln!("{acted} actions ran");
    // A generator whose sequences never run the action would find no violation.
    assert!(!are_many || acted >= 50, "{acted} actions ran");
    fixture.store.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_embedded_backend_runs_no_action_without_a_decision_of_its_own() {
    play_all(stores::in_memory()).await;
}

#[tokio::test]
async fn redis_runs_no_action_without_a_decision_of_its_own() {
    let server = Server::redis().await;
    play_all(stores::redis(&server).await).await;
}
