//! Whether the task can always come to its end. stateright looks for promises that a state breaks;
//! this one is about what comes after it, so it is asked of the whole graph.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use stateright::Model;

use super::pool::{Action, Pool};
use super::promises::is_settled;
use super::world::World;

/// All states, by the order in which they were found.
#[derive(Default)]
struct Graph {
    found: HashMap<u64, usize>,
    /// The first way to each.
    came: Vec<Option<(usize, Action)>>,
    /// From which others each is reached when nothing goes wrong.
    before: Vec<Vec<usize>>,
    settled: Vec<usize>,
}

/// The shortest way to a state from which nothing leads to the task's end unless something goes
/// wrong. If there is none, then everybody who goes on for long enough brings the task to its end.
pub(super) fn way_to_a_dead_end(pool: &Pool) -> Option<Vec<Action>> {
    let graph = Graph::of(pool);
    let mut can_end = vec![false; graph.came.len()];
    let mut reached = graph.settled.clone();
    while let Some(at) = reached.pop() {
        if !can_end[at] {
            can_end[at] = true;
            reached.extend(&graph.before[at]);
        }
    }
    let mut at = can_end.iter().position(|can_end| !can_end)?;
    let mut way = Vec::new();
    while let Some((from, action)) = graph.came[at] {
        way.push(action);
        at = from;
    }
    way.reverse();
    Some(way)
}

impl Graph {
    fn of(pool: &Pool) -> Self {
        let (mut graph, hashes) = (Self::default(), RandomState::new());
        let mut waiting = VecDeque::new();
        for world in pool.init_states() {
            waiting.push_back((graph.find(&hashes, &world, None), world));
        }
        let mut actions = Vec::new();
        while let Some((at, world)) = waiting.pop_front() {
            if is_settled(&world) {
                graph.settled.push(at);
            }
            pool.actions(&world, &mut actions);
            for action in actions.drain(..) {
                let Some(next) = pool.next_state(&world, action) else { continue };
                let known = graph.came.len();
                let to = graph.find(&hashes, &next, Some((at, action)));
                if !action.is_fault() {
                    graph.before[to].push(at);
                }
                if to == known {
                    waiting.push_back((to, next));
                }
            }
        }
        graph
    }

    fn find(
        &mut self,
        hashes: &RandomState,
        world: &World,
        came: Option<(usize, Action)>,
    ) -> usize {
        let fresh = self.came.len();
        let at = *self.found.entry(hashes.hash_one(world)).or_insert(fresh);
        if at == fresh {
            self.came.push(came);
            self.before.push(Vec::new());
        }
        at
    }
}
