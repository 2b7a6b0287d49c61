//! Many durations, and what is said of them.

use std::time::Instant;

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

    /// The duration below which that share of all lies.
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

    /// Median, p99, p99.9 and worst, as a table has them.
    pub(crate) fn line(&self) -> String {
        let of = |share| human(self.quantile(share));
        format!("median {}, p99 {}, p99.9 {}, worst {}", of(0.5), of(0.99), of(0.999), of(1.0))
    }
}

/// The spread of what several turns measured together.
pub(crate) fn together(turns: &[Vec<u64>]) -> Spread {
    Spread::of(turns.concat())
}

/// What one look at the clock costs here, in the same kind of loop as the measurements.
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

/// Nanoseconds in the unit that suits them.
pub(crate) fn human(nanos: u64) -> String {
    match nanos {
        0..10_000 => format!("{nanos} ns"),
        10_000..10_000_000 => format!("{:.1} us", nanos as f64 / 1e3),
        _ => format!("{:.1} ms", nanos as f64 / 1e6),
    }
}
