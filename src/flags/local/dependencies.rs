//! Dependencies of flags and cohorts, checked when definitions are parsed and before any flag is evaluated.
//!
//! [`follow`] walks the graph without recursion. A node in a cycle, or nested too deep, gets a *fault*, at which an
//! evaluation stops. A cohort inherits the faults of the cohorts that it refers to. Each flag gets the *cost* of its
//! evaluation in tests, from which the evaluator decides whether to remember intermediate results.

use super::definitions::{Enrollment, Flag, Group, Test};
use crate::flags::InconclusiveReason;

/// The deepest nesting of tests, across all dependencies. It bounds the recursion of an evaluation. PostHog's SDKs have
/// the same limit.
const MAX_DEPTH: u32 = 100;

/// A flag or a cohort in the graph. Flags come first.
#[derive(Default)]
struct Node {
    /// The nodes it depends on, each with the nesting depth of the test that refers to it.
    dependencies: Vec<(usize, u32)>,
    dependents: Vec<usize>,
    /// The nesting depth of its own tests.
    depth: u32,
    tests: u32,
    /// It depends on a cohort that the definitions do not contain.
    has_unknown_cohort: bool,
}

/// The result for a node, known once those of its dependencies are.
#[derive(Clone, Copy)]
struct Known {
    depth: u32,
    cost: u32,
    fault: Option<InconclusiveReason>,
}

/// Sets the fault of each flag and cohort, and the cost of each flag.
pub(super) fn follow(flags: &mut [Flag], cohorts: &mut [Result<Group, InconclusiveReason>]) {
    let first_cohort = flags.len();
    let mut nodes: Vec<Node> = Vec::with_capacity(flags.len() + cohorts.len());
    nodes.extend(flags.iter().map(|flag| of_flag(flag, first_cohort)));
    nodes.extend(cohorts.iter().map(|cohort| {
        let mut node = Node::default();
        if let Ok(members) = cohort {
            node.add_group(members, 1, first_cohort);
        }
        node
    }));
    for at in 0..nodes.len() {
        for need in 0..nodes[at].dependencies.len() {
            let (needed, _) = nodes[at].dependencies[need];
            nodes[needed].dependents.push(at);
        }
    }

    let is_in_cycle = find_cycles(&nodes);
    let mut known: Vec<Option<Known>> = vec![None; nodes.len()];
    for at in order(&nodes, &is_in_cycle) {
        let own = at.checked_sub(first_cohort).and_then(|cohort| cohorts[cohort].as_ref().err().copied());
        let own = if is_in_cycle[at] { Some(InconclusiveReason::TooDeep) } else { own };
        known[at] = Some(conclude(&nodes[at], at >= first_cohort, own, first_cohort, &known));
    }
    for (flag, known) in flags.iter_mut().zip(&known) {
        flag.cost = known.map_or(u32::MAX, |known| known.cost);
        flag.fault = flag.fault.or(fault_of(known));
    }
    for (cohort, known) in cohorts.iter_mut().zip(known.iter().skip(first_cohort)) {
        if let Some(fault) = fault_of(known) {
            *cohort = Err(fault);
        }
    }
}

fn fault_of(known: &Option<Known>) -> Option<InconclusiveReason> {
    known.map_or(Some(InconclusiveReason::TooDeep), |known| known.fault)
}

fn conclude(
    node: &Node,
    is_cohort: bool,
    own: Option<InconclusiveReason>,
    first_cohort: usize,
    known: &[Option<Known>],
) -> Known {
    let mut fault = own;
    if fault.is_none() && is_cohort && node.has_unknown_cohort {
        fault = Some(InconclusiveReason::UnknownCohort);
    }
    let (mut depth, mut cost) = (node.depth, node.tests);
    for (needed, level) in &node.dependencies {
        let Some(needs) = known[*needed] else { continue };
        if is_cohort && *needed >= first_cohort {
            fault = fault.or(needs.fault);
        }
        // An evaluation stops at a fault, so it adds neither depth nor cost.
        if needs.fault.is_none() {
            depth = depth.max(level.saturating_add(needs.depth));
            cost = cost.saturating_add(needs.cost);
        }
    }
    if depth > MAX_DEPTH {
        fault = fault.or(Some(InconclusiveReason::TooDeep));
    }
    Known { depth, cost, fault }
}

/// The nodes in topological order, dependencies first. Nodes in a cycle come in any order.
fn order(nodes: &[Node], is_in_cycle: &[bool]) -> Vec<usize> {
    let open = |at: usize| nodes[at].dependencies.iter().filter(|(needed, _)| !is_in_cycle[*needed]).count();
    let mut missing: Vec<usize> = (0..nodes.len()).map(|at| if is_in_cycle[at] { 0 } else { open(at) }).collect();
    let mut order: Vec<usize> = (0..nodes.len()).filter(|at| missing[*at] == 0).collect();
    let mut next = 0;
    while let Some(&at) = order.get(next) {
        next += 1;
        if is_in_cycle[at] {
            continue;
        }
        for &waiting in nodes[at].dependents.iter().filter(|waiting| !is_in_cycle[**waiting]) {
            missing[waiting] -= 1;
            if missing[waiting] == 0 {
                order.push(waiting);
            }
        }
    }
    order
}

/// Whether each node is in a cycle or lies between two cycles: what is left after repeatedly removing nodes without
/// dependencies and nodes on which nothing depends.
fn find_cycles(nodes: &[Node]) -> Vec<bool> {
    let mut is_left = vec![true; nodes.len()];
    let mut needs: Vec<usize> = nodes.iter().map(|node| node.dependencies.len()).collect();
    let mut needed: Vec<usize> = nodes.iter().map(|node| node.dependents.len()).collect();
    let mut free: Vec<usize> = (0..nodes.len()).filter(|at| needs[*at] == 0 || needed[*at] == 0).collect();
    while let Some(at) = free.pop() {
        if !std::mem::replace(&mut is_left[at], false) {
            continue;
        }
        for &waiting in &nodes[at].dependents {
            needs[waiting] -= 1;
            if needs[waiting] == 0 {
                free.push(waiting);
            }
        }
        for &(other, _) in &nodes[at].dependencies {
            needed[other] -= 1;
            if needed[other] == 0 {
                free.push(other);
            }
        }
    }
    is_left
}

fn of_flag(flag: &Flag, first_cohort: usize) -> Node {
    let mut node = Node { depth: 1, tests: 1, ..Node::default() };
    if let Some(rules) = &flag.rules {
        let enrollment = match &rules.enrollment {
            Some(Enrollment::Condition(condition)) => Some(condition),
            _ => None,
        };
        for condition in rules.conditions.iter().chain(enrollment) {
            node.tests = node.tests.saturating_add(1);
            condition.tests.iter().for_each(|test| node.add(test, 1, first_cohort));
        }
    }
    node
}

impl Node {
    fn add_group(&mut self, group: &Group, level: u32, first_cohort: usize) {
        self.depth = self.depth.max(level);
        for (test, _) in &group.entries {
            match test {
                Test::Group(group) => self.add_group(group, level + 1, first_cohort),
                test => self.add(test, level, first_cohort),
            }
        }
    }

    fn add(&mut self, test: &Test, level: u32, first_cohort: usize) {
        self.tests = self.tests.saturating_add(1);
        match test {
            Test::Cohort { at: Some(at), .. } => self.dependencies.push((first_cohort + at, level)),
            Test::Cohort { at: None, .. } => self.has_unknown_cohort = true,
            Test::Flag { at: Some(at), .. } => self.dependencies.push((*at, level)),
            _ => {}
        }
    }
}
