//! The cost of a local evaluation and of parsing definitions: `cargo bench --bench flags`.
//!
//! Benchmarks: `evaluated`, `parsed`. `benches/peers` compares with the official client.

#[path = "support/allocations.rs"]
mod allocations;
#[path = "support/flag_cases.rs"]
mod flag_cases;
mod support;

use std::hint::black_box;

use allocations::allocations;
use flag_cases::{Case, DISTINCT_ID, cases};
use posthog::feature_flags::{FlagContext, LocalFlags};
use support::spread::{Spread, human, in_batches};
use support::{row, wanted};

fn main() {
    support::heading();
    for case in cases() {
        if wanted("evaluated") {
            evaluated(&case);
        }
        if case.is_parsed && wanted("parsed") {
            parsed(&case);
        }
    }
}

fn evaluated(Case { name, definitions, keys, person, .. }: &Case) {
    let flags = LocalFlags::parse(definitions.as_bytes()).expect("these are definitions");
    let context = person
        .iter()
        .fold(FlagContext::new(DISTINCT_ID), |context, (name, value)| context.person_property(name, value));
    let evaluate = || {
        for key in keys {
            black_box(flags.evaluate(black_box(key), black_box(&context)).expect("all that is asked for is given"));
        }
    };
    let allocated = allocations(evaluate);
    print(name, &in_batches(evaluate), &format!("{allocated} allocations"), "0 allocations");
}

fn parsed(Case { name, definitions, .. }: &Case) {
    let parse = || LocalFlags::parse(black_box(definitions.as_bytes())).expect("these are definitions");
    let allocated = allocations(parse);
    let name = name.split_once(", ").map_or(*name, |(name, _)| name);
    let beside = format!("{allocated} allocations, {} KiB", definitions.len() / 1024);
    print(&format!("parsing: {name}"), &in_batches(parse), &beside, "");
}

fn print(what: &str, took: &Spread, beside: &str, target: &str) {
    let figure = format!("median {}, p99 {}, {beside}", human(took.median()), human(took.quantile(0.99)));
    row(what, &figure, target, "");
}
