//! An exhaustive explorer of small states, for what the model checker of the code (`proto/local/tests/direct_loom.rs`) is
//! too slow for: direct leases with death, revocation and a table that is replaced, all in one run.
//!
//! ```text
//! Model::steps(state) -> every step that anybody can make next -> states not seen before -> ... until none is left
//! ```
//! A breach comes with the shortest way to it. Two things are looked for: a state that breaks a promise, and a state from
//! which the end cannot be reached any more (something is stuck or leaked). The protocol here is written down a second time, step by step
//! ([`lease`]); loom runs the shipped code.

pub mod lease;

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;

/// States of one exploration at most: 200 bytes each are 2 GiB, which no model here comes near.
const STATES_MAX: usize = 10_000_000;

/// What is explored.
pub trait Model {
    /// Everything that everybody knows. Small.
    type State: Clone + Eq + Hash + Debug;

    /// Where it begins.
    fn start(&self) -> Self::State;

    /// Every step that is possible, by name. None: the end.
    fn steps(&self, state: &Self::State) -> Vec<(&'static str, Self::State)>;

    /// The promise that this state breaks.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;

    /// Whether everything came to its good end here.
    fn is_end(&self, state: &Self::State) -> bool;
}

/// What an exploration has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// Of the states: good ends.
    pub ends: usize,
}

/// What is wrong, and the shortest way to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Breach {
    /// The promise.
    pub promise: &'static str,
    /// Step by step.
    pub way: Vec<&'static str>,
}

/// How a state was met first: from which, by which step.
type Met = Option<(usize, &'static str)>;

/// Looks at every state that can be reached.
///
/// # Errors
/// The first breach.
///
/// # Panics
/// When there are more states than a small model has.
pub fn explore<M: Model>(model: &M) -> Result<Explored, Breach> {
    let (mut number, mut states, mut met) = (HashMap::new(), Vec::new(), Vec::<Met>::new());
    let mut before: Vec<Vec<usize>> = Vec::new();
    let (mut queue, mut steps, mut ends) = (VecDeque::new(), 0, Vec::new());
    let start = model.start();
    number.insert(start.clone(), 0);
    states.push(start);
    met.push(None);
    before.push(Vec::new());
    queue.push_back(0);
    while let Some(from) = queue.pop_front() {
        let state: M::State = states[from].clone();
        if let Some(promise) = model.broken(&state) {
            return Err(Breach { promise, way: way(&met, from) });
        }
        if model.is_end(&state) {
            ends.push(from);
        }
        for (name, next) in model.steps(&state) {
            steps += 1;
            let fresh = states.len();
            let to = *number.entry(next.clone()).or_insert(fresh);
            if to == fresh {
                assert!(fresh < STATES_MAX, "this model is not small");
                states.push(next);
                met.push(Some((from, name)));
                before.push(Vec::new());
                queue.push_back(fresh);
            }
            before[to].push(from);
        }
    }
    match stuck(&before, &ends) {
        Some(at) => Err(Breach { promise: "the end can be reached from everywhere", way: way(&met, at) }),
        None => Ok(Explored { states: states.len(), steps, ends: ends.len() }),
    }
}

/// The first state from which no end can be reached.
fn stuck(before: &[Vec<usize>], ends: &[usize]) -> Option<usize> {
    let mut reaches = vec![false; before.len()];
    let mut queue: Vec<usize> = ends.to_vec();
    ends.iter().for_each(|end| reaches[*end] = true);
    while let Some(at) = queue.pop() {
        for from in &before[at] {
            if !reaches[*from] {
                reaches[*from] = true;
                queue.push(*from);
            }
        }
    }
    reaches.iter().position(|reaches| !reaches)
}

fn way(met: &[Met], mut at: usize) -> Vec<&'static str> {
    let mut way = Vec::new();
    while let Some((from, name)) = met[at] {
        way.push(name);
        at = from;
    }
    way.reverse();
    way
}
