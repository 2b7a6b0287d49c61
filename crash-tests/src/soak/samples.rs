//! What a soak measures each second, and whether it stays flat.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::unistd::Pid;

use super::place::disk_use;

/// Between two samples.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// Its name and unit.
    pub name: &'static str,
    /// By how much the median of the last quarter may exceed that of the first: percent of it, and a constant.
    median: (u64, u64),
    /// The same for the maximum.
    most: (u64, u64),
}

/// All measures, in the order of a sample's values. The bounds leave room for what differs between two quarters because
/// different faults happen in them (an outage, a full disk, children that have left queues), and none for what grows
/// with time.
pub const MEASURES: [Measure; 4] = [
    Measure { name: "memory (RssAnon), KiB", median: (25, 4096), most: (50, 16_384) },
    Measure { name: "descriptors", median: (0, 8), most: (0, 24) },
    Measure { name: "threads", median: (0, 0), most: (0, 3) },
    Measure { name: "files of the queue, KiB", median: (25, 8192), most: (50, 16_384) },
];

/// One value for each measure.
pub(super) type Sample = [u64; MEASURES.len()];

/// Least, median and greatest value of a quarter of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    least: u64,
    median: u64,
    most: u64,
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} / {} / {}", self.least, self.median, self.most)
    }
}

impl Spread {
    fn of(mut values: Vec<u64>) -> Option<Self> {
        values.sort_unstable();
        let median = *values.get(values.len() / 2)?;
        Some(Self { least: *values.first()?, median, most: *values.last()? })
    }
}

/// One measure over a soak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course {
    /// What was measured.
    pub measure: Measure,
    /// In the first quarter of the time.
    pub first: Spread,
    /// In the last quarter.
    pub last: Spread,
}

impl Course {
    /// The greatest median and maximum that the last quarter may have.
    pub fn bounds(&self) -> (u64, u64) {
        let bound = |value: u64, (percent, plus): (u64, u64)| value + value * percent / 100 + plus;
        (bound(self.first.median, self.measure.median), bound(self.first.most, self.measure.most))
    }

    /// Whether it did not grow.
    pub fn is_flat(&self) -> bool {
        let (median, most) = self.bounds();
        self.last.median <= median && self.last.most <= most
    }
}

/// The course of each measure; empty with fewer than eight samples.
pub(super) fn courses(samples: &[Sample]) -> Vec<Course> {
    let quarter = samples.len() / 4;
    if quarter < 2 {
        return Vec::new();
    }
    let spread =
        |part: &[Sample], at: usize| Spread::of(part.iter().filter_map(|sample| sample.get(at)).copied().collect());
    let course = |(at, measure)| {
        let (first, last) =
            (spread(samples.get(..quarter)?, at)?, spread(samples.get(samples.len() - quarter..)?, at)?);
        Some(Course { measure, first, last })
    };
    MEASURES.into_iter().enumerate().filter_map(course).collect()
}

/// A thread that samples a process and the directory of its queue.
pub(super) struct Sampler {
    samples: Arc<Mutex<Vec<Sample>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    pub(super) fn start(process: Pid, dir: PathBuf) -> Self {
        let (samples, is_over) = (Arc::<Mutex<Vec<Sample>>>::default(), Arc::<AtomicBool>::default());
        let (into, ends) = (Arc::clone(&samples), Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            while !ends.load(Ordering::SeqCst) {
                if let Some(sample) = sample(process, &dir) {
                    into.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                }
                thread::sleep(INTERVAL);
            }
        });
        Self { samples, is_over, thread: Some(thread) }
    }

    pub(super) fn stop(mut self) -> Vec<Sample> {
        self.end();
        std::mem::take(&mut self.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn end(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.end();
    }
}

fn sample(process: Pid, dir: &Path) -> Option<Sample> {
    let proc = PathBuf::from(format!("/proc/{process}"));
    let status = fs::read_to_string(proc.join("status")).ok()?;
    let descriptors = fs::read_dir(proc.join("fd")).ok()?.count() as u64;
    Some([field(&status, "RssAnon:")?, descriptors, field(&status, "Threads:")?, disk_use(dir)])
}

/// The number in a line of `/proc/<pid>/status`.
fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A minute of samples: the value of the measure `at` is what `value` gives for the second, all others are 100.
    fn minute(at: usize, value: impl Fn(u64) -> u64) -> Vec<Course> {
        let sample = |second| {
            let mut sample = [100; MEASURES.len()];
            sample[at] = value(second);
            sample
        };
        courses(&(0..60).map(sample).collect::<Vec<_>>())
    }

    #[test]
    fn what_grows_with_time_is_not_flat_and_one_peak_is() {
        for at in 0..MEASURES.len() {
            assert!(minute(at, |_| 100).iter().all(Course::is_flat));
            assert!(minute(at, |second| if second == 50 { 102 } else { 100 }).iter().all(Course::is_flat));
            let grows = minute(at, |second| 100 + second * 1_000);
            assert!(grows.iter().enumerate().all(|(measure, course)| course.is_flat() == (measure != at)), "{grows:?}");
        }
        assert_eq!(minute(1, |second| second)[1].first, Spread { least: 0, median: 7, most: 14 });
        assert_eq!(minute(1, |second| second)[1].last, Spread { least: 45, median: 52, most: 59 });
    }

    #[test]
    fn a_run_of_a_few_seconds_has_no_course() {
        assert!(courses(&[[1; MEASURES.len()]; 7]).is_empty());
        assert_eq!(courses(&[[1; MEASURES.len()]; 8]).len(), MEASURES.len());
    }

    #[test]
    fn a_line_of_a_status_gives_its_number() {
        let status = "Name:\tvictim\nRssAnon:\t   1234 kB\nThreads:\t3\n";
        assert_eq!((field(status, "RssAnon:"), field(status, "Threads:")), (Some(1234), Some(3)));
        assert_eq!(field(status, "VmSwap:"), None);
    }
}
