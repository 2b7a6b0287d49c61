//! The distribution of many durations.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Durations in nanoseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spread {
    sorted: Vec<u64>,
}

impl Spread {
    pub(crate) fn of(mut nanos: Vec<u64>) -> Self {
        nanos.sort_unstable();
        Self { sorted: nanos }
    }

    /// The quantile of `share`.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        let last = self.sorted.len().saturating_sub(1);
        self.sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(0)
    }

    pub(crate) fn median(&self) -> u64 {
        self.quantile(0.5)
    }

    pub(crate) fn mean(&self) -> f64 {
        self.sorted.iter().sum::<u64>() as f64 / self.sorted.len().max(1) as f64
    }

    /// Median, p99, p99.9 and worst, as text for a table.
    pub(crate) fn line(&self) -> String {
        let of = |share| human(self.quantile(share));
        format!("median {}, p99 {}, p99.9 {}, worst {}", of(0.5), of(0.99), of(0.999), of(1.0))
    }
}

/// The distribution of several rounds together.
pub(crate) fn together(turns: &[Vec<u64>]) -> Spread {
    Spread::of(turns.concat())
}

/// The cost of reading the clock, in a loop like those of the measurements.
pub(crate) fn clock_cost() -> u64 {
    let mut last = Instant::now();
    let looks = (0..100_000).map(|_| {
        let now = Instant::now();
        let passed = now.duration_since(last).as_nanos() as u64;
        last = now;
        passed
    });
    Spread::of(looks.collect()).median()
}

/// Nanoseconds in a suitable unit.
pub(crate) fn human(nanos: u64) -> String {
    match nanos {
        0..10_000 => format!("{nanos} ns"),
        10_000..10_000_000 => format!("{:.1} us", nanos as f64 / 1e3),
        _ => format!("{:.1} ms", nanos as f64 / 1e6),
    }
}

/// Duration of a batch, long enough that reading the clock does not matter.
const BATCH: Duration = Duration::from_micros(100);
const BATCHES: usize = 1_000;

/// The distribution of the means of batches.
pub(crate) fn in_batches<R>(mut one: impl FnMut() -> R) -> Spread {
    let size = batch_size(&mut one);
    Spread::of((0..BATCHES).map(|_| batch(size, &mut one)).collect())
}

/// The number of calls that take as long as a batch.
pub(crate) fn batch_size<R>(mut one: impl FnMut() -> R) -> u32 {
    let start = Instant::now();
    let mut count = 0_u32;
    while start.elapsed() < 10 * BATCH {
        black_box(one());
        count += 1;
    }
    (count / 10).max(1)
}

/// Mean nanoseconds per call.
pub(crate) fn batch<R>(size: u32, mut one: impl FnMut() -> R) -> u64 {
    let start = Instant::now();
    for _ in 0..size {
        black_box(one());
    }
    (start.elapsed().as_nanos() / u128::from(size)) as u64
}
