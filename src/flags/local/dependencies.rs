//! What flags and cohorts depend on, followed to the end before anybody is evaluated.

use super::definitions::{Cohort, Dependency, Enrollment, Entry, Flag, Group, State, Test};
use crate::flags::InconclusiveReason;

/// Tests within tests, over all that is depended on: as deep as an evaluation may recurse. PostHog's own libraries stop here, too.
const DEEPEST: u32 = 100;

/// A flag or a cohort.
#[derive(Default)]
struct Node {
    /// The node, and how deep the test lies that depends on it.
    needs: Vec<(usize, u32)>,
    needed_by: Vec<usize>,
    /// How deep its own tests are nested.
    depth: u32,
    tests: u32,
    /// It needs a cohort that is not there.
    lacks_cohort: bool,
}

/// What is known of a node once all that it needs is known.
#[derive(Clone, Copy)]
struct Known {
    depth: u32,
    walk: u32,
    fault: Option<InconclusiveReason>,
}

/// Gives each flag and each cohort its fault, if it has one, and each flag the length of its walk.
pub(super) fn follow(flags: &mut [Flag], cohorts: &mut [Cohort]) {
    let first_cohort = flags.len();
    let mut nodes: Vec<Node> = Vec::with_capacity(flags.len() + cohorts.len());
    nodes.extend(flags.iter().map(|flag| of_flag(flag, first_cohort)));
    nodes.extend(cohorts.iter().map(|cohort| {
        let mut node = Node::default();
        node.add_group(&cohort.members, 1, first_cohort);
        node
    }));
    for at in 0..nodes.len() {
        for need in 0..nodes[at].needs.len() {
            let (needed, _) = nodes[at].needs[need];
            nodes[needed].needed_by.push(at);
        }
    }

    let is_in_circle = circles(&nodes);
    let mut known: Vec<Option<Known>> = vec![None; nodes.len()];
    for at in order(&nodes, &is_in_circle) {
        let own = at.checked_sub(first_cohort).and_then(|cohort| cohorts[cohort].fault);
        let own = if is_in_circle[at] { Some(InconclusiveReason::TooDeep) } else { own };
        known[at] = Some(conclude(&nodes[at], at >= first_cohort, own, first_cohort, &known));
    }
    for (flag, known) in flags.iter_mut().zip(&known) {
        flag.walk = known.map_or(u32::MAX, |known| known.walk);
        flag.fault = known.map_or(Some(InconclusiveReason::TooDeep), |known| known.fault);
    }
    for (cohort, known) in cohorts.iter_mut().zip(known.iter().skip(first_cohort)) {
        cohort.fault = known.map_or(Some(InconclusiveReason::TooDeep), |known| known.fault);
    }
}

fn conclude(
    node: &Node,
    is_cohort: bool,
    own: Option<InconclusiveReason>,
    first_cohort: usize,
    known: &[Option<Known>],
) -> Known {
    let mut fault = own;
    if fault.is_none() && is_cohort && node.lacks_cohort {
        fault = Some(InconclusiveReason::UnknownCohort);
    }
    let (mut depth, mut walk) = (node.depth, node.tests);
    for (needed, level) in &node.needs {
        let Some(needs) = known[*needed] else { continue };
        if is_cohort && *needed >= first_cohort {
            fault = fault.or(needs.fault);
        }
        // An evaluation stops at a fault.
        if needs.fault.is_none() {
            depth = depth.max(level.saturating_add(needs.depth));
            walk = walk.saturating_add(needs.walk);
        }
    }
    if depth > DEEPEST {
        fault = fault.or(Some(InconclusiveReason::TooDeep));
    }
    Known { depth, walk, fault }
}

/// Nodes of which all that they need comes first, but for what is in a circle.
fn order(nodes: &[Node], is_in_circle: &[bool]) -> Vec<usize> {
    let open = |at: usize| nodes[at].needs.iter().filter(|(needed, _)| !is_in_circle[*needed]).count();
    let mut missing: Vec<usize> = (0..nodes.len()).map(|at| if is_in_circle[at] { 0 } else { open(at) }).collect();
    let mut order: Vec<usize> = (0..nodes.len()).filter(|at| missing[*at] == 0).collect();
    let mut next = 0;
    while let Some(&at) = order.get(next) {
        next += 1;
        if is_in_circle[at] {
            continue;
        }
        for &waiting in nodes[at].needed_by.iter().filter(|waiting| !is_in_circle[**waiting]) {
            missing[waiting] -= 1;
            if missing[waiting] == 0 {
                order.push(waiting);
            }
        }
    }
    order
}

/// What is left when those are taken away, again and again, that need nothing, and those that nothing needs: the circles, and what lies
/// between two of them.
fn circles(nodes: &[Node]) -> Vec<bool> {
    let mut is_left = vec![true; nodes.len()];
    let mut needs: Vec<usize> = nodes.iter().map(|node| node.needs.len()).collect();
    let mut needed: Vec<usize> = nodes.iter().map(|node| node.needed_by.len()).collect();
    let mut free: Vec<usize> = (0..nodes.len()).filter(|at| needs[*at] == 0 || needed[*at] == 0).collect();
    while let Some(at) = free.pop() {
        if !std::mem::replace(&mut is_left[at], false) {
            continue;
        }
        for &waiting in &nodes[at].needed_by {
            needs[waiting] -= 1;
            if needs[waiting] == 0 {
                free.push(waiting);
            }
        }
        for &(other, _) in &nodes[at].needs {
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
    if let State::Active(rules) = &flag.state {
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
        for entry in &group.entries {
            match entry {
                Entry::Group(group) => self.add_group(group, level + 1, first_cohort),
                Entry::Test { test, .. } => self.add(test, level, first_cohort),
            }
        }
    }

    fn add(&mut self, test: &Test, level: u32, first_cohort: usize) {
        self.tests = self.tests.saturating_add(1);
        match test {
            Test::Cohort { at: Some(at), .. } => self.needs.push((first_cohort + at, level)),
            Test::Cohort { at: None, .. } => self.lacks_cohort = true,
            Test::Flag(Dependency { at: Some(at), .. }) => self.needs.push((*at, level)),
            _ => {}
        }
    }
}
