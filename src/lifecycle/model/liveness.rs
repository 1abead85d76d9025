//! Checks whether the task can always end. stateright looks for states that violate a property; liveness
//! depends on the following states, so it is computed on the whole graph.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use stateright::Model;

use super::pool::{Action, Pool};
use super::properties::is_settled;
use super::state::ModelState;

/// All states, in the order in which they were found.
#[derive(Default)]
struct Graph {
    found: HashMap<u64, usize>,
    /// The first path to each state: its predecessor and the action.
    came_from: Vec<Option<(usize, Action)>>,
    /// The predecessors from which each state is reached without a fault.
    before: Vec<Vec<usize>>,
    settled: Vec<usize>,
}

/// Returns the shortest path to a state from which the task cannot end without a fault. If there is none, the
/// task always ends if all processes continue without faults.
pub(super) fn path_to_dead_end(pool: &Pool) -> Option<Vec<Action>> {
    let graph = Graph::of(pool);
    let mut can_end = vec![false; graph.came_from.len()];
    let mut reached = graph.settled.clone();
    while let Some(at) = reached.pop() {
        if !can_end[at] {
            can_end[at] = true;
            reached.extend(&graph.before[at]);
        }
    }
    let mut at = can_end.iter().position(|can_end| !can_end)?;
    let mut path = Vec::new();
    while let Some((from, action)) = graph.came_from[at] {
        path.push(action);
        at = from;
    }
    path.reverse();
    Some(path)
}

impl Graph {
    fn of(pool: &Pool) -> Self {
        let (mut graph, hashes) = (Self::default(), RandomState::new());
        let mut waiting = VecDeque::new();
        for state in pool.init_states() {
            waiting.push_back((graph.find(&hashes, &state, None), state));
        }
        let mut actions = Vec::new();
        while let Some((at, state)) = waiting.pop_front() {
            if is_settled(&state) {
                graph.settled.push(at);
            }
            pool.actions(&state, &mut actions);
            for action in actions.drain(..) {
                let Some(next) = pool.next_state(&state, action) else { continue };
                let known = graph.came_from.len();
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
        state: &ModelState,
        came_from: Option<(usize, Action)>,
    ) -> usize {
        let fresh = self.came_from.len();
        let at = *self.found.entry(hashes.hash_one(state)).or_insert(fresh);
        if at == fresh {
            self.came_from.push(came_from);
            self.before.push(Vec::new());
        }
        at
    }
}
