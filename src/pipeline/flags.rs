//! Asking PostHog for flags: on the delivery's runtime, a bounded number of questions at once, each answered exactly once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::{Notice, Pipeline, lock};
use crate::flags::remote::{self, Reply};
use crate::flags::{Answer, Failure, Question};
use crate::sys::clock::Clock;
use crate::sys::limits::{FLAG_REQUESTS_AT_ONCE, FLAG_REQUESTS_MOST};
use crate::sys::reentry;

/// After something was told, nothing of its kind is for so long.
const QUIET: Duration = Duration::from_secs(60);
/// So many questions in a row without any answer, and PostHog is taken to be down: one alone may have been a hard one.
const MISSES: u32 = 3;
/// While PostHog is down, one question is put to it in so long.
const PAUSE: Duration = Duration::from_secs(5);

/// Told what came of a question, on the delivery's thread, or on the caller's if nobody can be asked any more.
pub(crate) type Done = Box<dyn FnOnce(Result<Answer, Failure>) + Send>;

impl Pipeline {
    /// Asks PostHog. `done` is called exactly once, at the latest after [`RemoteOptions::timeout`](crate::flags::RemoteOptions::timeout);
    /// a panic in it is caught. No call waits, and in a forked child nothing is asked.
    ///
    /// 64 requests are under way at once; further ones wait for their turn within their time, and beyond 1024 in all they fail at once.
    /// In an outage (three questions in a row without an answer) one question in five seconds is put, and the others get the failure of the
    /// last one at once: whoever asks for flags in each request that it serves must not wait in each of them. Those that insist are put.
    pub(crate) fn ask_flags(&self, question: Question, done: Done) {
        if self.is_forked() {
            return call(done, Err(Failure::Closed));
        }
        let now = self.options.clock.now();
        if let Some(failure) = self.flag_requests.outage.turns_away(&question, now, self.options.flags.timeout) {
            self.tell(&Err(failure.clone()));
            return call(done, Err(failure));
        }
        let Some(owed) = Owed::of(done, &self.flag_requests) else { return self.tell(&Err(Failure::Busy)) };
        let (http, clock) = (self.network.http(), self.options.clock.clone());
        let (options, report) = (self.options.flags.clone(), Arc::clone(&self.options.report));
        // Where it is not run it is dropped, and with it goes what is owed.
        self.spawn(async move {
            let requests = Arc::clone(&owed.requests);
            let most = options.timeout;
            let asked = async {
                // Never closed; if it were, there would be no turn to wait for.
                let _turn = requests.turns.acquire().await;
                remote::ask(&*http, &options, &question, &clock).await
            };
            let answer = tokio::select! {
                biased;
                answer = asked => answer,
                () = clock.sleep(most) => Err(Failure::Timeout),
            };
            if let Some(notice) = requests.noted(&answer, &clock) {
                report(notice);
            }
            requests.outage.learn(answer.as_ref().err(), clock.now());
            owed.answer(answer.map(|reply| reply.answer));
        });
    }

    fn tell(&self, answer: &Result<Reply, Failure>) {
        if let Some(notice) = self.flag_requests.noted(answer, &self.options.clock) {
            (self.options.report)(notice);
        }
    }
}

/// The requests of a pipeline.
#[derive(Debug)]
pub(super) struct Requests {
    /// One for each that may be under way.
    turns: Semaphore,
    /// Questions without an answer so far, those that wait for their turn included.
    pub(super) open: AtomicUsize,
    outage: Outage,
    unanswered: Told,
    unreadable: Told,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            turns: Semaphore::new(FLAG_REQUESTS_AT_ONCE),
            open: AtomicUsize::new(0),
            outage: Outage::default(),
            unanswered: Told::default(),
            unreadable: Told::default(),
        }
    }
}

impl Requests {
    /// What is to be told of an answer, if anything.
    fn noted(&self, answer: &Result<Reply, Failure>, clock: &Clock) -> Option<Notice> {
        match answer {
            Err(failure) => {
                let requests = self.unanswered.once_more(clock.now())?;
                Some(Notice::FlagsUnanswered { why: failure.to_string(), requests })
            }
            Ok(reply) if !reply.unreadable.is_empty() => {
                self.unreadable.once_more(clock.now())?;
                Some(Notice::FlagsUnreadable { keys: reply.unreadable.clone() })
            }
            Ok(_) => None,
        }
    }
}

/// Whether PostHog answers at all.
#[derive(Debug, Default)]
struct Outage(Mutex<Misses>);

#[derive(Debug, Default)]
struct Misses {
    /// Questions in a row that got no answer.
    count: u32,
    /// The failure of the last one, and until when it stands for further ones.
    last: Option<(Failure, Instant)>,
}

impl Outage {
    /// The failure that a question gets without being put. One that is put while PostHog is down has others wait for what comes of it.
    fn turns_away(&self, question: &Question, now: Instant, timeout: Duration) -> Option<Failure> {
        let mut misses = lock(&self.0);
        if misses.count < MISSES || question.insists {
            return None;
        }
        let (failure, until) = misses.last.as_mut()?;
        if now < *until {
            return Some(failure.clone());
        }
        *until = now.checked_add(timeout).unwrap_or(now);
        None
    }

    /// What came of a question. An answer that says no is one.
    fn learn(&self, failure: Option<&Failure>, now: Instant) {
        let mut misses = lock(&self.0);
        match failure {
            Some(failure @ (Failure::Timeout | Failure::Connection(_))) => {
                misses.count = misses.count.saturating_add(1);
                misses.last = Some((failure.clone(), now.checked_add(PAUSE).unwrap_or(now)));
            }
            // Of us, not of PostHog.
            Some(Failure::Busy | Failure::Reentrant | Failure::Closed) => {}
            _ => *misses = Misses::default(),
        }
    }
}

/// When something was last told, and how often it has happened since: each evaluation may bring the same.
#[derive(Debug, Default)]
struct Told(Mutex<Option<(Instant, u64)>>);

impl Told {
    /// It has happened once more. Answers for how many times it is to be told, if it is.
    fn once_more(&self, now: Instant) -> Option<u64> {
        let mut told = lock(&self.0);
        let times = match &mut *told {
            Some((at, held_back)) if now.saturating_duration_since(*at) < QUIET => {
                *held_back = held_back.saturating_add(1);
                return None;
            }
            Some((_, held_back)) => held_back.saturating_add(1),
            None => 1,
        };
        *told = Some((now, 0));
        Some(times)
    }
}

/// Somebody waits for an answer, and gets one whatever becomes of the task.
struct Owed {
    done: Option<Done>,
    requests: Arc<Requests>,
}

impl Owed {
    /// `None`: there are too many, and whoever asked has been told.
    fn of(done: Done, requests: &Arc<Requests>) -> Option<Self> {
        let owed = Self { done: Some(done), requests: Arc::clone(requests) };
        if requests.open.fetch_add(1, Ordering::AcqRel) < FLAG_REQUESTS_MOST {
            return Some(owed);
        }
        owed.answer(Err(Failure::Busy));
        None
    }

    fn answer(mut self, answer: Result<Answer, Failure>) {
        if let Some(done) = self.done.take() {
            call(done, answer);
        }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.requests.open.fetch_sub(1, Ordering::AcqRel);
        if let Some(done) = self.done.take() {
            call(done, Err(Failure::Closed));
        }
    }
}

/// Calls back; a panic there is not the runtime's.
fn call(done: Done, answer: Result<Answer, Failure>) {
    let _ = reentry::caught(|| done(answer));
}
