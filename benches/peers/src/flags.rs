//! Local evaluation of flags by both libraries: the same definitions and person, in alternating rounds.

use std::collections::HashMap;
use std::hint::black_box;

use posthog::feature_flags::{FlagContext, LocalFlags, LocalValue};
use posthog_rs::{FlagCache, FlagValue, LocalEvaluationResponse, LocalEvaluator};
use serde_json::Value;

use crate::allocations::allocations;
use crate::flag_cases::{Case, DISTINCT_ID, cases};
use crate::spread::{Spread, batch, batch_size, human};

/// Rounds of each library.
const TURNS: usize = 300;

pub(crate) fn flags() {
    println!();
    println!("| what, median | posthog-rs 0.30 | ours | of its time |");
    println!("|---|---|---|---|");
    for case in cases() {
        one_by_one(&case);
        if case.keys.len() > 1 {
            all_at_once(&case);
        }
        if case.is_parsed {
            parsed(&case);
        }
    }
}

/// The person in the form that the peer expects.
struct Person {
    properties: HashMap<String, Value>,
    groups: HashMap<String, String>,
    group_properties: HashMap<String, HashMap<String, Value>>,
}

impl Person {
    fn of(case: &Case) -> Self {
        let properties = case.person.clone().into_iter().collect();
        Self { properties, groups: HashMap::new(), group_properties: HashMap::new() }
    }

    fn evaluate(&self, evaluator: &LocalEvaluator, key: &str) -> FlagValue {
        let Self { properties, groups, group_properties } = self;
        let value = evaluator.evaluate_flag(key, DISTINCT_ID, properties, groups, group_properties);
        value.expect("all that is asked for is given").expect("the flag is defined")
    }

    fn evaluate_all(&self, evaluator: &LocalEvaluator) -> HashMap<String, FlagValue> {
        let Self { properties, groups, group_properties } = self;
        let values = evaluator.evaluate_all_flags(DISTINCT_ID, properties, groups, group_properties);
        values.into_iter().map(|(key, value)| (key, value.expect("all that is asked for is given"))).collect()
    }
}

fn context(case: &Case) -> FlagContext {
    let context = FlagContext::new(DISTINCT_ID);
    case.person.iter().fold(context, |context, (name, value)| context.person_property(name, value))
}

fn theirs(case: &Case) -> LocalEvaluator {
    let response: LocalEvaluationResponse = serde_json::from_str(&case.definitions).expect("these are definitions");
    let cache = FlagCache::new();
    cache.update(response);
    LocalEvaluator::new(cache)
}

fn ours(case: &Case) -> LocalFlags {
    LocalFlags::parse(case.definitions.as_bytes()).expect("these are definitions")
}

fn evaluate<'f>(flags: &'f LocalFlags, key: &str, context: &FlagContext) -> LocalValue<'f> {
    flags.evaluate(key, context).expect("all that is asked for is given")
}

fn agree(key: &str, ours: LocalValue<'_>, theirs: &FlagValue) {
    let is_same = match (ours, theirs) {
        (LocalValue::Boolean(ours), FlagValue::Boolean(theirs)) => ours == *theirs,
        (LocalValue::Variant(ours), FlagValue::String(theirs)) => ours == theirs,
        _ => false,
    };
    assert!(is_same, "{key}: {ours:?} here, {theirs:?} there");
}

fn one_by_one(case: &Case) {
    let (flags, context, evaluator, person) = (ours(case), context(case), theirs(case), Person::of(case));
    for key in &case.keys {
        agree(key, evaluate(&flags, key, &context), &person.evaluate(&evaluator, key));
    }
    let theirs = || {
        for key in &case.keys {
            black_box(person.evaluate(&evaluator, black_box(key)));
        }
    };
    let ours = || {
        for key in &case.keys {
            black_box(evaluate(&flags, black_box(key), black_box(&context)));
        }
    };
    in_turns(case.name, theirs, ours);
}

/// Evaluates all flags into a map by key.
fn all_at_once(case: &Case) {
    let (flags, context, evaluator, person) = (ours(case), context(case), theirs(case), Person::of(case));
    let of_ours = || -> HashMap<&str, LocalValue<'_>> {
        flags.keys().map(|key| (key, evaluate(&flags, key, black_box(&context)))).collect()
    };
    let values = person.evaluate_all(&evaluator);
    assert_eq!(values.len(), case.keys.len());
    of_ours().iter().for_each(|(key, value)| agree(key, *value, &values[*key]));
    in_turns(&format!("{}, into a map", case.name), || person.evaluate_all(&evaluator), of_ours);
}

fn parsed(case: &Case) {
    let name = case.name.split_once(", ").map_or(case.name, |(name, _)| name);
    in_turns(&format!("parsing: {name}"), || theirs(case), || ours(case));
}

fn in_turns<T, O>(what: &str, mut theirs: impl FnMut() -> T, mut ours: impl FnMut() -> O) {
    let allocated = (allocations(&mut theirs), allocations(&mut ours));
    let sizes = (batch_size(&mut theirs), batch_size(&mut ours));
    let (mut their_turns, mut our_turns) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        their_turns.push(batch(sizes.0, &mut theirs));
        our_turns.push(batch(sizes.1, &mut ours));
    }
    let (their_median, our_median) = (Spread::of(their_turns).median(), Spread::of(our_turns).median());
    let side = |nanos, allocations| format!("{}, {allocations} allocations", human(nanos));
    let ratio = our_median as f64 / their_median as f64;
    let (theirs, ours) = (side(their_median, allocated.0), side(our_median, allocated.1));
    println!("| {what} | {theirs} | {ours} | {:.2} % |", ratio * 100.0);
}
